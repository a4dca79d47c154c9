#include <algorithm>
#include <charconv>
#include <functional>

#include "observe/audit.h"
#include "observe/metrics.h"
#include "system/cgroup.h"
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
          .oomKills = cgroupNumber(name, "memory.events", "oom_kill"),
          .readBytes = sumOf(io, " rbytes="),
          .writtenBytes = sumOf(io, " wbytes=")};
}

/// What is kept is the sums, for the journal forgets: a count that falls would be taken for a restart.
RequestCounts countRequests(const Settings& settings, const std::vector<MachineStatus>& machines) {
  const std::string path = settings.stateDirectory + "/metrics.json";
  const FileLock lock(settings.runtimeDirectory + "/lock/metrics");
  RequestCounts counts;
  inContext("read " + path, [&] {
    if (const auto text = readFileIfExists(path, maxCountsBytes)) counts = parseRequestCounts(*text);
  });
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
  Metrics metrics{.machines = listMachines(settings, systemd), .usage = {}, .requests = {}, .guards = {}};
  for (const auto& status : metrics.machines)
    if (status.state == MachineState::running)
      metrics.usage[status.machine.card.id.str()] = usageOf(status.machine.name());
  metrics.requests = countRequests(settings, metrics.machines);
  metrics.guards = {{"network", inPlace([&] { checkNetworkGuards(settings); })},
                    {"proxy", systemd.activeState("agentmachine-proxy.service") == "active"}};
  return metrics;
}

}  // namespace agentmachine
