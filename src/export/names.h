// What exports are given besides cards, as checked types, and what they return. Pure: no I/O.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "card/card.h"
#include "plan/host.h"

namespace agentmachine {

constexpr std::string_view defaultAgentImage = "localhost/agentmachine:latest";
/// Made from images/squid/Containerfile; its version is the one that is tested.
constexpr std::string_view defaultProxyImage = "localhost/agentmachine-squid:6.13";

struct NamespaceNameRule {
  static std::optional<std::string> check(std::string_view);
};
/// A label of RFC 1123: lower case letters, digits and inner hyphens, at most 63.
using NamespaceName = Checked<NamespaceNameRule>;

struct ImageReferenceRule {
  static std::optional<std::string> check(std::string_view);
};
/// [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], of the characters that those may hold.
using ImageReference = Checked<ImageReferenceRule>;

/// Where the proxy is: in the same place as the agent, made by the export, or at an address where one is
/// already.
struct ProxyPlace {
  std::optional<Url> address{};  ///< absent: made by the export
  /// "in-cluster", "HOST:PORT" or a URL.
  static std::expected<ProxyPlace, std::string> parse(std::string_view text);
};

/// A network of IPv4 with room for at least one agent's, which has eight addresses.
struct Subnet {
  Ipv4 base{};
  unsigned prefixLength = 0;  ///< at most 29
  /// "ADDRESS/LENGTH".
  static std::expected<Subnet, std::string> parse(std::string_view text);
};

struct Exported {
  std::string text;
  std::vector<std::string> warnings;  ///< one sentence each, without line breaks
};

/// "proxy-ID": at most 63 characters for any id.
std::string proxyName(const AgentId& id);

/// Refuses cards that can't be together: one machine name twice, or one workspace. Throws Error.
void checkTogether(const std::vector<Card>& cards);

}  // namespace agentmachine
