#include "system/remains.h"

#include <charconv>
#include <filesystem>

#include <sys/stat.h>

#include "system/network.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t maxRenderedBytes = 8 * 1024 * 1024;

/// Of writeFileAtomically and its like: ".#NAME.PID", of a process that has ended; or of a removal.
bool isUnfinished(const std::string& name) {
  if (!name.starts_with(".#")) return false;
  if (name.starts_with(".#removed-")) return true;
  const auto digits = name.substr(name.rfind('.') + 1);
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), pid);
  return error == std::errc() && end == digits.data() + digits.size() && !fs::exists("/proc/" + digits);
}

/// The names in a directory, and in `unfinished` the paths of what begins with `ours` after ".#".
std::set<std::string> namesIn(const std::string& directory, const std::string& ours,
                              std::set<std::string>& unfinished) {
  std::set<std::string> names;
  for (const auto& name : agentmachine::namesIn(directory)) {
    if (!name.starts_with("."))
      names.insert(name);
    else if (isUnfinished(name) && (name.starts_with(".#" + ours) || name.starts_with(".#removed-" + ours)))
      unfinished.insert(directory + "/" + name);
  }
  return names;
}

std::set<std::string> mountPoints() {
  std::set<std::string> points;
  // proc_pid_mountinfo(5): the fifth word. Paths of cards hold nothing that is escaped there.
  for (const auto& line : split(readFile("/proc/self/mountinfo", maxRenderedBytes), '\n'))
    if (const auto words = split(line, ' '); words.size() > 4) points.insert(words[4]);
  return points;
}

}  // namespace

std::set<std::string> runningMachines(Systemd& systemd) {
  constexpr std::string_view before = "systemd-nspawn@", after = ".service";
  std::set<std::string> names;
  for (const auto& unit : systemd.listUnits("systemd-nspawn@agent-*.service"))
    if (unit.active != "inactive" && unit.active != "failed")
      names.insert(unit.name.substr(before.size(), unit.name.size() - before.size() - after.size()));
  return names;
}

Remains remainsOnDisk(const Settings& settings) {
  Remains found;
  const auto look = [&](const std::string& directory, const std::string& ours = "") {
    return found.names[directory] = namesIn(directory, ours, found.unfinished);
  };
  look("/run/machines", "agent-");
  look("/run/systemd/nspawn", "agent-");
  for (const auto& name : look("/run/systemd/system", "systemd-nspawn@agent-"))
    if (name.starts_with("systemd-nspawn@agent-"))
      look("/run/systemd/system/" + name, "10-agentmachine.conf");
  for (const auto& directory : {settings.runtimeDirectory, settings.stateDirectory})
    namesIn(directory, "", found.unfinished);
  for (const std::string name : {"keys", "policy", "workspaces"})
    look(settings.runtimeDirectory + "/" + name);
  for (const auto& name : look(settings.runtimeDirectory + "/machines"))
    for (const std::string below : {"", "/credentials", "/agent", "/notices"})
      look(settings.runtimeDirectory + "/machines/" + name + below);
  for (const auto& id : look(settings.stateDirectory + "/machines"))
    namesIn(settings.stateDirectory + "/machines/" + id, "", found.unfinished);
  // What `create` was about to make there; it writes nothing else like this.
  for (const auto& entry : walkIfExists(imagesOfWorkspaces(settings)))
    if (entry.path().filename().string().starts_with(".#")) found.unfinished.insert(entry.path());
  found.mounts = mountPoints();
  found.ports = machinePorts();
  found.filterPorts = filterPorts();
  return found;
}

Remains remains(const Settings& settings, Systemd& systemd) {
  auto found = remainsOnDisk(settings);
  found.running = runningMachines(systemd);
  for (const auto& unit : systemd.listUnits("agentmachine-*@*"))
    if (unit.active != "inactive") found.units.insert(unit.name);
  return found;
}

std::map<std::string, Found> lookAt(const std::vector<std::string>& paths) {
  std::map<std::string, Found> all;
  for (const auto& path : paths) {
    struct stat st{};
    if (lstat(path.c_str(), &st) < 0) continue;
    Found found{.kind = Found::Kind::other,
                .mode = static_cast<mode_t>(st.st_mode & 07777),
                .owner = {st.st_uid, st.st_gid},
                .content = ""};
    std::error_code vanished;
    if (S_ISREG(st.st_mode)) {
      found.kind = Found::Kind::file;
      found.content = readFileIfExists(path, maxRenderedBytes).value_or("");
    } else if (S_ISLNK(st.st_mode)) {
      found.kind = Found::Kind::link;
      found.content = fs::read_symlink(path, vanished).string();
    } else if (S_ISDIR(st.st_mode)) {
      found.kind = Found::Kind::directory;
    }
    all.emplace(path, std::move(found));
  }
  return all;
}

}  // namespace agentmachine
