// Clocks: the one that systemd's timers count on, and the one on the wall.
#pragma once
#include <chrono>
#include <ctime>
#include <format>
#include <string>

namespace agentmachine {

/// CLOCK_MONOTONIC: since boot, without suspends; never set back.
inline std::chrono::microseconds monotonicNow() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::microseconds(now.tv_nsec / 1000);
}

/// `then` on CLOCK_MONOTONIC, as people read it.
inline std::string inUtc(std::chrono::microseconds then) {
  const auto time = std::chrono::system_clock::now() + (then - monotonicNow());
  return std::format("{:%FT%TZ}", std::chrono::round<std::chrono::seconds>(time));
}

/// Now, to the second.
inline std::chrono::sys_seconds wallClock() {
  return std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now());
}

}  // namespace agentmachine
