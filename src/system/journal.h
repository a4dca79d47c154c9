// Reads entries of the journal, and follows it; writes what a person should find there.
#pragma once
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/machine.h"

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

/// Something that became of an agent's machine.
struct AgentEvent {
  std::string event;       ///< one word with hyphens, stable: for scripts
  std::string message;     ///< for people, without the agent's name
  std::string by{};        ///< the person who wanted it; "" if none did
  std::string cause{};     ///< of an end: EndCause's word
  bool isWarning = false;  ///< else a notice
};

/// MESSAGE_ID of every such entry.
constexpr std::string_view agentEventMessageId = "5e0f7a4bb1d94b0f8f6f7d1c2a9e6b3d";

/// An entry with the fields AGENT_ID and AGENT_MACHINE, as all have that concern a machine, and AGENT_EVENT,
/// AGENT_BY and AGENT_CAUSE. `journalctl --unit` shows it among the lines of the machine's unit, too. That
/// there is no journal is no error.
void tellJournal(const Machine& machine, const AgentEvent& event);

/// For the end of a message about a unit: the last lines, if there are any, of its present or last run,
/// and how to see more.
std::string lastWords(const std::string& unit);

/// A time as systemd.time(7) writes it ("yesterday", "-1h", "2026-11-24 10:00"), by systemd's own parser.
/// Throws Error if it is none.
JournalTime parseJournalTime(const std::string& text);

}  // namespace agentmachine
