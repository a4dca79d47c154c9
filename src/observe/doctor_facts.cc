#include "observe/doctor_facts.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <format>

#include <pwd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "build_config.h"
#include "plan/repair.h"
#include "system/host.h"
#include "system/idmap.h"
#include "system/image_store.h"
#include "system/remains.h"
#include "system/systemd.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

/// What a command prints, or nothing if it fails or is not there.
std::optional<std::string> said(const std::vector<std::string>& argv) {
  try {
    auto result = runProcess(argv);
    if (result.status == 0) return std::move(result.output);
  } catch (const Error&) {
    // It isn't there; who asked says what that means.
  }
  return std::nullopt;
}

/// Where runProcess looks, too.
bool inPath(const std::string& program) {
  const char* path = std::getenv("PATH");
  return std::ranges::any_of(split(path ? path : "", ':'), [&](const std::string& directory) {
    return access((directory + "/" + program).c_str(), X_OK) == 0;
  });
}

std::map<std::string, std::string> missingPrograms() {
  // What src/system and src/apply run, and what the units need.
  const std::map<std::string, std::string> packages = {
      {"bridge", "iproute2"},
      {"ip", "iproute2"},
      {"journalctl", "systemd"},
      {"losetup", "mount"},
      {"machinectl", "systemd-container"},
      {"mkfs.ext4", "e2fsprogs"},
      {"mount", "mount"},
      {"nft", "nftables"},
      {"nsenter", "util-linux"},
      {"openssl", "openssl"},
      {"resize2fs", "e2fsprogs"},
      {"ss", "iproute2"},
      {"systemd-analyze", "systemd"},
      {"systemd-creds", "systemd"},
      {"systemd-nspawn", "systemd-container"},
      {"tc", "iproute2"},
      {"unshare", "util-linux"},
  };
  std::map<std::string, std::string> missing;
  for (const auto& [program, package] : packages)
    if (!inPath(program)) missing.emplace(program, package);
  return missing;
}

DirectoryFacts directoryFacts(const std::string& path, mode_t most) {
  struct stat st{};
  DirectoryFacts facts{.path = path, .most = most, .mode = {}};
  if (lstat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) facts.mode = st.st_mode;
  return facts;
}

/// `name` and the three lines that systemd prints for each unit, in the order asked.
std::vector<UnitFacts> unitFacts() {
  std::vector<UnitFacts> units;
  for (const std::string name : {"agentmachine-network.service", "agentmachine-filter.service",
                                 "agentmachine-proxy.service", "agentmachine-render.service"}) {
    UnitFacts unit{.name = name, .load = "not-found", .active = "inactive", .enabled = ""};
    const auto text =
        said({"systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", name}).value_or("");
    for (const auto& line : split(text, '\n')) {
      if (line.starts_with("LoadState=")) unit.load = line.substr(10);
      if (line.starts_with("ActiveState=")) unit.active = line.substr(12);
      if (line.starts_with("UnitFileState=")) unit.enabled = line.substr(14);
    }
    units.push_back(std::move(unit));
  }
  return units;
}

fs::path lowestThere(fs::path path) {
  while (!fs::exists(path) && path != path.root_path()) path = path.parent_path();
  return path;
}

FileSystemFacts fileSystemFacts(const std::string& path) {
  FileSystemFacts facts{
      .path = path,
      .type = trim(said({"stat", "--file-system", "--format=%T", "--", path}).value_or("unknown")),
      .idmappable = canIdmap(path),
      .availableBytes = {},
      .availableInodesPercent = {}};
  struct statvfs st{};
  if (statvfs(path.c_str(), &st) < 0) return facts;
  // ramfs says that it has none at all.
  if (st.f_blocks > 0) facts.availableBytes = std::uint64_t{st.f_bavail} * st.f_frsize;
  // btrfs and others have as many as there is room.
  if (st.f_files > 0) facts.availableInodesPercent = static_cast<unsigned>(st.f_favail * 100 / st.f_files);
  return facts;
}

/// Those of the images, wherever they are, of the state and of every workspace, each once.
std::vector<FileSystemFacts> fileSystems(const Settings& settings, const std::vector<Image>& images,
                                         const std::map<std::string, Machine>& machines) {
  std::vector<std::string> paths = {settings.stateDirectory, settings.stateDirectory + "/images",
                                    settings.runtimeDirectory, "/mnt/agents"};
  for (const auto& image : images) paths.push_back(imageTree(settings, image.digest));
  for (const auto& [id, machine] : machines) paths.push_back(machine.card.workspace.str());
  std::vector<FileSystemFacts> facts;
  std::set<dev_t> seen;
  for (const auto& path : paths) {
    const auto there = lowestThere(path).string();
    struct stat st{};
    if (stat(there.c_str(), &st) == 0 && seen.insert(st.st_dev).second)
      facts.push_back(fileSystemFacts(there));
  }
  return facts;
}

void compareRendered(const Machine& machine, const Host& host, const Remains& remains, const FoundAt& found,
                     MachineFacts& facts) {
  for (const auto& action : planMissing(machine, host, remains, found)) {
    if (pathOf(action).empty()) continue;
    (compare(action, found) == Rendered::missing ? facts.missing : facts.altered).push_back(pathOf(action));
  }
}

