#include "system/nix.h"

#include <cstdlib>
#include <format>

#include "util/error.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

std::filesystem::path buildImage(const std::filesystem::path& script, const ImageSource& source,
                                 bool verbose) {
  if (!std::filesystem::exists(script))
    throw Error("build an image: " + script.string() + " is missing: install agentmachine again");
  std::vector<std::string> command = {"sh", script.string(), "--attr", "tree", "--packages", source.packages};
  for (const auto& package : source.chosen) command.insert(command.end(), {"--package", package});
  if (source.debianMirror) command.insert(command.end(), {"--debian-mirror", *source.debianMirror});
  if (source.npmRegistry) command.insert(command.end(), {"--npm-registry", *source.npmRegistry});
  if (verbose) command.emplace_back("--verbose");
  const auto result = runProcess(command, {}, Errors::inherited);
  if (result.status != 0) throw Error("build an image: no image was made, see above");
  return trim(result.output);
}

StorePath queryStorePath(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  const char* given = std::getenv("NIX_STORE_DIR");
  const fs::path store = given != nullptr ? given : "/nix/store";
  std::error_code absent;
  if (fs::canonical(path).parent_path() != fs::canonical(store, absent))
    throw Error(std::format(
        "a directory is taken only from the Nix store, {}, where nothing changes it: import a tarball of it",
        store.string()));
  const auto query = [&](const char* what) {
    return trim(runChecked({"nix-store", "--query", what, fs::canonical(path)}));
  };
  const auto bytes = query("--size");
  return {.sha256 = trim(runChecked({"nix-hash", "--type", "sha256", "--to-base16", query("--hash")})),
          .bytes = std::stoull(bytes)};
}

void keepStorePath(const std::filesystem::path& path, const std::filesystem::path& link) {
  runChecked({"nix-store", "--realise", std::filesystem::canonical(path), "--add-root", link});
}

}  // namespace agentmachine
