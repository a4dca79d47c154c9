// What the machine's unit runs around nspawn, so that a machine is the same however it was started.
#pragma once
#include <chrono>
#include <optional>
#include <string>

#include "plan/machine.h"
#include "system/run_record.h"
#include "system/systemd.h"
#include "util/lock.h"

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

/// Of agentmachine-key@.service, which is started when the key file changes: delivers the key again if the
/// machine runs. Throws Error if the key is bad: then the machine has none.
void renewKey(const Settings& settings, const Machine& machine, Systemd& systemd);

/// The same where card or settings can't be read: then the machine has no key.
void takeKeyBackByRecord(const AgentId& id);

/// Has the key of a running machine follow its card, which has changed. Does nothing if it doesn't run.
/// Throws Error if the key is bad: then the machine has none.
void changeKey(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Whether the machine runs, and lacks something that prepareMachine gives by now: an older program started
/// it, before the package was replaced.
bool isOfOlderProgram(const Settings& settings, const Machine& machine);

/// Gives it that. Does nothing if it doesn't run. Throws Error.
void adoptRun(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Both for all machines, before the proxy asks the helper of this program about them. What fails is logged.
void adoptRuns(const Settings& settings);

/// Held while the record of the present run is changed: short.
FileLock lockRun(const Settings& settings, const Machine& machine);

/// Of a machine that is removed: the files of the locks that its hooks take.
void removeRunLocks(const Settings& settings, const Machine& machine);

/// Has the timer and what the agent is told follow the record's deadline. The caller holds lockRun.
void startTtl(const Settings& settings, const Machine& machine, const RunRecord& record, Systemd& systemd);

/// Of agentmachine-expire@.service, which the TTL's timer starts: warns shortly before the end, at the end
/// stops the machine and notes why.
void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// The same where card or settings can't be read: warns nobody, but stops the machine if its time is up.
/// Returns false if that is still to come.
bool expireByRecord(const AgentId& id, Systemd& systemd);

/// Stops the machine, and has the end of its run say why. After `timeout` (systemd's own if absent) all of it
/// is killed. Does nothing if it does not run.
void endRun(const Settings& settings, const Machine& machine, Systemd& systemd, const StopReason& reason,
            std::optional<std::chrono::seconds> timeout = std::nullopt);

/// Of agentmachine-workspace@.service: mounts the image that holds a workspace.
void mountWorkspace(const Settings& settings, const AbsolutePath& workspace);

}  // namespace agentmachine
