#include "plan/policy.h"

#include <algorithm>
#include <array>
#include <format>

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

bool isBelow(const HostName& name, const HostName& above) {
  return name.str().ends_with("." + above.str());
}

template <class Element>
bool intersects(const std::vector<Element>& one, const std::vector<Element>& other) {
  return std::ranges::any_of(one,
                             [&](const Element& element) { return std::ranges::contains(other, element); });
}

template <class Element>
bool includes(const std::vector<Element>& outer, const std::vector<Element>& inner) {
  return std::ranges::all_of(inner,
                             [&](const Element& element) { return std::ranges::contains(outer, element); });
}

/// Whether some request is allowed by both.
bool overlap(const HostPattern& one, const HostPattern& other) {
  const bool names = one.name == other.name || (one.subdomains && isBelow(other.name, one.name)) ||
                     (other.subdomains && isBelow(one.name, other.name));
  return names && intersects(one.ports, other.ports) &&
         (one.methods.empty() || other.methods.empty() || intersects(one.methods, other.methods));
}

HostPattern withPorts(HostPattern pattern, std::vector<std::uint16_t> ports) {
  pattern.ports = std::move(ports);
  return pattern;
}

}  // namespace

bool isOwnProxy(const Url& proxy, const Settings& settings) {
  return !proxy.tls && proxy.path.empty() && proxy.port == settings.proxyPort &&
         (proxy.host == "127.0.0.1" || proxy.host == settings.gateway.str());
}

bool covers(const HostPattern& outer, const HostPattern& inner) {
  const bool names = outer.name == inner.name ? outer.subdomains || !inner.subdomains
                                              : outer.subdomains && isBelow(inner.name, outer.name);
  return names && includes(outer.ports, inner.ports) &&
         (outer.methods.empty() || (!inner.methods.empty() && includes(outer.methods, inner.methods)));
}

bool isTighter(const Policy& now, const Policy& before) {
  if (now.parent != before.parent) return true;
  // Port by port: one rule of before may have become several.
  return std::ranges::any_of(before.hosts, [&](const HostPattern& old) {
    return std::ranges::any_of(old.ports, [&](std::uint16_t port) {
      return std::ranges::none_of(now.hosts, [&, one = withPorts(old, {port})](const HostPattern& host) {
        return covers(host, one);
      });
    });
  });
}

std::vector<HostPattern> withHost(std::vector<HostPattern> hosts, const HostPattern& added) {
  const bool covered =
      std::ranges::any_of(hosts, [&](const HostPattern& host) { return covers(host, added); });
  if (!covered) hosts.push_back(added);
  return hosts;
}

std::vector<HostPattern> withoutHost(const std::vector<HostPattern>& hosts, const HostPattern& denied) {
  std::vector<HostPattern> left;
  for (const auto& host : hosts) {
    const bool meant = host.name == denied.name && host.subdomains == denied.subdomains &&
                       (denied.methods.empty() || denied.methods == host.methods);
    std::vector<std::uint16_t> ports = host.ports;
    if (meant)
      std::erase_if(ports, [&](std::uint16_t port) { return std::ranges::contains(denied.ports, port); });
    if (!ports.empty()) left.push_back(withPorts(host, ports));
  }
  for (const auto& host : left)
    if (overlap(host, denied))
      throw Error(std::format(
          "\"{}\" still allows some of \"{}\": deny that rule, and allow again what of it should stay",
          host.str(), denied.str()));
  return left;
}

Policy policyFor(const Card& card, const Settings& settings) {
  Policy policy{.agent = card.id,
                .hosts = card.allowedHosts,
                .broker = {},
                .parent = {},
                .requestsPerSecond = card.limits.requestsPerSecond};
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
  json["requests_per_second"] = policy.requestsPerSecond;
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
      if (json.contains("requests_per_second")) {
        policy.requestsPerSecond = json["requests_per_second"].get<std::uint64_t>();
        if (policy.requestsPerSecond == 0) throw Error("requests_per_second is 0");
      }
      return policy;
    } catch (const Json::exception& cause) {
      throw Error(cause.what());
    }
  });
}

}  // namespace agentmachine
