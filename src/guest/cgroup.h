// Child control groups of the machine's own, for killing all of a session at once. Never sets a limit.
#pragma once
#include <string>

namespace agentmachine {

// No controller is enabled below the machine's root group, so the rule against processes in inner nodes
// (cgroups(7)) does not bind and PID 1 stays where systemd-nspawn put it.

/// Makes a child group. Empty if /sys/fs/cgroup is no cgroup2 file system or can't be written.
std::string createCgroup(const std::string& name);

/// Moves the calling process. Throws Error.
void enterCgroup(const std::string& path);

/// Sends SIGKILL to all processes in the group, forks in flight included (cgroups(7), cgroup.kill). Throws
/// Error.
void killCgroup(const std::string& path);

/// False if a process in it has still to end.
bool removeCgroup(const std::string& path);

}  // namespace agentmachine
