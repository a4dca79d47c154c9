// What is noted about a machine's run while systemd knows no place for it: written by the unit's hooks, read
// by ls. Under /run, so a reboot forgets it.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include <sys/types.h>

namespace agentmachine {

/// A run that was started; kept until the next one.
struct RunRecord {
  std::chrono::sys_seconds since;                        ///< when it was started
  std::optional<std::chrono::microseconds> ttlDeadline;  ///< on CLOCK_MONOTONIC
  pid_t leader = 0;                                      ///< 0 until the machine is connected
};

/// How the last run ended.
struct EndRecord {
  std::chrono::sys_seconds at;
  bool expired = false;  ///< by its TTL
  std::string result;    ///< systemd's $SERVICE_RESULT: success, exit-code, signal, oom-kill, timeout, …
  std::string status;    ///< systemd's $EXIT_STATUS: a number, or the name of a signal
};

/// `runtime` is MachinePaths::runtime.
void writeRunRecord(const std::string& runtime, const RunRecord& record);
std::optional<RunRecord> readRunRecord(const std::string& runtime);
void writeEndRecord(const std::string& runtime, const EndRecord& record);
std::optional<EndRecord> readEndRecord(const std::string& runtime);
void removeEndRecord(const std::string& runtime);

/// Notes that the TTL is what ends this run; consumed by the hook that writes the EndRecord.
void markExpired(const std::string& runtime);
bool consumeExpiredMark(const std::string& runtime);

}  // namespace agentmachine
