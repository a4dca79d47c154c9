#include "apply/lifecycle.h"

#include <algorithm>
#include <filesystem>
#include <format>

#include "apply/apply.h"
#include "apply/hooks.h"
#include "apply/key.h"
#include "apply/run.h"
#include "apply/ttl.h"
#include "plan/policy.h"
#include "plan/repair.h"
#include "system/cgroup.h"
#include "system/clock.h"
#include "system/host.h"
#include "system/journal.h"
#include "system/network.h"
#include "system/remains.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// Held by whoever starts, stops or removes this machine. The unit's own hooks take none: they run inside
/// these.
FileLock lockMachine(const Settings& settings, const Machine& machine) {
  return {settings.runtimeDirectory + "/lock/" + machine.name().str(),
          machinePaths(settings, machine.card.id, machine.allocation.address).state};
}

/// Renders the machine as it was read before its lock was got, unless somebody was faster. Throws Error then.
void renderAsRead(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto lock = lockState(settings);
  const auto present = readMachine(settings, machine.card.id);
  if (!present || present->allocation != machine.allocation) throw Error("the machine was removed just now");
  // `run` has it wait for its one command.
  if (present->card != machine.card && withIdlePayload(*present).card != machine.card)
    throw Error("its card was changed just now: try again");
  applyPlan(planRender(machine, snapshot(settings, {})), systemd);
}

/// Applies a plan that gives an existing machine another card. A tighter policy counts, and what is open is
/// cut, before the card is replaced: a killed command that is run again then still sees that there is
/// something to cut. Returns what went wrong with the cut: the rest is done all the same.
std::optional<Error> applyChange(const Plan& plan, const Card& card, const Host& host, Systemd& systemd) {
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
  return uncut;
}

/// What is up has its address from its start, and what it was given there is taken back by that.
void checkAddressStays(const Card& card, const Host& host, Systemd& systemd) {
  const auto found = host.machines.find(card.id.str());
  if (found == host.machines.end() || isMachineAddress(host.settings, found->second.allocation.address))
    return;
  if (runningMachines(systemd).contains(found->second.name().str()))
    throw Error(
        std::format("it runs with the address {}, which is outside of the bridge's network by now; "
                    "`agentmachine stop {}` first, then it is given another",
                    found->second.allocation.address.str(), card.id.str()));
}

/// A unit's new limits count at once, and the kernel kills in a machine that holds more than its new memory.
/// What it can take back, such as files that are cached, is left out; swap there is none.
void checkMemoryStays(const Card& card, const Host& host) {
  constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;
  const auto found = host.machines.find(card.id.str());
  if (found == host.machines.end() || card.limits.memoryMb >= found->second.card.limits.memoryMb) return;
  const auto name = found->second.name();
  const auto held = (cgroupNumber(name, "memory.stat", "anon").value_or(0) +
                     cgroupNumber(name, "memory.stat", "shmem").value_or(0)) /
                    mebibyte;
  if (held >= card.limits.memoryMb)
    throw Error(std::format(
        "memory_mb: it holds {} MiB now, and would be killed with {}; `agentmachine stop {}` first", held,
        card.limits.memoryMb, card.id.str()));
}

/// What an older program, that started the machine, did not give it yet. Returns what went wrong, or "".
std::string mendRun(const Settings& settings, const Machine& machine, const Remains& remains,
                    Systemd& systemd, bool dryRun, const std::function<void(const std::string&)>& tell) {
  try {
    if (!remains.running.contains(machine.name().str()) || !isOfOlderProgram(settings, machine)) return "";
    tell("hand over again what " + machine.name().str() + " was given at its start");
    if (!dryRun) adoptRun(settings, machine, systemd);
    return "";
  } catch (const Error& cause) {
    return cause.what();
  }
}

/// A command that was killed between ending a timer and making the next would let a machine live for ever.
/// Returns what went wrong, or "".
std::string mendTtl(const Settings& settings, const Machine& machine, const Remains& remains,
                    Systemd& systemd, bool dryRun, const std::function<void(const std::string&)>& tell) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  if (!remains.running.contains(machine.name().str()) || remains.units.contains(paths.ttlTimer)) return "";
  try {
    // One that starts, ends or waits to be started again has its timer from the hooks.
    if (systemd.activeState(machine.name().unit()) != "active") return "";
    const auto lock = lockRun(settings, machine);
    const auto run = readRunRecord(paths.state);
    if (!run || !run->ttlDeadline || run->boot != bootId()) return "";
    tell("start " + paths.ttlTimer);
    if (!dryRun) startTtl(settings, machine, *run, systemd);
    return "";
  } catch (const Error& cause) {
    return cause.what();
  }
}

/// There once machines were brought back after a boot, or a new one was made: from then on people start and
/// stop them. In /run, so that it is gone after a boot.
std::string bootedMark(const Settings& settings) {
  return settings.runtimeDirectory + "/booted";
}
void markBooted(const Settings& settings) {
  if (!std::filesystem::exists(bootedMark(settings))) writeFileAtomically(bootedMark(settings), "", 0644);
}

