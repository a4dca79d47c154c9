// A line on standard error that says how far something is; nothing if that is no terminal. Never writes to
// standard output.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace agentmachine {

class Progress {
 public:
  explicit Progress(std::string label);
  /// Erases the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `total` 0: not known. Cheap: draws ten times a second at most.
  void update(std::uint64_t done, std::uint64_t total);

 private:
  std::string label_;
  bool terminal_;
  std::chrono::steady_clock::time_point next_;
};

}  // namespace agentmachine
