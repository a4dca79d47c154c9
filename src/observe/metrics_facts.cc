#include <algorithm>
#include <charconv>
#include <format>
#include <functional>

#include <spdlog/spdlog.h>

#include "observe/audit.h"
#include "observe/metrics.h"
#include "system/cgroup.h"
#include "system/image_store.h"
#include "system/kernel.h"
#include "system/network.h"
#include "util/error.h"
#include "util/file.h"
#include "util/lock.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::size_t maxCountsBytes = 64UL * 1024 * 1024;

/// The sum of the numbers after `key` in the lines of io.stat: "8:0 rbytes=5 wbytes=6".
std::optional<std::uint64_t> sumOf(const std::string& text, const std::string& key) {
  std::optional<std::uint64_t> sum;
  for (std::size_t at = text.find(key); at != std::string::npos; at = text.find(key, at + 1)) {
    std::uint64_t value = 0;
    const auto [end, error] =
        std::from_chars(text.data() + at + key.size(), text.data() + text.size(), value);
    if (error == std::errc()) sum = sum.value_or(0) + value;
  }
  return sum;
}

MachineUsage usageOf(const MachineName& name) {
  const auto io = cgroupFile(name, "io.stat");
  return {.cpuMicroseconds = cgroupNumber(name, "cpu.stat", "usage_usec"),
          .memoryPeakBytes = cgroupNumber(name, "memory.peak"),
          .readBytes = sumOf(io, " rbytes="),
          .writtenBytes = sumOf(io, " wbytes=")};
}

/// Of all runs: what is noted of those that ended, and what the present one's cgroup counts until its end is.
std::uint64_t oomKillsOf(const MachineName& name, const std::string& state) {
  // In this order: a run that ends meanwhile is in what is noted, and told by its id.
  const auto run = readRunRecord(state);
  const auto present = run ? oomKills(name, run->oomKills) : 0;
  const auto noted = readOomKills(state).value_or(OomKills{});
  return noted.sum + (run && noted.lastRun != run->invocation ? present : 0);
}

/// What is kept is the sums, for the journal forgets: a count that falls would be taken for a restart.
RequestCounts countRequests(const Settings& settings, const std::vector<MachineStatus>& machines) {
  const std::string path = settings.stateDirectory + "/metrics.json";
  const FileLock lock(settings.runtimeDirectory + "/lock/metrics");
  RequestCounts counts;
  if (const auto text = readFileIfExists(path, maxCountsBytes)) {
    try {
      counts = parseRequestCounts(*text);
    } catch (const Error& cause) {
      throw Error(std::format(
          "{0} is damaged ({1}), and with it the sums of requests; to count anew from what the journal still "
          "has: rm {0}",
          path, cause.what()));
    }
  }
  AuditQuery query;
  if (!counts.cursor.empty()) query.afterCursor = counts.cursor;
  const auto cursor = readAudit(query, [&](const AuditRecord& record) {
    count(counts, record);
    return true;
  });
  if (!cursor.empty()) counts.cursor = cursor;
  std::erase_if(counts.counts, [&](const auto& entry) {
    const auto& id = entry.first.id;
    return !id.empty() && std::ranges::none_of(machines, [&](const MachineStatus& status) {
      return status.machine.card.id.str() == id;
    });
  });
  writeFileAtomically(path, toJson(counts), 0600);
  return counts;
}

void orWarn(const std::function<void()>& look) {
  try {
    look();
  } catch (const Error& cause) {
    spdlog::warn("{}", cause.what());
  }
}

bool inPlace(const std::function<void()>& check) {
  try {
    check();
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

Metrics readMetrics(const Settings& settings, Systemd& systemd) {
  constexpr auto proxy = "agentmachine-proxy.service";
  auto list = listMachines(settings, systemd);
  for (const auto& [id, why] : list.unreadable) spdlog::warn("{}", why);
  Metrics metrics{.machines = std::move(list.machines)};
  for (const auto& status : metrics.machines) {
    const Machine& machine = status.machine;
    const std::string& id = machine.card.id.str();
    if (status.state == MachineState::running) metrics.usage[id] = usageOf(machine.name());
    const auto state = machinePaths(settings, machine.card.id, machine.allocation.address).state;
    // A file that a fault of the disk spoilt hides no more than itself.
    orWarn([&] {
      if (const auto starts = readStartTimes(state)) metrics.starts[id] = *starts;
    });
    orWarn([&] { metrics.oomKills[id] = oomKillsOf(machine.name(), state); });
  }
  orWarn([&] {
    for (const auto& image : ImageStore(settings.stateDirectory + "/images").list())
      metrics.images[image.digest] = image.imported;
  });
  metrics.requests = countRequests(settings, metrics.machines);
  const auto processes = systemd.controlGroup(proxy);
  metrics.guards = {{"network", inPlace([&] { checkNetworkGuards(settings); })},
                    {"proxy", systemd.activeState(proxy) == "active"},
                    {"audit", runsIn(processes, "agentmachine-audit")},
                    {"policy", runsIn(processes, "agentmachine-policy")},
                    {"user-namespaces", hasUserNamespaces()},
                    {"seccomp", hasSeccomp()},
                    {"cgroup-packet-filters", hasCgroupBpf()}};
  return metrics;
}

}  // namespace agentmachine
