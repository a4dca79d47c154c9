#include "util/tree.h"

#include <filesystem>
#include <fstream>
#include <set>

#include <fcntl.h>
#include <gtest/gtest.h>

#include "descriptors.h"
#include "util/error.h"

namespace agentmachine {
namespace {

namespace fs = std::filesystem;

class Tree : public testing::Test {
 protected:
  Tree() {
    std::string pattern = (fs::temp_directory_path() / "agentmachine.XXXXXX").string();
    directory_ = fs::canonical(mkdtemp(pattern.data()));
    root_ = Fd{open(directory_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  }
  ~Tree() override { emptyDirectory(root_.get()), fs::remove(directory_); }

  std::set<std::string> names() {
    std::set<std::string> entered;
    walkTree(root_.get(), {.enter = [&](int, const std::string& name, int,
                                        const struct stat&) { EXPECT_TRUE(entered.insert(name).second); },
                           .leave = [&](int, const std::string& name) { left_.push_back(name); },
                           .mounted = [](const std::string&) {}});
    return entered;
  }

  /// Deeper than files may be open, and longer than a path may be.
  void makeDeep(int levels) {
    Fd current{open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    for (int i = 0; i < levels; ++i) {
      ASSERT_EQ(mkdirat(current.get(), "deep", 0700), 0);
      current = Fd{openat(current.get(), "deep", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    }
  }

  fs::path directory_;
  Fd root_;
  std::vector<std::string> left_;
};

TEST_F(Tree, IsWalkedWithoutFollowingLinksOrOpeningFifos) {
  fs::create_directories(directory_ / "a/b");
  std::ofstream(directory_ / "a/b/file");
  ASSERT_EQ(mkfifo((directory_ / "a/fifo").c_str(), 0600), 0);
  fs::create_symlink("/etc", directory_ / "link");
  EXPECT_EQ(names(), (std::set<std::string>{"a", "b", "file", "fifo", "link"}));
  EXPECT_EQ(left_, (std::vector<std::string>{"b", "a"}));
}

TEST_F(Tree, MayBeDeep) {
  makeDeep(3000);
  removeTree(root_.get(), "deep");
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(Tree, RemovingKeepsWhatLinksLeadTo) {
  fs::create_directories(directory_ / "kept");
  std::ofstream(directory_ / "kept/file");
  fs::create_directories(directory_ / "doomed");
  fs::create_symlink(directory_ / "kept", directory_ / "doomed/link");
  removeTree(root_.get(), "doomed");
  removeTree(root_.get(), "doomed");  // absent is no error
  EXPECT_EQ(names(), (std::set<std::string>{"file", "kept"}));
}

TEST_F(Tree, ThatIsMovedMeanwhileIsNotLeftForAnother) {
  fs::create_directories(directory_ / "a/b");
  fs::create_directories(directory_ / "elsewhere");
  const TreeVisitor mover = {.enter =
                                 [&](int, const std::string& name, int, const struct stat&) {
                                   if (name == "file")
                                     fs::rename(directory_ / "a/b", directory_ / "elsewhere/b");
                                 },
                             .leave = [](int, const std::string&) {},
                             .mounted = [](const std::string&) {}};
  std::ofstream(directory_ / "a/b/file");
  EXPECT_THROW(walkTree(root_.get(), mover), Error);
}

TEST_F(Tree, ErrorsEscapeNames) {
  const std::string evil = "\x1b[2J";
  std::ofstream(directory_ / evil);
  try {
    walkTree(root_.get(),
             {.enter = [](int, const std::string&, int, const struct stat&) { throw Error("no"); },
              .leave = {},
              .mounted = {}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "\\u001b[2J: no");
  }
}

TEST_F(Tree, IsOpenedOnlyWithoutLinks) {
  fs::create_directories(directory_ / "real/inner");
  fs::create_directory_symlink("real", directory_ / "link");
  EXPECT_TRUE(openWithoutLinks((directory_ / "real/inner").string(), O_PATH));
  for (const char* path : {"link", "link/inner"}) {
    EXPECT_FALSE(openWithoutLinks((directory_ / path).string(), O_PATH));
    EXPECT_EQ(errno, ELOOP);
  }
}

TEST_F(Tree, WhatCannotBeOpenedIsNotTakenForAbsent) {
  const auto path = directory_.string();
  EXPECT_TRUE(openIfExists(path, O_PATH));
  EXPECT_FALSE(openIfExists(path + "/absent/below", O_PATH));
  fs::create_directory_symlink("absent", directory_ / "link");
  EXPECT_FALSE(openIfExists(path + "/link", O_PATH));
  const DescriptorsLeft now(0);
  EXPECT_THROW(openIfExists(path, O_PATH), Error);
}

}  // namespace
}  // namespace agentmachine
