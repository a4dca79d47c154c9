// Runs a command in a machine through its PID 1, which answers on the machine's own system bus.
#pragma once
#include <string>
#include <vector>

#include "system/machined.h"
#include "util/error.h"

namespace agentmachine {

/// The machine's PID 1 can't be reached, or ended before the command did.
struct MachineGone : Error {
  using Error::Error;
};

struct GuestCommand {
  std::string user;  ///< empty: the payload's user, `agent`
  std::vector<std::string> argv;
  std::vector<std::string> environment;  ///< NAME=VALUE, besides the machine's own
  std::string directory;                 ///< empty: the workspace
};

/// Runs the command and relays this process's standard input, output and error to it through fresh pipes, so
/// that none of the caller's descriptors enters the machine. Returns its exit status, 128 + signal if one
/// killed it. If this process dies, the command is killed. Throws MachineGone, or Error if the command is
/// refused.
int execInMachine(const std::string& machine, const GuestCommand& command);

/// The same on a new terminal of the machine; ours is in raw mode meanwhile and its size is followed.
int execOnTerminal(const std::string& machine, GuestCommand command, Machined& machined);

}  // namespace agentmachine
