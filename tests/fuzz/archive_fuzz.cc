// libFuzzer: no tarball writes outside of its directory, leaves a device, a setuid file or a link that leads
// out, or crashes us. Checksums of tar headers are mended first: no mutation would pass them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <format>

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "require.h"
#include "system/archive.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/text.h"

using namespace agentmachine;
namespace fs = std::filesystem;

namespace {

void mendChecksums(std::string& tar) {
  constexpr std::size_t block = 512, checksumAt = 148, checksumSize = 8, sizeAt = 124, sizeSize = 12;
  for (std::size_t at = 0; at + block <= tar.size();) {
    char* header = tar.data() + at;
    if (std::memcmp(header + 257, "ustar", 5) != 0) return;
    std::memset(header + checksumAt, ' ', checksumSize);
    unsigned sum = 0;
    for (std::size_t i = 0; i < block; ++i) sum += static_cast<unsigned char>(header[i]);
    const auto text = std::format("{:06o}", sum);
    std::memcpy(header + checksumAt, text.c_str(), text.size() + 1);
    const auto size = std::strtoull(std::string(header + sizeAt, sizeSize).c_str(), nullptr, 8);
    at += block + static_cast<std::size_t>(std::min<unsigned long long>(size, tar.size()) + block - 1) /
                      block * block;
  }
}

/// What lies below `directory`, each as it must be; how many entries.
std::size_t inspect(const fs::path& directory) {
  std::size_t count = 1;
  for (const auto& entry : fs::recursive_directory_iterator(directory, fs::directory_options::none)) {
    ++count;
    struct stat st{};
    require(lstat(entry.path().c_str(), &st) == 0);
    require(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISLNK(st.st_mode));
    require(S_ISLNK(st.st_mode) || !(st.st_mode & (S_ISUID | S_ISGID)));
    require(st.st_uid <= 65535 && st.st_gid <= 65535);
    require(!entry.path().filename().string().ends_with(".nspawn") ||
            entry.path().parent_path() != directory);
  }
  return count;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Scratch scratch;
  const fs::path& place = scratch.path();
  if (size > 256 * 1024) return 0;
  std::string tar(reinterpret_cast<const char*>(data), size);
  mendChecksums(tar);
  const Fd file{memfd_create("tar", MFD_CLOEXEC)};
  require(file && write(file.get(), tar.data(), tar.size()) == static_cast<ssize_t>(tar.size()));
  require(lseek(file.get(), 0, SEEK_SET) == 0);
  const auto root = place / "root";
  fs::create_directory(root);
  try {
    const auto unpacked = unpack(file.get(), root, {.bytes = 1 << 20, .entries = 100});
    const auto lines = split(trim(unpacked.manifest), '\n');
    for (const auto& line : lines) require(std::ranges::count(line, '\t') == 5);
    require(unpacked.bytes <= 1 << 20 && lines.size() == inspect(root));
  } catch (const Error&) {
    inspect(root);
  }
  fs::remove_all(root);
  require(fs::is_empty(place));
  return 0;
}
