#include "card/card.h"

#include <algorithm>
#include <array>
#include <concepts>
#include <format>

#include "card/document.h"
#include "card/validate.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::array<std::string_view, 4> providerNames = {"anthropic", "openai", "ollama", "custom"};
constexpr std::array<std::string_view, 2> deliveryNames = {"broker", "credential"};
constexpr std::array<std::string_view, 3> restartNames = {"on-failure", "always", "no"};

const Json& schema() {
  static const Json parsed = Json::parse(cardSchema());
  return parsed;
}

/// Every field of a card, once: reading and writing both walk this list. The schema has the rest: types,
/// limits, defaults, what must be there.
void eachField(auto& card, auto&& field) {
  field("/agent_id", card.id);
  field("/workspace", card.workspace);
  field("/api_provider", card.apiProvider);
  field("/api_base_url", card.apiBaseUrl);
  field("/api_key_file", card.apiKeyFile);
  field("/api_key_header", card.apiKeyHeader);
  field("/api_key_delivery", card.apiKeyDelivery);
  field("/model", card.model);
  field("/command", card.command);
  field("/proxy", card.proxy);
  field("/resource_limits/memory_mb", card.limits.memoryMb);
  field("/resource_limits/cpu_shares", card.limits.cpuShares);
  field("/resource_limits/cpu_quota_percent", card.limits.cpuQuotaPercent);
  field("/resource_limits/max_processes", card.limits.maxProcesses);
  field("/resource_limits/max_open_files", card.limits.maxOpenFiles);
  field("/resource_limits/io_weight", card.limits.ioWeight);
  field("/resource_limits/disk_mb", card.limits.diskMb);
  field("/resource_limits/tmp_mb", card.limits.tmpMb);
  field("/resource_limits/network_mbit", card.limits.networkMbit);
  field("/resource_limits/max_connections", card.limits.maxConnections);
  field("/resource_limits/requests_per_second", card.limits.requestsPerSecond);
  field("/allowed_hosts", card.allowedHosts);
  field("/packages", card.packages);
  field("/ttl_seconds", card.ttl);
  field("/idle_seconds", card.idle);
  field("/restart", card.restart);
  field("/stop_timeout_seconds", card.stopTimeout);
  field("/autostart", card.autostart);
  field("/environment", card.environment);
  field("/memory_deny_write_execute", card.memoryDenyWriteExecute);
}

/// A type that is read from a string by its `parse` and gives it back by its `str`.
template <class T>
concept Parsed = requires(const T& value) {
  { value.str() } -> std::convertible_to<std::string>;
  T::parse(std::string_view());
};

// Reading: the value has been validated, so a failure here is a schema that promises less than the type asks;
// it throws bad_expected_access, and the fuzzer looks for it.
template <Parsed T>
T parsed(const std::string& text) {
  return T::parse(text).value();
}
template <Parsed T>
void read(const Json& value, T& into) {
  into = parsed<T>(value.get_ref<const std::string&>());
}
template <Parsed T>
void read(const Json& value, std::optional<T>& into) {
  into = parsed<T>(value.get_ref<const std::string&>());
}
void read(const Json& value, std::uint64_t& into) {
  into = value.get<std::uint64_t>();
}
void read(const Json& value, std::optional<std::uint64_t>& into) {
  into = value.get<std::uint64_t>();
}
void read(const Json& value, std::chrono::seconds& into) {
  into = std::chrono::seconds(value.get<std::int64_t>());
}
void read(const Json& value, bool& into) {
  into = value.get<bool>();
}
/// An enumeration whose values are those of `names`, in order.
template <class Enum>
Enum named(const Json& value, const auto& names) {
  return static_cast<Enum>(std::ranges::find(names, value.get_ref<const std::string&>()) - names.begin());
}
void read(const Json& value, ApiProvider& into) {
  into = named<ApiProvider>(value, providerNames);
}
void read(const Json& value, KeyDelivery& into) {
  into = named<KeyDelivery>(value, deliveryNames);
}
void read(const Json& value, RestartPolicy& into) {
  into = named<RestartPolicy>(value, restartNames);
}
template <Parsed T>
void read(const Json& value, std::vector<T>& into) {
  for (const auto& item : value) into.push_back(parsed<T>(item.get_ref<const std::string&>()));
}
template <Parsed K, Parsed V>
void read(const Json& value, std::map<K, V>& into) {
  for (const auto& [key, item] : value.items())
    into.insert_or_assign(parsed<K>(key), parsed<V>(item.get_ref<const std::string&>()));
}

