// The images on this host: read-only trees kept by the digest of what is in them. Never looks at machines:
// which images are used is an argument.
#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "system/archive.h"

namespace agentmachine {

struct Image {
  std::string digest;  ///< "sha256-" and 64 hexadecimal digits: the SHA-256 of the tree's manifest, or Nix's
  std::string name;    ///< PRETTY_NAME of its os-release
  std::string opencodeVersion;
  std::set<std::string> packages;  ///< that were chosen for it (AGENTMACHINE_PACKAGES of its os-release)
  std::uint64_t bytes = 0;         ///< sum of its files' sizes
  std::chrono::sys_seconds imported;
};

/// The first digits of a digest, as `image ls` shows it.
std::string shortDigest(const std::string& digest);

/// What keeps a tree from being an image of ours, each as one sentence. Links are resolved inside the tree.
std::vector<std::string> imageProblems(const std::filesystem::path& tree);

/// DIRECTORY/sha256-…/{root/, manifest, image.json}; without image.json there is no image. What a killed
/// import or removal leaves behind is cleaned up by the next one. An image in the Nix store has a link there
/// as its root, which Nix's garbage collection heeds, and no manifest: Nix has the digest.
class ImageStore {
 public:
  explicit ImageStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  /// The one imported last comes first: it is what new machines get. Throws Error that names a file it can't
  /// read.
  [[nodiscard]] std::vector<Image> list() const;

  /// By digest, or by digits that only one digest begins with; "sha256-" or "sha256:" may precede. Throws
  /// Error.
  [[nodiscard]] Image find(std::string_view name) const;

  /// Where the image's root file system is.
  [[nodiscard]] std::filesystem::path tree(const Image& image) const;

  /// Where in the Nix store that is; empty if it is a copy.
  [[nodiscard]] std::filesystem::path storePath(const Image& image) const;

  /// Imports the tarball read from `archive`. One that is here already only becomes the newest. Throws Error
  /// if the archive is refused (see unpack) or is no image (see imageProblems).
  Image import(int archive, const UnpackLimits& limits = {}, const UnpackProgress& progress = {});

  /// Throws Error if `inUse`, a set of digests, has it.
  void remove(const Image& image, const std::set<std::string>& inUse);

  /// Takes the tree at `path` in the Nix store as an image, without copying it. Throws Error if it is refused
  /// (see queryStorePath and imageProblems).
  Image importStorePath(const std::filesystem::path& path);

  /// Removes every image but the newest (of those with the same packages) and those in use; returns what was
  /// removed.
  std::vector<Image> prune(const std::set<std::string>& inUse);

 private:
  void discard(const std::string& digest);
  void cleanUp();

  std::filesystem::path directory_;
};

}  // namespace agentmachine
