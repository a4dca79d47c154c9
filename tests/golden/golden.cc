#include "golden.h"

#include <cstdlib>
#include <set>

#include <gtest/gtest.h>

#include "util/file.h"

namespace agentmachine {

namespace {

class Case : public testing::Test {
 public:
  explicit Case(std::function<void()> body) : body_(std::move(body)) {}
  void TestBody() override { body_(); }

 private:
  std::function<void()> body_;
};

}  // namespace

void forEachCase(const std::string& suite, const std::filesystem::path& folder,
                 const std::function<void(const std::filesystem::path& entry)>& check) {
  const auto test = [&](const std::string& name, std::function<void()> body) {
    testing::RegisterTest(suite.c_str(), name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [body] -> testing::Test* { return new Case(body); });
  };
  std::set<std::filesystem::path> entries;
  std::set<std::string> stems;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().filename() != "expected") entries.insert(entry.path());
  for (const auto& entry : entries) {
    if (!stems.insert(entry.stem()).second)
      throw std::runtime_error("two cases named " + entry.stem().string());
    test(entry.stem(), [check, entry] { check(entry); });
  }
  test("no_expectation_is_left_over", [folder, stems] {
    for (const auto& expected : std::filesystem::directory_iterator(folder / "expected"))
      EXPECT_TRUE(stems.contains(expected.path().stem())) << expected.path() << " belongs to no case";
  });
}

void expectGolden(const std::filesystem::path& expected, std::string_view actual) {
  const char* accept = std::getenv("AGENTMACHINE_TEST_ACCEPT");
  if (accept && std::string_view(accept) == "1") {
    std::filesystem::create_directories(expected.parent_path());
    writeFileAtomically(expected, actual, 0644);
    return;
  }
  const auto content = readFileIfExists(expected, maxGoldenBytes);
  ASSERT_TRUE(content) << expected << " is missing; AGENTMACHINE_TEST_ACCEPT=1 writes it:\n" << actual;
  EXPECT_EQ(*content, actual) << expected << "; AGENTMACHINE_TEST_ACCEPT=1 rewrites it";
}

void expectTable(const std::filesystem::path& document, std::string_view table) {
  constexpr std::string_view beginning = "<!-- begin of the table -->\n", end = "<!-- end of the table -->";
  const std::string text = readFile(document, maxGoldenBytes);
  const auto from = text.find(beginning) + beginning.size(), to = text.find(end);
  ASSERT_LT(from, to) << document;
  ASSERT_NE(to, std::string::npos) << document;
  expectGolden(document, text.substr(0, from) + std::string(table) + text.substr(to));
}

}  // namespace agentmachine
