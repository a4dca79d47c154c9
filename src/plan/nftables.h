// The packet filter around the machines, as text for nft(8). Pure: no I/O, never touches tables that aren't
// ours.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "plan/host.h"

namespace agentmachine {

/// Host sides of machines' veths begin with this; whatever else arrives on such a port is dropped.
constexpr std::string_view machinePortPrefix = "am-";

/// The whole rule set, for `nft -f -`: one transaction that replaces our rules and keeps the elements of
/// running machines, so loading it again opens no gap. Names proxyUser, who must exist.
std::string renderNftRuleset(const Settings& settings);

/// Removes our tables, whether they are there or not. Only when the bridge is gone: without them a machine's
/// port reaches everything that listens on the host.
std::string renderNftTeardown();

/// Lets frames through that arrive on port `interface` with this MAC (aa:bb:…) and IPv4 address, and limits
/// its TCP connections: `maxConnections` at once, and as many new ones a second. Both commands can be run
/// again. Throws Error for an interface without our prefix or over 15 characters, or what is no MAC address.
std::string renderNftElementAdd(std::string_view interface, std::string_view mac, Ipv4 address,
                                std::uint64_t maxConnections);
std::string renderNftElementDelete(std::string_view interface, std::string_view mac, Ipv4 address);

}  // namespace agentmachine
