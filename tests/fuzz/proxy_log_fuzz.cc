// libFuzzer: what squid logs and what the journal gives back. Each line is read, or refused with an Error,
// and what was read is written so that it can be read again. The first byte says which.
#include <cstdint>
#include <string>

#include "plan/audit.h"
#include "require.h"
#include "util/error.h"

using namespace agentmachine;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const AuditRecord record = data[0] % 2 == 0 ? parseProxyLine(text) : parseAuditRecord(text);
    const std::string line = toJson(record);
    for (const char c : line) require(c >= ' ' && c < '\x7f');
    require(parseAuditRecord(line) == record);
    for (const auto& [name, value] : journalFields(record)) require(!name.empty());
  } catch (const Error&) {
  }
  return 0;
}
