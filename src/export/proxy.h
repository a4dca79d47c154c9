// The egress proxy of one agent where there is no agentmachine: a squid.conf that holds the card's policy
// itself, and the script that starts it. Pure: no I/O.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "plan/policy.h"

namespace agentmachine {

/// Where it listens: for requests and tunnels, and for what goes to the provider.
constexpr std::uint16_t exportedProxyPort = 3128, exportedBrokerPort = 8081;
/// Whom it runs as, where the engine lets that be chosen.
constexpr std::uint32_t proxyUid = 65531;
/// Where it listens, finds its configuration and the key, and writes. What it writes to must be its own.
struct ProxyPlaces {
  std::string address{};                             ///< IPv4; "" is every one it has
  std::string config = "/etc/agentmachine-proxy";    ///< directory of squid.conf and start
  std::string secret = "/run/secrets/agentmachine";  ///< directory of the key
  std::string runtime = "/run/squid";                ///< directory, empty at its start
  /// Whether standard output is a socket, which squid can't open: then a pipe leads there.
  bool outputIsSocket = false;
};
/// The key's file in ProxyPlaces::secret.
constexpr std::string_view proxyKeyName = "api-key";

/// What the card's policy is in an exported proxy. Throws Error that says what to change if the card asks for
/// something that only a machine's host has.
Policy exportedPolicy(const Card& card);

/// squid.conf for squid 6 built with OpenSSL. It includes key.conf from the runtime
/// directory if the card has a key for the broker, and takes certificate.pem from there: startProxyScript
/// makes both.
std::string renderProxyConf(const Card& card, const ProxyPlaces& places = {});

/// A script for sh(1) that makes what renderProxyConf needs and becomes squid. The key is in no argument and
/// no variable of the environment.
std::string startProxyScript(const Card& card, const ProxyPlaces& places = {});

/// The ports that the proxy must reach on the internet.
std::set<std::uint16_t> portsBeyondProxy(const Card& card);

/// Whether the proxy is given the key.
bool proxyHasKey(const Card& card);

/// The URL that opencode is given for the provider, behind an exported proxy whose host is written like this.
std::string brokerUrl(const Card& card, std::string_view host);

}  // namespace agentmachine
