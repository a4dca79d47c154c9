// The table of system calls in doc/hardening.md is the list that PID 1 loads.
#include "guest/filter.h"

#include <gtest/gtest.h>

#include "golden.h"

namespace agentmachine {

namespace {

TEST(Filter, TableIsInTheManual) {
  std::string table = "| for | system calls |\n|---|---|\n";
  for (const auto& group : allowedCallGroups())
    table += "| " + std::string(group.what) + " | `" + std::string(group.calls) + "` |\n";
  expectTable(AGENTMACHINE_SOURCE_ROOT "/doc/hardening.md", table);
}

}  // namespace

}  // namespace agentmachine
