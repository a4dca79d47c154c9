// Tells the machine's manager on the host how PID 1 is doing, by the protocol of sd_notify(3).
#pragma once
#include <string>

namespace agentmachine {

/// Sends lines of "NAME=VALUE" to $NOTIFY_SOCKET; nothing to do without it. A manager that does not listen is
/// no error.
void notifyManager(const std::string& state);

}  // namespace agentmachine
