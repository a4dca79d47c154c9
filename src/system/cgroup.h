// What the kernel counts of a machine's unit. Reads only.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "plan/machine.h"

namespace agentmachine {

/// A file of the unit's cgroup; "" if the cgroup has gone or the kernel has no such file.
std::string cgroupFile(const MachineName& name, const char* file);

/// The number in `file` of the unit's cgroup, or of the line that begins with `key`; nothing if there
/// is none.
std::optional<std::uint64_t> cgroupNumber(const MachineName& name, const char* file, const char* key = "");

/// Whether a process of this program, by its file's name, is in a control group ("/system.slice/…") itself.
bool runsIn(const std::string& controlGroup, std::string_view program);

/// Processes of the machine that were killed because its memory ran out, as long as its cgroup has been
/// there, without the first `before`.
std::uint64_t oomKills(const MachineName& name, std::uint64_t before = 0);

}  // namespace agentmachine
