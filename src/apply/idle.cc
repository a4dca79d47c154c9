#include "apply/idle.h"

#include <algorithm>
#include <filesystem>
#include <format>

#include <nlohmann/json.hpp>

#include "apply/run.h"
#include "system/cgroup.h"
#include "system/clock.h"
#include "system/journal.h"
#include "system/network.h"
#include "system/run_record.h"
#include "util/file.h"

namespace agentmachine {

namespace {

/// What a machine had used when it was last looked at. In /run.
struct IdleSample {
  std::string invocation;
  std::chrono::microseconds at{0};     ///< on CLOCK_MONOTONIC
  std::chrono::microseconds since{0};  ///< the same: nothing has happened since then
  std::uint64_t cpuUsec = 0;
  std::uint64_t sentBytes = 0;  ///< by the machine
};

std::string idlePath(const MachinePaths& paths) {
  return paths.runtime + "/idle.json";
}

std::optional<IdleSample> readIdleSample(const MachinePaths& paths) {
  constexpr std::size_t mostBytes = 4096;
  const auto text = readFileIfExists(idlePath(paths), mostBytes);
  const auto json = nlohmann::json::parse(text.value_or(""), nullptr, false);
  if (!json.is_object()) return std::nullopt;
  return IdleSample{.invocation = json.value("invocation", ""),
                    .at = std::chrono::microseconds(json.value("at_usec", std::int64_t{0})),
                    .since = std::chrono::microseconds(json.value("since_usec", std::int64_t{0})),
                    .cpuUsec = json.value("cpu_usec", std::uint64_t{0}),
                    .sentBytes = json.value("sent_bytes", std::uint64_t{0})};
}

void writeIdleSample(const MachinePaths& paths, const IdleSample& sample) {
  const nlohmann::ordered_json json = {{"invocation", sample.invocation},
                                       {"at_usec", sample.at.count()},
                                       {"since_usec", sample.since.count()},
                                       {"cpu_usec", sample.cpuUsec},
                                       {"sent_bytes", sample.sentBytes}};
  writeFileAtomically(idlePath(paths), json.dump(), 0600);
}

IdleSample sampleNow(const Settings& settings, const Machine& machine, const std::string& invocation) {
  const auto now = monotonicNow();
  const auto interface = hostInterface(settings, machine.allocation.address);
  // What the host's side received is what the machine sent.
  return {.invocation = invocation,
          .at = now,
          .since = now,
          .cpuUsec = cgroupNumber(machine.name(), "cpu.stat", "usage_usec").value_or(0),
          .sentBytes = receivedBytes(interface)};
}

/// Four looks in the time that the card gives.
std::chrono::microseconds idleInterval(const Card& card) {
  constexpr int looks = 4;
  return std::max<std::chrono::microseconds>(std::chrono::seconds(1),
                                             std::chrono::microseconds(card.idle) / looks);
}

}  // namespace

void startIdleTimer(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  removeFile(paths.notices + "/idle");
  if (machine.card.idle.count() == 0) return systemd.stop(paths.idleTimer);
  systemd.startRepeatingTimer(paths.idleTimer, "Whether agent " + machine.card.id.str() + " is idle",
                              idleInterval(machine.card));
}

void stopIfIdle(const Settings& settings, const Machine& machine, Systemd& systemd) {
  // A program that waits wakes up now and then.
  constexpr int shareOfCpu = 50;
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const auto run = readRunRecord(paths.state);
  if (!run || machine.card.idle.count() == 0 || systemd.activeState(machine.name().unit()) != "active")
    return;
  auto sample = sampleNow(settings, machine, run->invocation);
  const auto before = readIdleSample(paths);
  if (before && before->invocation == sample.invocation &&
      sample.cpuUsec - before->cpuUsec <
          static_cast<std::uint64_t>((sample.at - before->at).count()) / shareOfCpu &&
      sample.sentBytes == before->sentBytes)
    sample.since = before->since;
  writeIdleSample(paths, sample);
  const auto idle = sample.at - sample.since;
  const auto notice = paths.notices + "/idle";
  if (idle + idleInterval(machine.card) < machine.card.idle) return removeFile(notice);
  const bool warned = std::filesystem::exists(notice);
  // Looks may be late; a warning comes before the end all the same.
  if (warned && idle >= machine.card.idle)
    return endRun(settings, machine, systemd, {.cause = EndCause::idle, .by = ""});
  if (warned) return;
  const auto end = std::max(sample.since + machine.card.idle, sample.at + idleInterval(machine.card));
  const auto message = std::format("idle; it is stopped at {} unless it does something", inUtc(end));
  tellJournal(machine, {.event = "idle-warning", .message = message, .isWarning = true});
  writeFileAtomically(notice, message + "\n", 0644);
}

}  // namespace agentmachine
