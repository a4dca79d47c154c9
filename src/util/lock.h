// A lock between processes, on a file. Ends with its owner, however that ends.
#pragma once
#include <filesystem>

#include "util/fd.h"

namespace agentmachine {

/// Holds flock(2) on `path`, which is made if need be (with its directory), from construction to destruction.
/// Waits for other holders.
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& path);
  /// The file goes at the end if `subject`, which it is about, does not exist by then.
  FileLock(const std::filesystem::path& path, std::filesystem::path subject);
  FileLock(FileLock&&) noexcept = default;
  FileLock& operator=(FileLock&&) = delete;
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock();

  /// Removes the file, which nobody needs any more. Who waits for it makes and locks a new one. Throws Error.
  void removeFile() const;

 private:
  std::filesystem::path path_, subject_;
  Fd fd_;
};

}  // namespace agentmachine
