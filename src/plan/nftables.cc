#include "plan/nftables.h"

#include <algorithm>
#include <format>
#include <set>
#include <vector>

#include <net/if.h>

#include "card/card.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// The part that is the same on every host, with what differs as nft's own variables.
constexpr std::string_view ruleset = R"(
# Adding a table that exists changes nothing, and flushing it empties its chains but not its sets.
add table bridge agentmachine
flush table bridge agentmachine
add table inet agentmachine
flush table inet agentmachine

table bridge agentmachine {
  # Who may speak on which port; an element lives as long as its machine runs.
  set agents { type ifname . ether_addr . ipv4_addr; }

  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    iifname != $PORTS accept
    ether type arp iifname . ether saddr . arp saddr ip @agents iifname . arp saddr ether . arp saddr ip @agents arp daddr ip $GATEWAY accept
    ether type ip iifname . ether saddr . ip saddr @agents ip daddr $GATEWAY tcp dport $SERVICES accept
    counter drop
  }

  # No machine reaches another, whatever becomes of the isolation of their ports.
  chain forwarding {
    type filter hook forward priority -300; policy accept;
    iifname $PORTS counter drop
  }
}

table inet agentmachine {
  # How many connections each machine may begin in a second. The limit is part of the element, which matches when it is
  # exceeded. It bounds what connections that are given up at once leave with the proxy, and how much of the log a
  # machine can fill.
  set new_connections { type ipv4_addr; flags dynamic; }

  chain input {
    type filter hook input priority filter; policy accept;
    iifname $BRIDGE ct state new ip saddr @new_connections counter reject with tcp reset
    iifname $BRIDGE ip daddr $GATEWAY tcp dport $SERVICES accept
    iifname $BRIDGE counter drop
    # The gateway is the host's address, and the host answers for it on every network it is in.
    iifname != "lo" ip daddr $GATEWAY tcp dport $SERVICES counter drop
  }

  chain forwarding {
    type filter hook forward priority filter; policy accept;
    iifname $BRIDGE counter drop
    oifname $BRIDGE counter drop
  }

  # What squid refuses is refused here again: a name that resolves to another address between squid's check and its
  # connection gets no further. Positive, because packets without a socket have no skuid and are none of our business.
  chain output {
    type filter hook output priority filter; policy accept;
    meta skuid $PROXY_USER jump proxy_output
  }

  chain proxy_output {
    ip saddr $GATEWAY tcp sport $SERVICES accept
    meta l4proto { tcp, udp } th dport 53 accept comment "the host's resolver may be anywhere"
    jump allowed_private
    ip daddr 127.0.0.1 tcp dport 32768-60999 accept comment "squid talks to its helpers over loopback TCP"
    ip6 daddr ::1 tcp dport 32768-60999 accept
    ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3 } counter reject
    ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 64:ff9b::/96, 64:ff9b:1::/48, 2002::/16, fc00::/7, fe80::/9, ff00::/8 } counter reject
  }

  chain allowed_private {
  }
}

# How many connections each machine may have at once: a chain for each, in a table of their own, which is not flushed
# with the others. No element of a set: the kernel forgets one with "ct count" as soon as it counts nothing.
add table inet agentmachine_connections
add map inet agentmachine_connections machines { type ipv4_addr : verdict; }
add chain inet agentmachine_connections input { type filter hook input priority filter - 1; policy accept; }
flush chain inet agentmachine_connections input
add rule inet agentmachine_connections input iifname $BRIDGE ct state new ip saddr vmap @machines
)";

/// Where the proxy may connect within the host and its networks: the settings' exceptions and the host's own
/// Ollama. The names are squid's business; here only their ports are known.
std::string allowedPrivate(const Settings& settings) {
  std::set<std::uint16_t> ports;
  for (const auto& host : settings.privateHosts) ports.insert(host.ports.begin(), host.ports.end());
  for (const auto& parent : settings.parentProxies) ports.insert(parent.port);
  std::vector<std::string> texts;
  for (const auto port : ports) texts.push_back(std::to_string(port));
  const auto ollama = defaultApiBaseUrl(ApiProvider::ollama).value();
  constexpr std::string_view rule = "add rule inet agentmachine allowed_private";
  return std::format("{} ip daddr {} tcp dport {} accept\n", rule, ollama.host, ollama.port) +
         (texts.empty() ? "" : std::format("{} tcp dport {{ {} }} accept\n", rule, join(texts, ", ")));
}

