// libFuzzer: no text crashes parseSettings; accepted settings give a packet filter and a squid.conf in which
// each value stays on its line.
#include <algorithm>
#include <cstdint>

#include "plan/nftables.h"
#include "plan/squid.h"
#include "require.h"
#include "util/error.h"
#include "util/text.h"

using namespace agentmachine;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Settings settings;
  try {
    settings = parseSettings({reinterpret_cast<const char*>(data), size}, "x");
  } catch (const Error& error) {
    for (const auto& line : split(error.what(), '\n')) require(!line.empty());
    return 0;
  }
  const auto lines = [](const std::string& text) { return std::ranges::count(text, '\n'); };
  require(settings.prefixLength >= 8 && settings.prefixLength <= 29);
  require(settings.proxyPort != settings.brokerPort && settings.uidBase % uidRangeAlignment == 0);
  // Each of the exceptions is one rule at most, whatever is in it.
  const auto least = lines(renderNftRuleset({})), most = least + 1;
  const auto rules = lines(renderNftRuleset(settings));
  require(rules == least || rules == most);
  try {
    const auto squid =
        renderSquidConf(settings, {.helper = "/h", .auditor = "/a", .certificate = "/c", .errorPages = "/e"});
    require(std::ranges::none_of(squid, [](unsigned char c) { return c < 0x20 && c != '\n' && c != '\t'; }));
  } catch (const Error& error) {
    require(std::string_view(error.what()).contains("squid.conf can't hold"));  // paths that need quotes
  }
  return 0;
}
