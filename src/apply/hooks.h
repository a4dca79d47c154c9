// What the machine's unit runs around nspawn, so that a machine is the same however it was started.
#pragma once
#include <string>

#include "plan/machine.h"
#include "system/run_record.h"
#include "system/systemd.h"

namespace agentmachine {

/// ExecStartPre=: checks every guard, hands over the key, to the broker or the agent, and the server's
/// password, starts the TTL, unless this is an automatic restart: then what is left of it goes on.
/// `invocation` is systemd's $INVOCATION_ID. Throws Error that names the guard that is missing: the machine
/// then does not start.
void prepareMachine(const Settings& settings, const Machine& known, const std::string& invocation,
                    Systemd& systemd);

/// ExecStartPost=: connects the running machine to the bridge.
void connectMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// The rest of ExecStartPost=, for a machine that was given another image: waits until its payload is ready,
/// and keeps the image then. That is, with `server`, when opencode listens, else when it has gone on for some
/// seconds. Throws Error if it doesn't get ready in time; releaseMachine then goes back to the image before.
void proveImage(const Settings& settings, const Machine& machine, bool server, Systemd& systemd);

/// ExecStopPost=: takes back what prepareMachine and connectMachine gave, notes how the run ended (`end` has
/// what systemd says of it, the rest is found out here), and has the workspace synced. What fails is logged,
/// and the rest done.
void releaseMachine(const Settings& settings, const Machine& machine, EndRecord end);

/// The same where card or settings can't be read: takes back what prepareMachine noted that it gives.
void releaseByRecord(const AgentId& id, EndRecord end);

/// Of agentmachine-sync@.service, which releaseMachine starts: has what the machine wrote to its workspace on
/// disk. A process of its own, for nothing ends one that waits for a disk. Throws Error.
void syncWorkspace(const Machine& machine);

/// Whether the machine runs, and lacks something that prepareMachine gives by now: an older program started
/// it, before the package was replaced.
bool isOfOlderProgram(const Settings& settings, const Machine& machine);

/// Gives it that. Does nothing if it doesn't run. Throws Error.
void adoptRun(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Both for all machines, before the proxy asks the helper of this program about them. What fails is logged.
void adoptRuns(const Settings& settings);

/// Of agentmachine-workspace@.service: mounts the image that holds a workspace.
void mountWorkspace(const Settings& settings, const AbsolutePath& workspace);

}  // namespace agentmachine
