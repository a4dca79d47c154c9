// systemd-machined over D-Bus: which machines run, and a terminal in one of them.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "util/fd.h"

namespace sdbus {
class IConnection;
}

namespace agentmachine {

/// A pseudo terminal of a machine.
struct MachineTerminal {
  Fd master;
  std::string path;  ///< of the other side, inside the machine: "/dev/pts/N"
};

class Machined {
 public:
  /// Uses the caller's connection, which must outlive this object.
  explicit Machined(sdbus::IConnection& bus) : bus_(bus) {}

  /// Names of all registered machines. One call.
  std::vector<std::string> list();
  /// The machine's PID 1 as the host numbers it. Throws Error if machined doesn't know the machine.
  pid_t leader(const std::string& machine);
  /// Has machined forget the machine, if it is `unit`'s. machined keeps the machine of an nspawn that was
  /// killed for as long as systemd tries to start its unit again, and refuses the name until then. Throws
  /// Error.
  void forget(const std::string& machine, const std::string& unit);
  /// The machine that runs and in which this user of the host is one of its own, if any is. Throws Error.
  std::optional<std::string> machineOfUser(uid_t user);
  /// A new terminal inside the machine (OpenMachinePTY).
  MachineTerminal openTerminal(const std::string& machine);

 private:
  sdbus::IConnection& bus_;
};

}  // namespace agentmachine
