// A card's `idle_seconds`: a machine in which nothing happens is stopped.
#pragma once
#include "plan/machine.h"
#include "system/systemd.h"

namespace agentmachine {

/// Has the machine looked at from now on, if its card says so, four times in `idle_seconds`.
void startIdleTimer(const Settings& settings, const Machine& machine, Systemd& systemd);

/// Of agentmachine-idle@.service: stops the machine if it used less than a fiftieth of a processor and sent
/// nothing for as long as its card says. Each call compares with what the one before noted, and the one
/// before the end warns.
void stopIfIdle(const Settings& settings, const Machine& machine, Systemd& systemd);

}  // namespace agentmachine
