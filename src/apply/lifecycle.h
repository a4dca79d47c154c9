// Create, start, stop and remove machines: each may be run again, and finishes what a killed one began.
#pragma once
#include <chrono>
#include <functional>
#include <optional>

#include "plan/machine.h"
#include "system/systemd.h"

namespace agentmachine {

/// Makes a machine of the card, or brings one that exists to what the card says now. What it writes for a
/// running one counts at once for the proxy's policy and from the next start for the rest. If the policy is
/// tighter than before, the machine's open connections to the proxy are cut.
Machine createMachine(const Settings& settings, const Card& card, Systemd& systemd);

/// Changes the hosts of the machine's card by `change`, for the proxy too, and cuts what is open if that
/// allows less than before. Returns the hosts there are then.
std::vector<HostPattern> changeHosts(
    const Settings& settings, const AgentId& id, Systemd& systemd,
    const std::function<std::vector<HostPattern>(std::vector<HostPattern>)>& change);

/// Renders the machine again and starts its unit; does nothing more if it is running. Throws Error with the
/// last lines of the unit's journal.
void startMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Renders the machine again.
void renderMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Stops the unit and waits until it is down; after `timeout` (systemd's own if absent) all of it is killed.
void stopMachine(const Settings& settings, const Machine& machine, Systemd& systemd,
                 std::optional<std::chrono::seconds> timeout);

/// Stops and forgets the machine; its workspace is kept unless asked.
void removeMachine(const Settings& settings, const Machine& machine, Systemd& systemd, bool removeWorkspace);

/// Renders every machine of the state, as at boot. Throws Error, after all were tried, that names those that
/// failed.
void renderAll(const Settings& settings, Systemd& systemd);

}  // namespace agentmachine
