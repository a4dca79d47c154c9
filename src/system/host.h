// Takes the snapshot of the host that a plan needs, and the machines' state from disk. Reads only.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "plan/snapshot.h"

namespace agentmachine {

/// Where the administrator's settings are.
constexpr auto settingsPath = "/etc/agentmachine/agentmachine.conf";

/// The settings; defaults if there is no file. Throws Error that lists every problem.
Settings readSettings();

/// The machines in the state, by id.
struct MachineRecords {
  std::map<std::string, Machine> machines;
  std::map<std::string, std::string> unreadable;  ///< why, with the file's name and what to do
};
MachineRecords readMachineRecords(const Settings& settings);

/// For what must know of all machines. Throws Error if the record of one can't be read.
std::map<std::string, Machine> readMachines(const Settings& settings);

/// One machine of the state, or nothing.
std::optional<Machine> readMachine(const Settings& settings, const AgentId& id);

/// Group of the proxy's user, who reads policies and keys. Throws Error if there is no such user.
gid_t proxyGroup();

WorkspaceFacts workspaceFacts(const Settings& settings, const AbsolutePath& workspace);

/// The snapshot for planning these cards. A new workspace is for the person behind sudo (SUDO_UID) or, with
/// nobody there, for Settings::workspaceUser.
Host snapshot(const Settings& settings, const std::vector<Card>& cards);

}  // namespace agentmachine
