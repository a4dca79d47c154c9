// The clock that systemd's timers count on.
#pragma once
#include <chrono>
#include <ctime>

namespace agentmachine {

/// CLOCK_MONOTONIC: since boot, without suspends; never set back.
inline std::chrono::microseconds monotonicNow() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::microseconds(now.tv_nsec / 1000);
}

}  // namespace agentmachine
