// What the machine's unit runs around nspawn, so that a machine is the same however it was started.
#pragma once
#include <string>

#include "plan/machine.h"
#include "system/systemd.h"

namespace agentmachine {

/// ExecStartPre=: checks every guard, hands the key to the proxy and the password to the machine, starts the
/// TTL. Throws Error that names the guard that is missing: the machine then does not start.
void prepareMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// ExecStartPost=: connects the running machine to the bridge.
void connectMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// ExecStopPost=: takes back what the two above gave, and notes how the run ended. `result` and `status` are
/// systemd's $SERVICE_RESULT and $EXIT_STATUS.
void releaseMachine(const Settings& settings, const Machine& machine, const std::string& result,
                    const std::string& status);

/// Of agentmachine-key@.service, which is started when the key file changes: delivers the key again if the
/// machine runs. Throws Error if the key is bad: then the machine has none.
void renewKey(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Of agentmachine-expire@.service, which the TTL's timer starts: stops the machine and notes why.
void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Of agentmachine-workspace@.service: mounts the image that holds a workspace.
void mountWorkspace(const Settings& settings, const AbsolutePath& workspace);

}  // namespace agentmachine
