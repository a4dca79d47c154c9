// What Nix does for images: builds them, with the script that is installed for it, and keeps those that are
// in its store.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace agentmachine {

/// What an image is built from.
struct ImageSource {
  std::string packages = "nixpkgs";  ///< or "debian": pinned Debian packages, where nixpkgs can't be had
  std::vector<std::string> chosen;   ///< packages besides what every image holds, by their names there
  std::optional<std::string> debianMirror;  ///< URL; absent: apt's
  std::optional<std::string> npmRegistry;   ///< URL; absent: npm's
};

/// Builds and returns the path of the image's tree in the Nix store. What Nix says goes to standard error:
/// all of it if `verbose`, else on a terminal one line of progress. `script` is images/build. Throws Error.
std::filesystem::path buildImage(const std::filesystem::path& script, const ImageSource& source,
                                 bool verbose);

/// What Nix knows of something in its store.
struct StorePath {
  std::string sha256;       ///< of its serialisation (NAR), 64 hexadecimal digits
  std::uint64_t bytes = 0;  ///< of the same
};

/// Throws Error if `path` is not itself what Nix put into its store ($NIX_STORE_DIR, /nix/store), with
/// nothing but links before it.
StorePath queryStorePath(const std::filesystem::path& path);

/// Makes `link` lead to the store path, and Nix's garbage collection spare that as long as it does: an
/// indirect root, nix-store(1), --add-root.
void keepStorePath(const std::filesystem::path& path, const std::filesystem::path& link);

}  // namespace agentmachine
