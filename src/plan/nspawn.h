// The .nspawn file: what systemd-nspawn builds the machine from. Pure: no I/O.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "plan/machine.h"

namespace agentmachine {

/// Sizes in MiB of what is in memory, here and in other engines: the least with which git, curl and a shell
/// can work, and the card's /tmp and home.
constexpr std::uint64_t leastScratchMb = 16;
inline std::uint64_t tmpSizeMb(const ResourceLimits& limits) {
  return limits.tmpMb.value_or(limits.memoryMb / 4);
}
inline std::uint64_t homeSizeMb(const ResourceLimits& limits) {
  return std::max(limits.memoryMb / 10, leastScratchMb);
}

/// Text of /run/systemd/nspawn/agent-x.nspawn (systemd.nspawn(5)). `init` is agentmachine-init on the host.
std::string renderNspawnSettings(const Machine& machine, const Settings& settings, const std::string& init);

}  // namespace agentmachine
