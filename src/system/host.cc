#include "system/host.h"

#include <cerrno>
#include <filesystem>
#include <format>
#include <functional>
#include <utility>

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>

#include "build_config.h"
#include "system/idmap.h"
#include "system/image_store.h"
#include "system/quota.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/process.h"
#include "util/text.h"
#include "util/tree.h"

namespace agentmachine {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t maxStateBytes = 2 * maxCardBytes;

/// Whether errno is of what isn't there; anything else says nothing about what is.
bool isAbsence() {
  return errno == ENOENT || errno == ENOTDIR;
}

bool leadsThroughLink(const std::string& path) {
  if (openWithoutLinks(path, O_PATH) || isAbsence()) return false;
  if (errno == ELOOP) return true;
  throw errnoError("open " + path);
}

std::string fileSystemOf(const std::string& path) {
  const auto result = runProcess({"stat", "--file-system", "--format=%T", "--", path});
  return result.status == 0 ? trim(result.output) : "unknown";
}

/// The user that `look` finds; nullptr if there is none. getpwnam(3) returns that too when it could not look.
const passwd* findUser(const std::string& who, const std::function<const passwd*()>& look) {
  errno = 0;
  const auto* user = look();
  if (!user && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == EIO))
    throw errnoError(std::format("look up the user \"{}\"", who));
  return user;
}
const passwd* userNamed(const std::string& name) {
  return findUser(name, [&] { return getpwnam(name.c_str()); });
}

Owner ownerOfNewWorkspaces(const Settings& settings) {
  if (const char* uid = getenv("SUDO_UID")) {
    const auto* user =
        findUser(uid, [&] { return getpwuid(static_cast<uid_t>(std::strtoul(uid, nullptr, 10))); });
    if (user && user->pw_uid != 0) return {user->pw_uid, user->pw_gid};
  }
  if (const auto* user = userNamed(settings.workspaceUser)) return {user->pw_uid, user->pw_gid};
  throw Error("there is no user \"" + settings.workspaceUser +
              "\" to own new workspaces: run systemd-sysusers, or name another in `workspace_user` of " +
              settingsPath);
}

}  // namespace

Settings readSettings() {
  return parseSettings(readFileIfExists(settingsPath, maxCardBytes).value_or(""), settingsPath);
}

gid_t proxyGroup() {
  if (const auto* user = userNamed(proxyUser)) return user->pw_gid;
  throw Error(std::format("there is no user \"{}\" for the proxy: run systemd-sysusers", proxyUser));
}

std::optional<Machine> readMachine(const Settings& settings, const AgentId& id) {
  const fs::path directory = fs::path(settings.stateDirectory) / "machines" / id.str();
  const auto cardPath = directory / "card.json", allocationPath = directory / "machine.json";
  // machine.json is written last: without it a `create` was killed, and the next one finishes it.
  auto allocation = readFileIfExists(allocationPath, maxStateBytes);
  std::optional<std::string> card;
  // Who only reads takes no lock, so the machine may be removed meanwhile, and made again: card and
  // allocation belong together if the allocation is the same before and after the card.
  for (auto before = std::optional<std::string>(); allocation && allocation != before;) {
    before = allocation;
    card = readFileIfExists(cardPath, maxStateBytes);
    allocation = readFileIfExists(allocationPath, maxStateBytes);
  }
  if (!allocation) return std::nullopt;
  const auto damaged = [&](const std::string& what) {
    return Error(std::format(
        "{}\n  put a copy of the file back, or give the machine up: `rm -r {}`, then `agentmachine repair`",
        what, directory.string()));
  };
  Allocation parsed;
  try {
    // First: a newer program's card may have fields that this one would call misspelt.
    parsed = parseAllocation(*allocation);
  } catch (const NewerState& newer) {
    throw Error("read " + allocationPath.string(), newer);
  } catch (const Error& cause) {
    throw damaged(Error("read " + allocationPath.string(), cause).what());
  }
  if (!card) throw damaged("read " + cardPath.string() + ": No such file or directory");
  auto checked = parseCard(*card, CardFormat::json);
  if (!checked) throw damaged(trim(describe(cardPath.string(), checked.error())));
  return Machine{std::move(*checked), std::move(parsed)};
}

MachineRecords readMachineRecords(const Settings& settings) {
  MachineRecords records;
  for (const auto& name : namesIn(fs::path(settings.stateDirectory) / "machines")) {
    // What is no id is a left-over of a killed `rm`.
    const auto id = AgentId::parse(name);
    if (!id) continue;
    try {
      if (auto machine = readMachine(settings, *id)) records.machines.emplace(id->str(), std::move(*machine));
    } catch (const Error& cause) {
      records.unreadable.emplace(id->str(), cause.what());
    }
  }
  return records;
}

std::map<std::string, Machine> readMachines(const Settings& settings) {
  auto records = readMachineRecords(settings);
  if (!records.unreadable.empty()) throw Error(records.unreadable.begin()->second);
  return std::move(records.machines);
}

WorkspaceFacts workspaceFacts(const Settings& settings, const AbsolutePath& workspace) {
  const std::string& path = workspace.str();
  WorkspaceFacts facts;
  struct stat st{};
  facts.throughLink = leadsThroughLink(path);
  facts.exists = stat(path.c_str(), &st) == 0;
  facts.directory = facts.exists && S_ISDIR(st.st_mode);
  if (facts.exists) facts.owner = {st.st_uid, st.st_gid};
  // A workspace that isn't there yet will be on the file system of the lowest directory that is.
  fs::path existing = path;
  while (!fs::exists(existing) && existing != existing.root_path()) existing = existing.parent_path();
  facts.idmappable = canIdmap(existing.string());
  facts.fileSystem = fileSystemOf(existing.string());
  const Fd directory{open(existing.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!directory && !isAbsence()) throw errnoError("open " + existing.string());
  if (directory) {
    facts.empty = facts.directory && fs::is_empty(path);
    facts.projectQuotas = enforcesProjectQuotas(directory.get());
    if (facts.directory) facts.project = projectOf(directory.get());
    if (facts.projectQuotas) facts.projects = projectsInUse(directory.get(), settings.uidBase);
  }
  facts.imageBytes = imageBytes(imagePath(settings, workspace)).value_or(0);
  return facts;
}

Host snapshot(const Settings& settings, const std::vector<Card>& cards) {
  auto records = readMachineRecords(settings);
  Host host{.settings = settings,
            .program = settings.program.value_or(AGENTMACHINE_BINARY),
            .init = settings.init.value_or(AGENTMACHINE_LIBEXECDIR "/agentmachine-init"),
            .images = {},
            .machines = std::move(records.machines),
            .unreadable = std::move(records.unreadable),
            .workspaces = {},
            .requester = ownerOfNewWorkspaces(settings),
            .proxyGroup = proxyGroup()};
  for (const auto& image : ImageStore(settings.stateDirectory + "/images").list())
    host.images.push_back({.digest = image.digest, .packages = image.packages});
  for (const auto& card : cards)
    host.workspaces.emplace(card.workspace.str(), workspaceFacts(settings, card.workspace));
  return host;
}

}  // namespace agentmachine
