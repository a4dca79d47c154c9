#include "util/lock.h"

#include <cerrno>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/error.h"
#include "util/file.h"

namespace agentmachine {

namespace {

Fd openLocked(const std::filesystem::path& path) {
  Fd fd{open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (!fd) throw errnoError("lock " + path.string());
  while (flock(fd.get(), LOCK_EX) < 0)
    if (errno != EINTR) throw errnoError("lock " + path.string());
  return fd;
}

bool isAt(const std::filesystem::path& path, const Fd& fd) {
  struct stat ours{}, there{};
  return fstat(fd.get(), &ours) == 0 && stat(path.c_str(), &there) == 0 && ours.st_dev == there.st_dev &&
         ours.st_ino == there.st_ino;
}

}  // namespace

FileLock::FileLock(const std::filesystem::path& path) : path_(path) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  // One that was removed while we waited for it is nobody's lock any more.
  do fd_ = openLocked(path);
  while (!isAt(path, fd_));
}

FileLock::FileLock(const std::filesystem::path& path, std::filesystem::path subject) : FileLock(path) {
  subject_ = std::move(subject);
}

FileLock::~FileLock() {
  std::error_code unknown;
  if (!fd_ || subject_.empty() || std::filesystem::exists(subject_, unknown) || unknown) return;
  // Of a file that was removed before, the name is another lock's by now.
  if (isAt(path_, fd_)) unlink(path_.c_str());
}

void FileLock::removeFile() const {
  agentmachine::removeFile(path_);
}

}  // namespace agentmachine
