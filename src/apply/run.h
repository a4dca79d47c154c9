// The present run of a machine: who may change what is noted of it, what it was given, and its end.
#pragma once
#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "plan/machine.h"
#include "system/run_record.h"
#include "system/systemd.h"
#include "util/lock.h"

namespace agentmachine {

/// Held while the record of the present run is changed: short.
FileLock lockRun(const Settings& settings, const Machine& machine);

/// The machine by now. The caller holds lockRun, or the lock of its key: of two, the later has the later
/// card. Throws Error if it was removed.
Machine presentMachine(const Settings& settings, const Machine& machine);

/// Whether it is between prepareMachine and releaseMachine, as far as systemd knows.
bool isUp(const Machine& machine, Systemd& systemd);

/// What a run is given on the host under names that only card and settings tell.
struct Held {
  std::string interface;
  Ipv4 address;
};

/// Notes it for whoever can read neither when the run ends.
void noteHeld(const Settings& settings, const Machine& machine);

/// As noteHeld wrote it; nothing if it did not, or if the file is damaged.
std::optional<Held> readHeld(const AgentId& id);

/// Does a step that keeps no other one from being done when it fails: that is logged.
void attempt(const std::function<void()>& step);

/// Has the journal say how the run ended.
void tellOfEnd(const Machine& machine, const EndRecord& end);

/// Stops the machine, and has the end of its run say why. After `timeout` (systemd's own if absent) all of it
/// is killed. Does nothing if it does not run.
void endRun(const Settings& settings, const Machine& machine, Systemd& systemd, const StopReason& reason,
            std::optional<std::chrono::seconds> timeout = std::nullopt);

}  // namespace agentmachine
