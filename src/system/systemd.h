// systemd's manager over D-Bus: start, stop, look at and make units. Errors of D-Bus become Error here.
#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sdbus {
class IConnection;
}

namespace agentmachine {

class BusLoop;

/// "257.13-1~deb13u1" is 257 and 13, and so is "257.13"; "258~rc1" is 258 and 0.
struct SystemdVersion {
  int major = 0, minor = 0;
  auto operator<=>(const SystemdVersion&) const = default;
  static SystemdVersion parse(std::string_view text);
};

/// Throws Error unless this version, as systemd tells it, is one that agentmachine works with.
void checkSystemdVersion(const std::string& version);

struct UnitState {
  std::string name;
  std::string active;  ///< ActiveState: active, activating, deactivating, inactive, failed
  std::string sub;     ///< SubState
};

/// One connection to the system bus, and org.freedesktop.systemd1 on it.
class Systemd {
 public:
  /// Connects. Throws Error if there is no system bus, or if systemd is older than this program was built
  /// for.
  Systemd();
  ~Systemd();
  Systemd(const Systemd&) = delete;
  Systemd& operator=(const Systemd&) = delete;

  /// Enqueues a start job and waits for it. Throws Error if the job's result is not "done", or if it goes on
  /// after `longest`.
  void start(const std::string& unit, std::optional<std::chrono::seconds> longest = std::nullopt);
  /// As start, but does not wait.
  void enqueueStart(const std::string& unit);
  /// As start, for a stop; a unit that is not loaded is stopped already. After `timeout` its main
  /// process gets SIGKILL, and what nspawn runs in the machine; its own ExecStopPost= doesn't.
  void stop(const std::string& unit, std::optional<std::chrono::seconds> timeout = std::nullopt);
  /// As stop, and no start takes the job out of the queue: one that is asked for meanwhile is refused
  /// ("replace-irreversibly", org.freedesktop.systemd1(5)).
  void stopForSure(const std::string& unit);
  /// Sends a service's main process a signal; one that has none is left alone.
  void signal(const std::string& unit, int number);
  /// Forgets that a unit failed, so that it counts as inactive.
  void resetFailed(const std::string& unit);

  /// Has systemd read all units' files again (daemon-reload) if it has this one loaded without `dropIn`, or
  /// with files that have changed since.
  void reloadUnit(const std::string& unit, const std::string& dropIn);
  /// Whether reloadUnit would.
  bool needsReload(const std::string& unit, const std::string& dropIn);

  /// Units whose name matches the pattern (glob), loaded ones only. One call.
  std::vector<UnitState> listUnits(const std::string& pattern);
  /// ActiveState of one unit; "inactive" if it is not loaded.
  std::string activeState(const std::string& unit);

  /// How often systemd has restarted a service by itself since somebody asked for its start (NRestarts).
  std::uint32_t restarts(const std::string& unit);
  /// The unit's control group, below /sys/fs/cgroup: "/system.slice/…"; "" if it has none.
  std::string controlGroup(const std::string& unit);
  /// What is being done to the unit: "start", "stop", "restart", …; "" if nothing is.
  std::string job(const std::string& unit);
  /// Whether the host is going down.
  bool isStopping();

  /// Makes a transient timer that starts the service of its name at each of these times on CLOCK_MONOTONIC,
  /// at once for one that has passed, and goes after the last. A daemon-reload doesn't move it (systemd issue
  /// 31914: one with OnActiveSec= would start again). It ends when it is stopped; one of that name that is
  /// there is replaced.
  void startTimer(const std::string& timer, const std::string& description,
                  const std::vector<std::chrono::microseconds>& times);

  /// Makes a transient timer that starts the service of its name `interval` from now, and again so long after
  /// each of its ends. It ends when it is stopped; one of that name that is there is replaced.
  void startRepeatingTimer(const std::string& timer, const std::string& description,
                           std::chrono::microseconds interval);

  /// Makes a transient path unit that starts the service of its name whenever `file` was closed after
  /// writing, replaced, removed or made. It ends when it is stopped; one of that name that is there is
  /// replaced.
  void startWatch(const std::string& path, const std::string& description, const std::string& file);

  /// For the other classes of system/ that talk to the same bus.
  [[nodiscard]] sdbus::IConnection& bus() { return *bus_; }

 private:
  void runJob(const std::string& method, const std::string& unit, const std::string& mode = "replace",
              std::optional<std::chrono::seconds> killAfter = std::nullopt,
              std::optional<std::chrono::seconds> longest = std::nullopt);
  void kill(const std::string& unit);
  std::unique_ptr<sdbus::IConnection> bus_;
  std::unique_ptr<BusLoop> loop_;
};

}  // namespace agentmachine
