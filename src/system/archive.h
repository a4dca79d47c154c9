// Unpacks the tarball of a root file system and refuses what could reach out of it. Never follows a link,
// never writes outside the directory it is given.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace agentmachine {

/// What a tarball may come to, unpacked: a small file must not fill the disk.
struct UnpackLimits {
  std::uint64_t bytes = std::uint64_t{8} << 30;  ///< sum of the files' sizes, holes counted
  std::uint64_t entries = 500'000;
};

struct Unpacked {
  /// The tree's canonical form, a line for each path, sorted: type (d, f, l), mode, uid, gid, content
  /// (SHA-256 of a file, target of a link, "-") and path, with tabs between, for control characters are
  /// refused. The same tree gives the same manifest, whatever archive it came in.
  std::string manifest;
  std::uint64_t bytes = 0;
};

/// Called with the bytes of the archive read so far and of all of it; 0 if that is not known.
using UnpackProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// Unpacks the archive read from `archive` (tar, plain or compressed with gzip, xz or zstd) into `directory`,
/// which must exist and be empty. Modification times become 1, as in the Nix store. Owners are kept if the
/// caller is root, else all is the caller's. Throws Error that names the entry if it is refused: absolute or
/// "..", a device, FIFO or socket, setuid or setgid, extended attributes or ACLs, a second entry of one path,
/// a path through a link, a link that leaves the root, an owner that no machine has (above 65535), control
/// characters in a name, a `.nspawn` settings file, more than `limits`.
Unpacked unpack(int archive, const std::filesystem::path& directory, const UnpackLimits& limits = {},
                const UnpackProgress& progress = {});

}  // namespace agentmachine
