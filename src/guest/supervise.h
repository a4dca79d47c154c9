// PID 1's life: wait for the network, run the payload, end with it or when asked to. Restarts nothing.
#pragma once
#include "guest/options.h"

namespace agentmachine {

/// Returns what PID 1 exits with. Throws Error for what makes it useless to start: no user, no bus socket.
int supervise(const Options& options);

}  // namespace agentmachine
