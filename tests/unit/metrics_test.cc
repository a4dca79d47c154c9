// What Prometheus is told.
#include "observe/metrics.h"

#include <format>

#include <gtest/gtest.h>

#include "observe/scrape.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/pipe.h"

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
  record.rule = decision == "deny" ? "" : "example.org:443";
  record.bytesUp = 10;
  record.bytesDown = 100;
  record.status = status;
  return record;
}

bool has(const std::string& text, const std::string& line) {
  return ("\n" + text).contains("\n" + line + "\n");
}

TEST(Metrics, AMachineIsInOneState) {
  const auto text = renderMetrics({.machines = {machine("a", MachineState::expired)}});
  EXPECT_TRUE(has(text, R"(agentmachine_machine_state{id="a",state="expired"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_state{id="a",state="running"} 0)")) << text;
  EXPECT_TRUE(has(text, "# TYPE agentmachine_machine_state gauge")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_memory_limit_bytes{id="a"} 536870912)")) << text;
  EXPECT_FALSE(text.contains("cpu_seconds")) << text;
}

TEST(Metrics, EveryStateIsTold) {
  EXPECT_EQ(toString(static_cast<MachineState>(machineStates.size())), "") << "machineStates lacks one";
  for (const auto state : machineStates) {
    const auto text = renderMetrics({.machines = {machine("a", state)}});
    EXPECT_TRUE(
        has(text, std::format(R"(agentmachine_machine_state{{id="a",state="{}"}} 1)", toString(state))))
        << text;
  }
}

TEST(Metrics, UseIsInBaseUnits) {
  Metrics metrics{.machines = {machine("a", MachineState::running)}};
  metrics.usage["a"] = {.cpuMicroseconds = 1'500'000, .memoryPeakBytes = 7};
  metrics.oomKills["a"] = 2;
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
  EXPECT_TRUE(
      has(text, R"(agentmachine_requests_total{id="a",via="proxy",decision="allow",host_class="exact"} 3)"))
      << text;
  EXPECT_TRUE(has(text, R"(agentmachine_requests_denied_total{id="a",reason="host-not-listed",rule=""} 1)"))
      << text;
  EXPECT_TRUE(has(text, R"(agentmachine_requests_denied_total{id="",reason="host-not-listed",rule=""} 1)"))
      << text;
  EXPECT_TRUE(has(text, R"(agentmachine_broker_responses_total{id="a",status="4xx"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_received_bytes_total{id="a",via="proxy"} 400)")) << text;
}

TEST(Metrics, SumsAreReadAsTheyWereWritten) {
  RequestCounts counts{.counts = {}, .cursor = "s=1;i=2"};
  count(counts, record("a", "proxy", "allow", 200));
  count(counts, record("b", "broker", "deny", std::nullopt));
  EXPECT_EQ(parseRequestCounts(toJson(counts)), counts);
  for (const auto* text : {"", "{", "{}", R"({"cursor":"s=1","counts":[[1]]})", R"({"cursor":1,"counts":[]})",
                           R"({"cursor":"x","counts":[]})", R"({"cursor":"s=1;;i=2","counts":[]})",
                           R"({"cursor":"s=1;i=\u0000","counts":[]})", R"({"cursor":"","counts":[["a"]]})"})
    EXPECT_THROW(parseRequestCounts(text), Error) << text;
}

TEST(Metrics, HostsAreOfFewClasses) {
  const auto classOf = [](const char* via, const char* reason, const char* rule) {
    AuditRecord record;
    record.via = via;
    record.reason = reason;
    record.rule = rule;
    return hostClass(record);
  };
  EXPECT_EQ(classOf("proxy", "listed", "example.org:443"), "exact");
  EXPECT_EQ(classOf("proxy", "method-not-listed", "GET,HEAD example.org:80"), "exact");
  EXPECT_EQ(classOf("proxy", "private-address", ".example.org:443"), "wildcard");
  EXPECT_EQ(classOf("proxy", "host-not-listed", ""), "unlisted");
  EXPECT_EQ(classOf("proxy", "not-a-host-name", ""), "none");
  EXPECT_EQ(classOf("proxy", "too-many-requests", "requests_per_second"), "none");
  EXPECT_EQ(classOf("broker", "provider", "https://api.openai.com/v1"), "provider");
  EXPECT_EQ(classOf("broker", "too-many-requests", "requests_per_second"), "provider");
}

