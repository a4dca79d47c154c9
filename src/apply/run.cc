#include "apply/run.h"

#include <format>

#include <spdlog/spdlog.h>

#include "system/clock.h"
#include "system/host.h"
#include "system/journal.h"
#include "system/network.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

void attempt(const std::function<void()>& step) {
  try {
    step();
  } catch (const std::exception& problem) {
    spdlog::warn("{}", printable(problem.what()));
  }
}

FileLock lockRun(const Settings& settings, const Machine& machine) {
  return {settings.runtimeDirectory + "/lock/run-" + machine.name().str(),
          machinePaths(settings, machine.card.id, machine.allocation.address).state};
}

Machine presentMachine(const Settings& settings, const Machine& machine) {
  auto found = readMachine(settings, machine.card.id);
  if (!found) throw Error("the machine was removed just now");
  return *std::move(found);
}

bool isUp(const Machine& machine, Systemd& systemd) {
  const auto units = systemd.listUnits(machine.name().unit());
  return !units.empty() && (units[0].active == "active" || units[0].active == "activating") &&
         !units[0].sub.starts_with("auto-restart");
}

void noteHeld(const Settings& settings, const Machine& machine) {
  const Ipv4 address = machine.allocation.address;
  writeFileAtomically(machinePaths(settings, machine.card.id, address).held,
                      std::format("{} {}\n", hostInterface(settings, address), address.str()), 0600);
}

std::optional<Held> readHeld(const AgentId& id) {
  constexpr std::size_t mostBytes = 64;
  std::optional<std::string> text;
  attempt([&] { text = readFileIfExists(machinePaths({}, id, {}).held, mostBytes); });
  const auto words = split(trim(text.value_or("")), ' ');
  const auto address = words.size() == 2 ? Ipv4::parse(words[1]) : std::nullopt;
  return address ? std::optional(Held{words[0], *address}) : std::nullopt;
}

void tellOfEnd(const Machine& machine, const EndRecord& end) {
  const bool failed =
      end.cause == EndCause::start || (end.cause == EndCause::payload && end.result != "success");
  tellJournal(machine, {.event = "end",
                        .message = "end of its run: " + describe(end),
                        .by = end.by,
                        .cause = std::string(toString(end.cause)),
                        .isWarning = failed || end.oomKills > 0});
}

void endRun(const Settings& settings, const Machine& machine, Systemd& systemd, const StopReason& reason,
            std::optional<std::chrono::seconds> timeout) {
  const std::string unit = machine.name().unit();
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const std::string& state = paths.state;
  const auto found = systemd.listUnits(unit);
  if (found.empty() || found[0].active == "inactive" || found[0].active == "failed") {
    // A start that waits for others, at boot for one, is called off.
    if (!systemd.job(unit).empty()) systemd.stop(unit);
    return;
  }
  const bool waits = found[0].sub.starts_with("auto-restart");
  // A full disk keeps nobody from stopping.
  attempt([&] { noteStopReason(state, reason); });
  try {
    // A start that is asked for before the stop begins would have the machine go on, without an end.
    if (reason.cause == EndCause::ttl)
      systemd.stopForSure(unit);
    else
      systemd.stop(unit, timeout);
  } catch (const Error& cause) {
    // It goes on, and will end for another reason.
    attempt([&] {
      if (systemd.activeState(unit) == "active") (void)takeStopReason(state);
    });
    throw Error(cause.what() + lastWords(unit));
  }
  systemd.resetFailed(unit);
  attempt([&] {
    // No hook took the reason. One that waited to be started again ended before; else the hook was killed, or
    // had told of an end that came first.
    const auto left = takeStopReason(state);
    if (!left) return;
    systemd.stop(paths.ttlTimer);
    const auto run = readRunRecord(state);
    auto end = readEndRecord(state);
    const bool told = end && (!run || endsAfter(*end, *run));
    if (told && !waits) return;
    if (!told && run) end = EndRecord{.invocation = run->invocation};
    if (!end) return;
    end->cause = left->cause;
    end->by = left->by;
    end->at = wallClock();
    tellOfEnd(machine, *end);
    writeEndRecord(state, *end);
  });
}

}  // namespace agentmachine
