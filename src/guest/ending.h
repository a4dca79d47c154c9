// How a command ended: its wait status in the forms that people and systemd read. Pure: no I/O.
#pragma once
#include <string>

namespace agentmachine {

struct Ending {
  int code;       ///< exit status, or the signal's number
  bool signaled;  ///< killed by a signal
};

/// From a status that waitpid(2) returned for a process that has ended.
Ending endingOf(int waitStatus);

/// What PID 1 exits with: the status, or 128 + signal. Never 133, by which a machine asks systemd-nspawn to
/// be booted again (systemd-nspawn's source, EXIT_FORCE_RESTART): that becomes 1.
int exitCodeOf(const Ending& ending);

/// "exited with status 7" or "killed by signal 11 (SEGV)".
std::string describe(const Ending& ending);

}  // namespace agentmachine
