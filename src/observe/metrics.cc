#include "observe/metrics.h"

#include <algorithm>
#include <format>
#include <functional>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "card/types.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

constexpr double microsecondsInSecond = 1e6;
constexpr std::uint64_t bytesInMebibyte = 1024UL * 1024;

/// The families in the order in which they are first named.
class Families {
 public:
  void gauge(const std::string& name, const std::string& help, const Labels& labels, double value) {
    ClientMetric metric{.label = labels};
    metric.gauge.value = value;
    add(name, help, MetricType::Gauge, metric);
  }
  void counter(const std::string& name, const std::string& help, const Labels& labels, double value) {
    ClientMetric metric{.label = labels};
    metric.counter.value = value;
    add(name, help, MetricType::Counter, metric);
  }
  void histogram(const std::string& name, const std::string& help, const Labels& labels,
                 const StartTimes& times) {
    ClientMetric metric{.label = labels};
    auto& told = metric.histogram;
    for (std::size_t i = 0; i < times.counts.size(); ++i) {
      told.sample_count += times.counts[i];
      // What is beyond the last bound is in the serializer's "+Inf".
      if (i < times.bounds.size()) told.bucket.push_back({told.sample_count, times.bounds[i]});
    }
    told.sample_sum = static_cast<double>(times.sum.count()) / microsecondsInSecond;
    add(name, help, MetricType::Histogram, metric);
  }
  [[nodiscard]] std::string text() const { return prometheus::TextSerializer().Serialize(families_); }

 private:
  void add(const std::string& name, const std::string& help, MetricType type, const ClientMetric& metric) {
    const std::string full = "agentmachine_" + name;
    for (auto& family : families_)
      if (family.name == full) return family.metric.push_back(metric);
    families_.push_back({full, help, type, {metric}});
  }
  std::vector<MetricFamily> families_;
};

double asDouble(std::uint64_t value) {
  return static_cast<double>(value);
}

/// Of sd_journal_get_cursor: "s=1f…;i=2a;…". libsystemd's own error for another text names nothing.
bool isCursor(std::string_view text) {
  return std::ranges::all_of(split(text, ';'), [](const std::string& part) {
    return part.size() > 2 && std::string_view("sibmtx").contains(part[0]) && part[1] == '=' &&
           part.find_first_not_of("0123456789abcdef", 2) == std::string::npos;
  });
}

/// The rule by which a refusal is counted.
std::string boundedRule(const RequestCounts& counts, const RequestKey& key) {
  std::set<std::pair<std::string, std::string>> seen;
  for (auto at = counts.counts.lower_bound({.id = key.id});
       at != counts.counts.end() && at->first.id == key.id; ++at)
    if (!at->first.rule.empty()) seen.emplace(at->first.reason, at->first.rule);
  return seen.size() < maxRules || seen.contains({key.reason, key.rule}) ? key.rule : "more";
}

void addState(Families& families, const MachineStatus& status) {
  const std::string id = status.machine.card.id.str();
  for (const auto state : machineStates)
    families.gauge("machine_state", "1 for the state that the machine is in.",
                   {{"id", id}, {"state", std::string(toString(state))}}, status.state == state ? 1 : 0);
}

void addRuns(Families& families, const MachineStatus& status, const Metrics& metrics) {
  const Labels labels = {{"id", status.machine.card.id.str()}};
  families.counter("machine_restarts_total", "Automatic restarts since the start that somebody asked for.",
                   labels, status.restarts);
  if (const auto starts = metrics.starts.find(status.machine.card.id.str()); starts != metrics.starts.end())
    families.histogram("machine_start_seconds",
                       "From the first step of a start until the machine was connected.", labels,
                       starts->second);
  if (const auto kills = metrics.oomKills.find(status.machine.card.id.str()); kills != metrics.oomKills.end())
    families.counter("machine_oom_kills_total", "Processes killed for want of memory, in all runs.", labels,
                     asDouble(kills->second));
  if (const auto image = metrics.images.find(status.machine.allocation.image); image != metrics.images.end())
    families.gauge("machine_image_imported_timestamp_seconds", "When the machine's image was imported.",
                   labels, static_cast<double>(image->second.time_since_epoch().count()));
}

void addUse(Families& families, const MachineStatus& status, const MachineUsage& usage) {
  const Labels labels = {{"id", status.machine.card.id.str()}};
  const auto& limits = status.machine.card.limits;
  const auto gauge = [&](const char* name, const char* help, const auto& value) {
    if (value) families.gauge(name, help, labels, static_cast<double>(*value));
  };
  const auto counter = [&](const char* name, const char* help, const auto& value) {
    if (value) families.counter(name, help, labels, static_cast<double>(*value));
  };
  if (usage.cpuMicroseconds)
    families.counter("machine_cpu_seconds_total", "CPU time of the present run.", labels,
                     asDouble(*usage.cpuMicroseconds) / microsecondsInSecond);
  gauge("machine_memory_bytes", "Memory in use.", status.memoryBytes);
  gauge("machine_memory_peak_bytes", "Most memory that the present run had in use.", usage.memoryPeakBytes);
  families.gauge("machine_memory_limit_bytes", "The card's memory_mb.", labels,
                 asDouble(limits.memoryMb * bytesInMebibyte));
  gauge("machine_tasks", "Processes and threads.", status.tasks);
  families.gauge("machine_tasks_limit", "The card's max_processes.", labels, asDouble(limits.maxProcesses));
  counter("machine_read_bytes_total", "Read from disks in the present run.", usage.readBytes);
  counter("machine_written_bytes_total", "Written to disks in the present run.", usage.writtenBytes);
  if (status.ttlRemaining)
    families.gauge("machine_ttl_remaining_seconds", "Until the machine's time is up.", labels,
                   static_cast<double>(status.ttlRemaining->count()));
  if (status.workspace) {
    families.gauge("machine_workspace_bytes", "In use of a workspace that has a limit.", labels,
                   asDouble(status.workspace->bytes));
    families.gauge("machine_workspace_limit_bytes", "The card's disk_mb.", labels,
                   asDouble(status.workspace->limitBytes));
  }
}

