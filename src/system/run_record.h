// What is kept of a machine's runs beside its card: how the present one began and how the last one ended.
// Written by the unit's hooks, read by ls. In the state, so a power cut doesn't lose it.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

namespace agentmachine {

/// A run that was started; kept until the next one.
struct RunRecord {
  std::string invocation;          ///< systemd's id of it
  std::string boot;                ///< of the host, during which it was
  std::chrono::sys_seconds since;  ///< when it was started
  std::chrono::sys_seconds
      asked;                   ///< when the first was started of those that only automatic restarts joined
  std::uint32_t restarts = 0;  ///< automatic ones since `asked`
  std::optional<std::chrono::microseconds> ttlDeadline;  ///< on CLOCK_MONOTONIC
  pid_t leader = 0;                                      ///< 0 until the machine is connected
  std::uint64_t oomKills = 0;                            ///< that the unit's cgroup had counted before
  std::string image;  ///< digest of the one it was started from; "" until all its guards are there
  std::optional<std::chrono::microseconds> began{};  ///< on CLOCK_MONOTONIC, the first hook; for StartTimes
};

/// How long a machine's starts took, from the first hook until it was connected: a histogram, as Prometheus
/// has them. Of all its starts until it is removed.
struct StartTimes {
  static constexpr std::array<double, 7> bounds = {0.25, 0.5, 1, 2.5, 5, 10, 30};  ///< seconds
  /// Up to each bound from the one before it; beyond the last.
  std::array<std::uint64_t, bounds.size() + 1> counts{};
  std::chrono::microseconds sum{0};
  void add(std::chrono::microseconds took);
  bool operator==(const StartTimes&) const = default;
};

/// A machine's processes that were killed because memory ran out, in all runs that ended until it is removed.
struct OomKills {
  std::uint64_t sum = 0;
  std::string lastRun;  ///< RunRecord::invocation of the last one in the sum
};

enum class EndCause {
  payload,   ///< what ran in it ended by itself
  start,     ///< it never came up
  person,    ///< `agentmachine stop` and its like
  systemd,   ///< systemctl, machinectl, another unit
  ttl,       ///< its time was up
  idle,      ///< nothing happened in it for so long as its card says
  shutdown,  ///< the host went down in order
};
std::string_view toString(EndCause cause);

/// How a run ended.
struct EndRecord {
  std::string invocation;  ///< RunRecord::invocation
  std::chrono::sys_seconds at;
  EndCause cause = EndCause::payload;
  std::string by;              ///< the person's name, if one stopped it
  std::string result;          ///< systemd's $SERVICE_RESULT: success, exit-code, signal, timeout, …
  std::string code;            ///< $EXIT_CODE: exited, killed, dumped
  std::string status;          ///< $EXIT_STATUS: a number, or the name of a signal
  std::uint64_t oomKills = 0;  ///< processes in it that were killed because memory ran out
};

/// Whether the end is that of the run, or of a start after it that failed before it had a record. One before
/// it is the end of another run: nobody noted how this one ended.
bool endsAfter(const EndRecord& end, const RunRecord& run);

/// Removes an end of which endsAfter is false: the run that begins next would be said to come after it.
/// Throws Error.
void forgetOlderEnd(const std::string& state);

/// Why a machine is being stopped; noted before, so that the hook that writes the EndRecord knows.
struct StopReason {
  EndCause cause = EndCause::person;
  std::string by;
};

/// `state` is MachinePaths::state.
void writeRunRecord(const std::string& state, const RunRecord& record);
std::optional<RunRecord> readRunRecord(const std::string& state);
void writeEndRecord(const std::string& state, const EndRecord& record);
std::optional<EndRecord> readEndRecord(const std::string& state);

/// Adds one start to those in `state`. What is there and damaged is begun anew.
void noteStart(const std::string& state, std::chrono::microseconds took);
/// Nothing if none was noted. Throws Error.
std::optional<StartTimes> readStartTimes(const std::string& state);

/// Adds what the ended run counted to those in `state`, once. What is there and damaged is begun anew.
void noteOomKills(const std::string& state, const EndRecord& end);
/// Nothing if none was noted. Throws Error.
std::optional<OomKills> readOomKills(const std::string& state);

void noteStopReason(const std::string& state, const StopReason& reason);
/// What was noted, which is forgotten by that.
std::optional<StopReason> takeStopReason(const std::string& state);

/// How a run ended, for people: "exited with status 7", "stopped by anna".
std::string describe(const EndRecord& end);

/// The host's present boot (proc(5), random/boot_id).
std::string bootId();

}  // namespace agentmachine
