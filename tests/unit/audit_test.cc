#include "plan/audit.h"

#include <algorithm>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "util/error.h"

namespace agentmachine {
namespace {

/// What squid writes, with these members changed.
std::string line(const nlohmann::json& changes = nlohmann::json::object()) {
  nlohmann::json json = {{"time", "1732440443.007"},
                         {"listener", "3128"},
                         {"broker", "8081"},
                         {"id", "ada"},
                         {"source", "10.213.0.2"},
                         {"rule", "x.org:443"},
                         {"decision", "allow"},
                         {"reason", "listed"},
                         {"method", "CONNECT"},
                         {"host", "x.org"},
                         {"port", "443"},
                         {"server", "x.org"},
                         {"server_port", "443"},
                         {"url", "x.org:443"},
                         {"sni", "x.org"},
                         {"address", "192.0.2.1"},
                         {"bytes_up", "100"},
                         {"bytes_down", "200"},
                         {"ms", "12"},
                         {"status", "200"},
                         {"error", "-"}};
  json.update(changes);
  return json.dump();
}

TEST(Audit, ReadsALineOfSquids) {
  const auto record = parseProxyLine(line());
  const AuditRecord wanted{.time = "2024-11-24T09:27:23.007Z",
                           .id = "ada",
                           .machine = "agent-ada",
                           .rule = "x.org:443",
                           .decision = "allow",
                           .reason = "listed",
                           .method = "CONNECT",
                           .host = "x.org",
                           .port = 443,
                           .sni = "x.org",
                           .address = "192.0.2.1",
                           .bytesUp = 100,
                           .bytesDown = 200,
                           .ms = 12,
                           .source = "10.213.0.2",
                           .via = "proxy",
                           .url = "x.org:443",
                           .status = 200,
                           .error = ""};
  EXPECT_EQ(record, wanted);
  EXPECT_EQ(parseAuditRecord(toJson(record)), record);
}

TEST(Audit, KeepsTheOrderOfItsMembers) {
  EXPECT_TRUE(
      toJson(parseProxyLine(line({{"port", "-"}, {"sni", "-"}, {"address", "-"}})))
          .starts_with(R"({"time":"2024-11-24T09:27:23.007Z","id":"ada","machine":"agent-ada",)"
                       R"("rule":"x.org:443","decision":"allow","reason":"listed","method":"CONNECT",)"
                       R"("host":"x.org","port":null,"sni":"","address":"","bytes_up":100,)"
                       R"("bytes_down":200,"ms":12,)"));
}

TEST(Audit, BehindTheBrokerTheHostIsTheProviders) {
  const auto record = parseProxyLine(
      line({{"listener", "8081"}, {"host", "broker.invalid"}, {"port", "80"}, {"server", "api.x.org"}}));
  EXPECT_EQ(record.via, "broker");
  EXPECT_EQ(record.host, "api.x.org");
  EXPECT_EQ(record.port, 443);
  const auto refused =
      parseProxyLine(line({{"listener", "8081"}, {"server", "broker.invalid"}, {"server_port", "80"}}));
  EXPECT_EQ(refused.host, "");
  EXPECT_EQ(refused.port, std::nullopt);
}

TEST(Audit, ARuleIsAsTheCardHasIt) {
  EXPECT_EQ(parseProxyLine(line({{"rule", "GET,HEAD%20.x.org:80,443"}})).rule, "GET,HEAD .x.org:80,443");
}

TEST(Audit, WhatIsNotAllowedByNameIsDenied) {
  for (const auto* decision : {"-", "deny", "", "ALLOW", "allow,deny", "deny,allow"})
    EXPECT_EQ(parseProxyLine(line({{"decision", decision}})).decision, "deny") << decision;
  const auto reason = [](const char* error) {
    return parseProxyLine(line({{"decision", "-"}, {"reason", "-"}, {"error", error}})).reason;
  };
  EXPECT_EQ(reason("ERR_INVALID_REQ"), "invalid-req");
  EXPECT_EQ(reason("ERR_TOO_BIG"), "too-big");
  EXPECT_EQ(reason("ERR_ACCESS_DENIED"), "no-answer");
  EXPECT_EQ(reason("-"), "no-answer");
}

TEST(Audit, AnAddressOfNobodyHasNoId) {
  for (const auto* id : {"-", "", "UPPER", "a%0Ab"}) {
    const auto record = parseProxyLine(line({{"id", id}}));
    EXPECT_EQ(record.id, "") << id;
    EXPECT_EQ(record.machine, "") << id;
  }
}

TEST(Audit, RefusesOtherLines) {
  for (const auto* text : {"", "{}", "[]", "x", R"({"time":1})"})
    EXPECT_THROW(parseProxyLine(text), Error) << text;
  for (const auto* time : {"", "-", "1732440443", "1732440443.", "1732440443.1000", "x.007",
                           "1732440443.007x", "-1.007", "253402300800.000", "9223372036854775807.000"})
    EXPECT_THROW(parseProxyLine(line({{"time", time}})), Error) << time;
  for (const auto* text : {"", "{}", "null", R"({"time":"x"})"})
    EXPECT_THROW(parseAuditRecord(text), Error) << text;
}

TEST(Audit, FieldsOfTheJournalAreThoseOfTheRecord) {
  const auto fields = journalFields(parseProxyLine(line({{"decision", "deny"}, {"id", "-"}})));
  const auto value = [&](std::string_view name) {
    const auto found = std::ranges::find(fields, name, [](const auto& field) { return field.first; });
    return found == fields.end() ? std::string("none") : found->second;
  };
  EXPECT_EQ(value("MESSAGE"), toJson(parseProxyLine(line({{"decision", "deny"}, {"id", "-"}}))));
  EXPECT_EQ(value("PRIORITY"), "5");
  EXPECT_EQ(value("SYSLOG_IDENTIFIER"), "agentmachine-proxy");
  EXPECT_EQ(value("AGENTMACHINE_ID"), "");
  EXPECT_EQ(value("AGENTMACHINE_DECISION"), "deny");
  EXPECT_EQ(value("AGENTMACHINE_PORT"), "443");
  EXPECT_EQ(value("AGENTMACHINE_BYTES_UP"), "100");
  EXPECT_EQ(value("AGENT_ID"), "none");
}

TEST(Audit, AnAgentsRecordsHaveTheFieldsOfAllThatConcernsIt) {
  const auto fields = journalFields(parseProxyLine(line({{"decision", "deny"}, {"id", "ada"}})));
  const auto count = [&](const std::string& name, const std::string& value) {
    return std::ranges::count(fields, std::pair(name, value));
  };
  EXPECT_EQ(count("AGENT_ID", "ada"), 1);
  EXPECT_EQ(count("AGENT_MACHINE", "agent-ada"), 1);
}

TEST(Audit, JsonIsAsciiWhateverTheValues) {
  AuditRecord record;
  record.host = "\x1b[31m\n\u202e\xff\"";
  const auto json = toJson(record);
  EXPECT_TRUE(std::ranges::all_of(json, [](unsigned char c) { return c >= 0x20 && c < 0x7f; })) << json;
}

}  // namespace
}  // namespace agentmachine