/// Workspaces that have an image, of machines or kept when one was removed.
std::vector<AbsolutePath> keptImages(const Settings& settings) {
  std::vector<AbsolutePath> workspaces;
  const std::string directory = imagesOfWorkspaces(settings), ending = ".img";
  for (const auto& entry : walkIfExists(directory)) {
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

FileLock lockState(const Settings& settings) {
  return FileLock(settings.runtimeDirectory + "/lock/state");
}

Machine createMachine(const Settings& settings, const Card& card, Systemd& systemd) {
  return inContext("create " + card.id.str(), [&] {
    const auto lock = lockState(settings);
    // The end of a run may change which image it has.
    const auto runLock = lockRun(settings, {card, {}});
    const Host host = snapshot(settings, {card});
    checkAddressStays(card, host, systemd);
    checkMemoryStays(card, host);
    const auto uncut = applyChange(planCreate(card, host), card, host, systemd);
    // Not while the boot's own start of machines is still to come.
    if (systemd.job("agentmachine-render.service").empty()) markBooted(settings);
    Machine machine = readMachine(settings, card.id).value();
    changeKey(settings, machine, systemd);
    if (uncut) throw *uncut;
    return machine;
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
  if (const auto uncut = applyChange(planHosts(machine, host), machine.card, host, systemd)) throw *uncut;
  return machine.card.allowedHosts;
}

bool startMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const std::string unit = machine.name().unit();
  return inContext("start " + machine.card.id.str(), [&] {
    const auto lock = lockMachine(settings, machine);
    const auto found = systemd.listUnits(unit);
    if (!found.empty() && found[0].active == "active") return false;
    // A start would wait for the pause before the next try to pass.
    if (!found.empty() && found[0].sub.starts_with("auto-restart")) systemd.stop(unit);
    // A person may try as often as need be.
    systemd.resetFailed(unit);
    renderAsRead(settings, machine, systemd);
    try {
      systemd.start(unit);
    } catch (const Error& cause) {
      std::string words = cause.what() + lastWords(unit);
      const auto present = readMachine(settings, machine.card.id);
      if (present && present->allocation.image != machine.allocation.image)
        words += "\n  it has its image from before the upgrade again, and can be started with that";
      const Error told(words);
      // Who was told that it failed doesn't expect it to run a minute later.
      if (systemd.activeState(unit) == "activating") {
        systemd.stop(unit);
        systemd.stop(machinePaths(settings, machine.card.id, machine.allocation.address).ttlTimer);
      }
      throw told;
    }
    return true;
  });
}

void renderMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  inContext("render " + machine.card.id.str(), [&] {
    const auto lock = lockMachine(settings, machine);
    renderAsRead(settings, machine, systemd);
  });
}

void stopMachine(const Settings& settings, const Machine& machine, Systemd& systemd, const std::string& by,
                 std::optional<std::chrono::seconds> timeout) {
  inContext("stop " + machine.card.id.str(), [&] {
    const auto lock = lockMachine(settings, machine);
    endRun(settings, machine, systemd, {.cause = EndCause::person, .by = by}, timeout);
  });
}

std::optional<std::chrono::seconds> changeTtl(const Settings& settings, const Machine& machine,
                                              Systemd& systemd, const TtlChange& change) {
  return inContext("ttl of " + machine.card.id.str(), [&]() -> std::optional<std::chrono::seconds> {
    constexpr std::chrono::seconds longest = std::chrono::days(365);
    const auto lock = lockMachine(settings, machine);
    const auto runLock = lockRun(settings, machine);
    const auto state = machinePaths(settings, machine.card.id, machine.allocation.address).state;
    auto run = readRunRecord(state);
    const auto units = systemd.listUnits(machine.name().unit());
    if (!run || units.empty() || units[0].active != "active") {
      const bool waits = !units.empty() && units[0].sub.starts_with("auto-restart");
      throw Error(
          std::string(waits ? "the machine waits to be started again, and its time goes on: to begin "
                              "anew, agentmachine start "
                            : "the machine does not run; `ttl_seconds` of its card counts from its next "
                              "start: agentmachine start ") +
          machine.card.id.str() + lastWords(machine.name().unit()));
    }
    const auto now = monotonicNow();
    const auto base = change.kind == TtlChange::Kind::by ? run->ttlDeadline.value_or(now) : now;
    run->ttlDeadline = base + change.duration;
    if (change.kind == TtlChange::Kind::none) run->ttlDeadline.reset();
    if (run->ttlDeadline && *run->ttlDeadline - now > longest)
      throw Error("that is more than a year; use `off`");
    // The record first: a timer that fires meanwhile asks it.
    writeRunRecord(state, *run);
    startTtl(settings, machine, *run, systemd);
    if (!run->ttlDeadline) return std::nullopt;
    return std::chrono::round<std::chrono::seconds>(*run->ttlDeadline - now);
  });
}

bool upgradeMachine(const Settings& settings, const AgentId& id, const std::optional<std::string>& digest,
                    Systemd& systemd) {
  return inContext("upgrade " + id.str(), [&] {
    const auto lock = lockState(settings);
    const auto named = readMachine(settings, id);
    if (!named) throw Error("the machine was removed just now");
    const auto runLock = lockRun(settings, *named);
    const Host host = snapshot(settings, {});
    const Machine& machine = host.machines.at(id.str());
    const std::string image =
        digest ? imageFor(machine.card, *digest, host) : newestImage(machine.card, host);
    // One that has it, too: an upgrade that was killed may have come no further.
    applyPlan(planImage(withImage(machine, image), settings), systemd);
    return image != machine.allocation.image;
  });
}

void removeMachine(const Settings& settings, const Machine& machine, Systemd& systemd, const std::string& by,
                   bool removeWorkspace) {
  inContext("remove " + machine.card.id.str(), [&] {
    const auto machineLock = lockMachine(settings, machine);
    // Before the state's lock: a stop takes as long as its payload takes.
    endRun(settings, machine, systemd, {.cause = EndCause::person, .by = by});
    const auto stateLock = lockState(settings);
    // It may have been removed, and made again with another address, before its lock was got.
    const auto present = readMachine(settings, machine.card.id);
    Plan plan = present ? planRemove(*present, settings, removeWorkspace) : Plan{};
    // The state goes last: as long as it is there, an `rm` that was killed is run again.
    const Plan last = plan.empty() ? plan : Plan{std::move(plan.back())};
    if (!plan.empty()) plan.pop_back();
    applyPlan(plan, systemd);
    removeKeyLock(settings, machine);
    lockRun(settings, machine).removeFile();
    machineLock.removeFile();
    applyPlan(last, systemd);
  });
}

void repairMachines(const Settings& settings, Systemd& systemd, bool dryRun,
                    const std::function<void(const std::string&)>& tell) {
  const auto lock = lockState(settings);
  const Host host = snapshot(settings, {});
  Remains remains = agentmachine::remains(settings, systemd);
  FoundAt found = lookAt(pathsToLookAt(host, remains));
  // A machine that starts just now has what it would not have if it did not run: looked at again until
  // nothing changed.
  for (auto running = runningMachines(systemd); running != remains.running;
       running = runningMachines(systemd)) {
    remains = agentmachine::remains(settings, systemd);
    found = lookAt(pathsToLookAt(host, remains));
  }
  std::string failures;
  for (const auto& [id, why] : host.unreadable) failures += "\n  " + why;
  // Each by itself: one that can't be done undoes no other.
  const auto mend = [&](const Plan& plan) {
    for (const auto& action : plan) {
      const std::string text = describe(Plan{action});
      tell(text.substr(0, text.find('\n')));
    }
    try {
      if (!dryRun) applyPlan(plan, systemd);
    } catch (const std::exception& cause) {
      failures += std::string("\n  ") + cause.what();
    }
  };
  for (const auto& action : planLeftovers(host, remains, found)) {
    const Machine* machine = whoseRun(action, host);
    // Of one that was started meanwhile, it is no leftover; prepareMachine waits for this lock.
    const auto runLock = machine ? std::optional(lockRun(settings, *machine)) : std::nullopt;
    if (!machine || !runningMachines(systemd).contains(machine->name().str())) mend({action});
  }
  for (const auto& [id, machine] : host.machines) {
    const auto plan = planMissing(machine, host, remains, found);
    // Whoever wrote the drop-in may have been killed before systemd read it.
    const ReloadUnit reload{machine.name().unit(),
                            machinePaths(settings, machine.card.id, machine.allocation.address).dropIn};
    if (!remains.running.contains(machine.name().str()) &&
        std::ranges::none_of(
            plan, [](const Action& action) { return std::holds_alternative<ReloadUnit>(action); }) &&
        systemd.needsReload(reload.unit, reload.dropIn))
      mend({reload});
    if (!plan.empty()) mend(plan);
    if (const auto why = mendRun(settings, machine, remains, systemd, dryRun, tell); !why.empty())
      failures += "\n  " + why;
    if (const auto why = mendTtl(settings, machine, remains, systemd, dryRun, tell); !why.empty())
      failures += "\n  " + why;
  }
  if (!failures.empty()) throw Error("repair:" + failures);
}

void bringMachinesBack(const Settings& settings, Systemd& systemd,
                       const std::function<void(const std::string&)>& tell) {
  std::string failures;
  try {
    repairMachines(settings, systemd, false, tell);
  } catch (const std::exception& cause) {
    failures += std::string("\n") + cause.what();
  }
  for (const auto& workspace : keptImages(settings)) {
    try {
      applyPlan({StartUnit{imageUnit(workspace)}}, systemd);
    } catch (const Error& cause) {
      failures += "\n  " + workspace.str() + ": " + cause.what();
    }
  }
  if (!std::filesystem::exists(bootedMark(settings))) {
    for (const auto& [id, machine] : readMachineRecords(settings).machines) {
      try {
        if (machine.card.autostart) systemd.enqueueStart(machine.name().unit());
      } catch (const Error& cause) {
        failures += "\n  " + id + ": " + cause.what();
      }
    }
    markBooted(settings);
  }
  if (!failures.empty()) throw Error("bring machines back:" + failures);
}

}  // namespace agentmachine
