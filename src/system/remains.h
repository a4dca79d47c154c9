// Looks in the places where things are named after machines, for what is there. Reads only.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "plan/snapshot.h"
#include "system/systemd.h"

namespace agentmachine {

/// Names of the machines whose units are up, on their way, or waiting to be started again.
std::set<std::string> runningMachines(Systemd& systemd);

/// Without `units` and `running`, which systemd knows.
Remains remainsOnDisk(const Settings& settings);
Remains remains(const Settings& settings, Systemd& systemd);

/// What is at each path; where nothing is, there is no entry.
std::map<std::string, Found> lookAt(const std::vector<std::string>& paths);

}  // namespace agentmachine
