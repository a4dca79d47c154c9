#include "util/tree.h"

#include <cerrno>
#include <memory>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>

#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

Fd openResolved(int directory, const std::string& path, int flags, std::uint64_t resolve) {
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC);
  how.resolve = resolve;
  return Fd{static_cast<int>(syscall(SYS_openat2, directory, path.c_str(), &how, sizeof how))};
}

/// One component: no link, no other mount.
Fd openEntry(int directory, const std::string& name, int flags) {
  return openResolved(directory, name, flags | O_NOFOLLOW, RESOLVE_NO_XDEV);
}

Fd reopen(int directory) {
  return Fd{openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
}

/// A directory on the way down. Only the lowest is open: a tree may be deeper than we may open files.
struct Level {
  std::string name;
  dev_t device;
  ino_t inode;
  std::vector<std::string> below;  ///< directories that are still to be entered
};

class Walk {
 public:
  Walk(int root, const TreeVisitor& visitor) : visitor_(visitor), current_(reopen(root)) {
    if (!current_) throw errnoError("open");
  }

  void run() {
    read("");
    for (;;) {
      auto& below = levels_.back().below;
      if (!below.empty()) {
        const std::string name = std::move(below.back());
        below.pop_back();
        descend(name);
      } else if (levels_.size() > 1) {
        ascend();
      } else {
        return;
      }
    }
  }

 private:
  /// Where we are, for a message; names are the agent's, so they are escaped.
  [[nodiscard]] std::string place(const std::string& name) const {
    std::string path;
    for (const auto& level : levels_) path += level.name.empty() ? "" : level.name + "/";
    return escaped(path + name, 200);
  }

  void descend(const std::string& name) {
    Fd next = openEntry(current_.get(), name, O_RDONLY | O_DIRECTORY);
    if (!next && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)) return;  // replaced meanwhile
    if (!next && errno == EXDEV) return visitor_.mounted(name);
    if (!next) throw errnoError("open " + place(name));
    current_ = std::move(next);
    read(name);
  }

  void ascend() {
    Fd parent{openat(current_.get(), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    const Level& expected = levels_[levels_.size() - 2];
    struct stat st{};
    if (!parent || fstat(parent.get(), &st) < 0) throw errnoError("go back from " + place(""));
    if (st.st_dev != expected.device || st.st_ino != expected.inode)
      throw Error(place("") + " was moved meanwhile: stop what is at work there and try again");
    const std::string name = std::move(levels_.back().name);
    levels_.pop_back();
    current_ = std::move(parent);
    visitor_.leave(current_.get(), name);
  }

  /// Enters `current_`: visits what is in it and notes which of it are directories.
  void read(const std::string& name) {
    struct stat st{};
    if (fstat(current_.get(), &st) < 0) throw errnoError("stat " + place(name));
    levels_.push_back({.name = name, .device = st.st_dev, .inode = st.st_ino, .below = {}});
    Fd copy = reopen(current_.get());
    const std::unique_ptr<DIR, int (*)(DIR*)> stream(copy ? fdopendir(copy.get()) : nullptr, closedir);
    if (!stream) throw errnoError("read " + place(""));
    (void)copy.release();
    for (;;) {
      errno = 0;
      const dirent* entry = readdir(stream.get());
      if (!entry && errno) throw errnoError("read " + place(""));
      if (!entry) return;
      const std::string entryName = entry->d_name;
      if (entryName != "." && entryName != "..") visit(entryName);
    }
  }

  void visit(const std::string& name) {
    const Fd entry = openEntry(current_.get(), name, O_PATH);
    if (!entry && errno == ENOENT) return;
    if (!entry && errno == EXDEV) return visitor_.mounted(name);
    struct stat st{};
    if (!entry || fstat(entry.get(), &st) < 0) throw errnoError("open " + place(name));
    inContext(place(name), [&] { visitor_.enter(current_.get(), name, entry.get(), st); });
    if (S_ISDIR(st.st_mode)) levels_.back().below.push_back(name);
  }

  const TreeVisitor& visitor_;
  Fd current_;
  std::vector<Level> levels_;
};

void removeEntry(int directory, const std::string& name, int flags) {
  if (unlinkat(directory, name.c_str(), flags) < 0 && errno != ENOENT) throw errnoError("remove");
}

const TreeVisitor remover = {
    .enter =
        [](int directory, const std::string& name, int, const struct stat& st) {
          if (!S_ISDIR(st.st_mode)) removeEntry(directory, name, 0);
        },
    .leave = [](int directory, const std::string& name) { removeEntry(directory, name, AT_REMOVEDIR); },
    .mounted = [](const std::string& name) -> void {
      throw Error(escaped(name, 200) + ": something is mounted there: unmount it and try again");
    }};

}  // namespace

Fd openWithoutLinks(const std::string& path, int flags) {
  return openResolved(AT_FDCWD, path, flags, RESOLVE_NO_SYMLINKS);
}

Fd openIfExists(const std::string& path, int flags) {
  Fd fd = openWithoutLinks(path, flags);
  if (!fd && errno != ENOENT && errno != ENOTDIR && errno != ELOOP) throw errnoError("open " + path);
  return fd;
}

void walkTree(int root, const TreeVisitor& visitor) {
  Walk(root, visitor).run();
}

void removeTree(int directory, const std::string& name) {
  const Fd entry = openEntry(directory, name, O_PATH);
  if (!entry && errno == ENOENT) return;
  if (!entry && errno == EXDEV) remover.mounted(name);
  struct stat st{};
  if (!entry || fstat(entry.get(), &st) < 0) throw errnoError("open " + escaped(name, 200));
  if (!S_ISDIR(st.st_mode)) return removeEntry(directory, name, 0);
  walkTree(entry.get(), remover);
  removeEntry(directory, name, AT_REMOVEDIR);
}

void emptyDirectory(int directory) {
  walkTree(directory, remover);
}

}  // namespace agentmachine
