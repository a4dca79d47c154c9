// Golden test of metrics: every family, with a machine that runs and one that has only been made. promtool
// reads the expected file in tests/metrics/check.
#include "observe/metrics.h"

#include <gtest/gtest.h>

#include "golden.h"

namespace agentmachine {

namespace {

MachineStatus machine(const std::string& id, MachineState state) {
  const auto card =
      parseCard(R"({"agent_id": ")" + id + R"(", "workspace": "/mnt/agents/a"})", CardFormat::json);
  return {.machine = {.card = card.value(), .allocation = {}}, .state = state};
}

void addRequest(Metrics& metrics, const std::string& id, const std::string& via, const std::string& reason,
                std::optional<std::uint64_t> status, const std::string& rule = "") {
  AuditRecord record;
  record.id = id;
  record.via = via;
  record.decision = reason == "listed" || reason == "provider" ? "allow" : "deny";
  record.reason = reason;
  record.rule = rule;
  record.bytesUp = 100;
  record.bytesDown = 1000;
  record.status = status;
  count(metrics.requests, record);
}

TEST(Metrics, AreWhatPrometheusReads) {
  Metrics metrics{.machines = {machine("ada", MachineState::running), machine("bob", MachineState::created)},
                  .images = {{"sha256-1", std::chrono::sys_seconds(std::chrono::seconds(1'764'000'000))}},
                  .guards = {{"network", true}, {"proxy", false}}};
  auto& ada = metrics.machines[0];
  ada.machine.allocation.image = "sha256-1";
  ada.restarts = 3;
  for (const int milliseconds : {200, 400, 900, 60'000})
    metrics.starts["ada"].add(std::chrono::milliseconds(milliseconds));
  ada.memoryBytes = 123'456'789;
  ada.tasks = 12;
  ada.ttlRemaining = std::chrono::seconds(3599);
  ada.workspace = SpaceUsage{.bytes = 4096, .limitBytes = 1'073'741'824};
  metrics.usage["ada"] = {
      .cpuMicroseconds = 1'500'000, .memoryPeakBytes = 234'567'890, .readBytes = 8192, .writtenBytes = 16384};
  metrics.oomKills = {{"ada", 1}, {"bob", 0}};
  addRequest(metrics, "ada", "proxy", "listed", 200, "pypi.org:443");
  addRequest(metrics, "ada", "proxy", "listed", 200, "GET,HEAD .debian.org:80");
  addRequest(metrics, "ada", "proxy", "host-not-listed", 407);
  addRequest(metrics, "ada", "proxy", "method-not-listed", 403, "GET,HEAD .debian.org:80");
  addRequest(metrics, "ada", "proxy", "not-a-host-name", 407);
  addRequest(metrics, "ada", "broker", "provider", 200);
  addRequest(metrics, "ada", "broker", "provider", 503);
  addRequest(metrics, "", "proxy", "unknown-source", 403);
  expectGolden(AGENTMACHINE_SOURCE_ROOT "/tests/golden/metrics.prom", renderMetrics(metrics));
}

}  // namespace

}  // namespace agentmachine
