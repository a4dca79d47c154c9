// The machines, the proxy and the guards as Prometheus takes them. renderMetrics is pure; readMetrics looks.
#pragma once
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
  std::optional<std::uint64_t> cpuMicroseconds, memoryPeakBytes, oomKills, readBytes, writtenBytes;
};

/// What requests are counted by: few values of each, whatever a machine asks for.
struct RequestKey {
  std::string id;        ///< "" for sources that are no machine's
  std::string via;       ///< "proxy" or "broker"
  std::string decision;  ///< "allow" or "deny"
  std::string reason;
  std::string status;  ///< class of HTTP's status, "2xx"; "" if there was none
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
void count(RequestCounts& counts, const AuditRecord& record);
std::string toJson(const RequestCounts& counts);
/// Throws Error if it is not what toJson wrote.
RequestCounts parseRequestCounts(std::string_view json);

struct Metrics {
  std::vector<MachineStatus> machines;
  std::map<std::string, MachineUsage> usage;  ///< of running machines, by id
  RequestCounts requests;
  std::map<std::string, bool> guards;  ///< whether what holds all machines in is in place
};

/// Prometheus' text format, version 0.0.4.
std::string renderMetrics(const Metrics& metrics);

/// A constant number of D-Bus calls; reads the records of the proxy since the last call, and remembers their
/// sums in the state directory. Those of machines that were removed are forgotten.
Metrics readMetrics(const Settings& settings, Systemd& systemd);

}  // namespace agentmachine
