#include "observe/list.h"

#include <algorithm>
#include <map>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>

#include "system/cgroup.h"
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

/// A record that a fault of the disk spoilt hides no machine: it is as if there were none.
template <class Record>
std::optional<Record> readIfGood(std::optional<Record> (*read)(const std::string&),
                                 const std::string& state) {
  try {
    return read(state);
  } catch (const Error& cause) {
    spdlog::warn("{}", cause.what());
    return std::nullopt;
  }
}

MachineState endedState(const std::optional<RunRecord>& run, const std::optional<EndRecord>& end) {
  if (!run && !end) return MachineState::created;
  if (!end) return MachineState::stopped;  // nobody knows how
  switch (end->cause) {
    case EndCause::ttl:
      return MachineState::expired;
    case EndCause::start:
      return MachineState::failed;
    case EndCause::payload:
      return end->result == "success" ? MachineState::stopped : MachineState::failed;
    default:
      return MachineState::stopped;
  }
}

}  // namespace

std::string_view toString(MachineState state) {
  switch (state) {
    case MachineState::created:
      return "created";
    case MachineState::running:
      return "running";
    case MachineState::restarting:
      return "restarting";
    case MachineState::stopped:
      return "stopped";
    case MachineState::failed:
      return "failed";
    case MachineState::expired:
      return "expired";
  }
  return "";
}

MachineList listMachines(const Settings& settings, Systemd& systemd) {
  std::map<std::string, UnitState> units;
  for (auto& unit : systemd.listUnits("systemd-nspawn@agent-*.service")) units.emplace(unit.name, unit);
  auto records = readMachineRecords(settings);
  MachineList list{.machines = {}, .unreadable = std::move(records.unreadable)};
  for (auto& [id, machine] : records.machines) {
    const MachineName name = machine.name();
    const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
    const auto unit = units.find(name.unit());
    const std::string active = unit == units.end() ? "inactive" : unit->second.active;
    MachineStatus status{.machine = std::move(machine)};
    status.workspace = workspaceUsage(settings, status.machine);
    status.end = readIfGood(readEndRecord, paths.state);
    const auto run = readIfGood(readRunRecord, paths.state);
    const bool waits = unit != units.end() && unit->second.sub.starts_with("auto-restart");
    const bool down = active == "inactive" || active == "failed" || waits;
    // There is no record of the last run's end, only one of a run before it: the host went down under it, or
    // the hook that writes it was killed, or found the disk full.
    const bool lost = down && run && (!status.end || !endsAfter(*status.end, *run));
    if (lost) status.end.reset();
    if (status.end) status.ending = describe(*status.end);
    if (lost)
      status.ending = run->boot != bootId() ? "the host went down under it" : "how it ended is not known";
    if (down) {
      status.state = waits ? MachineState::restarting : endedState(run, status.end);
      // A start that was refused before it began (an assertion, a condition) leaves no record of an end.
      if (active == "failed" && status.state != MachineState::expired) status.state = MachineState::failed;
      if (status.end) status.since = status.end->at;
      if (waits && run) status.restarts = run->restarts;
    } else {
      status.state = MachineState::running;
      if (run) {
        status.since = run->since;
        status.restarts = run->restarts;
        if (run->leader > 0) status.leader = run->leader;
      }
      status.memoryBytes = cgroupNumber(name, "memory.current");
      status.tasks = cgroupNumber(name, "pids.current");
    }
    if (run && run->ttlDeadline && (waits || status.state == MachineState::running))
      status.ttlRemaining =
          std::max(std::chrono::seconds(0),
                   std::chrono::ceil<std::chrono::seconds>(*run->ttlDeadline - monotonicNow()));
    list.machines.push_back(std::move(status));
  }
  return list;
}

}  // namespace agentmachine
