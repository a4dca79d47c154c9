// agentmachine-init: PID 1 of a machine.
#include <cstdio>

#include <unistd.h>

#include "guest/supervise.h"
#include "util/error.h"

int main(int argc, char** argv) {
  try {
    // Its way to stop is to signal every process there is.
    if (getpid() != 1) throw agentmachine::Error("runs only as the first process of a machine");
    return agentmachine::supervise(agentmachine::parseOptions({argv, argv + argc}));
  } catch (const std::exception& error) {
    dprintf(STDERR_FILENO, "agentmachine-init: %s\n", error.what());
    return 1;
  }
}
