#include "plan/policy.h"

#include <algorithm>
#include <array>
#include <format>

#include <nlohmann/json.hpp>

#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

// Of Anthropic; of OpenAI and those that copy it; of Azure; of Google.
constexpr std::array<std::string_view, 4> knownHeaders = {"x-api-key", "authorization", "api-key",
                                                          "x-goog-api-key"};

/// A value of one of the checked types, or Error.
template <class Type>
Type checked(const Json& text) {
  auto value = Type::parse(text.get<std::string>());
  if (!value) throw Error(value.error());
  return *std::move(value);
}

Broker parseBroker(const Json& object) {
  Broker broker{.upstream = checked<Url>(object.at("upstream")), .keyHeader = {}};
  if (object.contains("key_header")) broker.keyHeader = checked<HeaderName>(object["key_header"]);
  return broker;
}

}  // namespace

std::string parseKey(std::string_view content) {
  std::string key = trim(content);
  if (key.empty()) throw Error("is empty");
  if (key.size() > maxKeyBytes)
    throw Error(std::format("holds more than the {} bytes of a key", maxKeyBytes));
  if (key.contains('\n')) throw Error("holds more than one line: it must hold the key and nothing else");
  if (std::ranges::any_of(key, [](unsigned char c) { return c <= 0x20 || c >= 0x7f; }))
    throw Error("must hold one key, printable ASCII without spaces, and nothing else");
  return key;
}

std::vector<HeaderName> keyHeaders(const Settings& settings) {
  std::vector<HeaderName> headers;
  for (const auto name : knownHeaders) headers.push_back(HeaderName::parse(name).value());
  for (const auto& header : settings.apiKeyHeaders)
    if (!std::ranges::contains(headers, header)) headers.push_back(header);
  return headers;
}

std::optional<Url> providerUrl(const Card& card) {
  return card.apiBaseUrl ? card.apiBaseUrl : defaultApiBaseUrl(card.apiProvider);
}

std::optional<HeaderName> keyHeader(const Card& card) {
  if (!card.apiKeyFile) return {};
  if (card.apiKeyHeader) return card.apiKeyHeader;
  return HeaderName::parse(card.apiProvider == ApiProvider::anthropic ? "x-api-key" : "authorization")
      .value();
}

bool isOwnOllama(const Url& url) {
  const auto ollama = defaultApiBaseUrl(ApiProvider::ollama).value();
  return url.host == ollama.host && url.port == ollama.port;
}

bool isOwnProxy(const Url& proxy, const Settings& settings) {
  return !proxy.tls && proxy.path.empty() && proxy.port == settings.proxyPort &&
         (proxy.host == "127.0.0.1" || proxy.host == settings.gateway.str());
}

Policy policyFor(const Card& card, const Settings& settings) {
  Policy policy{.agent = card.id, .hosts = card.allowedHosts, .broker = {}, .parent = {}};
  if (const auto upstream = providerUrl(card)) {
    if (card.apiKeyDelivery == KeyDelivery::broker) {
      policy.broker = Broker{.upstream = *upstream, .keyHeader = keyHeader(card)};
    } else if (auto host = HostPattern::parse(std::format("{}:{}", upstream->host, upstream->port))) {
      // The plan refuses a card whose provider can't be a host like others.
      policy.hosts.push_back(*std::move(host));
    }
  }
  if (card.proxy && !isOwnProxy(*card.proxy, settings)) policy.parent = card.proxy;
  return policy;
}

std::string renderPolicy(const Policy& policy) {
  Json json = {{"agent", policy.agent.str()}, {"hosts", Json::array()}};
  for (const auto& host : policy.hosts) json["hosts"].push_back(host.str());
  if (policy.broker) {
    json["broker"]["upstream"] = policy.broker->upstream.str();
    if (policy.broker->keyHeader) json["broker"]["key_header"] = policy.broker->keyHeader->str();
  }
  if (policy.parent) json["parent"] = policy.parent->str();
  return json.dump(2) + "\n";
}

Policy parsePolicy(std::string_view text) {
  return inContext("read policy", [&] {
    try {
      const Json json = Json::parse(text);
      Policy policy{.agent = checked<AgentId>(json.at("agent")), .hosts = {}, .broker = {}, .parent = {}};
      for (const auto& host : json.at("hosts")) policy.hosts.push_back(checked<HostPattern>(host));
      if (json.contains("broker")) policy.broker = parseBroker(json["broker"]);
      if (json.contains("parent")) policy.parent = checked<Url>(json["parent"]);
      return policy;
    } catch (const Json::exception& cause) {
      throw Error(cause.what());
    }
  });
}

}  // namespace agentmachine
