// The drop-in of systemd-nspawn@agent-x.service: limits, guards and hooks around nspawn. Pure: no I/O.
#pragma once
#include <cstdint>
#include <string>

#include "plan/ini.h"
#include "plan/machine.h"

namespace agentmachine {

/// Text of 10-agentmachine.conf. `program` is the agentmachine binary that its hooks run.
std::string renderDropIn(const Machine& machine, const Settings& settings, const std::string& program);

/// `cpu_shares` as a CPUWeight=, as systemd converts its own CPUShares= (1024 shares are a weight of 100;
/// systemd.resource-control(5)).
std::uint64_t cpuWeight(std::uint64_t cpuShares);

/// What the card's `restart` is to the [Unit] section of a unit that runs it, and to its [Service] section.
void setStartLimit(IniFile& file, RestartPolicy policy);
void setRestart(IniFile& file, RestartPolicy policy);

}  // namespace agentmachine
