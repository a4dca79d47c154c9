// libFuzzer: no text crashes parseCard or hangs it, in either format; an accepted card comes back from its
// JSON, and problems are told without control characters.
#include <cstdint>
#include <cstdlib>

#include "card/card.h"
#include "util/text.h"

using namespace agentmachine;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto format : {CardFormat::json, CardFormat::toml}) {
    const auto card = parseCard(text, format);
    if (card) {
      require(parseCard(toJson(*card), CardFormat::json) == *card);
    } else {
      require(!card.error().empty());
      for (const auto& line : split(describe("x", card.error()), '\n'))
        require(PlainText::parse(line).has_value());
    }
  }
  return 0;
}
