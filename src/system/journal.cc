#include "system/journal.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <memory>
#include <string_view>

#include <systemd/sd-journal.h>

#include "util/error.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

using Journal = std::unique_ptr<sd_journal, decltype(&sd_journal_close)>;

int checked(int result, const char* what) {
  if (result < 0) throw errnoError(what, -result);
  return result;
}

Journal openJournal(const std::vector<std::string>& matches) {
  sd_journal* opened = nullptr;
  checked(sd_journal_open(&opened, SD_JOURNAL_LOCAL_ONLY | SD_JOURNAL_SYSTEM), "open the journal");
  Journal journal(opened, sd_journal_close);
  checked(sd_journal_set_data_threshold(opened, 0), "read the journal");
  for (const auto& match : matches)
    checked(sd_journal_add_match(opened, match.data(), match.size()), "search the journal");
  return journal;
}

JournalTime timeOf(sd_journal* journal) {
  std::uint64_t microseconds = 0;
  checked(sd_journal_get_realtime_usec(journal, &microseconds), "read the journal");
  return JournalTime(std::chrono::microseconds(microseconds));
}

std::optional<std::string> messageOf(sd_journal* journal) {
  constexpr std::string_view name = "MESSAGE=";
  const void* data = nullptr;
  std::size_t length = 0;
  if (sd_journal_get_data(journal, "MESSAGE", &data, &length) < 0) return std::nullopt;
  return std::string(static_cast<const char*>(data), length).substr(name.size());
}

/// So that the next entry is the first that is asked for.
void seek(sd_journal* journal, const JournalQuery& query) {
  if (query.last) {
    checked(sd_journal_seek_tail(journal), "search the journal");
    // One more, after which the wanted ones come; if there are fewer, from the beginning.
    const auto back = checked(sd_journal_previous_skip(journal, *query.last + 1), "search the journal");
    if (static_cast<std::size_t>(back) <= *query.last)
      checked(sd_journal_seek_head(journal), "search the journal");
  } else if (query.afterCursor) {
    checked(sd_journal_seek_cursor(journal, query.afterCursor->c_str()), "search the journal");
  } else if (query.since) {
    checked(sd_journal_seek_realtime_usec(
                journal, static_cast<std::uint64_t>(query.since->time_since_epoch().count())),
            "search the journal");
  } else {
    checked(sd_journal_seek_head(journal), "search the journal");
  }
}

/// "" if nothing has been read.
std::string cursorOf(sd_journal* journal) {
  char* text = nullptr;
  if (sd_journal_get_cursor(journal, &text) < 0) return "";
  const std::unique_ptr<char, decltype(&std::free)> owned(text, std::free);
  return owned.get();
}

}  // namespace

std::string readJournal(const JournalQuery& query, const std::function<bool(const std::string&)>& entry) {
  const auto journal = openJournal(query.matches);
  // Before anything is read, so that nothing falls between reading and waiting.
  if (query.follow) checked(sd_journal_get_fd(journal.get()), "follow the journal");
  seek(journal.get(), query);
  for (;;) {
    while (checked(sd_journal_next(journal.get()), "read the journal") > 0) {
      if (query.since && timeOf(journal.get()) < *query.since) continue;
      if (query.afterCursor && sd_journal_test_cursor(journal.get(), query.afterCursor->c_str()) > 0)
        continue;
      const auto message = messageOf(journal.get());
      if (message && !entry(*message)) return cursorOf(journal.get());
    }
    if (!query.follow) return cursorOf(journal.get());
    checked(sd_journal_wait(journal.get(), UINT64_MAX), "follow the journal");
  }
}

void tellJournal(const Machine& machine, const AgentEvent& event) {
  constexpr auto warning = "4", notice = "5";  // syslog(3)
  std::vector<std::string> fields = {
      "MESSAGE=agent " + machine.card.id.str() + ": " + event.message,
      "MESSAGE_ID=" + std::string(agentEventMessageId),
      std::string("PRIORITY=") + (event.isWarning ? warning : notice), "SYSLOG_IDENTIFIER=agentmachine",
      "AGENT_ID=" + machine.card.id.str(), "AGENT_MACHINE=" + machine.name().str(),
      "AGENT_EVENT=" + event.event,
      // systemd's own way to speak of another unit; journalctl(1) believes it of root alone.
      "OBJECT_SYSTEMD_UNIT=" + machine.name().unit()};
  if (!event.by.empty()) fields.push_back("AGENT_BY=" + event.by);
  if (!event.cause.empty()) fields.push_back("AGENT_CAUSE=" + event.cause);
  // With lengths, not line by line: no value can begin a field.
  std::vector<iovec> vectors;
  for (auto& field : fields) vectors.push_back({field.data(), field.size()});
  sd_journal_sendv(vectors.data(), static_cast<int>(vectors.size()));
}

std::string lastWords(const std::string& unit) {
  const auto id = trim(runProcess({"systemctl", "show", "--value", "--property=InvocationID", unit}).output);
  // What was just logged counts most.
  runProcess({"journalctl", "--sync"});
  std::vector<std::string> command = {"journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=12"};
  command.push_back(id.empty() ? "_SYSTEMD_UNIT=" + unit : "_SYSTEMD_INVOCATION_ID=" + id);
  if (!id.empty()) command.insert(command.end(), {"+", "INVOCATION_ID=" + id});
  const auto words = trim(runProcess(command).output);
  std::string text = words.empty() ? "" : "; its last words:\n" + words;
  text += "\nmore: journalctl -u " + unit;
  return join(split(text, '\n'), "\n  ");
}

JournalTime parseJournalTime(const std::string& text) {
  const auto result = runProcess({"systemd-analyze", "timestamp", "--", text});
  constexpr std::string_view label = "UNIX seconds: @";
  const auto at = result.output.find(label);
  if (result.status != 0 || at == std::string::npos)
    throw Error(inQuotes(text) +
                " is no time: \"yesterday\", \"-1h\" and \"2026-11-24 10:00\" are; see systemd.time(7)");
  const auto* number = result.output.data() + at + label.size();
  const auto* const end = result.output.data() + result.output.size();
  std::int64_t seconds = 0;
  const auto [rest, error] = std::from_chars(number, end, seconds);
  if (error != std::errc()) throw Error("systemd-analyze timestamp said " + inQuotes(result.output));
  std::int64_t microseconds = 0;
  if (rest != end && *rest == '.') {
    std::string digits(rest + 1, std::find_if(rest + 1, end, [](char c) { return c < '0' || c > '9'; }));
    digits.resize(6, '0');
    std::from_chars(digits.data(), digits.data() + digits.size(), microseconds);
  }
  return JournalTime(std::chrono::seconds(seconds) + std::chrono::microseconds(microseconds));
}

}  // namespace agentmachine
