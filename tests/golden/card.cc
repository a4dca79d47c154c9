// card/good/CASE.{json,toml}: accepted, and expected/CASE.json is the card as it is kept.
// card/bad/CASE.{json,toml}: refused with expected/CASE.txt.
#include "card/card.h"

#include <gtest/gtest.h>

#include "golden.h"
#include "util/file.h"

namespace agentmachine {

namespace {

std::expected<Card, std::vector<Problem>> parseFile(const std::filesystem::path& path) {
  return parseCard(readFile(path, maxCardBytes),
                   path.extension() == ".toml" ? CardFormat::toml : CardFormat::json);
}

void good(const std::filesystem::path& path) {
  const auto card = parseFile(path);
  ASSERT_TRUE(card) << describe(path.filename().string(), card.error());
  const auto json = toJson(*card);
  expectGolden(path.parent_path() / "expected" / path.filename().replace_extension(".json"), json);
  EXPECT_EQ(parseCard(json, CardFormat::json), *card);
}

void bad(const std::filesystem::path& path) {
  const auto card = parseFile(path);
  ASSERT_FALSE(card) << "is accepted";
  const auto text = describe(path.filename().string(), card.error());
  expectGolden(path.parent_path() / "expected" / path.filename().replace_extension(".txt"), text);
  EXPECT_FALSE(text.contains("hunter2")) << "the cases' secret is shown";
}

}  // namespace

void registerCardGoldens(const std::filesystem::path& root) {
  forEachCase("CardGood", root / "card/good", good);
  forEachCase("CardBad", root / "card/bad", bad);
}

}  // namespace agentmachine
