#include "plan/policy.h"

#include <array>

#include <nlohmann/json.hpp>

#include "util/error.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::pair<KeyHeader, std::string_view>, 3> headerNames = {{
    {KeyHeader::none, "none"},
    {KeyHeader::xApiKey, "x-api-key"},
    {KeyHeader::bearer, "bearer"},
}};

KeyHeader headerFor(const Card& card) {
  if (!card.apiKeyFile) return KeyHeader::none;
  switch (card.apiProvider) {
    case ApiProvider::anthropic:
      return KeyHeader::xApiKey;
    case ApiProvider::openai:
    case ApiProvider::custom:
      return KeyHeader::bearer;
    case ApiProvider::ollama:
      return KeyHeader::none;
  }
  return KeyHeader::none;
}

/// A value of one of the checked types, or Error.
template <class Type>
Type checked(const Json& text) {
  auto value = Type::parse(text.get<std::string>());
  if (!value) throw Error(value.error());
  return *std::move(value);
}

Broker parseBroker(const Json& object) {
  Broker broker{.upstream = checked<Url>(object.at("upstream"))};
  const auto name = object.at("key_header").get<std::string>();
  for (const auto& [header, known] : headerNames) {
    if (name != known) continue;
    broker.header = header;
    return broker;
  }
  throw Error("key_header \"" + name + "\" is unknown");
}

}  // namespace

bool isOwnProxy(const Url& proxy, const Settings& settings) {
  return !proxy.tls && proxy.path.empty() && proxy.port == settings.proxyPort &&
         (proxy.host == "127.0.0.1" || proxy.host == settings.gateway.str());
}

Policy policyFor(const Card& card, const Settings& settings) {
  Policy policy{.agent = card.id, .hosts = card.allowedHosts, .broker = {}, .parent = {}};
  const auto upstream = card.apiBaseUrl ? card.apiBaseUrl : defaultApiBaseUrl(card.apiProvider);
  if (upstream) policy.broker = Broker{.upstream = *upstream, .header = headerFor(card)};
  if (card.proxy && !isOwnProxy(*card.proxy, settings)) policy.parent = card.proxy;
  return policy;
}

std::string renderPolicy(const Policy& policy) {
  Json json = {{"agent", policy.agent.str()}, {"hosts", Json::array()}};
  for (const auto& host : policy.hosts) json["hosts"].push_back(host.str());
  if (policy.broker) {
    json["broker"]["upstream"] = policy.broker->upstream.str();
    for (const auto& [header, name] : headerNames)
      if (header == policy.broker->header) json["broker"]["key_header"] = name;
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
