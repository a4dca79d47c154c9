#include <csignal>
#include <filesystem>
#include <format>
#include <fstream>
#include <optional>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "descriptors.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/lock.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {
namespace {

class Files : public testing::Test {
 protected:
  Files() {
    std::string pattern = (std::filesystem::temp_directory_path() / "agentmachine.XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
  }
  ~Files() override { std::filesystem::remove_all(directory_); }
  std::filesystem::path directory_;
};

TEST_F(Files, WritesWithModeAndLeavesNoTemporary) {
  const auto path = directory_ / "x";
  writeFileAtomically(path, "one", 0640);
  writeFileAtomically(path, "two", 0600);
  EXPECT_EQ(readFile(path, 10), "two");
  struct stat st{};
  ASSERT_EQ(stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_), {}), 1);
}

TEST_F(Files, AFailedWriteKeepsTheOldContent) {
  std::filesystem::create_directory(directory_ / "x");
  EXPECT_THROW(writeFileAtomically(directory_ / "x", "y", 0600), Error);
  EXPECT_TRUE(std::filesystem::is_directory(directory_ / "x"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_), {}), 1);
}

TEST_F(Files, ReadRefusesWhatIsTooLargeOrNoFile) {
  writeFileAtomically(directory_ / "x", "12345", 0600);
  EXPECT_EQ(readFile(directory_ / "x", 5), "12345");
  EXPECT_THROW(readFile(directory_ / "x", 4), Error);
  ASSERT_EQ(mkfifo((directory_ / "fifo").c_str(), 0600), 0);
  EXPECT_THROW(readFile(directory_ / "fifo", 5), Error);
  EXPECT_EQ(readFileIfExists(directory_ / "absent", 5), std::nullopt);
}

TEST_F(Files, ADirectoryThatCannotBeReadIsNotTakenForEmpty) {
  EXPECT_EQ(namesIn(directory_ / "absent"), std::vector<std::string>());
  EXPECT_EQ(walkIfExists(directory_ / "absent"), std::filesystem::recursive_directory_iterator());
  for (const auto* name : {"b", "a", "c"}) writeFileAtomically(directory_ / name, "", 0600);
  EXPECT_EQ(namesIn(directory_), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_THROW(namesIn(directory_ / "a"), Error);
  const DescriptorsLeft now(0);
  EXPECT_THROW(namesIn(directory_), Error);
  EXPECT_THROW(walkIfExists(directory_), Error);
}

TEST_F(Files, ADirectoryIsMadeWholeOrNotAtAll) {
  const auto path = directory_ / "d";
  const FileOwner self{geteuid(), getegid()};
  EXPECT_TRUE(makeDirectoryAtomically(path, 0750, self));
  EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms(0750));
  EXPECT_FALSE(makeDirectoryAtomically(path, 0700, self)) << "one that is there stays as it is";
  EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms(0750));
  EXPECT_EQ(namesIn(directory_), std::vector<std::string>{"d"});
  EXPECT_THROW(makeDirectoryAtomically(path / "absent" / "d", 0750, self), Error);
}

TEST_F(Files, LinksAreReplaced) {
  linkAtomically(directory_ / "l", "/one");
  linkAtomically(directory_ / "l", "/two");
  EXPECT_EQ(std::filesystem::read_symlink(directory_ / "l"), "/two");
}

TEST(Text, PrintableKeepsTextAndShowsWhatATerminalWouldObey) {
  EXPECT_EQ(printable("a \"quoted\" C:\\path\n\tü"), "a \"quoted\" C:\\path\n\tü");
  EXPECT_EQ(printable("\x1b[2J\r\x7f"), "\\u001b[2J\\u000d\\u007f");
  EXPECT_EQ(printable("\u009b1m\u202egpj\u200b"), "\\u009b1m\\u202egpj\\u200b");
  EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");
}

TEST(Process, LinesComeOneByOneAndMayBeEnough) {
  std::vector<std::string> lines;
  const auto keep = [&](const std::string& line) {
    lines.push_back(line);
    return true;
  };
  EXPECT_EQ(runLines({"printf", "a\\n\\nb"}, keep), 0);
  EXPECT_EQ(lines, (std::vector<std::string>{"a", "", "b"}));
  EXPECT_EQ(runLines({"yes"}, [](const std::string&) { return false; }), 128 + SIGTERM);
  EXPECT_EQ(runLines({"sh", "-c", "exit 3"}, keep), 3);
  EXPECT_THROW(runLines({"/no/such/program"}, keep), Error);
}

TEST(Process, CarriesInputOutputAndStatus) {
  EXPECT_EQ(runChecked({"cat"}, std::string(100000, 'x')), std::string(100000, 'x'));
  EXPECT_EQ(runProcess({"sh", "-c", "exit 7"}).status, 7);
  EXPECT_EQ(runProcess({"sh", "-c", "kill -9 $$"}).status, 137);
  try {
    runChecked({"sh", "-c", "echo why >&2; exit 1"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "sh: why");
  }
  EXPECT_THROW(runProcess({"/no/such/program"}), Error);
}

/// Whether somebody waits for a lock on this file (proc_locks(5)).
bool isAwaited(const std::filesystem::path& path) {
  struct stat st{};
  stat(path.c_str(), &st);
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);)
    if (line.contains("-> FLOCK") && line.contains(std::format(":{} ", st.st_ino))) return true;
  return false;
}

TEST_F(Files, ALockThatWasRemovedIsMadeAnew) {
  const auto path = directory_ / "lock";
  auto first = std::make_optional<FileLock>(path);
  std::thread other([&] {
    const FileLock second(path);
    const Fd third{open(path.c_str(), O_RDWR | O_CLOEXEC)};
    EXPECT_TRUE(third);
    EXPECT_EQ(flock(third.get(), LOCK_EX | LOCK_NB), -1);
  });
  while (!isAwaited(path)) std::this_thread::yield();
  first->removeFile();
  first.reset();
  other.join();
}

TEST_F(Files, ALockGoesWithWhatItIsAbout) {
  const auto path = directory_ / "lock", subject = directory_ / "subject";
  {
    const FileLock lock(path, subject);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  writeFileAtomically(subject, "", 0600);
  {
    const FileLock lock(path, subject);
  }
  EXPECT_TRUE(std::filesystem::exists(path));
  {
    const FileLock lock(path, subject);
    removeFile(path);
    removeFile(subject);
    writeFileAtomically(path, "", 0600);
  }
  EXPECT_TRUE(std::filesystem::exists(path)) << "it is another lock's by then";
}

TEST(Text, SplitsAndTrims) {
  EXPECT_EQ(split("a::b", ':'), (std::vector<std::string>{"a", "", "b"}));
  EXPECT_EQ(split("", ':'), (std::vector<std::string>{""}));
  EXPECT_EQ(trim(" \n a b\t"), "a b");
  EXPECT_EQ(join({"a", "b"}, ", "), "a, b");
}

TEST(Error, ContextIsPrefixed) {
  try {
    inContext("create alpha", [] { throw Error("no room"); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "create alpha: no room");
  }
}

}  // namespace
}  // namespace agentmachine
