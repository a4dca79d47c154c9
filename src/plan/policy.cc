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

/// The line before the key. Neither part has a space.
std::string lineOf(const Broker& broker) {
  return std::format("{} {}\n", broker.upstream.str(), broker.keyHeader ? broker.keyHeader->str() : "");
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

std::string renderDeliveredKey(const Broker& broker, std::string_view key) {
  return lineOf(broker) + std::string(key) + "\n";
}

std::string deliveredKey(std::string_view content, const Broker& broker) {
  const auto line = lineOf(broker);
  if (!content.starts_with(line)) throw Error("is for another provider");
  return parseKey(content.substr(line.size()));
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
  const bool loopback = proxy.host == "127.0.0.1", ours = proxy.port == settings.proxyPort;
  return !proxy.tls && proxy.path.empty() &&
         ((loopback && (ours || proxy.port == Settings{}.proxyPort)) ||
          (proxy.host == settings.gateway.str() && ours));
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

std::vector<HostPattern> withHosts(std::vector<HostPattern> hosts, const std::vector<HostPattern>& added) {
  for (const auto& one : added)
    if (std::ranges::none_of(hosts, [&](const HostPattern& host) { return covers(host, one); }))
      hosts.push_back(one);
  return hosts;
}

std::vector<HostPattern> withoutHosts(std::vector<HostPattern> hosts,
                                      const std::vector<HostPattern>& denied) {
  for (auto& host : hosts)
    for (const auto& one : denied)
      if (host.name == one.name && host.subdomains == one.subdomains &&
          (one.methods.empty() || one.methods == host.methods))
        std::erase_if(host.ports, [&](std::uint16_t port) { return std::ranges::contains(one.ports, port); });
  std::erase_if(hosts, [](const HostPattern& host) { return host.ports.empty(); });
  for (const auto& host : hosts)
    for (const auto& one : denied)
      if (overlap(host, one))
        throw Error(std::format(
            "\"{}\" still allows some of \"{}\": deny that rule, and allow again what of it should stay",
            host.str(), one.str()));
  return hosts;
}

Policy policyFor(const Card& card, const Settings& settings) {
  Policy policy{.agent = card.id,
                .hosts = card.allowedHosts,
                .broker = {},
                .parent = {},
                .requestsPerSecond = card.limits.requestsPerSecond};
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
