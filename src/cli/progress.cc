#include "cli/progress.h"

#include <algorithm>
#include <cstdlib>
#include <format>
#include <iostream>
#include <string_view>

#include <unistd.h>

namespace agentmachine {

namespace {

bool canRedraw() {
  const char* terminal = std::getenv("TERM");
  return isatty(STDERR_FILENO) && terminal && std::string_view(terminal) != "dumb";
}

}  // namespace

Progress::Progress(std::string label) : label_(std::move(label)), terminal_(canRedraw()) {}

Progress::~Progress() {
  if (terminal_) std::cerr << "\r\033[K" << std::flush;
}

void Progress::update(std::uint64_t done, std::uint64_t total) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  if (total > 0)
    std::cerr << std::format("\r\033[K{} {:3}%", label_, std::min<std::uint64_t>(done * 100 / total, 100));
  else
    std::cerr << std::format("\r\033[K{} {} MiB", label_, done >> 20);
  std::cerr << std::flush;
}

}  // namespace agentmachine
