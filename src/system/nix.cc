#include "system/nix.h"

#include "util/error.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

std::filesystem::path buildImage(const std::filesystem::path& script, const ImageSource& source,
                                 bool verbose) {
  if (!std::filesystem::exists(script))
    throw Error("build an image: " + script.string() + " is missing: install agentmachine again");
  std::vector<std::string> command = {"sh", script.string(), "--packages", source.packages};
  for (const auto& package : source.chosen) command.insert(command.end(), {"--package", package});
  if (source.debianMirror) command.insert(command.end(), {"--debian-mirror", *source.debianMirror});
  if (source.npmRegistry) command.insert(command.end(), {"--npm-registry", *source.npmRegistry});
  if (verbose) command.emplace_back("--verbose");
  const auto result = runProcess(command, {}, Errors::inherited);
  if (result.status != 0) throw Error("build an image: no image was made, see above");
  return trim(result.output);
}

}  // namespace agentmachine
