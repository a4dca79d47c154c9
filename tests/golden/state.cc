// Golden tests of state that earlier programs wrote: state/VERSION has each file as the program of that
// version wrote it for a machine that runs, expected/VERSION.txt what this program makes of it.
#include <filesystem>
#include <format>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "golden.h"
#include "plan/machine.h"
#include "plan/policy.h"
#include "system/run_record.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

/// A directory that is gone at the end.
class Scratch {
 public:
  Scratch() {
    if (!mkdtemp(path_.data())) throw errnoError("make " + path_);
  }
  ~Scratch() { fs::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_ = testing::TempDir() + "state-XXXXXX";
};

std::string refusal(auto&& act) {
  try {
    (void)act();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Of a drop-in that systemd has from a program that is replaced: whether this one has the hooks it names.
std::string hooksOf(const std::string& dropIn) {
  std::string text;
  for (const auto& line : split(dropIn, '\n')) {
    const auto at = line.find(" hook ");
    if (at == std::string::npos) continue;
    auto words = split(line.substr(at + 1), ' ');
    words.back() = "--help";  // the id
    words.insert(words.begin(), AGENTMACHINE_PROGRAM);
    text += std::format("{} [{}]\n", line.substr(0, at + 1) + join({words.begin() + 1, words.end()}, " "),
                        runProcess(words).status);
  }
  return text;
}

/// All of it read and written again.
std::string rewritten(const fs::path& old) {
  const Scratch from, to;
  fs::copy(old, from.path(), fs::copy_options::recursive);
  const auto content = [&](const std::string& name) {
    return readFile(from.path() + "/" + name, maxGoldenBytes);
  };
  const auto card = parseCard(content("card.json"), CardFormat::json);
  if (!card) return describe("card.json", card.error());
  const auto policy = parsePolicy(content("policy"));
  writeFileAtomically(to.path() + "/card.json", toJson(*card), 0600);
  writeFileAtomically(to.path() + "/machine.json", toJson(parseAllocation(content("machine.json"))), 0600);
  writeFileAtomically(to.path() + "/policy", renderPolicy(policy), 0600);
  writeRunRecord(to.path(), readRunRecord(from.path()).value());
  writeEndRecord(to.path(), readEndRecord(from.path()).value());
  noteStopReason(to.path(), takeStopReason(from.path()).value());
  std::string text;
  for (const char* name : {"card.json", "machine.json", "policy", "run.json", "end.json", "stop.json"})
    text += std::format("--- {}\n{}\n", name, trim(readFile(to.path() + "/" + name, maxGoldenBytes)));
  text += std::format("--- starts.json\n{} s\n",
                      std::chrono::duration<double>(readStartTimes(from.path()).value().sum).count());
  const auto refused = refusal([&] { return deliveredKey(content("key"), policy.broker.value()); });
  text += "--- key\n" + (refused.empty() ? "as delivered today" : refused + ": is delivered anew") + "\n";
  return text + "--- 10-agentmachine.conf\n" + hooksOf(content("10-agentmachine.conf"));
}

TEST(State, OfANewerProgramIsRefused) {
  const Scratch state;
  const auto& path = state.path();
  writeRunRecord(path, {});
  writeEndRecord(path, {.oomKills = 1});
  noteStart(path, std::chrono::seconds(1));
  noteOomKills(path, {.invocation = "a", .oomKills = 1});
  noteStopReason(path, {});
  writeFileAtomically(path + "/machine.json",
                      toJson(Allocation{.image = "sha256-a", .address = Ipv4{1}, .uidBase = uidRangeSize}),
                      0600);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    auto json = nlohmann::json::parse(readFile(entry.path(), maxGoldenBytes));
    EXPECT_TRUE(json.contains("version")) << entry.path();
    // Another form, too, which must not be told as damage.
    writeFileAtomically(entry.path(), R"({"version": 99, "new": []})", 0600);
    ++files;
  }
  EXPECT_EQ(files, 6);
  constexpr auto newer = "written by a newer agentmachine (version 99, this one knows 1)";
  EXPECT_EQ(refusal([&] { return readRunRecord(path); }), "read " + path + "/run.json: " + newer);
  EXPECT_EQ(refusal([&] { return readEndRecord(path); }), "read " + path + "/end.json: " + newer);
  EXPECT_EQ(refusal([&] { return readStartTimes(path); }), "read " + path + "/starts.json: " + newer);
  EXPECT_EQ(refusal([&] { return readOomKills(path); }), "read " + path + "/oom-kills.json: " + newer);
  EXPECT_EQ(refusal([&] { return parseAllocation(readFile(path + "/machine.json", maxGoldenBytes)); }),
            "written by a newer agentmachine (state version 99, this one knows 1)");
  // A note of a moment: it is forgotten, and nobody is kept from stopping.
  EXPECT_EQ(takeStopReason(path), std::nullopt);
  EXPECT_FALSE(fs::exists(path + "/stop.json"));
}

}  // namespace

void registerStateGoldens(const fs::path& root) {
  forEachCase("State", root / "state", [root](const fs::path& entry) {
    expectGolden(root / "state/expected" / (entry.filename().string() + ".txt"), rewritten(entry));
  });
}

}  // namespace agentmachine
