// What a machine may take of the kernel's objects that it would else share with the host or with other
// machines.
#pragma once
#include <sys/types.h>

namespace agentmachine {

/// Terminals: all machines of a host share kernel.pty.max. Generous for an agent's shells.
constexpr unsigned machineTerminals = 64;
/// Inotify's instances and watches count for root of the host, too, who made the user namespace
/// (user_namespaces(7), ucounts); a machine gets one of so many parts of what root may have.
constexpr unsigned inotifyParts = 4;

/// Limits the running machine whose PID 1 is `leader`, who makes no new namespace from now on. Throws Error.
void limitKernelObjects(pid_t leader);

}  // namespace agentmachine
