// Reads entries of the journal, and follows it; writes what a person should find there.
#pragma once
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace agentmachine {

using JournalTime = std::chrono::sys_time<std::chrono::microseconds>;

struct JournalQuery {
  std::vector<std::string> matches;  ///< "FIELD=value"; those of different fields must all hold
  std::optional<JournalTime> since;
  std::optional<std::string> afterCursor;  ///< what came after that entry, or after its place if it is gone
  std::optional<std::size_t> last;         ///< at most so many, the newest
  bool follow = false;                     ///< then wait for more, for ever
};

/// Calls `entry` with the MESSAGE of each entry, oldest first, until it returns false. Returns the cursor of
/// the last one; "" if there was none.
std::string readJournal(const JournalQuery& query,
                        const std::function<bool(const std::string& message)>& entry);

/// A warning about a unit, which `journalctl --unit` shows among the unit's own lines.
void warnInJournal(const std::string& unit, const std::string& message);

/// A time as systemd.time(7) writes it ("yesterday", "-1h", "2026-11-24 10:00"), by systemd's own parser.
/// Throws Error if it is none.
JournalTime parseJournalTime(const std::string& text);

}  // namespace agentmachine
