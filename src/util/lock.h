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

  /// Removes the file, which nobody needs any more. Who waits for it makes and locks a new one. Throws Error.
  void removeFile() const;

 private:
  std::filesystem::path path_;
  Fd fd_;
};

}  // namespace agentmachine
