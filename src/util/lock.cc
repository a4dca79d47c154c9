#include "util/lock.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/file.h>

#include "util/error.h"

namespace agentmachine {

FileLock::FileLock(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  fd_ = Fd{open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (!fd_) throw errnoError("lock " + path.string());
  while (flock(fd_.get(), LOCK_EX) < 0)
    if (errno != EINTR) throw errnoError("lock " + path.string());
}

}  // namespace agentmachine
