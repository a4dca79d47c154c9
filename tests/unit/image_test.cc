#include <csignal>
#include <format>
#include <functional>
#include <memory>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "descriptors.h"
#include "system/archive.h"
#include "system/image_store.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/sha256.h"

namespace agentmachine {
namespace {

namespace fs = std::filesystem;

struct Entry {
  std::string path;
  unsigned type = AE_IFREG;
  std::string content = {};  // of a file, or the target of a link
  unsigned mode = 0644;
  la_int64_t uid = 0;
  std::function<void(archive_entry*)> change = {};
};
Entry directory(std::string path, unsigned mode = 0755) {
  return {std::move(path), AE_IFDIR, "", mode};
}
Entry link(std::string path, std::string target) {
  return {std::move(path), AE_IFLNK, std::move(target), 0777};
}
Entry hardlink(std::string path, std::string target) {
  return {.path = std::move(path), .change = [target](archive_entry* entry) {
            archive_entry_set_hardlink(entry, target.c_str());
            archive_entry_set_size(entry, 0);
          }};
}

/// A pax archive of the entries as they stand, right or wrong, in memory.
std::string pack(const std::vector<Entry>& entries, int filter = ARCHIVE_FILTER_NONE) {
  std::string buffer(std::size_t{4} << 20, '\0');
  std::size_t used = 0;
  const std::unique_ptr<archive, decltype(&archive_write_free)> writer{archive_write_new(),
                                                                       archive_write_free};
  archive_write_set_format_pax_restricted(writer.get());
  archive_write_add_filter(writer.get(), filter);
  archive_write_set_options(writer.get(), "hdrcharset=BINARY");
  archive_write_open_memory(writer.get(), buffer.data(), buffer.size(), &used);
  for (const auto& entry : entries) {
    const std::unique_ptr<archive_entry, decltype(&archive_entry_free)> header{archive_entry_new(),
                                                                               archive_entry_free};
    archive_entry_set_pathname(header.get(), entry.path.c_str());
    archive_entry_set_filetype(header.get(), entry.type);
    archive_entry_set_perm(header.get(), static_cast<mode_t>(entry.mode));
    archive_entry_set_uid(header.get(), entry.uid);
    archive_entry_set_mtime(header.get(), 1'700'000'000, 0);
    if (entry.type == AE_IFLNK) archive_entry_set_symlink(header.get(), entry.content.c_str());
    if (entry.type == AE_IFREG)
      archive_entry_set_size(header.get(), static_cast<la_int64_t>(entry.content.size()));
    if (entry.change) entry.change(header.get());
    EXPECT_EQ(archive_write_header(writer.get(), header.get()), ARCHIVE_OK)
        << archive_error_string(writer.get());
    if (entry.type == AE_IFREG) archive_write_data(writer.get(), entry.content.data(), entry.content.size());
  }
  archive_write_close(writer.get());
  buffer.resize(used);
  return buffer;
}

Fd inMemory(const std::string& content) {
  Fd fd{memfd_create("archive", MFD_CLOEXEC)};
  EXPECT_EQ(write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  lseek(fd.get(), 0, SEEK_SET);
  return fd;
}

class Images : public testing::Test {
 protected:
  Images() {
    std::string pattern = (fs::temp_directory_path() / "agentmachine.XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    fs::create_directory(tree());
  }
  ~Images() override { fs::remove_all(directory_); }

  [[nodiscard]] fs::path tree() const { return directory_ / "tree"; }
  [[nodiscard]] Unpacked unpackAll(const std::string& archive, const UnpackLimits& limits = {}) const {
    fs::remove_all(tree());
    fs::create_directory(tree());
    return unpack(inMemory(archive).get(), tree(), limits);
  }
  /// What is said of an archive that must be refused.
  [[nodiscard]] std::string refusal(const std::vector<Entry>& entries,
                                    const UnpackLimits& limits = {}) const {
    try {
      (void)unpackAll(pack(entries), limits);
      return "was unpacked";
    } catch (const Error& error) {
      return error.what();
    }
  }
  fs::path directory_;
};

TEST_F(Images, UnpacksFilesLinksAndDirectories) {
  const auto unpacked = unpackAll(pack({directory("./", 0755),
                                        directory("./tmp", 01777),
                                        {"usr/bin/sh", AE_IFREG, "#!", 0555},
                                        link("bin", "usr/bin"),
                                        link("var/run", "/run"),
                                        hardlink("usr/bin/dash", "usr/bin/sh"),
                                        {"home/é", AE_IFREG, "", 0600}}));
  EXPECT_EQ(unpacked.bytes, 2u);
  const auto hash = sha256("#!"), none = sha256("");
  EXPECT_EQ(unpacked.manifest,
            "d\t0755\t0\t0\t-\t.\n"
            "l\t0777\t0\t0\tusr/bin\tbin\n"
            "d\t0755\t0\t0\t-\thome\n"
            "f\t0600\t0\t0\t" +
                none +
                "\thome/é\n"
                "d\t1777\t0\t0\t-\ttmp\n"
                "d\t0755\t0\t0\t-\tusr\n"
                "d\t0755\t0\t0\t-\tusr/bin\n"
                "f\t0555\t0\t0\t" +
                hash +
                "\tusr/bin/dash\n"
                "f\t0555\t0\t0\t" +
                hash +
                "\tusr/bin/sh\n"
                "d\t0755\t0\t0\t-\tvar\n"
                "l\t0777\t0\t0\t/run\tvar/run\n");
  EXPECT_EQ(readFile(tree() / "usr/bin/dash", 10), "#!");
  EXPECT_EQ(fs::read_symlink(tree() / "var/run"), "/run");
  struct stat st{};
  ASSERT_EQ(stat((tree() / "tmp").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode, S_IFDIR | 01777u);
  ASSERT_EQ(stat((tree() / "usr").c_str(), &st), 0);
  EXPECT_EQ(st.st_mtime, 1);
  ASSERT_EQ(lstat((tree() / "bin").c_str(), &st), 0);
  EXPECT_EQ(st.st_mtime, 1);
}

TEST_F(Images, TheSameTreeHasOneManifestWhateverItCameIn) {
  const std::vector<Entry> entries = {directory("etc"), {"etc/a", AE_IFREG, "x"}, {"b", AE_IFREG, "y"}};
  const auto manifest = unpackAll(pack(entries)).manifest;
  for (const int filter : {ARCHIVE_FILTER_GZIP, ARCHIVE_FILTER_XZ, ARCHIVE_FILTER_ZSTD})
    EXPECT_EQ(unpackAll(pack({entries[2], entries[1], entries[0]}, filter)).manifest, manifest);
}

TEST_F(Images, KeepsHoles) {
  constexpr la_int64_t size = 64 << 20;
  Entry sparse{.path = "sparse", .change = [](archive_entry* entry) {
                 archive_entry_set_size(entry, size);
                 archive_entry_sparse_add_entry(entry, 1 << 20, 4096);
               }};
  sparse.content = std::string(1 << 20, '\0') + std::string(4096, 'x');
  const auto unpacked = unpackAll(pack({sparse}));
  auto whole = sparse.content;
  whole.resize(size);
  EXPECT_NE(unpacked.manifest.find(sha256(whole)), std::string::npos);
  struct stat st{};
  ASSERT_EQ(stat((tree() / "sparse").c_str(), &st), 0);
  EXPECT_EQ(st.st_size, size);
  EXPECT_LT(st.st_blocks * 512, size / 2);
  EXPECT_EQ(refusal({sparse}, {.bytes = size - 1}),
            "sparse: with it the image is larger than the 63 MiB allowed");
}

TEST_F(Images, RefusesWhatCouldReachOut) {
  const auto device = [](archive_entry* entry) { archive_entry_set_rdev(entry, makedev(1, 3)); };
  const auto capability = [](archive_entry* entry) {
    archive_entry_xattr_add_entry(entry, "security.capability", "x", 1);
  };
  const auto acl = [](archive_entry* entry) {
    archive_entry_acl_add_entry(entry, ARCHIVE_ENTRY_ACL_TYPE_ACCESS, ARCHIVE_ENTRY_ACL_READ,
                                ARCHIVE_ENTRY_ACL_USER, 7, nullptr);
  };
  const Entry file{"file", AE_IFREG, "x"};
  const std::vector<std::pair<std::vector<Entry>, std::string>> cases = {
      {{{"/etc/x"}}, "/etc/x: its path is absolute"},
      {{{"a/../../x"}}, "a/../../x: its path has a \"..\""},
      {{{"a\nb"}}, "a\\nb: its name has a control character"},
      {{{"a\033[2J"}}, "a\\u001b[2J: its name has a control character"},
      {{{std::string(256, 'n')}}, std::string(256, 'n') + ": its name is too long"},
      {{{"dev/null", AE_IFCHR, "", 0666, 0, device}}, "dev/null: it is a device node"},
      {{{"dev/sda", AE_IFBLK, "", 0666, 0, device}}, "dev/sda: it is a device node"},
      {{{"p", AE_IFIFO}}, "p: it is a FIFO"},
      {{{"su", AE_IFREG, "", 04755}}, "su: it is setuid or setgid"},
      {{{"wall", AE_IFREG, "", 02755}}, "wall: it is setuid or setgid"},
      {{{"ping", AE_IFREG, "", 0755, 0, capability}},
       "ping: it has extended attributes, which may be file capabilities: pack it without them"},
      {{{"x", AE_IFREG, "", 0644, 0, acl}}, "x: it has an access control list: pack it without"},
      {{{"x", AE_IFREG, "", 0644, 65536}},
       "x: its owner 65536:0 is above 65535, and no machine has such users"},
      {{link("x", "../etc/shadow")}, "x: it leaves the root: it points to ../etc/shadow"},
      {{link("a/b/x", "../../../etc")}, "a/b/x: it leaves the root: it points to ../../../etc"},
      {{link("x", "/../etc")}, "x: it leaves the root: it points to /../etc"},
      {{link("x", "a\nb")}, "x: its target is no path"},
      {{link("etc", "/etc"), {"etc/passwd"}},
       "etc/passwd: its path leads through etc, which is not a directory"},
      {{file, {"file/x"}}, "file/x: its path leads through file, which is not a directory"},
      {{directory("etc"), link("etc", "/etc")}, "etc: the archive has this path twice"},
      {{{"etc/x"}, link("etc", "/etc")}, "etc: the archive has this path twice"},
      {{link("etc", "/etc"), directory("etc")}, "etc/: the archive has this path twice"},
      {{file, file}, "file: the archive has this path twice"},
      {{hardlink("x", "/etc/shadow")}, "x: it is a hard link to /etc/shadow: its path is absolute"},
      {{hardlink("x", "../x")}, "x: it is a hard link to ../x: its path has a \"..\""},
      {{hardlink("x", "y")}, "x: it is a hard link to y, which is no file before it in the archive"},
      {{link("y", "/etc/shadow"), hardlink("x", "y")},
       "x: it is a hard link to y, which is no file before it in the archive"},
      {{{"root.nspawn"}},
       "root.nspawn: it is a settings file of systemd-nspawn: an image must not bring its own"},
      {{{"root.nspawn/file"}},
       "root.nspawn/file: it is a settings file of systemd-nspawn: an image must not bring its own"},
      {{link(".", "/")}, ".: the root is not a directory"},
  };
  for (const auto& [entries, message] : cases) EXPECT_EQ(refusal(entries), message);
}

TEST_F(Images, RefusesMoreThanItsLimits) {
  const std::vector<Entry> entries = {{"a", AE_IFREG, std::string(3000, 'a')},
                                      {"b", AE_IFREG, std::string(3000, 'b')}};
  EXPECT_EQ(refusal(entries, {.bytes = 6000, .entries = 2}), "was unpacked");
  EXPECT_EQ(refusal(entries, {.bytes = 5999}), "b: with it the image is larger than the 0 MiB allowed");
  EXPECT_EQ(refusal(entries, {.entries = 1}), "b: the archive has more than 1 entries");
}

TEST_F(Images, RefusesWhatIsBrokenOrNoTar) {
  const auto whole = pack({{"a", AE_IFREG, std::string(100'000, 'a')}});
  EXPECT_THROW((void)unpackAll(whole.substr(0, 50'000)), Error);
  EXPECT_THROW((void)unpackAll("not an archive, but text that is long enough"), Error);
  EXPECT_THROW((void)unpackAll(""), Error);
  auto damaged = pack({{"a", AE_IFREG, std::string(100'000, 'a')}}, ARCHIVE_FILTER_ZSTD);
  damaged[damaged.size() / 2] ^= 0x55;
  EXPECT_THROW((void)unpackAll(damaged), Error);
}

TEST_F(Images, TheKernelToldNotToFollowLinksEither) {
  // Another process plants a link in the tree while it is unpacked.
  fs::remove_all(tree());
  fs::create_directory(tree());
  fs::create_directory(directory_ / "outside");
  const auto archive =
      inMemory(pack({directory("a"), {"b", AE_IFREG, std::string(100, 'b')}, {"a/x", AE_IFREG, "x"}}));
  const auto plant = [&](std::uint64_t, std::uint64_t) {
    if (fs::is_symlink(tree() / "a")) return;
    fs::remove(tree() / "a");
    fs::create_symlink("../outside", tree() / "a");
  };
  EXPECT_THROW((void)unpack(archive.get(), tree(), {}, plant), Error);
  EXPECT_TRUE(fs::is_empty(directory_ / "outside"));
}

/// The least that is an image.
std::vector<Entry> imageEntries(const std::string& version = "1.2.3") {
  std::vector<Entry> entries;
  for (const auto* path : {"dev", "home/agent", "proc", "run", "sys", "tmp", "var/tmp", "workspace"})
    entries.push_back(directory(path));
  for (const auto* path : {"env", "git", "opencode", "dash"})
    entries.push_back({std::string("usr/bin/") + path, AE_IFREG, path, 0755});
  for (const auto* path :
       {"hostname", "localtime", "machine-id", "resolv.conf", "opencode/.gitignore", "opencode/opencode.json",
        "opencode/plugin/permissions.js", "ssl/certs/ca-certificates.crt"})
    entries.push_back({std::string("etc/") + path});
  entries.push_back({"usr/lib/agentmachine/init", AE_IFREG, "", 0755});
  entries.push_back(
      {"etc/passwd", AE_IFREG, "root:x:0:0::/root:/bin/sh\nagent:x:65532:65532::/home/agent:/bin/sh\n"});
  entries.push_back({"etc/group", AE_IFREG, "agent:x:65532:\n"});
  entries.push_back({"etc/os-release", AE_IFREG,
                     "PRETTY_NAME=\"an \033[1mimage\"\nAGENTMACHINE_OPENCODE_VERSION=" + version + "\n"});
  entries.push_back(link("usr/bin/sh", "/usr/bin/dash"));
  entries.push_back(link("bin", "usr/bin"));
  entries.push_back(link("var/run", "/run"));
  return entries;
}

TEST_F(Images, AnImageIsImportedOnceWhateverItsArchive) {
  ImageStore store(directory_ / "images");
  EXPECT_TRUE(store.list().empty());
  const auto image = store.import(inMemory(pack(imageEntries())).get());
  EXPECT_EQ(store.import(inMemory(pack(imageEntries(), ARCHIVE_FILTER_ZSTD)).get()).digest, image.digest);
  ASSERT_EQ(store.list().size(), 1u);
  const auto listed = store.list().front();
  EXPECT_EQ(listed.digest, image.digest);
  EXPECT_EQ(listed.name, "an [1mimage");
  EXPECT_EQ(listed.opencodeVersion, "1.2.3");
  const auto place = directory_ / "images" / image.digest;
  EXPECT_EQ(readFile(place / "root/usr/bin/dash", 10), "dash");
  EXPECT_EQ(fs::status(place).permissions(), fs::perms::owner_all) << "its /tmp is not for the host's users";
  EXPECT_EQ("sha256-" + sha256(readFile(place / "manifest", 1 << 20)), image.digest);
}

/// What is said of an archive that is unpacked well and is no image.
std::string importRefusal(ImageStore& store, const std::vector<Entry>& entries) {
  try {
    store.import(inMemory(pack(entries)).get());
    return "was imported";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST_F(Images, SaysEverythingThatAnImageLacks) {
  ImageStore store(directory_ / "images");
  auto entries = imageEntries();
  std::erase_if(entries,
                [](const Entry& entry) { return entry.path == "usr/bin/git" || entry.path == "workspace"; });
  for (auto& entry : entries) {
    if (entry.path == "etc/passwd") entry.content = "agent:x:1000:1000::/home/agent:/bin/sh\n";
    if (entry.path == "var/run") entry.content = "/tmp";
    // A link to a program of this machine is not one of the image.
    if (entry.path == "usr/bin/env") entry = link("usr/bin/env", "/proc/self/exe");
  }
  EXPECT_EQ(importRefusal(store, entries),
            "this is no image for agentmachine:\n"
            "  /usr/bin/env is no program that everyone may run\n"
            "  /usr/bin/git is no program that everyone may run\n"
            "  /workspace is no directory\n"
            "  /var/run is no link to /run\n"
            "  /etc/passwd has no user \"agent\" with uid and gid 65532");
  EXPECT_TRUE(store.list().empty());
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_ / "images"), {}), 1) << "only the lock stays";
}

TEST_F(Images, WhatCannotBeOpenedIsNotTakenForLacking) {
  const DescriptorsLeft now(1);  // the tree's own
  try {
    imageProblems(directory_);
    FAIL() << "it was judged unseen";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "open /bin/sh: Too many open files");
  }
}

TEST_F(Images, OneThatDoesNotHoldOpencodeToItsPermissionsIsRefused) {
  ImageStore store(directory_ / "images");
  auto entries = imageEntries();
  std::erase_if(entries,
                [](const Entry& entry) { return entry.path == "etc/opencode/plugin/permissions.js"; });
  EXPECT_EQ(importRefusal(store, entries),
            "this is no image for agentmachine:\n"
            "  /etc/opencode/plugin/permissions.js is no file");
}

TEST_F(Images, WhatAKilledImportLeavesIsCleanedUp) {
  const auto archive = pack(imageEntries());
  const auto left = [&] {
    return std::count_if(fs::directory_iterator(directory_ / "images"), {},
                         [](const fs::directory_entry& entry) {
                           return entry.path().filename().string().starts_with(".tmp-");
                         });
  };
  ImageStore store(directory_ / "images");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    store.import(inMemory(archive).get(), {}, [](std::uint64_t, std::uint64_t) { raise(SIGKILL); });
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(left(), 1);
  store.import(inMemory(archive).get());
  EXPECT_EQ(left(), 0);
}

TEST_F(Images, OneThatIsBeingImportedIsLeftAlone) {
  ImageStore store(directory_ / "images");
  bool nested = false;
  const auto outer =
      store.import(inMemory(pack(imageEntries("1"))).get(), {}, [&](std::uint64_t, std::uint64_t) {
        if (std::exchange(nested, true)) return;
        store.import(inMemory(pack(imageEntries("2"))).get());
      });
  EXPECT_EQ(store.list().size(), 2u);
  EXPECT_EQ(readFile(directory_ / "images" / outer.digest / "root/usr/bin/dash", 10), "dash");
}

TEST_F(Images, AreFoundByTheFirstDigits) {
  const auto images = directory_ / "images";
  for (const auto& digits : {std::string(64, 'a'), "ab" + std::string(62, '0')}) {
    fs::create_directories(images / ("sha256-" + digits));
    writeFileAtomically(images / ("sha256-" + digits) / "image.json",
                        R"({"name": "x", "opencode_version": "1", "size_bytes": 1, "imported": 1})", 0644);
  }
  fs::create_directories(images / ".tmp-x");
  const ImageStore store(images);
  for (const auto* name : {"ab", "sha256-ab0", "sha256:ab00"})
    EXPECT_EQ(store.find(name).digest, "sha256-ab" + std::string(62, '0'));
  EXPECT_EQ(shortDigest(store.find("ab").digest), "ab0000000000");
  for (const auto* name : {"a", "b", "", "sha256-", ".tmp-x"})
    EXPECT_THROW((void)store.find(name), Error) << name;
}

TEST_F(Images, AreRemovedUnlessUsed) {
  const auto images = directory_ / "images";
  ImageStore store(images);
  std::vector<Image> imported;
  for (const auto* version : {"1", "2", "3"})
    imported.push_back(store.import(inMemory(pack(imageEntries(version))).get()));
  // All within a second: say which came first.
  for (std::size_t n = 0; n < 3; ++n)
    writeFileAtomically(
        images / imported[n].digest / "image.json",
        std::format(R"({{"name": "", "opencode_version": "", "size_bytes": 1, "imported": {}}})", n), 0644);
  EXPECT_EQ(store.list().front().digest, imported[2].digest);
  EXPECT_THROW(store.remove(imported[1], {imported[1].digest}), Error);

  const auto pruned = store.prune({imported[1].digest});
  ASSERT_EQ(pruned.size(), 1u);
  EXPECT_EQ(pruned.front().digest, imported[0].digest);
  EXPECT_EQ(store.list().size(), 2u);

  store.remove(imported[1], {});
  store.remove(imported[1], {});
  EXPECT_EQ(store.list().size(), 1u);
  EXPECT_EQ(std::distance(fs::directory_iterator(images), {}), 2) << "the image and the lock";
}

}  // namespace
}  // namespace agentmachine
