// The event loop of a D-Bus connection.
#pragma once
#include <atomic>
#include <functional>
#include <thread>

namespace sdbus {
class IConnection;
}

namespace agentmachine {

/// Serves a connection in a thread of its own, as sdbus::IConnection::enterEventLoopAsync does, whose thread
/// takes the whole program along when the other side goes away.
class BusLoop {
 public:
  /// `connection` must outlive this. `broken` is called in that thread, once, if the connection breaks.
  explicit BusLoop(sdbus::IConnection& connection, std::function<void()> broken = [] {});
  ~BusLoop();
  BusLoop(const BusLoop&) = delete;
  BusLoop& operator=(const BusLoop&) = delete;

  /// Whether the connection broke: nothing comes by it any more.
  [[nodiscard]] bool isBroken() const { return broken_; }

 private:
  sdbus::IConnection& connection_;
  std::atomic<bool> broken_ = false;
  std::thread thread_;
};

}  // namespace agentmachine
