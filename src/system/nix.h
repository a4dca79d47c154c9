// Has Nix build the image's tarball, with the script that is installed for it. Imports nothing.
#pragma once
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

/// Builds and returns the tarball's path in the Nix store. What Nix says goes to standard error: all of it if
/// `verbose`, else on a terminal one line of progress. `script` is images/build. Throws Error.
std::filesystem::path buildImage(const std::filesystem::path& script, const ImageSource& source,
                                 bool verbose);

}  // namespace agentmachine
