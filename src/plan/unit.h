// The drop-in of systemd-nspawn@agent-x.service: limits, guards and hooks around nspawn. Pure: no I/O.
#pragma once
#include <cstdint>
#include <string>

#include "plan/machine.h"

namespace agentmachine {

/// Text of 10-agentmachine.conf. `program` is the agentmachine binary that its hooks run.
std::string renderDropIn(const Machine& machine, const Settings& settings, const std::string& program);

/// `cpu_shares` as a CPUWeight=, as systemd converts its own CPUShares= (1024 shares are a weight of 100;
/// systemd.resource-control(5)).
std::uint64_t cpuWeight(std::uint64_t cpuShares);

}  // namespace agentmachine
