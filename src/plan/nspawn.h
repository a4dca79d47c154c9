// The .nspawn file: what systemd-nspawn builds the machine from. Pure: no I/O.
#pragma once
#include <string>

#include "plan/machine.h"

namespace agentmachine {

/// Text of /run/systemd/nspawn/agent-x.nspawn (systemd.nspawn(5)). `init` is agentmachine-init on the host.
std::string renderNspawnSettings(const Machine& machine, const Settings& settings, const std::string& init);

}  // namespace agentmachine
