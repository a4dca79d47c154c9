#include "apply/lifecycle.h"

#include <filesystem>

#include "apply/apply.h"
#include "plan/policy.h"
#include "system/host.h"
#include "system/network.h"
#include "util/error.h"
#include "util/lock.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// Held while addresses, users and files of the state change hands: short.
FileLock lockState(const Settings& settings) {
  return FileLock(settings.runtimeDirectory + "/lock/state");
}

/// Held by whoever starts, stops or removes this machine. The unit's own hooks take none: they run inside
/// these.
FileLock lockMachine(const Settings& settings, const Machine& machine) {
  return FileLock(settings.runtimeDirectory + "/lock/" + machine.name().str());
}

/// The last lines of a unit's present or last run, indented, for an error message.
std::string journalTail(const std::string& unit) {
  const auto id = trim(runProcess({"systemctl", "show", "--value", "--property=InvocationID", unit}).output);
  std::vector<std::string> command = {"journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=8"};
  command.push_back(id.empty() ? "_SYSTEMD_UNIT=" + unit : "_SYSTEMD_INVOCATION_ID=" + id);
  if (!id.empty()) command.insert(command.end(), {"+", "INVOCATION_ID=" + id});
  std::string text;
  for (const auto& line : split(trim(runProcess(command).output), '\n')) text += "\n  " + line;
  return text;
}

/// Applies a plan that gives an existing machine another card. A tighter policy counts, and what is open is
/// cut, before the card is replaced: a killed command that is run again then still sees that there is
/// something to cut.
void applyChange(const Plan& plan, const Card& card, const Host& host, Systemd& systemd) {
  const auto before = host.machines.find(card.id.str());
  const bool tighter =
      before != host.machines.end() &&
      isTighter(policyFor(card, host.settings), policyFor(before->second.card, host.settings));
  std::optional<Error> uncut;
  if (tighter) {
    const Machine machine{card, before->second.allocation};
    applyPlan({MakeDirectory{host.settings.runtimeDirectory + "/policy", 0750, {0, host.proxyGroup}},
               planPolicy(machine, host)},
              systemd);
    try {
      cutConnections(host.settings, machine.allocation.address);
    } catch (const Error& cause) {
      uncut = cause;
    }
  }
  applyPlan(plan, systemd);
  if (uncut) throw *uncut;
}

/// Workspaces that have an image, of machines or kept when one was removed.
std::vector<AbsolutePath> keptImages(const Settings& settings) {
  std::vector<AbsolutePath> workspaces;
  const std::string directory = imagesOfWorkspaces(settings), ending = ".img";
  std::error_code absent;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory, absent)) {
    const std::string path = entry.path().string().substr(directory.size());
    if (!entry.is_regular_file() || !path.ends_with(ending)) continue;
    // What is no path that a card can have was put there by somebody else; left-overs of a killed run are
    // ".#…".
    const auto workspace = AbsolutePath::parse(path.substr(0, path.size() - ending.size()));
    if (workspace && !entry.path().filename().string().starts_with(".#")) workspaces.push_back(*workspace);
  }
  return workspaces;
}

}  // namespace

Machine createMachine(const Settings& settings, const Card& card, Systemd& systemd) {
  return inContext("create " + card.id.str(), [&] {
    const auto lock = lockState(settings);
    const Host host = snapshot(settings, {card});
    applyChange(planCreate(card, host), card, host, systemd);
    return readMachine(settings, card.id).value();
  });
}

std::vector<HostPattern> changeHosts(
    const Settings& settings, const AgentId& id, Systemd& systemd,
    const std::function<std::vector<HostPattern>(std::vector<HostPattern>)>& change) {
  const auto lock = lockState(settings);
  const Host host = snapshot(settings, {});
  const auto found = host.machines.find(id.str());
  if (found == host.machines.end()) throw Error("the machine of \"" + id.str() + "\" was removed");
  Machine machine = found->second;
  machine.card.allowedHosts = change(std::move(machine.card.allowedHosts));
  // The rules for a whole card hold too: there may be only so many hosts.
  if (const auto checked = parseCard(toJson(machine.card), CardFormat::json); !checked)
    throw Error(trim(describe("the card of " + id.str(), checked.error())));
  applyChange(planHosts(machine, host), machine.card, host, systemd);
  return machine.card.allowedHosts;
}

void startMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const std::string unit = machine.name().unit();
  inContext("start " + machine.card.id.str(), [&] {
    const auto lock = lockMachine(settings, machine);
    if (systemd.activeState(unit) == "active") return;
    applyPlan(planRender(machine, snapshot(settings, {})), systemd);
    try {
      systemd.start(unit);
    } catch (const Error& cause) {
      throw Error(std::string(cause.what()) + "; its last words:" + journalTail(unit) +
                  "\n  more: journalctl -u " + unit);
    }
  });
}

void renderMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  inContext("render " + machine.card.id.str(), [&] {
    const auto lock = lockMachine(settings, machine);
    applyPlan(planRender(machine, snapshot(settings, {})), systemd);
  });
}

void stopMachine(const Settings& settings, const Machine& machine, Systemd& systemd,
                 std::optional<std::chrono::seconds> timeout) {
  inContext("stop " + machine.card.id.str(), [&] {
    const auto lock = lockMachine(settings, machine);
    systemd.stop(machine.name().unit(), timeout);
  });
}

void removeMachine(const Settings& settings, const Machine& machine, Systemd& systemd, bool removeWorkspace) {
  inContext("remove " + machine.card.id.str(), [&] {
    const auto machineLock = lockMachine(settings, machine);
    // Before the state's lock: a stop takes as long as its payload takes.
    systemd.stop(machine.name().unit());
    const auto stateLock = lockState(settings);
    applyPlan(planRemove(machine, settings, removeWorkspace), systemd);
  });
}

void renderAll(const Settings& settings, Systemd& systemd) {
  const auto lock = lockState(settings);
  const Host host = snapshot(settings, {});
  std::string failures;
  for (const auto& [id, machine] : host.machines) {
    try {
      applyPlan(planRender(machine, host), systemd);
    } catch (const Error& cause) {
      failures += "\n  " + id + ": " + cause.what();
    }
  }
  for (const auto& workspace : keptImages(settings)) {
    try {
      applyPlan({StartUnit{imageUnit(workspace)}}, systemd);
    } catch (const Error& cause) {
      failures += "\n  " + workspace.str() + ": " + cause.what();
    }
  }
  if (!failures.empty()) throw Error("render machines:" + failures);
}

}  // namespace agentmachine
