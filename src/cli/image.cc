#include <iostream>
#include <map>
#include <memory>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "apply/lifecycle.h"
#include "build_config.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/progress.h"
#include "export/names.h"
#include "export/oci.h"
#include "system/host.h"
#include "system/image_store.h"
#include "system/nix.h"
#include "system/oci.h"
#include "system/remains.h"
#include "system/run_record.h"
#include "system/systemd.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/sha256.h"
#include "util/text.h"

namespace agentmachine {

namespace {

ImageStore openStore(const Settings& settings) {
  return ImageStore(settings.stateDirectory + "/images");
}

/// Ids of the machines that have each image, by digest: from their next start on, for the way back after an
/// upgrade, or because they run from it.
std::map<std::string, std::set<std::string>> imageUsers(const Settings& settings) {
  std::map<std::string, std::set<std::string>> users;
  Systemd systemd;
  const auto running = runningMachines(systemd);
  for (const auto& [id, machine] : readMachines(settings)) {
    const auto& allocation = machine.allocation;
    users[allocation.image].insert(id);
    if (allocation.provenImage) users[*allocation.provenImage].insert(id);
    if (!running.contains(machine.name().str())) continue;
    const auto run = readRunRecord(machinePaths(settings, machine.card.id, allocation.address).state);
    if (run && !run->image.empty()) users[run->image].insert(id);
  }
  return users;
}

std::string joined(const std::set<std::string>& words) {
  return join({words.begin(), words.end()}, " ");
}

std::set<std::string> usedImages(const Settings& settings) {
  std::set<std::string> used;
  for (const auto& [digest, ids] : imageUsers(settings)) used.insert(digest);
  return used;
}

/// Prints the digest of what is at `path`: a tree in the Nix store, or a tarball.
void importImage(const Settings& settings, const std::string& path, std::uint64_t maxMib) {
  const auto image = inContext("import " + path, [&] {
    auto store = openStore(settings);
    if (std::filesystem::is_directory(path)) return store.importStorePath(path);
    const Fd file{path == "-" ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file) throw errnoError("open it");
    Progress progress("importing the image");
    return store.import(file.get(), {.bytes = maxMib << 20},
                        [&](std::uint64_t done, std::uint64_t total) { progress.update(done, total); });
  });
  std::cout << image.digest << "\n";
}

void addBuild(CLI::App& images) {
  auto* command = images.add_subcommand("build", "build an image with Nix and use it from its store");
  auto source = std::make_shared<ImageSource>();
  command->add_option("--packages", source->packages, "nixpkgs, or debian: pinned Debian packages")
      ->check(CLI::IsMember({"nixpkgs", "debian"}))
      ->capture_default_str();
  command
      ->add_option("--package", source->chosen,
                   "a package besides what every image holds, for cards that ask for it")
      ->type_name("NAME")
      ->allow_extra_args(false)
      ->check([](const std::string& name) {
        const auto package = PackageName::parse(name);
        return package ? std::string() : inQuotes(name) + " " + package.error();
      });
  command->add_option("--debian-mirror", source->debianMirror, "URL of a Debian archive instead of apt's");
  command->add_option("--npm-registry", source->npmRegistry, "URL of an npm registry instead of npm's");
  command->callback([source] {
    requireRoot("image build");
    const auto tree =
        buildImage(AGENTMACHINE_DATADIR "/images/build", *source, spdlog::should_log(spdlog::level::debug));
    importImage(readSettings(), tree, UnpackLimits{}.bytes >> 20);
  });
}

void addImport(CLI::App& images) {
  auto* command = images.add_subcommand("import", "import a root file system and print its digest");
  auto path = std::make_shared<std::string>();
  auto maxMib = std::make_shared<std::uint64_t>(UnpackLimits{}.bytes >> 20);
  command
      ->add_option(
          "PATH", *path,
          "tar, plain or compressed with gzip, xz or zstd; - is standard input; or a directory in the Nix "
          "store, which is not copied")
      ->required();
  command->add_option("--max-size", *maxMib, "refuse more than this when unpacked, in MiB")
      ->type_name("MIB")
      ->check(wholeNumber(1, std::uint64_t{1} << 40))
      ->capture_default_str();
  command->callback([path, maxMib] {
    requireRoot("image import");
    importImage(readSettings(), *path, *maxMib);
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
    const auto store = openStore(settings);
    const auto list = store.list();
    if (*json) {
      auto array = nlohmann::ordered_json::array();
      for (const auto& image : list)
        array.push_back({{"digest", image.digest},
                         {"name", image.name},
                         {"opencode_version", image.opencodeVersion},
                         {"packages", image.packages},
                         {"size_bytes", image.bytes},
                         {"store_path", store.storePath(image).string()},
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
                      humanTime(image.imported), image.packages.empty() ? "-" : joined(image.packages),
                      users[image.digest].empty() ? "-" : joined(users[image.digest])});
    printTable({"IMAGE", "NAME", "SIZE", "IMPORTED", "PACKAGES", "MACHINES"}, rows);
  });
}

struct ExportWords {
  std::string image, target, name{defaultAgentImage};
  bool zstd = false;
};

void exportImage(const ExportWords& words) {
  const auto reference = ImageReference::parse(words.name);
  if (!reference) throw CLI::ValidationError("--name", inQuotes(words.name) + " " + reference.error());
  const auto store = openStore(readSettings());
  const auto images = store.list();
  if (words.image.empty() && images.empty())
    throw Error("there is no image yet: `agentmachine image build` makes one");
  const Image image = words.image.empty() ? images.front() : store.find(words.image);
  const std::filesystem::path target(words.target);
  if (words.target.ends_with('/')) std::filesystem::create_directories(target);
  // Beside what it becomes a part of, and without a name: nothing of it is left if this is killed.
  const auto whole = std::filesystem::absolute(target);
  const auto beside = std::filesystem::is_directory(whole) ? whole : whole.parent_path();
  const Fd layer{open(beside.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
  if (!layer) throw errnoError("write to " + beside.string());
  const auto packed = [&] {
    Progress progress("packing the image");
    return packLayer(store.tree(image), layer.get(),
                     words.zstd ? LayerCompression::zstd : LayerCompression::gzip,
                     [&](std::uint64_t done, std::uint64_t) { progress.update(done, image.bytes); });
  }();
  const OciImage oci{.name = reference->str(),
                     .opencodeVersion = image.opencodeVersion,
                     .source = image.digest,
                     .diffId = packed.diffId,
                     .layerDigest = packed.digest,
                     .layerBytes = packed.bytes,
                     .zstd = words.zstd};
  const auto config = ociConfig(oci), configDigest = sha256(config);
  const auto manifest = ociManifest(oci, config, configDigest), manifestDigest = sha256(manifest);
  writeOciLayout(target,
                 {{"oci-layout", ociLayout()},
                  {"index.json", ociIndex(oci, manifest, manifestDigest)},
                  {"blobs/sha256/" + configDigest, config},
                  {"blobs/sha256/" + manifestDigest, manifest}},
                 "blobs/sha256/" + packed.digest, layer.get());
  std::cout << "sha256:" << manifestDigest << "\n";
}

void addExport(CLI::App& images) {
  auto* command = images.add_subcommand("export", "write an image for other engines and print its digest");
  auto words = std::make_shared<ExportWords>();
  command->add_option("IMAGE", words->image,
                      "digest, or digits that only one begins with; the newest if left out");
  command
      ->add_option("--oci", words->target,
                   "OCI layout: a tar file, or a directory if it is one or ends with /")
      ->type_name("PATH")
      ->required();
  command->add_option("--name", words->name, "what it is called there")
      ->type_name("REF")
      ->capture_default_str();
  command->add_flag("--zstd", words->zstd, "compress with zstd instead of gzip");
  command->callback([words] {
    requireRoot("image export");
    exportImage(*words);
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
    // While it is held no machine is created, so an image that no machine has stays so.
    const auto lock = lockState(settings);
    const auto used = usedImages(settings);
    forEach(*names, [&](const std::string& name) {
      const auto image = store.find(name);
      store.remove(image, used);
      std::cout << image.digest << "\n";
    });
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
  auto* images = app.add_subcommand(
      "image", "build, import, export, list and remove the images that machines start from");
  images->require_subcommand(1);
  addBuild(*images);
  addImport(*images);
  addExport(*images);
  addList(*images);
  addRemove(*images);
  addPrune(*images);
}

}  // namespace agentmachine
