// A pipe, closed in every child that is started.
#pragma once
#include <fcntl.h>

#include "util/error.h"
#include "util/fd.h"

namespace agentmachine {

struct Pipe {
  Fd read, write;
};

/// Throws Error if there are no descriptors left.
inline Pipe makePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) < 0) throw errnoError("pipe");
  return {Fd{fds[0]}, Fd{fds[1]}};
}

}  // namespace agentmachine
