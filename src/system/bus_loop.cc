#include "system/bus_loop.h"

#include <csignal>
#include <utility>

#include <sdbus-c++/sdbus-c++.h>

namespace agentmachine {

BusLoop::BusLoop(sdbus::IConnection& connection, std::function<void()> broken) : connection_(connection) {
  // Signals are for the thread that waits for them; this one would lose a SIGWINCH.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this, tell = std::move(broken)] {
    try {
      connection_.enterEventLoop();
    } catch (const sdbus::Error&) {
      broken_ = true;
      tell();
    }
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

BusLoop::~BusLoop() {
  connection_.leaveEventLoop();
  thread_.join();
}

}  // namespace agentmachine
