#include "apply/hooks.h"

#include <filesystem>
#include <format>

#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "apply/apply.h"
#include "system/api_key.h"
#include "system/clock.h"
#include "system/guest_limits.h"
#include "system/host.h"
#include "system/idmap.h"
#include "system/machined.h"
#include "system/network.h"
#include "system/quota.h"
#include "system/run_record.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/file.h"
#include "util/lock.h"

namespace agentmachine {

namespace {

std::chrono::sys_seconds now() {
  return std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now());
}

/// 128 bits from the kernel, in hex.
std::string randomPassword() {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) throw errnoError("getrandom");
  std::string text;
  for (const unsigned char byte : bytes) text += std::format("{:02x}", byte);
  return text;
}

void checkGuards(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const std::string override = "/etc/systemd/nspawn/" + machine.name().str() + ".nspawn";
  if (!settings.allowSettingsOverride && std::filesystem::exists(override))
    throw Error(override +
                " would replace the machine's settings as a whole, and with them private users, the private "
                "network, the read-only root and the dropped capabilities: remove it, or set "
                "`allow_settings_override = true` in " +
                settingsPath);
  checkNetworkGuards(settings);
  if (systemd.activeState("agentmachine-proxy.service") != "active")
    throw Error("the filtering proxy is not running: systemctl status agentmachine-proxy");
}

/// The limit is there before anything can be written, whatever was done to directory and mounts since
/// `create`.
void checkWorkspaceLimit(const Settings& settings, const Machine& machine, int directory) {
  const Card& card = machine.card;
  const Allocation& allocation = machine.allocation;
  inContext("workspace " + card.workspace.str(), [&] {
    const std::string image = imagePath(settings, card.workspace);
    if (allocation.workspaceImage && !isImageMounted(directory, image))
      throw Error(
          std::format("{} is not mounted there: systemctl start '{}'", image, imageUnit(card.workspace)));
    if (allocation.project != 0) limitProject(directory, allocation.project, workspaceLimit(card));
    if (card.limits.diskMb && !allocation.workspaceImage && allocation.project == 0)
      throw Error("disk_mb is not enforced for this machine: `agentmachine create` its card again");
  });
}

/// Held while a machine's key is delivered or taken back, so that a key that changes just then can't outlive
/// the run.
FileLock lockKey(const Settings& settings, const Machine& machine) {
  return FileLock(settings.runtimeDirectory + "/lock/key-" + machine.name().str());
}

void takeKeyBack(const MachinePaths& paths) {
  removeFile(paths.key);
  removeFile(paths.agentKey);
}

/// To the broker or to the agent, as the card says. Without a good key there is none afterwards: who removes
/// or empties a key file wants it to be used no more, and an old one that goes on working would hide the
/// fault until the next start.
void deliverKey(const Machine& machine, const MachinePaths& paths, gid_t proxyGroup) {
  try {
    if (!machine.card.apiKeyFile) return takeKeyBack(paths);
    const auto key = readApiKey(*machine.card.apiKeyFile);
    if (machine.card.apiKeyDelivery == KeyDelivery::broker) {
      writeFileAtomically(paths.key, key, 0440, FileOwner{0, proxyGroup});
      removeFile(paths.agentKey);
    } else {
      writeFileAtomically(paths.agentKey, key, 0400, FileOwner{agentUid, agentUid});
      removeFile(paths.key);
    }
  } catch (...) {
    takeKeyBack(paths);
    throw;
  }
}

