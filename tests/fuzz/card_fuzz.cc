// libFuzzer: no text crashes parseCard or hangs it; an accepted card comes back from its JSON, and problems
// are told without control characters. FORMAT is json or toml.
#include <cstdint>

#include "card/card.h"
#include "require.h"
#include "util/text.h"

using namespace agentmachine;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto card = parseCard({reinterpret_cast<const char*>(data), size}, CardFormat::FORMAT);
  if (card) {
    require(parseCard(toJson(*card), CardFormat::json) == *card);
  } else {
    require(!card.error().empty());
    for (const auto& line : split(describe("x", card.error()), '\n'))
      require(PlainText::parse(line).has_value());
  }
  return 0;
}
