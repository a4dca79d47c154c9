#include "proxy/decide.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "proxy/squid_helper.h"
#include "util/text.h"

namespace agentmachine {

namespace {

std::string lowered(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

bool matches(const HostPattern& pattern, const HostName& host) {
  if (host == pattern.name) return true;
  return pattern.subdomains && host.str().ends_with("." + pattern.name.str());
}

/// What may stand in a path; not '%', so that nobody can decode it into something else, nor '\'.
bool isPathCharacter(unsigned char c) {
  return std::isalnum(c) || std::string_view("-._~!$&'()*+,;=:@/").contains(static_cast<char>(c));
}

/// What may stand in a query (RFC 3986, 3.4).
bool isQueryCharacter(unsigned char c) {
  return isPathCharacter(c) || c == '%' || c == '?';
}

/// A path that means one thing to everybody: absolute, no empty part, no "." or "..".
bool isPlainPath(std::string_view path) {
  if (!path.starts_with('/') || !std::ranges::all_of(path, isPathCharacter)) return false;
  const auto parts = split(path.substr(1), '/');
  return std::ranges::none_of(parts, [](const auto& part) { return part == "." || part == ".."; }) &&
         std::find(parts.begin(), parts.end() - 1, "") == parts.end() - 1;
}

/// Whether a parameter of the query ("?a=b&c") is one in which some providers take a key as well as in a
/// header: with a key of its own there, a machine would bring what it sends to an account that isn't the
/// card's.
bool carriesKey(std::string_view query) {
  constexpr auto names = std::to_array<std::string_view>(
      {"access_token", "api-key", "api_key", "apikey", "key", "subscription-key", "token", "x-api-key"});
  for (const auto& parameter : split(query.substr(query.starts_with('?') ? 1 : 0), '&'))
    if (std::ranges::contains(names, lowered(percentDecoded(parameter.substr(0, parameter.find('='))))))
      return true;
  return false;
}

}  // namespace

Decision decideRequest(const Policy& policy, std::string_view method, std::string_view scheme,
                       std::string_view host, std::string_view port) {
  if (method != "CONNECT" && scheme != "http") return {.reason = "scheme-not-allowed"};
  // No spelling of an IP address is a HostName.
  const auto name = HostName::parse(lowered(host));
  if (!name) return {.reason = "not-a-host-name"};
  // The rule that came nearest explains a refusal.
  Decision nearest{.reason = "host-not-listed"};
  for (const auto& pattern : policy.hosts) {
    if (!matches(pattern, *name)) continue;
    if (!std::ranges::any_of(pattern.ports, [&](auto listed) { return std::to_string(listed) == port; })) {
      if (nearest.rule.empty()) nearest = {.reason = "port-not-listed", .rule = pattern.str()};
    } else if (!pattern.methods.empty() && !std::ranges::contains(pattern.methods, method)) {
      nearest = {.reason = "method-not-listed", .rule = pattern.str()};
    } else {
      return {.allowed = true, .reason = "listed", .rule = pattern.str()};
    }
  }
  return nearest;
}

Decision decideServerName(std::string_view host, std::string_view serverName) {
  const std::string expected = lowered(host), actual = lowered(serverName);
  if (actual.empty() || actual == "-") return {.reason = "no-server-name"};
  if (actual != expected) return {.reason = "other-server-name"};
  return {.allowed = true, .reason = "listed"};
}

Decision decideBroker(const Policy& policy, std::string_view method, std::string_view target) {
  if (!policy.broker) return {.reason = "no-provider"};
  const auto& upstream = policy.broker->upstream;
  const auto deny = [&](std::string_view reason) {
    return Decision{.reason = reason, .rule = upstream.str()};
  };
  // squid can't open a tunnel to the provider through another proxy; it would hand the proxy the request
  // itself.
  if (policy.parent) return deny("provider-behind-parent");
  if (method != "GET" && method != "POST") return deny("method-not-allowed");
  if (policy.broker->keyHeader && !upstream.tls && !isOwnOllama(upstream)) return deny("key-without-tls");
  const auto path = target.substr(0, target.find('?'));
  const auto query = target.substr(path.size());
  if (!isPlainPath(path) || !std::ranges::all_of(query, isQueryCharacter)) return deny("path-not-allowed");
  if (policy.broker->keyHeader && carriesKey(query)) return deny("key-in-query");
  return {.allowed = true, .reason = "provider", .rule = upstream.str()};
}

}  // namespace agentmachine
