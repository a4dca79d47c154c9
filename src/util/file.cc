#include "util/file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/error.h"
#include "util/fd.h"

namespace agentmachine {

namespace {

std::string readAll(int fd, const std::filesystem::path& path, std::size_t maxBytes) {
  struct stat st{};
  if (fstat(fd, &st) < 0) throw errnoError("read " + path.string());
  if (!S_ISREG(st.st_mode)) throw Error("read " + path.string() + ": not a regular file");
  std::string content;
  char buffer[16384];
  for (;;) {
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw errnoError("read " + path.string());
    if (n == 0) return content;
    content.append(buffer, static_cast<std::size_t>(n));
    if (content.size() > maxBytes)
      throw Error("read " + path.string() + ": larger than the " + std::to_string(maxBytes) +
                  " bytes allowed");
  }
}

void writeAll(int fd, std::string_view content) {
  while (!content.empty()) {
    ssize_t n = write(fd, content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw errnoError("write");
    content.remove_prefix(static_cast<std::size_t>(n));
  }
}

void checkListed(const std::filesystem::path& directory, const std::error_code& error) {
  if (error && error != std::errc::no_such_file_or_directory)
    throw Error("list " + directory.string() + ": " + error.message());
}

/// A name beside `path` that no other process uses; left-overs of killed writers share the prefix ".#".
std::filesystem::path temporaryBeside(const std::filesystem::path& path) {
  return path.parent_path() / (".#" + path.filename().string() + "." + std::to_string(getpid()));
}

}  // namespace

std::string readFile(const std::filesystem::path& path, std::size_t maxBytes) {
  // O_NONBLOCK: a FIFO in the place of a file must not hang us; it is refused by its type.
  Fd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
  if (!fd) throw errnoError("read " + path.string());
  return readAll(fd.get(), path, maxBytes);
}

std::optional<std::string> readFileIfExists(const std::filesystem::path& path, std::size_t maxBytes) {
  Fd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
  if (!fd && errno == ENOENT) return std::nullopt;
  if (!fd) throw errnoError("read " + path.string());
  return readAll(fd.get(), path, maxBytes);
}

void writeFileAtomically(const std::filesystem::path& path, std::string_view content, mode_t mode,
                         std::optional<FileOwner> owner) {
  const auto temporary = temporaryBeside(path);
  inContext("write " + path.string(), [&] {
    // A left-over of a killed process with our pid would make O_EXCL fail for ever.
    unlink(temporary.c_str());
    Fd fd{open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)};
    if (!fd) throw errnoError("create " + temporary.string());
    try {
      writeAll(fd.get(), content);
      if (owner && fchown(fd.get(), owner->user, owner->group) < 0) throw errnoError("chown");
      if (fchmod(fd.get(), mode) < 0) throw errnoError("chmod");
      if (fsync(fd.get()) < 0) throw errnoError("fsync");
      if (rename(temporary.c_str(), path.c_str()) < 0) throw errnoError("rename");
    } catch (...) {
      unlink(temporary.c_str());
      throw;
    }
    syncDirectory(path.parent_path());
  });
}

bool makeDirectoryAtomically(const std::filesystem::path& path, mode_t mode, FileOwner owner) {
  const auto temporary = temporaryBeside(path);
  return inContext("make directory " + path.string(), [&] {
    if (rmdir(temporary.c_str()) < 0 && errno != ENOENT) throw errnoError("remove " + temporary.string());
    if (mkdir(temporary.c_str(), 0700) < 0) throw errnoError("create " + temporary.string());
    try {
      if (lchown(temporary.c_str(), owner.user, owner.group) < 0) throw errnoError("chown");
      if (chmod(temporary.c_str(), mode) < 0) throw errnoError("chmod");
      if (renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) < 0) {
        if (errno != EEXIST) throw errnoError("rename");
        rmdir(temporary.c_str());
        return false;
      }
    } catch (...) {
      rmdir(temporary.c_str());
      throw;
    }
    syncDirectory(path.parent_path());
    return true;
  });
}

void linkAtomically(const std::filesystem::path& link, const std::filesystem::path& target) {
  const auto temporary = temporaryBeside(link);
  unlink(temporary.c_str());
  if (symlink(target.c_str(), temporary.c_str()) < 0) throw errnoError("create " + temporary.string());
  if (rename(temporary.c_str(), link.c_str()) < 0) {
    const int code = errno;
    unlink(temporary.c_str());
    throw errnoError("link " + link.string(), code);
  }
  syncDirectory(link.parent_path());
}

void removeFile(const std::filesystem::path& path) {
  if (unlink(path.c_str()) < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return;
    throw errnoError("remove " + path.string());
  }
  syncDirectory(path.parent_path());
}

std::vector<std::string> namesIn(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(directory, error); entry != end(entry);
       entry.increment(error))
    names.push_back(entry->path().filename());
  checkListed(directory, error);
  std::ranges::sort(names);
  return names;
}

std::filesystem::recursive_directory_iterator walkIfExists(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::recursive_directory_iterator entries(directory, error);
  checkListed(directory, error);
  return entries;
}

void syncDirectory(const std::filesystem::path& directory) {
  Fd fd{open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) throw errnoError("open " + directory.string());
  if (fsync(fd.get()) < 0) throw errnoError("fsync " + directory.string());
}

}  // namespace agentmachine
