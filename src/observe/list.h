// The machines as they are now. Reads only; a constant number of D-Bus calls however many machines there are.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "plan/machine.h"
#include "system/run_record.h"
#include "system/systemd.h"

namespace agentmachine {

enum class MachineState { created, running, restarting, stopped, failed, expired };
constexpr std::array machineStates = {MachineState::created, MachineState::running, MachineState::restarting,
                                      MachineState::stopped, MachineState::failed,  MachineState::expired};
/// "" for what is none.
std::string_view toString(MachineState state);

struct SpaceUsage {
  std::uint64_t bytes = 0;
  std::uint64_t limitBytes = 0;
};

struct MachineStatus {
  Machine machine;
  MachineState state = MachineState::created;
  std::optional<pid_t> leader;                       ///< while it runs
  std::optional<std::chrono::sys_seconds> since;     ///< of the present run, or when the last one ended
  std::optional<std::chrono::seconds> ttlRemaining;  ///< of the present run
  std::optional<std::uint64_t> memoryBytes;
  std::optional<std::uint64_t> tasks;
  std::optional<SpaceUsage> workspace;  ///< if its size is limited
  std::uint32_t restarts = 0;           ///< automatic ones since the start that somebody asked for
  std::optional<EndRecord> end;         ///< how the last run that ended did
  std::string ending;                   ///< the same for people; "" if none ended
};

struct MachineList {
  std::vector<MachineStatus> machines;            ///< by id
  std::map<std::string, std::string> unreadable;  ///< those whose record can't be read, and why
};

/// Every machine of the state; running ones are those of systemd's units, and limits are read from cgroups.
MachineList listMachines(const Settings& settings, Systemd& systemd);

}  // namespace agentmachine
