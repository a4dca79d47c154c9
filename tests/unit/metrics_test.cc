// What Prometheus is told.
#include "observe/metrics.h"

#include <gtest/gtest.h>

#include "util/error.h"

namespace agentmachine {
namespace {

MachineStatus machine(const std::string& id, MachineState state) {
  const auto card = parseCard(
      R"({"agent_id": ")" + id + R"(", "workspace": "/mnt/agents/a", "resource_limits": {"memory_mb": 512}})",
      CardFormat::json);
  return {.machine = {.card = card.value(), .allocation = {}}, .state = state};
}

AuditRecord record(const std::string& id, const std::string& via, const std::string& decision,
                   std::optional<std::uint64_t> status) {
  AuditRecord record;
  record.id = id;
  record.via = via;
  record.decision = decision;
  record.reason = decision == "deny" ? "host-not-listed" : "listed";
  record.bytesUp = 10;
  record.bytesDown = 100;
  record.status = status;
  return record;
}

bool has(const std::string& text, const std::string& line) {
  return ("\n" + text).contains("\n" + line + "\n");
}

TEST(Metrics, AMachineIsInOneState) {
  const auto text = renderMetrics(
      {.machines = {machine("a", MachineState::expired)}, .usage = {}, .requests = {}, .guards = {}});
  EXPECT_TRUE(has(text, R"(agentmachine_machine_state{id="a",state="expired"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_state{id="a",state="running"} 0)")) << text;
  EXPECT_TRUE(has(text, "# TYPE agentmachine_machine_state gauge")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_memory_limit_bytes{id="a"} 536870912)")) << text;
  EXPECT_FALSE(text.contains("cpu_seconds")) << text;
}

TEST(Metrics, UseIsInBaseUnits) {
  Metrics metrics{
      .machines = {machine("a", MachineState::running)}, .usage = {}, .requests = {}, .guards = {}};
  metrics.usage["a"] = {.cpuMicroseconds = 1'500'000, .memoryPeakBytes = 7, .oomKills = 2};
  metrics.guards = {{"network", true}, {"proxy", false}};
  const auto text = renderMetrics(metrics);
  EXPECT_TRUE(has(text, R"(agentmachine_machine_cpu_seconds_total{id="a"} 1.5)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_memory_peak_bytes{id="a"} 7)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_oom_kills_total{id="a"} 2)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_guard_up{guard="network"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_guard_up{guard="proxy"} 0)")) << text;
}

TEST(Metrics, RequestsAreSummed) {
  Metrics metrics;
  for (int i = 0; i < 3; ++i) count(metrics.requests, record("a", "proxy", "allow", 200));
  count(metrics.requests, record("a", "proxy", "deny", 407));
  count(metrics.requests, record("a", "broker", "allow", 429));
  count(metrics.requests, record("", "proxy", "deny", std::nullopt));
  const auto text = renderMetrics(metrics);
  EXPECT_TRUE(has(text, R"(agentmachine_requests_total{id="a",via="proxy",decision="allow"} 3)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_requests_denied_total{id="a",reason="host-not-listed"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_requests_denied_total{id="",reason="host-not-listed"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_broker_responses_total{id="a",status="4xx"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_received_bytes_total{id="a",via="proxy"} 400)")) << text;
}

TEST(Metrics, SumsAreReadAsTheyWereWritten) {
  RequestCounts counts{.counts = {}, .cursor = "s=1;i=2"};
  count(counts, record("a", "proxy", "allow", 200));
  count(counts, record("b", "broker", "deny", std::nullopt));
  EXPECT_EQ(parseRequestCounts(toJson(counts)), counts);
  for (const auto* text : {"", "{", "{}", R"({"cursor":"x","counts":[[1]]})", R"({"cursor":1,"counts":[]})"})
    EXPECT_THROW(parseRequestCounts(text), Error) << text;
}

}  // namespace
}  // namespace agentmachine
