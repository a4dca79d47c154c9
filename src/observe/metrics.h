// The machines, the proxy and the guards as Prometheus takes them. renderMetrics is pure; readMetrics looks.
#pragma once
#include <chrono>
#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "observe/list.h"
#include "plan/audit.h"

namespace agentmachine {

/// What the kernel counts of a running machine: Documentation/admin-guide/cgroup-v2.rst. What a cgroup lacks
/// is absent.
struct MachineUsage {
  std::optional<std::uint64_t> cpuMicroseconds, memoryPeakBytes, readBytes, writtenBytes;
};

/// What requests are counted by: few values of each, whatever a machine asks for.
struct RequestKey {
  std::string id{};        ///< "" for sources that are no machine's
  std::string via{};       ///< "proxy" or "broker"
  std::string decision{};  ///< "allow" or "deny"
  std::string reason{};
  std::string rule{};       ///< of a refusal: what of the card decided, or "more" beyond maxRules
  std::string hostClass{};  ///< hostClass()
  std::string status{};     ///< class of HTTP's status, "2xx"; "" if there was none
  auto operator<=>(const RequestKey&) const = default;
};
struct RequestCount {
  std::uint64_t requests = 0, bytesUp = 0, bytesDown = 0;
  bool operator==(const RequestCount&) const = default;
};

/// The proxy's records counted so far, and the place in the journal where counting goes on.
struct RequestCounts {
  std::map<RequestKey, RequestCount> counts;
  std::string cursor;
  bool operator==(const RequestCounts&) const = default;
};
/// Pairs of reason and rule that one agent's refusals are told apart by: a card may have 256 rules, and
/// others tomorrow.
constexpr std::size_t maxRules = 30;
void count(RequestCounts& counts, const AuditRecord& record);
/// By what of the card a host was found: "exact", "wildcard", "provider" (through the broker), "unlisted", or
/// "none" for what had no host to look for.
std::string hostClass(const AuditRecord& record);
std::string toJson(const RequestCounts& counts);
/// Throws Error that says what is wrong if it is not what toJson wrote.
RequestCounts parseRequestCounts(std::string_view json);

struct Metrics {
  std::vector<MachineStatus> machines{};
  std::map<std::string, MachineUsage> usage{};               ///< of running machines, by id
  std::map<std::string, StartTimes> starts{};                ///< of machines that were started, by id
  std::map<std::string, std::uint64_t> oomKills{};           ///< of all runs of each machine, by id
  std::map<std::string, std::chrono::sys_seconds> images{};  ///< when each image was imported, by digest
  RequestCounts requests{};
  std::map<std::string, bool> guards{};  ///< whether each that holds all machines in is in place
};

/// Prometheus' text format, version 0.0.4.
std::string renderMetrics(const Metrics& metrics);

/// A constant number of D-Bus calls; reads the records of the proxy since the last call, and remembers their
/// sums in the state directory. Those of machines that were removed are forgotten.
Metrics readMetrics(const Settings& settings, Systemd& systemd);

}  // namespace agentmachine
