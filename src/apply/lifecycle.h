// Create, start, stop and remove machines: each may be run again, and finishes what a killed one began.
#pragma once
#include <chrono>
#include <functional>
#include <optional>

#include "plan/machine.h"
#include "system/systemd.h"
#include "util/lock.h"

namespace agentmachine {

/// Held while addresses, users, images and files of the state change hands: short.
FileLock lockState(const Settings& settings);

/// Makes a machine of the card, or brings one that exists to what the card says now. What it writes for a
/// running one counts at once for the proxy's policy, the key and the unit's limits, from the next start for
/// the rest. If the policy is tighter than before, the machine's open connections to the proxy are cut.
/// Throws Error, with nothing changed, if the machine holds more memory than it is to have.
Machine createMachine(const Settings& settings, const Card& card, Systemd& systemd);

/// Changes the hosts of the machine's card by `change`, for the proxy too, and cuts what is open if that
/// allows less than before. Returns the hosts there are then.
std::vector<HostPattern> changeHosts(
    const Settings& settings, const AgentId& id, Systemd& systemd,
    const std::function<std::vector<HostPattern>(std::vector<HostPattern>)>& change);

/// Renders the machine again and starts its unit; does nothing and returns false if it is running. One that
/// waits to be started again after a failure starts now, and anew. Throws Error with the last lines of the
/// unit's journal; it is not tried again then.
bool startMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Renders the machine again.
void renderMachine(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Stops the unit and waits until it is down; after `timeout` (systemd's own if absent) all of it is killed.
/// `by` is the name of who wants it.
void stopMachine(const Settings& settings, const Machine& machine, Systemd& systemd, const std::string& by,
                 std::optional<std::chrono::seconds> timeout);

/// Another end of the present run: `by` more than now set (or, without a TTL, from now), `in` from now, or
/// none. Returns what is left. Throws Error if the machine does not run.
struct TtlChange {
  enum class Kind { by, in, none } kind = Kind::none;
  std::chrono::seconds duration{0};
};
std::optional<std::chrono::seconds> changeTtl(const Settings& settings, const Machine& machine,
                                              Systemd& systemd, const TtlChange& change);

/// Gives the machine the image with this digest, or the newest with its card's packages, from its next start
/// on. If its payload doesn't get ready with it then, it goes back to the one it has now. Returns whether
/// that is another one. Throws Error if the image is not there or lacks a package of the card.
bool upgradeMachine(const Settings& settings, const AgentId& id, const std::optional<std::string>& digest,
                    Systemd& systemd);

/// Stops and forgets the machine; its workspace is kept unless asked. `by` is the name of who wants it.
void removeMachine(const Settings& settings, const Machine& machine, Systemd& systemd, const std::string& by,
                   bool removeWorkspace);

/// Brings the host to what the state says: what belongs to no machine goes, what is missing or altered is
/// rendered. Calls `tell` with a line for each thing before it is done; with `dryRun` nothing is done. Throws
/// Error, after all was tried, that names what failed.
void repairMachines(const Settings& settings, Systemd& systemd, bool dryRun,
                    const std::function<void(const std::string&)>& tell);

/// At boot: repairs, and mounts workspaces that have an image. The first time after a boot it has the
/// machines that their cards mark `autostart` started, and doesn't wait for them. Throws Error as
/// repairMachines does.
void bringMachinesBack(const Settings& settings, Systemd& systemd,
                       const std::function<void(const std::string&)>& tell);

}  // namespace agentmachine
