#include "plan/audit.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <format>

#include <nlohmann/json.hpp>

#include "util/error.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

/// What squid.conf calls the broker until the provider is known.
constexpr std::string_view brokerPlaceholder = "broker.invalid";

/// Squid's "-" is nothing.
std::string text(const Json& line, const char* name) {
  auto value = line.at(name).get<std::string>();
  return value == "-" ? std::string() : value;
}

std::optional<std::uint64_t> number(const Json& line, const char* name) {
  const auto value = text(line, name);
  std::uint64_t result = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
  if (error != std::errc() || end != value.data() + value.size()) return std::nullopt;
  return result;
}

/// "1732440443.123", seconds since 1970, as ISO 8601.
std::string isoTime(const std::string& stamp) {
  constexpr std::int64_t endOfYear9999 = 253402300799;
  std::int64_t seconds = 0;
  unsigned milliseconds = 0;
  const auto* const last = stamp.data() + stamp.size();
  const auto [dot, error] = std::from_chars(stamp.data(), last, seconds);
  if (error != std::errc() || dot == last || *dot != '.' ||
      std::from_chars(dot + 1, last, milliseconds).ptr != last || last == dot + 1 || milliseconds > 999 ||
      seconds < 0 || seconds > endOfYear9999)
    throw Error("its time is \"" + stamp + "\"");
  return std::format(
      "{:%FT%T}Z", std::chrono::sys_time<std::chrono::milliseconds>(std::chrono::seconds(seconds) +
                                                                    std::chrono::milliseconds(milliseconds)));
}

/// The space before the host, which squid encodes; a rule is the card's, and holds nothing else that it
/// would.
std::string ruleOf(std::string rule) {
  constexpr std::string_view space = "%20";
  if (const auto at = rule.find(space); at != std::string::npos) rule.replace(at, space.size(), " ");
  return rule;
}

/// Requests that nobody was asked about: squid couldn't read them, or the policy helper gave no answer.
std::string reasonOfSquid(const AuditRecord& record) {
  constexpr std::string_view prefix = "ERR_";
  if (!record.error.starts_with(prefix) || record.error == "ERR_ACCESS_DENIED") return "no-answer";
  std::string reason = record.error.substr(prefix.size());
  for (char& c : reason) c = c == '_' ? '-' : static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return reason;
}

/// Every member but `time`, in the order of the JSON, in one place for all directions.
template <class Record, class Visit>
void members(Record& record, const Visit& visit) {
  visit("id", record.id);
  visit("machine", record.machine);
  visit("rule", record.rule);
  visit("decision", record.decision);
  visit("reason", record.reason);
  visit("method", record.method);
  visit("host", record.host);
  visit("port", record.port);
  visit("sni", record.sni);
  visit("address", record.address);
  visit("bytes_up", record.bytesUp);
  visit("bytes_down", record.bytesDown);
  visit("ms", record.ms);
  visit("source", record.source);
  visit("via", record.via);
  visit("url", record.url);
  visit("status", record.status);
  visit("error", record.error);
}

Json toValue(const std::string& value) {
  return value;
}
Json toValue(std::uint64_t value) {
  return value;
}
Json toValue(const std::optional<std::uint64_t>& value) {
  return value ? Json(*value) : Json(nullptr);
}

void fromValue(const Json& json, std::string& value) {
  value = json.get<std::string>();
}
void fromValue(const Json& json, std::uint64_t& value) {
  value = json.get<std::uint64_t>();
}
void fromValue(const Json& json, std::optional<std::uint64_t>& value) {
  value = json.is_null() ? std::nullopt : std::optional(json.get<std::uint64_t>());
}

std::string asText(const std::string& value) {
  return value;
}
std::string asText(std::uint64_t value) {
  return std::to_string(value);
}
std::string asText(const std::optional<std::uint64_t>& value) {
  return value ? std::to_string(*value) : std::string();
}

std::string inCapitals(std::string_view name) {
  std::string capitals(name);
  for (char& c : capitals)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return capitals;
}

}  // namespace

