// The key of a running machine: where the broker, or the agent, finds it, and that it follows its file.
#pragma once
#include "plan/machine.h"
#include "system/systemd.h"

namespace agentmachine {

/// Of a machine that starts: has the key's file watched, and hands the key over, to the broker or to the
/// agent, as the card says. Throws Error if the key is bad: then the machine has none.
void giveKey(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Of a machine that ended. Throws Error.
void takeKeyBack(const Settings& settings, const MachineName& machine, const MachinePaths& paths);

/// Has the key of a running machine follow its card, which has changed. Does nothing if it doesn't run.
/// Throws Error if the key is bad: then the machine has none.
void changeKey(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Of agentmachine-key@.service, which is started when the key file changes: delivers the key again if the
/// machine runs. Throws Error if the key is bad: then the machine has none.
void renewKey(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Of the same unit where card or settings can't be read: then the machine has no key.
void takeKeyBackByRecord(const AgentId& id);

/// Whether the broker has the key as this program hands it over, or no key.
bool isDelivered(const Settings& settings, const Machine& machine);

/// Of a machine that is removed: the file of the lock that the functions above take.
void removeKeyLock(const Settings& settings, const Machine& machine);

}  // namespace agentmachine
