// A process that runs out of file descriptors: what it can't look at must not be taken for absent.
#pragma once
#include <fcntl.h>
#include <sys/resource.h>

#include "util/fd.h"

namespace agentmachine {

/// Until it goes, only so many more files can be open at a time.
class DescriptorsLeft {
 public:
  explicit DescriptorsLeft(int count) {
    getrlimit(RLIMIT_NOFILE, &before_);
    // open(2) gives the lowest that is free.
    const int lowest = Fd{open("/dev/null", O_RDONLY | O_CLOEXEC)}.get();
    const rlimit left{static_cast<rlim_t>(lowest + count), before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &left);
  }
  ~DescriptorsLeft() { setrlimit(RLIMIT_NOFILE, &before_); }
  DescriptorsLeft(const DescriptorsLeft&) = delete;
  DescriptorsLeft& operator=(const DescriptorsLeft&) = delete;

 private:
  rlimit before_{};
};

}  // namespace agentmachine