/// What tells one state of a file from another, without reading it.
std::string stateOf(const std::string& path) {
  struct stat st{};
  if (stat(path.c_str(), &st) < 0) return "absent";
  return std::format("{}:{}:{}:{}.{}:{}.{}", st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec,
                     st.st_mtim.tv_nsec, st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

/// The TTL counts from the start that somebody asked for: what systemd restarts goes on with the deadline
/// there was, which may have passed meanwhile.
std::optional<std::chrono::microseconds> ttlDeadline(const Machine& machine, const MachinePaths& paths,
                                                     Systemd& systemd) {
  if (machine.card.ttl.count() == 0) return std::nullopt;
  if (systemd.restarts(machine.name().unit()) > 0)
    if (const auto last = readRunRecord(paths.runtime); last && last->ttlDeadline) return last->ttlDeadline;
  return monotonicNow() + machine.card.ttl;
}

}  // namespace

void prepareMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  checkGuards(settings, machine, systemd);
  // The last one, if it was killed: this is the unit's start, so nothing of it runs.
  Machined(systemd.bus()).forget(machine.name().str(), machine.name().unit());
  const uid_t agent = machine.allocation.uidBase + agentUid;
  // Opened once: what was judged is what is mounted.
  const Fd workspace = openWorkspace(machine.card.workspace.str());
  checkWorkspaceLimit(settings, machine, workspace.get());
  mountMapped(workspace.get(), paths.workspace, {agent, agent});
  writeFileAtomically(paths.credentials + "/server-password", randomPassword(), 0600);
  removeEndRecord(paths.runtime);
  (void)consumeExpiredMark(paths.runtime);
  const gid_t group = proxyGroup(settings);
  applyPlan({MakeDirectory{settings.runtimeDirectory + "/keys", 0750, {0, group}}}, systemd);
  // Watched first, read then: no change falls between the two.
  if (machine.card.apiKeyFile)
    systemd.startWatch(paths.keyWatch, "API key of agent " + machine.card.id.str(),
                       machine.card.apiKeyFile->str());
  {
    const auto lock = lockKey(settings, machine);
    deliverKey(machine, paths, group);
  }
  const RunRecord record{.since = now(), .ttlDeadline = ttlDeadline(machine, paths, systemd), .leader = 0};
  writeRunRecord(paths.runtime, record);
  if (record.ttlDeadline)
    systemd.startTimer(paths.ttlTimer, "TTL of agent " + machine.card.id.str(), *record.ttlDeadline);
}

void connectMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  auto record = readRunRecord(paths.runtime);
  if (!record) throw Error("connect " + machine.name().str() + ": the machine was not prepared");
  record->leader = Machined(systemd.bus()).leader(machine.name().str());
  limitKernelObjects(record->leader);  // first: the payload waits for its network
  attachMachine(settings, machine, record->leader);
  writeRunRecord(paths.runtime, *record);
}

void releaseMachine(const Settings& settings, const Machine& machine, const std::string& result,
                    const std::string& status) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  {
    const auto lock = lockKey(settings, machine);
    takeKeyBack(paths);
  }
  removeFile(paths.credentials + "/server-password");
  unmountMapped(paths.workspace);
  detachMachine(settings, machine.allocation.address);
  writeEndRecord(
      paths.runtime,
      {.at = now(), .expired = consumeExpiredMark(paths.runtime), .result = result, .status = status});
  // Last, and not at all costs: while the host goes down there may be no bus any more. A watch that is left
  // finds no running machine to deliver to, a timer none to end, and the next start replaces both. Not by
  // Wants= and StopWhenUnneeded=: a failed unit, and one whose next start is queued, keep what they want
  // loaded, and the next run would have the watch or the deadline of the last, or none.
  try {
    Systemd systemd;
    systemd.stop(paths.ttlTimer);
    if (machine.card.apiKeyFile) systemd.stop(paths.keyWatch);
  } catch (const Error& cause) {
    spdlog::warn("{}", cause.what());
  }
}

void renewKey(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const auto lock = lockKey(settings, machine);
  // Within the lock: a machine that ends after this takes the key back when we are done.
  const auto units = systemd.listUnits(machine.name().unit());
  const bool runs = !units.empty() && (units[0].active == "active" || units[0].active == "activating") &&
                    !units[0].sub.starts_with("auto-restart");
  if (!runs || !machine.card.apiKeyFile) return;
  const std::string file = machine.card.apiKeyFile->str();
  // systemd doesn't watch while this runs, so a change meanwhile is looked for here.
  for (std::string state;;) {
    state = stateOf(file);
    try {
      deliverKey(machine, paths, proxyGroup(settings));
    } catch (const Error& cause) {
      if (state == stateOf(file))
        throw Error(std::string(cause.what()) + "; agent " + machine.card.id.str() +
                    " has no key until the file is good again");
      continue;
    }
    if (state == stateOf(file)) return;
  }
}

void mountWorkspace(const Settings& settings, const AbsolutePath& workspace) {
  mountImage(imagePath(settings, workspace), workspace.str());
}

void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  markExpired(machinePaths(settings, machine.card.id, machine.allocation.address).runtime);
  systemd.stop(machine.name().unit());
}

}  // namespace agentmachine
