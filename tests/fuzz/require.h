// What the fuzz targets share. A property that does not hold is a crash, which libFuzzer keeps the input of.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <string>

inline void require(bool condition) {
  if (!condition) std::abort();
}

/// A directory in memory, for as long as the fuzzer runs.
class Scratch {
 public:
  Scratch() {
    std::string pattern = "/dev/shm/agentmachine-fuzz.XXXXXX";
    require(mkdtemp(pattern.data()));
    path_ = pattern;
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};
