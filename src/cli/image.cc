#include <iostream>
#include <map>
#include <memory>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "build_config.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/progress.h"
#include "system/host.h"
#include "system/image_store.h"
#include "system/nix.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/lock.h"
#include "util/text.h"

namespace agentmachine {

namespace {

ImageStore openStore(const Settings& settings) {
  return ImageStore(settings.stateDirectory + "/images");
}

/// Ids of the machines that have each image, by digest.
std::map<std::string, std::vector<std::string>> imageUsers(const Settings& settings) {
  std::map<std::string, std::vector<std::string>> users;
  for (const auto& [id, machine] : readMachines(settings)) users[machine.allocation.image].push_back(id);
  return users;
}

std::set<std::string> usedImages(const Settings& settings) {
  std::set<std::string> used;
  for (const auto& [digest, ids] : imageUsers(settings)) used.insert(digest);
  return used;
}

/// While it is held no machine is created, so an image that no machine has stays so.
FileLock lockState(const Settings& settings) {
  return FileLock(settings.runtimeDirectory + "/lock/state");
}

void importTarball(const Settings& settings, const std::string& path, std::uint64_t maxMib) {
  const bool standardInput = path == "-";
  const Fd file{standardInput ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) throw errnoError("import " + path);
  const auto image = inContext("import " + path, [&] {
    Progress progress("importing the image");
    return openStore(settings).import(
        file.get(), {.bytes = maxMib << 20},
        [&](std::uint64_t done, std::uint64_t total) { progress.update(done, total); });
  });
  std::cout << image.digest << "\n";
}

void addBuild(CLI::App& images) {
  auto* command = images.add_subcommand("build", "build an image with Nix and import it");
  auto source = std::make_shared<ImageSource>();
  command->add_option("--packages", source->packages, "nixpkgs, or debian: pinned Debian packages")
      ->check(CLI::IsMember({"nixpkgs", "debian"}))
      ->capture_default_str();
  command->add_option("--debian-mirror", source->debianMirror, "URL of a Debian archive instead of apt's");
  command->add_option("--npm-registry", source->npmRegistry, "URL of an npm registry instead of npm's");
  command->callback([source] {
    requireRoot("image build");
    const auto tarball =
        buildImage(AGENTMACHINE_DATADIR "/images/build", *source, spdlog::should_log(spdlog::level::debug));
    importTarball(readSettings(), tarball.string(), UnpackLimits{}.bytes >> 20);
  });
}

void addImport(CLI::App& images) {
  auto* command =
      images.add_subcommand("import", "import the tarball of a root file system and print its digest");
  auto path = std::make_shared<std::string>();
  auto maxMib = std::make_shared<std::uint64_t>(UnpackLimits{}.bytes >> 20);
  command->add_option("TARBALL", *path, "tar, plain or compressed with gzip, xz or zstd; - is standard input")
      ->required();
  command->add_option("--max-size", *maxMib, "refuse more than this when unpacked, in MiB")
      ->type_name("MIB")
      ->check(wholeNumber(1, std::uint64_t{1} << 40))
      ->capture_default_str();
  command->callback([path, maxMib] {
    requireRoot("image import");
    importTarball(readSettings(), *path, *maxMib);
  });
}

void addList(CLI::App& images) {
  auto* command = images.add_subcommand("ls", "list images, the one that new machines get first");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "print a JSON array");
  command->callback([json] {
    requireRoot("image ls");
    const Settings settings = readSettings();
    auto users = imageUsers(settings);
    const auto list = openStore(settings).list();
    if (*json) {
      auto array = nlohmann::ordered_json::array();
      for (const auto& image : list)
        array.push_back({{"digest", image.digest},
                         {"name", image.name},
                         {"opencode_version", image.opencodeVersion},
                         {"size_bytes", image.bytes},
                         {"imported", std::format("{:%FT%TZ}", image.imported)},
                         {"machines", users[image.digest]}});
      std::cout << array.dump(2) << "\n";
      return;
    }
    if (list.empty()) {
      std::cerr << "no images; `agentmachine image build` makes one\n";
      return;
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& image : list)
      rows.push_back({shortDigest(image.digest), image.name, humanBytes(image.bytes),
                      humanTime(image.imported),
                      users[image.digest].empty() ? "-" : join(users[image.digest], " ")});
    printTable({"IMAGE", "NAME", "SIZE", "IMPORTED", "MACHINES"}, rows);
  });
}

void addRemove(CLI::App& images) {
  auto* command = images.add_subcommand("rm", "remove images that no machine has");
  auto names = std::make_shared<std::vector<std::string>>();
  command->add_option("IMAGE", *names, "digests, or digits that only one begins with")->required();
  command->callback([names] {
    requireRoot("image rm");
    const Settings settings = readSettings();
    auto store = openStore(settings);
    const auto lock = lockState(settings);
    std::vector<Image> wanted;
    for (const auto& name : *names) wanted.push_back(store.find(name));
    for (const auto& image : wanted) {
      store.remove(image, usedImages(settings));
      std::cout << image.digest << "\n";
    }
  });
}

void addPrune(CLI::App& images) {
  auto* command = images.add_subcommand("prune", "remove every image that no machine has, but the newest");
  command->callback([] {
    requireRoot("image prune");
    const Settings settings = readSettings();
    const auto lock = lockState(settings);
    for (const auto& image : openStore(settings).prune(usedImages(settings)))
      std::cout << image.digest << "\n";
  });
}

}  // namespace

void addImageCommand(CLI::App& app) {
  auto* images =
      app.add_subcommand("image", "build, import, list and remove the images that machines start from");
  images->require_subcommand(1);
  addBuild(*images);
  addImport(*images);
  addList(*images);
  addRemove(*images);
  addPrune(*images);
}

}  // namespace agentmachine
