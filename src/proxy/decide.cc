#include "proxy/decide.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <format>

#include "proxy/squid_helper.h"
#include "util/text.h"

namespace agentmachine {

namespace {

bool matches(const HostPattern& pattern, const HostName& host) {
  if (host == pattern.name) return true;
  return pattern.subdomains && host.str().ends_with("." + pattern.name.str());
}

/// What a machine wrote, for a page and a header: at most 80 characters, and those that mean something there
/// or aren't ASCII replaced.
std::string legible(std::string_view text) {
  std::string line = escaped(text, 80);
  for (char& c : line)
    if (static_cast<unsigned char>(c) >= 0x80 || std::string_view("<>&'\"").contains(c)) c = '?';
  return line;
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

std::optional<WebRequest> requestFor(std::string_view url, std::string_view method,
                                     const Settings& settings) {
  const auto scheme = lowered(url.substr(0, url.find("://")));
  if (scheme.size() == url.size() || (scheme != "http" && scheme != "https")) return std::nullopt;
  url.remove_prefix(scheme.size() + 3);
  auto authority = url.substr(0, url.find_first_of("/?#"));
  auto target = url.substr(authority.size());
  target = target.substr(0, target.find('#'));
  // What is before the @ is not sent to a proxy as a part of the host.
  authority.remove_prefix(authority.rfind('@') + 1);
  const auto colon = authority.rfind(':');
  const bool hasPort =
      colon != std::string_view::npos && authority.find(']', colon) == std::string_view::npos;
  const auto port = hasPort ? authority.substr(colon + 1) : std::string_view{};
  WebRequest request{.toBroker = false,
                     .method = scheme == "https" ? "CONNECT" : std::string(method),
                     .host = std::string(hasPort ? authority.substr(0, colon) : authority),
                     .port = std::string(port),
                     .target = target.starts_with('/') ? std::string(target) : "/" + std::string(target)};
  if (port.empty()) request.port = scheme == "https" ? "443" : "80";
  request.toBroker = scheme == "http" && request.host == settings.gateway.str() &&
                     request.port == std::to_string(settings.brokerPort);
  return request;
}

Decision decide(const Policy& policy, const WebRequest& request) {
  if (request.toBroker) return decideBroker(policy, request.method, request.target);
  return decideRequest(policy, request.method, "http", request.host, request.port);
}

std::string advice(const Decision& decision, const Policy& policy, std::string_view method,
                   std::string_view host, std::string_view port) {
  if (decision.allowed) return "";
  const std::string& agent = policy.agent.str();
  const std::string name = legible(host), number = legible(port), verb = legible(method);
  const auto is = [&](std::string_view reason) { return decision.reason == reason; };
  if (is("host-not-listed"))
    return std::format("The card of {0} does not list {1}: its allowed_hosts would need {1}:{2}.", agent,
                       name, number);
  if (is("port-not-listed"))
    return std::format("The card of {} lists {}, but not port {}: its allowed_hosts would need {}:{}.", agent,
                       decision.rule, number, name, number);
  if (is("method-not-listed"))
    return std::format(
        "The card of {} lists {}, but not the method {}: its allowed_hosts would need {} {}:{}.", agent,
        decision.rule, verb, verb, name, number);
  if (is("not-a-host-name"))
    return std::format(
        "{} is not the name of a host: only names can be on a card, in their ASCII form and with their "
        "domain; addresses are never reached.",
        name);
  if (is("scheme-not-allowed")) return "Only http:// passes, and tunnels (CONNECT) for everything with TLS.";
  if (is("too-many-requests"))
    return std::format(
        "More than {} requests a second: wait before the next. The card of {} has this limit as "
        "requests_per_second.",
        policy.requestsPerSecond, agent);
  if (is("no-server-name") || is("other-server-name"))
    return "A tunnel is for TLS with the server name of the host that it was opened for.";
  if (is("no-provider"))
    return std::format("The card of {} names no model provider: it would need api_base_url.", agent);
  if (is("provider-behind-parent"))
    return std::format(
        "The card of {} names a proxy, through which the model provider can not be reached: it would "
        "have to leave out proxy.",
        agent);
  if (is("method-not-allowed")) return "The model provider is asked with GET and POST alone.";
  if (is("key-without-tls"))
    return std::format(
        "The API key is not sent without TLS: api_base_url of the card of {} would have to begin with "
        "https://.",
        agent);
  if (is("key-in-query")) return "A key in the query is not passed on: the broker adds the card's own.";
  if (is("no-key"))
    return std::format(
        "The API key of {} could not be read; the journal of agentmachine-key@{}.service has why.", agent,
        agent);
  if (is("path-not-allowed"))
    return "The path means more than one thing: no dots, empty parts or escapes are taken in it.";
  return "";
}

}  // namespace agentmachine