std::string proxyLogFormat(std::string_view name, std::uint16_t brokerPort) {
  // "#" percent-encodes, which leaves nothing that JSON would mind. ">" is the client's word, "<" the
  // server's.
  return std::format(
      "logformat {} "
      R"({{"time":"%ts.%03tu","listener":"%lp","broker":"{}","id":"%#note{{agent}}","source":"%>a",)"
      R"("rule":"%#note{{rule}}","decision":"%#note{{decision}}","reason":"%#note{{reason}}","method":"%#rm",)"
      R"("host":"%#>rd","port":"%#>rP","server":"%#<rd","server_port":"%#<rP","url":"%#ru",)"
      R"("sni":"%#ssl::>sni","address":"%<a","bytes_up":"%>st","bytes_down":"%<st","ms":"%tr",)"
      R"("status":"%>Hs","error":"%#err_code"}})"
      "\n",
      name, brokerPort);
}

AuditRecord parseProxyLine(std::string_view line) {
  try {
    const Json json = Json::parse(line);
    AuditRecord record;
    record.time = isoTime(json.at("time").get<std::string>());
    if (const auto id = AgentId::parse(text(json, "id"))) setAgent(record, *id);
    const bool broker = text(json, "listener") == text(json, "broker");
    record.via = broker ? "broker" : "proxy";
    record.rule = ruleOf(text(json, "rule"));
    record.method = text(json, "method");
    record.host = text(json, broker ? "server" : "host");
    record.port = number(json, broker ? "server_port" : "port");
    // Never sent to a provider.
    if (broker && record.host == brokerPlaceholder) {
      record.host.clear();
      record.port.reset();
    }
    record.sni = text(json, "sni");
    record.address = text(json, "address");
    record.bytesUp = number(json, "bytes_up").value_or(0);
    record.bytesDown = number(json, "bytes_down").value_or(0);
    record.ms = number(json, "ms").value_or(0);
    record.source = text(json, "source");
    record.url = text(json, "url");
    record.status = number(json, "status");
    record.error = text(json, "error");
    // Nothing passes that isn't allowed by name.
    record.decision = text(json, "decision") == "allow" ? "allow" : "deny";
    record.reason = text(json, "reason");
    if (record.reason.empty()) record.reason = reasonOfSquid(record);
    return record;
  } catch (const nlohmann::json::exception& cause) {
    throw Error(std::string("read a line of squid's: ") + cause.what());
  }
}

void setAgent(AuditRecord& record, const AgentId& id) {
  record.id = id.str();
  record.machine = MachineName(id).str();
}

std::string toJson(const AuditRecord& record) {
  Json json = {{"time", record.time}};
  members(record, [&](const char* name, const auto& value) { json[name] = toValue(value); });
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

AuditRecord parseAuditRecord(std::string_view text) {
  try {
    const Json json = Json::parse(text);
    AuditRecord record;
    fromValue(json.at("time"), record.time);
    members(record, [&](const char* name, auto& value) { fromValue(json.at(name), value); });
    return record;
  } catch (const nlohmann::json::exception& cause) {
    throw Error(std::string("read a record of the proxy: ") + cause.what());
  }
}

std::vector<std::pair<std::string, std::string>> journalFields(const AuditRecord& record) {
  constexpr auto notice = "5", informational = "6";  // syslog(3)
  std::vector<std::pair<std::string, std::string>> fields = {
      {"MESSAGE", toJson(record)},
      {"MESSAGE_ID", std::string(auditMessageId)},
      {"PRIORITY", record.decision == "allow" ? informational : notice},
      {"SYSLOG_IDENTIFIER", "agentmachine-proxy"}};
  members(record, [&](const char* name, const auto& value) {
    fields.emplace_back("AGENTMACHINE_" + inCapitals(name), asText(value));
  });
  if (!record.id.empty()) {
    fields.emplace_back("AGENT_ID", record.id);
    fields.emplace_back("AGENT_MACHINE", record.machine);
  }
  return fields;
}

}  // namespace agentmachine
