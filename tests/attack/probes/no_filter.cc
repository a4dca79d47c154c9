// In place of guest/filter.cc: a PID 1 that lets its children call what they like. For controls.
#include "guest/filter.h"

namespace agentmachine {

std::vector<std::string_view> allowedSystemCalls() {
  return {};
}

SystemCallFilter makeSystemCallFilter() {
  return {};
}

void load(const SystemCallFilter&) {}

}  // namespace agentmachine
