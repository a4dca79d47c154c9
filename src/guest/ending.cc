#include "guest/ending.h"

#include <cstring>

#include <sys/wait.h>

namespace agentmachine {

Ending endingOf(int waitStatus) {
  if (WIFSIGNALED(waitStatus)) return {WTERMSIG(waitStatus), true};
  return {WEXITSTATUS(waitStatus), false};
}

int exitCodeOf(const Ending& ending) {
  constexpr int bootAgain = 133;
  const int code = ending.signaled ? 128 + ending.code : ending.code;
  return code == bootAgain ? 1 : code;
}

std::string describe(const Ending& ending) {
  const std::string code = std::to_string(ending.code);
  if (!ending.signaled) return "exited with status " + code;
  const char* name = sigabbrev_np(ending.code);
  return "killed by signal " + code + (name ? std::string(" (") + name + ")" : "");
}

}  // namespace agentmachine
