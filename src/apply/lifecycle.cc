#include "apply/lifecycle.h"

#include "apply/apply.h"
#include "system/host.h"
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

}  // namespace

Machine createMachine(const Settings& settings, const Card& card, Systemd& systemd) {
  return inContext("create " + card.id.str(), [&] {
    const auto lock = lockState(settings);
    applyPlan(planCreate(card, snapshot(settings, {card})), systemd);
    return readMachine(settings, card.id).value();
  });
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
  if (!failures.empty()) throw Error("render machines:" + failures);
}

}  // namespace agentmachine