// Writing: the other way round; what is absent becomes null, {} or [].
Json written(const Parsed auto& value) {
  return value.str();
}
Json written(std::same_as<std::uint64_t> auto value) {
  return value;
}
Json written(std::chrono::seconds value) {
  return value.count();
}
Json written(std::same_as<bool> auto value) {
  return value;
}
Json written(ApiProvider value) {
  return toString(value);
}
Json written(KeyDelivery value) {
  return toString(value);
}
Json written(RestartPolicy value) {
  return toString(value);
}
template <class T>
Json written(const std::optional<T>& value) {
  return value ? written(*value) : Json();
}
template <Parsed T>
Json written(const std::vector<T>& values) {
  Json list = Json::array();
  for (const auto& value : values) list.push_back(value.str());
  return list;
}
template <Parsed K, Parsed V>
Json written(const std::map<K, V>& values) {
  Json object = Json::object();
  for (const auto& [key, value] : values) object[key.str()] = value.str();
  return object;
}

Json defaultOf(std::string pointer) {
  for (std::size_t at = 0; (at = pointer.find('/', at)) != std::string::npos;
       at += std::string("/properties/").size())
    pointer.replace(at, 1, "/properties/");
  return schema().at(Json::json_pointer(pointer)).value("default", Json());
}

}  // namespace

std::string_view toString(ApiProvider provider) {
  return providerNames.at(static_cast<std::size_t>(provider));
}

std::string_view toString(KeyDelivery delivery) {
  return deliveryNames.at(static_cast<std::size_t>(delivery));
}

std::string_view toString(RestartPolicy policy) {
  return restartNames.at(static_cast<std::size_t>(policy));
}

std::expected<Card, std::vector<Problem>> parseCard(std::string_view text, CardFormat format) {
  auto document = readDocument(text, format);
  if (!document) return std::unexpected(std::vector{std::move(document.error())});
  auto problems = std::move(document->duplicates);
  const Json& value = document->value;
  std::ranges::move(validate(schema(), value), std::back_inserter(problems));
  if (!problems.empty()) return std::unexpected(std::move(problems));

  Card card{.id = parsed<AgentId>(value["agent_id"]), .workspace = parsed<AbsolutePath>(value["workspace"])};
  eachField(card, [&](const char* pointer, auto& field) {
    const Json::json_pointer at(pointer);
    if (value.contains(at)) read(value.at(at), field);
  });
  return card;
}

std::string toJson(const Card& card) {
  Json json;
  eachField(card, [&](const char* pointer, const auto& field) {
    Json value = written(field);
    if (!value.empty() && value != defaultOf(pointer)) json[Json::json_pointer(pointer)] = std::move(value);
  });
  return json.dump(2) + "\n";
}

std::string describe(std::string_view source, const std::vector<Problem>& problems) {
  std::string text = std::format("{}: {} problem{}\n", escaped(source, 4096), problems.size(),
                                 problems.size() == 1 ? "" : "s");
  for (const auto& [pointer, message] : problems)
    text += std::format("  {}{}{}\n", escaped(pointer, 200), pointer.empty() ? "" : ": ", message);
  return text;
}

std::optional<Url> defaultApiBaseUrl(ApiProvider provider) {
  switch (provider) {
    case ApiProvider::anthropic:
      return Url::parse("https://api.anthropic.com/v1").value();
    case ApiProvider::openai:
      return Url::parse("https://api.openai.com/v1").value();
    case ApiProvider::ollama:
      return Url::parse("http://127.0.0.1:11434/v1").value();
    case ApiProvider::custom:
      break;
  }
  return {};
}

}  // namespace agentmachine
