// Carries out a plan, from first to last; undoes what it made if an action fails.
#pragma once
#include "plan/plan.h"
#include "system/systemd.h"

namespace agentmachine {

/// Throws the Error of the action that failed, after taking back what the earlier ones made: files they
/// replaced have their old content again, what they created is gone. Removals and stops are not undone: a
/// plan that has them can be run again.
void applyPlan(const Plan& plan, Systemd& systemd);

}  // namespace agentmachine
