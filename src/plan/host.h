// What a plan needs to know of the host: the administrator's settings and a snapshot of facts. Pure: no I/O.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "card/types.h"

namespace agentmachine {

/// An IPv4 address, in host byte order.
struct Ipv4 {
  std::uint32_t value = 0;
  auto operator<=>(const Ipv4&) const = default;
  [[nodiscard]] std::string str() const;  ///< dotted decimal
  static std::optional<Ipv4> parse(std::string_view dotted);
};

/// Machines' uid ranges begin at multiples of this, so that a range is told by its upper 16 bits.
constexpr std::uint32_t uidRangeAlignment = 65536;

/// Runs the proxy (units/agentmachine-proxy.service) and reads policies and keys.
constexpr auto proxyUser = "agentmachine-proxy";

/// The host's settings: /etc/agentmachine/agentmachine.conf, in TOML; every field has a default, so the file
/// may be absent.
struct Settings {
  std::string bridge = "agents0";                ///< an interface name, at most 15 characters
  Ipv4 gateway{0x0ad50001};                      ///< 10.213.0.1: the host's address on the bridge
  unsigned prefixLength = 16;                    ///< of the bridge's network
  std::uint16_t proxyPort = 3128;                ///< where machines reach the filtering proxy, on `gateway`
  std::uint16_t brokerPort = 8081;               ///< where machines reach their provider, on `gateway`
  std::string workspaceUser = "opencode-agent";  ///< owns workspaces that nobody in particular asked for
  std::string cardsDirectory = "/etc/opencode-agents";
  std::string stateDirectory = "/var/lib/agentmachine";
  std::string runtimeDirectory = "/run/agentmachine";
  std::uint32_t uidBase = 0x60000000;  ///< first of the uid ranges, 65536 each, that machines are given
  std::uint32_t uidRanges = 4096;
  std::optional<std::string>
      proxyCaFile;                 ///< PEM; absent: the system's. For checking providers' certificates
  std::vector<Url> parentProxies;  ///< what a card's `proxy` may name besides ours
  std::vector<HostPattern>
      privateHosts;  ///< names that may resolve to private addresses, e.g. a local ollama
  std::vector<HeaderName> apiKeyHeaders;  ///< in which providers may expect keys, besides the usual ones
  std::vector<PackageName> packages;      ///< that cards may ask for
  std::optional<std::string> program;     ///< agentmachine as rendered units name it; absent: as it was built
  std::optional<std::string> init;        ///< the same of agentmachine-init
  bool allowSettingsOverride = false;     ///< tolerate an /etc/systemd/nspawn file that replaces ours
};

/// The bits of an address that tell its place in the bridge's network.
std::uint32_t hostMask(const Settings& settings);

/// Reads settings from TOML; `source` names the file in messages. Throws Error that lists every problem.
Settings parseSettings(std::string_view toml, std::string_view source);

}  // namespace agentmachine
