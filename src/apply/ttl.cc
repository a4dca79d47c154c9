#include "apply/ttl.h"

#include <algorithm>
#include <format>
#include <thread>
#include <vector>

#include <spdlog/spdlog.h>

#include "apply/run.h"
#include "system/clock.h"
#include "system/journal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::chrono::seconds longestWarning{60}, timersAccuracy{1};

/// The times at which the TTL's timer fires: for the warning, a minute before the end or a tenth of what is
/// left, and for the end.
std::vector<std::chrono::microseconds> timesOfTtl(std::chrono::microseconds deadline) {
  constexpr std::chrono::seconds shortestWarning{2};
  const auto ahead = std::min<std::chrono::microseconds>(longestWarning, (deadline - monotonicNow()) / 10);
  if (ahead < shortestWarning) return {deadline};
  return {deadline - ahead, deadline};
}

}  // namespace

void startTtl(const Settings& settings, const Machine& machine, const RunRecord& record, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  removeFile(paths.notices + "/warning");
  if (!record.ttlDeadline) {
    systemd.stop(paths.ttlTimer);
    return removeFile(paths.notices + "/ends-at");
  }
  systemd.startTimer(paths.ttlTimer, "TTL of agent " + machine.card.id.str(),
                     timesOfTtl(*record.ttlDeadline));
  writeFileAtomically(paths.notices + "/ends-at", inUtc(*record.ttlDeadline) + "\n", 0644);
}

void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  constexpr std::chrono::seconds sureToBeOver{10};
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  for (;;) {
    std::optional<RunRecord> run;
    bool longer = false;
    try {
      const auto lock = lockRun(settings, machine);
      run = readRunRecord(paths.state);
      if (run && !run->ttlDeadline) return;  // it was taken away just now
      longer = run && *run->ttlDeadline - monotonicNow() > longestWarning + timersAccuracy;
      if (longer) return startTtl(settings, machine, *run, systemd);  // it was made so just now
      if (run && *run->ttlDeadline - monotonicNow() > timersAccuracy) {
        const auto message = std::format("its TTL ends at {}, then it is stopped", inUtc(*run->ttlDeadline));
        tellJournal(machine, {.event = "ttl-warning", .message = message, .isWarning = true});
        writeFileAtomically(paths.notices + "/warning",
                            std::format("agent {}: {}\n", machine.card.id.str(), message), 0644);
      }
    } catch (const Error& problem) {
      // There is no timer any more: systemd has this tried again.
      if (longer) throw;
      // Neither a full disk nor a bad record makes a machine live longer.
      spdlog::warn("{}", printable(problem.what()));
    }
    const auto left = run ? *run->ttlDeadline - monotonicNow() : std::chrono::microseconds(0);
    if (left <= timersAccuracy) break;
    // The timer of the end does not start this once more while it runs, nor while systemd has yet to see that
    // it is over.
    if (left > sureToBeOver) return;
    std::this_thread::sleep_for(left);
  }
  endRun(settings, machine, systemd, {.cause = EndCause::ttl, .by = ""});
}

bool expireByRecord(const AgentId& id, Systemd& systemd) {
  const auto state = machinePaths({}, id, {}).state;
  try {
    const auto run = readRunRecord(state);
    if (run && !run->ttlDeadline) return true;  // it was taken away just now
    if (run && *run->ttlDeadline - monotonicNow() > timersAccuracy) return false;
    noteStopReason(state, {.cause = EndCause::ttl, .by = ""});
  } catch (const Error& problem) {
    spdlog::warn("{}", printable(problem.what()));
  }
  const auto unit = MachineName(id).unit();
  systemd.stopForSure(unit);
  // Its last hook could not read them either.
  systemd.resetFailed(unit);
  spdlog::warn("agent {} was stopped at the end of its TTL", id.str());
  return true;
}

}  // namespace agentmachine
