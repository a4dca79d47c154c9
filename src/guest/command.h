// A command that someone wants to run in the machine, and how it is read from a D-Bus call. Runs nothing.
#pragma once
#include <array>
#include <string>
#include <vector>

#include <dbus/dbus.h>

#include "util/fd.h"

namespace agentmachine {

struct Command {
  std::string path;  ///< looked up in the command's own PATH if it has no '/'
  std::vector<std::string> argv;
  std::vector<std::string> environment;  ///< NAME=VALUE, in addition to the machine's
  std::string user;                      ///< as it was asked for; empty: the payload's
  std::string directory;      ///< "~" is the user's home; a '-' before it: "/" if it can't be entered
  std::string terminal;       ///< /dev/pts/N, to be the controlling terminal; or none, and
  std::array<Fd, 3> streams;  ///< standard input, output and error; /dev/null where there is none
};

/// org.freedesktop.systemd1.Manager.StartTransientUnit, as far as `machinectl shell` needs it; properties
/// that say nothing to us are passed over. Throws Error, in words for the caller, if nothing sensible is
/// asked for.
struct TransientUnit {
  static constexpr const char* signature = "ssa(sv)a(sa(sv))";
  std::string name;
  Command command;
};
TransientUnit readTransientUnit(DBusMessage* call);

/// org.agentmachine.Init1.Exec(s user, as argv, as environment, s directory, s terminal, ah streams). Throws
/// Error.
inline constexpr const char* execSignature = "sasasssah";
Command readExec(DBusMessage* call);

}  // namespace agentmachine
