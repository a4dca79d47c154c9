// The end of a machine's time.
#pragma once
#include "plan/machine.h"
#include "system/run_record.h"
#include "system/systemd.h"

namespace agentmachine {

/// Has the timer and what the agent is told follow the record's deadline. The caller holds lockRun.
void startTtl(const Settings& settings, const Machine& machine, const RunRecord& record, Systemd& systemd);

/// Of agentmachine-expire@.service, which the TTL's timer starts: warns shortly before the end, at the end
/// stops the machine and notes why.
void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// The same where card or settings can't be read: warns nobody, but stops the machine if its time is up.
/// Returns false if that is still to come.
bool expireByRecord(const AgentId& id, Systemd& systemd);

}  // namespace agentmachine
