// Starts one command as a session of its own that has no privilege left. Never waits for it.
#pragma once
#include <string>

#include <sys/types.h>

#include "guest/command.h"
#include "guest/environment.h"
#include "guest/user.h"

namespace agentmachine {

/// Forks. The child joins `cgroup` (unless empty), leads a new session, has no capability and can get none,
/// only the system calls of filter.h, and runs the command; if it can't, it says why on its standard error
/// and ends with status 127 (not found) or 126. Throws Error if there is no process to be had.
pid_t spawn(const Command& command, const User& user, const Environment& environment,
            const std::string& cgroup);

}  // namespace agentmachine
