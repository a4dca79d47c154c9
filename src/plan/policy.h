// What the egress proxy lets one machine do, and the file that says so: one per machine, named by its
// address. Pure: no I/O.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "card/card.h"
#include "plan/host.h"

namespace agentmachine {

/// The longest API key: with it and the machine's own headers a request stays below what squid takes (64
/// KiB).
constexpr std::size_t maxKeyBytes = 8192;

/// The key in a key file's content: one line of printable ASCII without spaces, which any header can carry.
/// Throws Error that says what is wrong, and never what is in it.
std::string parseKey(std::string_view content);

/// The headers in which a provider may expect its key: those of the known providers, and the host's
/// `api_key_headers`. The broker adds no other, and takes all of them out of what a machine sends.
std::vector<HeaderName> keyHeaders(const Settings& settings);

/// The provider that a machine reaches through the broker's port: the path of a request is appended to
/// `upstream`.
struct Broker {
  Url upstream;
  std::optional<HeaderName> keyHeader;  ///< absent: no key. "authorization" gets "Bearer KEY"
  bool operator==(const Broker&) const = default;
};

/// What the broker is handed: the key together with the provider and header that it is for, in one file.
std::string renderDeliveredKey(const Broker& broker, std::string_view key);

/// The key in what renderDeliveredKey wrote. Throws Error if it is for another provider or header than
/// `broker`: a policy that changed, or is just changing, never has a key sent elsewhere.
std::string deliveredKey(std::string_view content, const Broker& broker);

struct Policy {
  AgentId agent;
  std::vector<HostPattern> hosts;  ///< reachable through the proxy's port; empty: nothing but the broker
  std::optional<Broker> broker;    ///< absent: the broker's port refuses
  std::optional<Url> parent;       ///< the proxy that ours goes through; the broker can't, and refuses
  /// Requests to the proxy, and as many to the broker; what is beyond has to wait.
  std::uint64_t requestsPerSecond = ResourceLimits{}.requestsPerSecond;
  bool operator==(const Policy&) const = default;
};

/// Where the card's provider is: `api_base_url`, or the provider's own.
std::optional<Url> providerUrl(const Card& card);

/// The header in which the card's key goes to the provider; nothing if it has no key.
std::optional<HeaderName> keyHeader(const Card& card);

/// Whether a URL is of the host's own Ollama, for which a key needs no TLS: it leaves the host by no wire.
bool isOwnOllama(const Url& url);

/// The card's hosts as they are, the provider through the broker alone. A provider's host is reachable
/// directly only if the card lists it: a tunnel would carry a key of somebody else's as well. With
/// `api_key_delivery` "credential" it is the other way round: the provider is one of the hosts, and there is
/// no broker.
Policy policyFor(const Card& card, const Settings& settings);

/// Whether each host, port and method of `inner` is one of `outer`.
bool covers(const HostPattern& outer, const HostPattern& inner);

/// Whether `now` refuses something at the proxy's port that `before` allowed, or sends it by another parent:
/// then what was opened before must end.
bool isTighter(const Policy& now, const Policy& before);

/// The hosts with those of `added` that none of them covers.
std::vector<HostPattern> withHosts(std::vector<HostPattern> hosts, const std::vector<HostPattern>& added);

/// The hosts without the ports of each `denied` under its name; one without methods means all methods. Throws
/// Error that names the rule if one that is left still allows some of it.
std::vector<HostPattern> withoutHosts(std::vector<HostPattern> hosts, const std::vector<HostPattern>& denied);

/// Whether a card's `proxy` is one of the spellings of our own proxy: 127.0.0.1 or the gateway, and its port.
/// http://127.0.0.1:3128 is one on every host, so that a card means the same everywhere.
bool isOwnProxy(const Url& proxy, const Settings& settings);

/// The policy file: one JSON object.
std::string renderPolicy(const Policy& policy);

/// Reads what renderPolicy wrote. Throws Error on anything else: a policy that isn't understood allows
/// nothing.
Policy parsePolicy(std::string_view json);

}  // namespace agentmachine