TEST(Metrics, RefusalsAreToldApartByAFewRulesAlone) {
  RequestCounts counts;
  const auto refuse = [&](const std::string& id, const std::string& rule) {
    auto refusal = record(id, "proxy", "deny", 403);
    refusal.reason = "port-not-listed";
    refusal.rule = rule;
    count(counts, refusal);
  };
  for (std::size_t i = 0; i < 2 * maxRules; ++i) refuse("a", "host" + std::to_string(i) + ".example.org:443");
  for (int i = 0; i < 3; ++i) refuse("a", "host0.example.org:443");
  refuse("b", "host99.example.org:443");
  EXPECT_EQ(counts.counts.size(), maxRules + 2);
  Metrics metrics;
  metrics.requests = counts;
  const auto text = renderMetrics(metrics);
  const std::string start = R"(agentmachine_requests_denied_total{id=)";
  EXPECT_TRUE(has(text, start + R"("a",reason="port-not-listed",rule="host0.example.org:443"} 4)")) << text;
  EXPECT_TRUE(has(text, start + R"("a",reason="port-not-listed",rule="more"} 30)")) << text;
  EXPECT_TRUE(has(text, start + R"("b",reason="port-not-listed",rule="host99.example.org:443"} 1)")) << text;
}

TEST(Scrape, MetricsAreAtOnePath) {
  EXPECT_EQ(scrapeStatus("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9814\r\n\r\n"), "200 OK");
  EXPECT_EQ(scrapeStatus("GET /metrics?x=y HTTP/1.0\n\n"), "200 OK");
  EXPECT_EQ(scrapeStatus("GET / HTTP/1.1\r\n\r\n"), "404 Not Found");
  EXPECT_EQ(scrapeStatus("GET /metrics/ HTTP/1.1\r\n\r\n"), "404 Not Found");
  EXPECT_EQ(scrapeStatus("POST /metrics HTTP/1.1\r\n\r\n"), "405 Method Not Allowed");
  for (const auto* request : {"", "\n\n", "GET\r\n\r\n", "GET /metrics\r\n\r\n", "GET  /metrics HTTP/1.1\n\n",
                              "GET /metrics HTTP/2\r\n\r\n", "\x16\x03\x01 a b\n\n"})
    EXPECT_EQ(scrapeStatus(request), "400 Bad Request") << request;
}

TEST(Scrape, AnAnswerSaysWhatItIs) {
  EXPECT_EQ(
      scrapeAnswer("200 OK", "a 1\n"),
      "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 4\r\n"
      "Connection: close\r\n\r\na 1\n");
  EXPECT_TRUE(scrapeAnswer("405 Method Not Allowed", "").contains("\r\nAllow: GET\r\n"));
}

TEST(Scrape, ARequestIsReadToItsEmptyLineInTime) {
  using namespace std::chrono_literals;
  const auto readOf = [](const std::string& text, bool goesOn, std::chrono::milliseconds time) {
    auto [reader, writer] = makePipe();
    EXPECT_EQ(write(writer.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    if (!goesOn) writer = Fd();
    return readScrape(reader.get(), time);
  };
  EXPECT_EQ(readOf("GET / HTTP/1.1\r\nA: b\r\n\r\n", true, 5s), "GET / HTTP/1.1\r\nA: b\r\n\r\n");
  EXPECT_THROW(readOf("GET / HTTP/1.1\r\n", true, 1ms), Error);
  EXPECT_THROW(readOf("GET / HTTP/1.1\r\n", false, 5s), Error);
  EXPECT_THROW(readOf(std::string(20'000, 'x'), true, 5s), Error);
}

TEST(Metrics, StartsAreAHistogram) {
  Metrics metrics{.machines = {machine("a", MachineState::running)}};
  for (const int milliseconds : {250, 251, 40'000})
    metrics.starts["a"].add(std::chrono::milliseconds(milliseconds));
  const auto text = renderMetrics(metrics);
  EXPECT_TRUE(has(text, R"(agentmachine_machine_start_seconds_bucket{id="a",le="0.25"} 1)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_start_seconds_bucket{id="a",le="0.5"} 2)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_start_seconds_bucket{id="a",le="30"} 2)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_start_seconds_bucket{id="a",le="+Inf"} 3)")) << text;
  EXPECT_TRUE(has(text, R"(agentmachine_machine_start_seconds_count{id="a"} 3)")) << text;
}

}  // namespace
}  // namespace agentmachine
