#include "system/cgroup.h"

#include <charconv>
#include <filesystem>

#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

std::string cgroupFile(const MachineName& name, const char* file) {
  constexpr std::size_t most = 65536;  // a line of io.stat for each device
  const auto path = std::filesystem::path("/sys/fs/cgroup/machine.slice") / machineSlice / name.unit() / file;
  try {
    return readFileIfExists(path, most).value_or("");
  } catch (const Error&) {
    return "";  // ENODEV: removed between open and read
  }
}

std::optional<std::uint64_t> cgroupNumber(const MachineName& name, const char* file, const char* key) {
  const std::string before = *key ? std::string(key) + " " : "";
  for (const auto& line : split(cgroupFile(name, file), '\n')) {
    if (!line.starts_with(before)) continue;
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(line.data() + before.size(), line.data() + line.size(), value);
    if (error == std::errc()) return value;
  }
  return std::nullopt;
}

bool runsIn(const std::string& controlGroup, std::string_view program) {
  constexpr std::size_t nameLength = 15, mostProcesses = 65536;  // proc(5): comm
  if (controlGroup.empty()) return false;
  try {
    for (const auto& pid :
         split(trim(readFile("/sys/fs/cgroup" + controlGroup + "/cgroup.procs", mostProcesses)), '\n')) {
      const auto name = readFileIfExists("/proc/" + pid + "/comm", nameLength + 1);
      if (name && trim(*name) == program.substr(0, nameLength)) return true;
    }
  } catch (const Error&) {
    // It ended just now.
  }
  return false;
}

std::uint64_t oomKills(const MachineName& name, std::uint64_t before) {
  const auto kills = cgroupNumber(name, "memory.events", "oom_kill").value_or(0);
  return kills > before ? kills - before : 0;
}

}  // namespace agentmachine