/// "element bridge agentmachine agents { … }" after "add" or "delete".
std::string element(std::string_view interface, std::string_view mac, Ipv4 address) {
  const auto fitsName = [](unsigned char c) { return std::isalnum(c) || c == '-'; };
  if (!interface.starts_with(machinePortPrefix) || interface.size() >= IFNAMSIZ ||
      !std::ranges::all_of(interface, fitsName))
    throw Error(std::format("\"{}\" is no name of a machine's port", interface));
  const auto octets = split(mac, ':');
  const auto isOctet = [](const std::string& octet) {
    return octet.size() == 2 && std::ranges::all_of(octet, [](unsigned char c) { return std::isxdigit(c); });
  };
  if (octets.size() != 6 || !std::ranges::all_of(octets, isOctet))
    throw Error(std::format("\"{}\" is no MAC address", mac));
  return std::format("element bridge agentmachine agents {{ \"{}\" . {} . {} }}\n", interface, mac,
                     address.str());
}

/// Deleting what is absent is an error to nft, adding what is present is none; nobody sees the state between.
std::string deletePace(Ipv4 address) {
  return std::format(
      "add element inet agentmachine new_connections {{ {0} limit rate over 1/second }}\n"
      "delete element inet agentmachine new_connections {{ {0} }}\n",
      address.str());
}

/// The machine's chain, empty, and the way to it.
std::string connectionsChain(Ipv4 address) {
  return std::format(
      "add chain inet agentmachine_connections of_{0}\nflush chain inet agentmachine_connections of_{0}\n"
      "add element inet agentmachine_connections machines {{ {0} : jump of_{0} }}\n",
      address.str());
}

}  // namespace

std::string renderNftRuleset(const Settings& settings) {
  return std::format("define BRIDGE = \"{}\"\n", settings.bridge) +
         std::format("define PORTS = \"{}*\"\n", machinePortPrefix) +
         std::format("define GATEWAY = {}\n", settings.gateway.str()) +
         std::format("define SERVICES = {{ {}, {} }}\n", settings.proxyPort, settings.brokerPort) +
         std::format("define PROXY_USER = \"{}\"\n", proxyUser) + std::string(ruleset) +
         allowedPrivate(settings);
}

std::string renderNftTeardown() {
  return "add table bridge agentmachine\n"
         "delete table bridge agentmachine\n"
         "add table inet agentmachine\n"
         "delete table inet agentmachine\n"
         "add table inet agentmachine_connections\n"
         "delete table inet agentmachine_connections\n";
}

std::string renderNftElementAdd(std::string_view interface, std::string_view mac, Ipv4 address,
                                std::uint64_t maxConnections) {
  // An element that is there keeps the limit it has, so it is deleted first.
  return connectionsChain(address) +
         std::format(
             "add rule inet agentmachine_connections of_{} ct count over {} counter reject with tcp reset\n",
             address.str(), maxConnections) +
         deletePace(address) +
         std::format(
             "add element inet agentmachine new_connections {{ {0} limit rate over {1}/second burst {1} "
             "packets }}\n",
             address.str(), maxConnections) +
         "add " + element(interface, mac, address);
}

std::string renderNftElementDelete(std::string_view interface, std::string_view mac, Ipv4 address) {
  const std::string text = element(interface, mac, address);
  return "add " + text + "delete " + text + deletePace(address) + connectionsChain(address) +
         std::format(
             "delete element inet agentmachine_connections machines {{ {0} }}\n"
             "delete chain inet agentmachine_connections of_{0}\n",
             address.str());
}

}  // namespace agentmachine