/// What is wrong with a key file, or "".
std::string keyProblem(const std::string& path) {
  struct stat st{};
  if (stat(path.c_str(), &st) < 0) return "is missing";
  if (!S_ISREG(st.st_mode)) return "is no regular file";
  if (st.st_uid != 0) return "does not belong to root";
  if (st.st_mode & 077) return std::format("has mode {:04o}: others can use it", st.st_mode & 07777);
  return "";
}

std::string settingsOverride(const std::string& name) {
  const auto path = "/etc/systemd/nspawn/" + name + ".nspawn";
  return fs::exists(path) ? path : "";
}

std::vector<std::string> administratorsDropIns(const std::map<std::string, Machine>& machines) {
  std::vector<std::string> units = {"service", "systemd-nspawn@.service"}, files;
  for (const auto& [id, machine] : machines) units.push_back(machine.name().unit());
  for (const auto& unit : units)
    for (const auto& name : namesIn("/etc/systemd/system/" + unit + ".d"))
      if (name.ends_with(".conf")) files.push_back(std::format("/etc/systemd/system/{}.d/{}", unit, name));
  return files;
}

/// What an action of planLeftovers takes away.
std::string objectOf(const Action& action) {
  if (const auto* remove = std::get_if<Remove>(&action)) return remove->path;
  if (const auto* unmount = std::get_if<Unmount>(&action)) return unmount->path;
  if (const auto* port = std::get_if<RemovePort>(&action)) return "the port " + port->interface;
  if (const auto* unit = std::get_if<StopUnit>(&action)) return unit->unit;
  return trim(describe(Plan{action}));
}

/// What can be seen of it: without a systemd that we work with none of ours runs, and without nft there is no
/// filter. That the one or the other is missing is found elsewhere.
Remains visibleRemains(const Settings& settings) {
  try {
    Systemd systemd;
    return remains(settings, systemd);
  } catch (const Error&) {
  }
  try {
    return remainsOnDisk(settings);
  } catch (const Error&) {
    return {};
  }
}

std::vector<MachineFacts> machineFacts(const DoctorFacts& facts,
                                       const std::map<std::string, Machine>& machines,
                                       const std::optional<Host>& host, const Remains& remains,
                                       const FoundAt& found) {
  std::vector<MachineFacts> list;
  for (const auto& [id, machine] : machines) {
    MachineFacts one{.id = id, .name = machine.name().str()};
    one.running = remains.running.contains(one.name);
    one.imagePresent = fs::is_directory(imageTree(facts.settings, machine.allocation.image));
    one.filterKnows =
        facts.network.filterPorts.contains(hostInterface(facts.settings, machine.allocation.address));
    one.settingsOverride = settingsOverride(one.name);
    if (machine.card.apiKeyFile) {
      one.keyFile = machine.card.apiKeyFile->str();
      one.keyProblem = keyProblem(one.keyFile);
    }
    if (host) compareRendered(machine, *host, remains, found, one);
    list.push_back(std::move(one));
  }
  return list;
}

}  // namespace

DoctorFacts collectDoctorFacts() {
  DoctorFacts facts;
  try {
    facts.settings = readSettings();
  } catch (const Error& cause) {
    facts.settingsProblem = cause.what();
  }
  const Settings& settings = facts.settings;
  facts.systemdVersion = trim(said({"systemctl", "show", "--property=Version", "--value"}).value_or(""));
  facts.nixos = fs::exists("/etc/NIXOS");
  facts.kernel = kernelFacts();
  facts.missingPrograms = missingPrograms();
  facts.squid = AGENTMACHINE_SQUID;
  facts.squidSays = said({facts.squid, "-v"});
  for (const std::string& user : {std::string(proxyUser), settings.workspaceUser})
    if (!getpwnam(user.c_str())) facts.missingUsers.insert(user);
  facts.directories = {directoryFacts(settings.stateDirectory, 0755),
                       directoryFacts(settings.stateDirectory + "/machines", 0700),
                       directoryFacts(settings.runtimeDirectory, 0755),
                       directoryFacts(settings.runtimeDirectory + "/machines", 0700),
                       directoryFacts(settings.cardsDirectory, 0755)};
  facts.units = unitFacts();
  try {
    facts.network = networkFacts(settings);
  } catch (const Error& cause) {
    facts.network.filterRefusal = cause.what();
  }
  std::vector<Image> images;
  std::map<std::string, Machine> machines;
  try {
    images = ImageStore(settings.stateDirectory + "/images").list();
    facts.images = images.size();
    machines = readMachines(settings);
  } catch (const Error& cause) {
    facts.stateProblem = cause.what();
  }
  std::optional<Host> host;
  try {
    host = snapshot(settings, {});
  } catch (const Error&) {
    // A user is missing: that is found elsewhere, and without it nothing can be rendered.
  }
  const Remains remains = visibleRemains(settings);
  const auto found = host ? lookAt(pathsToLookAt(*host, remains)) : FoundAt{};
  facts.machines = machineFacts(facts, machines, host, remains, found);
  facts.fileSystems = fileSystems(settings, images, machines);
  facts.dropIns = administratorsDropIns(machines);
  // With a state that can't be read everything would look left over.
  if (host)
    for (const auto& action : planLeftovers(*host, remains, found))
      facts.leftovers.push_back({objectOf(action), "agentmachine repair"});
  return facts;
}

}  // namespace agentmachine