/// The sums of all counts by what `labelsOf` says of their keys.
void addSums(Families& families, const RequestCounts& requests, const char* name, const char* help,
             const std::function<std::optional<Labels>(const RequestKey&)>& labelsOf,
             std::uint64_t RequestCount::* member) {
  std::map<std::vector<std::pair<std::string, std::string>>, std::uint64_t> sums;
  for (const auto& [key, value] : requests.counts)
    if (const auto labels = labelsOf(key)) {
      std::vector<std::pair<std::string, std::string>> pairs;
      for (const auto& label : *labels) pairs.emplace_back(label.name, label.value);
      sums[pairs] += value.*member;
    }
  for (const auto& [pairs, sum] : sums) {
    Labels labels;
    for (const auto& [label, value] : pairs) labels.push_back({label, value});
    families.counter(name, help, labels, asDouble(sum));
  }
}

void addRequests(Families& families, const RequestCounts& requests) {
  const auto byVia = [](const RequestKey& key) { return Labels{{"id", key.id}, {"via", key.via}}; };
  addSums(
      families, requests, "requests_total", "Requests that the proxy decided.",
      [](const RequestKey& key) -> std::optional<Labels> {
        return Labels{
            {"id", key.id}, {"via", key.via}, {"decision", key.decision}, {"host_class", key.hostClass}};
      },
      &RequestCount::requests);
  addSums(
      families, requests, "requests_denied_total", "Requests that were refused, by the reason and the rule.",
      [](const RequestKey& key) -> std::optional<Labels> {
        if (key.decision != "deny") return std::nullopt;
        return Labels{{"id", key.id}, {"reason", key.reason}, {"rule", key.rule}};
      },
      &RequestCount::requests);
  addSums(
      families, requests, "broker_responses_total", "Answers of the model provider, by the class of status.",
      [](const RequestKey& key) -> std::optional<Labels> {
        if (key.via != "broker" || key.decision != "allow" || key.status.empty()) return std::nullopt;
        return Labels{{"id", key.id}, {"status", key.status}};
      },
      &RequestCount::requests);
  addSums(families, requests, "sent_bytes_total", "From machines to the proxy.", byVia,
          &RequestCount::bytesUp);
  addSums(families, requests, "received_bytes_total", "From the proxy to machines.", byVia,
          &RequestCount::bytesDown);
}

}  // namespace

void count(RequestCounts& counts, const AuditRecord& record) {
  RequestKey key{.id = record.id,
                 .via = record.via,
                 .decision = record.decision,
                 .reason = record.reason,
                 .rule = record.decision == "deny" ? record.rule : "",
                 .hostClass = hostClass(record),
                 .status = {}};
  if (record.status && *record.status >= 100) key.status = std::format("{}xx", *record.status / 100);
  if (!key.rule.empty() && !counts.counts.contains(key)) key.rule = boundedRule(counts, key);
  auto& sum = counts.counts[key];
  ++sum.requests;
  sum.bytesUp += record.bytesUp;
  sum.bytesDown += record.bytesDown;
}

std::string hostClass(const AuditRecord& record) {
  if (record.via == "broker") return "provider";
  if (const auto pattern = HostPattern::parse(record.rule)) return pattern->subdomains ? "wildcard" : "exact";
  return record.reason == "host-not-listed" ? "unlisted" : "none";
}

std::string toJson(const RequestCounts& counts) {
  auto list = nlohmann::json::array();
  for (const auto& [key, sum] : counts.counts)
    list.push_back({key.id, key.via, key.decision, key.reason, key.rule, key.hostClass, key.status,
                    sum.requests, sum.bytesUp, sum.bytesDown});
  return nlohmann::json{{"cursor", counts.cursor}, {"counts", list}}.dump() + "\n";
}

RequestCounts parseRequestCounts(std::string_view text) {
  try {
    const auto json = nlohmann::json::parse(text);
    RequestCounts counts{.counts = {}, .cursor = json.at("cursor").get<std::string>()};
    if (!counts.cursor.empty() && !isCursor(counts.cursor))
      throw Error("its cursor is none: " + inQuotes(counts.cursor));
    for (const auto& row : json.at("counts"))
      counts.counts[{.id = row.at(0),
                     .via = row.at(1),
                     .decision = row.at(2),
                     .reason = row.at(3),
                     .rule = row.at(4),
                     .hostClass = row.at(5),
                     .status = row.at(6)}] = {
          .requests = row.at(7), .bytesUp = row.at(8), .bytesDown = row.at(9)};
    return counts;
  } catch (const nlohmann::json::exception& cause) {
    throw Error(cause.what());
  }
}

std::string renderMetrics(const Metrics& metrics) {
  Families families;
  for (const auto& status : metrics.machines) addState(families, status);
  for (const auto& status : metrics.machines) addRuns(families, status, metrics);
  for (const auto& status : metrics.machines) {
    const auto usage = metrics.usage.find(status.machine.card.id.str());
    addUse(families, status, usage == metrics.usage.end() ? MachineUsage{} : usage->second);
  }
  for (const auto& [guard, up] : metrics.guards)
    families.gauge("guard_up", "Whether a guard that holds all machines in is in place.", {{"guard", guard}},
                   up ? 1 : 0);
  addRequests(families, metrics.requests);
  return families.text();
}

}  // namespace agentmachine
