// A machine as it is kept: the card as accepted and what the host gave it. Names derived from them live here,
// once. Pure: no I/O.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "card/card.h"
#include "plan/host.h"
#include "util/error.h"

namespace agentmachine {

/// What the host gave one machine; kept in its state until it is removed.
struct Allocation {
  std::string image;  ///< content digest, "sha256-…"
  /// Since an upgrade, until the payload was ready with `image`: what it goes back to if it doesn't get
  /// ready.
  std::optional<std::string> provenImage{};
  Ipv4 address;                 ///< inside, on the bridge's network
  std::uint32_t uidBase = 0;    ///< first of the 65536 host uids the machine's users are mapped to
  std::uint32_t project = 0;    ///< whose quota limits the workspace; 0: none does
  bool workspaceImage = false;  ///< the workspace is in imagePath
  bool operator==(const Allocation&) const = default;
};

/// A record that this program is too old for.
struct NewerState : Error {
  using Error::Error;
};

/// machine.json of the state. Throws Error if it is not what toJson wrote, NewerState if it is of a newer
/// program.
std::string toJson(const Allocation& allocation);
Allocation parseAllocation(std::string_view json);

/// Uid and gid of `agent` in every image, and of the payload and every shell in every machine.
constexpr std::uint32_t agentUid = 65532;
/// Users in one machine's range: nspawn demands 65536.
constexpr std::uint32_t uidRangeSize = 65536;
/// Where opencode's server listens, on the machine's own loopback.
constexpr std::uint16_t serverPort = 4096;

/// The slice that holds every machine of ours, so that all agents together can be capped.
constexpr auto machineSlice = "machine-agents.slice";

/// Where the agent finds its API key inside, with `api_key_delivery` "credential": a directory, so that a key
/// that was replaced is seen.
constexpr std::string_view agentKeyDirectory = "/run/agentmachine/agent";
constexpr std::string_view agentKeyFile = "/run/agentmachine/agent/api-key";

/// Where the agent finds what it is told of its own end: `ends-at`, a time in UTC, if the run has one, and
/// `warning` when that is near.
constexpr std::string_view noticesDirectory = "/run/agentmachine/notices";

/// How much a workspace may hold.
struct SizeLimit {
  std::uint64_t bytes = 0;
  std::uint64_t inodes = 0;
  bool operator==(const SizeLimit&) const = default;
};
/// One inode for so many bytes: the files of a project are larger than that on average.
constexpr std::uint64_t bytesPerInode = 8192;
/// What the card's `disk_mb` comes to; it must have one.
SizeLimit workspaceLimit(const Card& card);

/// The file that holds a workspace as a file system of its own. It is the workspace's, not the machine's: it
/// stays when the machine is removed and its workspace is kept.
std::string imagePath(const Settings& settings, const AbsolutePath& workspace);
/// Where all of those are.
std::string imagesOfWorkspaces(const Settings& settings);
/// The unit that mounts it. Throws Error if the path is too long for the name of a unit.
std::string imageUnit(const AbsolutePath& workspace);

/// Whether a machine can have this address: it is in the bridge's network, and neither the host's own nor one
/// of the two that the network keeps for itself.
bool isMachineAddress(const Settings& settings, Ipv4 address);

/// Host side of the machine's veth: "am-" and the address's place in the bridge's network, so that it is
/// unique, known before the start, and fits IFNAMSIZ (15 characters). Of an address from before the network
/// was changed it is the whole number, which is no place in any network.
std::string hostInterface(const Settings& settings, Ipv4 address);

/// 02:00 and the address: locally administered, unicast (IEEE 802), so that the pair can be checked by nft.
std::string macAddress(Ipv4 address);

/// Files and units of one machine. Each is rendered and can be thrown away, but for `state`.
struct MachinePaths {
  std::string state;           ///< directory: card.json and machine.json, the truth
  std::string runtime;         ///< directory of what is rendered for this machine alone, root's
  std::string settings;        ///< the .nspawn file
  std::string dropIn;          ///< of systemd-nspawn@agent-x.service
  std::string rootLink;        ///< /run/machines/agent-x, to the image's tree
  std::string opencode;        ///< opencode.json, bound over the image's
  std::string credentials;     ///< directory bound into the machine for its PID 1 alone
  std::string serverPassword;  ///< of its opencode's server, in there; only while the machine runs
  std::string
      workspace;     ///< mount point of the workspace as the agent's own; in no directory that is removed
  std::string held;  ///< what the present run was given on the host: its end may have to do without the card
  std::string notices;  ///< directory bound into the machine: when it ends, for whoever in it wants to know
  std::string policy;   ///< what the proxy lets this address do
  std::string key;      ///< the API key as delivered to the broker; only while the machine runs
  std::string
      agentKey;  ///< the same, delivered to the agent; the directory it is in is bound into the machine
  std::string keyWatch;   ///< transient path unit, while the machine runs; starts the service of its name
  std::string ttlTimer;   ///< transient, of the same name as the service it starts
  std::string idleTimer;  ///< transient, too: looks whether the machine is idle
  std::string syncUnit;   ///< service that has the workspace on disk when the machine has ended
};
MachinePaths machinePaths(const Settings& settings, const AgentId& id, Ipv4 address);

/// A card and what the host gave it.
struct Machine {
  Card card;
  Allocation allocation;
  [[nodiscard]] MachineName name() const { return MachineName(card.id); }
};

}  // namespace agentmachine
