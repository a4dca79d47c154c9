// The line protocol between squid and its helpers (squid's wiki, AddonHelpers). Pure: no I/O.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace agentmachine {

/// Without percent encoding (RFC 3986, 2.1); what only looks like it stays.
std::string percentDecoded(std::string_view text);

/// "CHANNEL TOKEN…" with percent-encoded tokens, as squid asks.
struct HelperQuestion {
  std::string channel;
  std::vector<std::string> tokens;
};
HelperQuestion parseQuestion(std::string_view line);

using HelperNotes = std::vector<std::pair<std::string_view, std::string>>;

/// "CHANNEL OK|ERR name=value…\n", values percent-encoded; empty ones are left out.
std::string renderAnswer(std::string_view channel, bool ok, const HelperNotes& notes);

}  // namespace agentmachine
