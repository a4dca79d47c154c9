#include "observe/list.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

#include <fcntl.h>
#include <sys/statvfs.h>

#include "plan/unit.h"
#include "system/clock.h"
#include "system/host.h"
#include "system/quota.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"
#include "util/tree.h"

namespace agentmachine {

namespace {

/// A number in a file of cgroup v2; nothing if the cgroup has gone meanwhile.
std::optional<std::uint64_t> cgroupNumber(const MachineName& name, const char* file) {
  const auto path = std::filesystem::path("/sys/fs/cgroup/machine.slice") / machineSlice / name.unit() / file;
  std::optional<std::string> text;
  try {
    text = readFileIfExists(path, 4096);
  } catch (const Error&) {
    // ENODEV: removed between open and read.
    return std::nullopt;
  }
  if (!text) return std::nullopt;
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

/// A question to the quota or the file system, whatever the workspace holds; nothing if it has no limit, or
/// isn't there any more.
std::optional<SpaceUsage> workspaceUsage(const Settings& settings, const Machine& machine) {
  const auto& [card, allocation] = machine;
  if (allocation.project == 0 && !allocation.workspaceImage) return std::nullopt;
  const Fd directory = openWithoutLinks(card.workspace.str(), O_PATH | O_DIRECTORY);
  if (!directory) return std::nullopt;
  try {
    if (allocation.project != 0) {
      const auto usage = projectUsage(directory.get(), allocation.project);
      return SpaceUsage{.bytes = usage.bytes, .limitBytes = usage.limit.bytes};
    }
    struct statvfs st{};
    if (!isImageMounted(directory.get(), imagePath(settings, card.workspace)) ||
        fstatvfs(directory.get(), &st) < 0)
      return std::nullopt;
    return SpaceUsage{.bytes = (st.f_blocks - st.f_bfree) * st.f_frsize,
                      .limitBytes = st.f_blocks * st.f_frsize};
  } catch (const Error&) {
    return std::nullopt;  // mounted without quotas meanwhile
  }
}

MachineState endedState(const std::optional<EndRecord>& end) {
  if (!end) return MachineState::created;
  if (end->expired) return MachineState::expired;
  return end->result == "success" ? MachineState::stopped : MachineState::failed;
}

}  // namespace

std::string_view toString(MachineState state) {
  switch (state) {
    case MachineState::created:
      return "created";
    case MachineState::running:
      return "running";
    case MachineState::stopped:
      return "stopped";
    case MachineState::failed:
      return "failed";
    case MachineState::expired:
      return "expired";
  }
  return "";
}

std::vector<MachineStatus> listMachines(const Settings& settings, Systemd& systemd) {
  std::map<std::string, UnitState> units;
  for (auto& unit : systemd.listUnits("systemd-nspawn@agent-*.service")) units.emplace(unit.name, unit);
  std::vector<MachineStatus> statuses;
  for (auto& [id, machine] : readMachines(settings)) {
    const MachineName name = machine.name();
    const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
    const auto unit = units.find(name.unit());
    const std::string active = unit == units.end() ? "inactive" : unit->second.active;
    MachineStatus status{.machine = std::move(machine)};
    status.workspace = workspaceUsage(settings, status.machine);
    status.end = readEndRecord(paths.runtime);
    if (active == "inactive" || active == "failed") {
      status.state = endedState(status.end);
      // A start that was refused before it began (an assertion, a condition) leaves no record of an end.
      if (active == "failed" && status.state != MachineState::expired) status.state = MachineState::failed;
      if (status.end) status.since = status.end->at;
    } else {
      status.state = MachineState::running;
      status.end.reset();
      if (const auto run = readRunRecord(paths.runtime)) {
        status.since = run->since;
        if (run->leader > 0) status.leader = run->leader;
        if (run->ttlDeadline)
          status.ttlRemaining =
              std::max(std::chrono::seconds(0),
                       std::chrono::ceil<std::chrono::seconds>(*run->ttlDeadline - monotonicNow()));
      }
      status.memoryBytes = cgroupNumber(name, "memory.current");
      status.tasks = cgroupNumber(name, "pids.current");
    }
    statuses.push_back(std::move(status));
  }
  return statuses;
}

}  // namespace agentmachine
