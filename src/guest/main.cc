// agentmachine-init: PID 1 of a machine.
#include <cstdio>

#include <unistd.h>

#include "guest/supervise.h"
#include "util/error.h"

int main(int argc, char** argv) {
  try {
    return agentmachine::supervise(agentmachine::parseOptions({argv, argv + argc}));
  } catch (const std::exception& error) {
    dprintf(STDERR_FILENO, "agentmachine-init: %s\n", error.what());
    return 1;
  }
}
