#include "apply/hooks.h"

#include <algorithm>
#include <filesystem>
#include <format>

#include <sys/random.h>

#include "apply/apply.h"
#include "system/host.h"
#include "system/idmap.h"
#include "system/machined.h"
#include "system/network.h"
#include "system/quota.h"
#include "system/run_record.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::size_t maxKeyBytes = 65536;

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
  const auto& [card, allocation] = machine;
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

/// One line, without the line's end: what a header can carry.
std::string readKey(const std::string& path) {
  auto key = inContext("api_key_file", [&] { return trim(readFile(path, maxKeyBytes)); });
  if (key.empty()) throw Error("api_key_file " + path + ": is empty");
  if (std::ranges::any_of(key, [](unsigned char c) { return c <= 0x20 || c >= 0x7f; }))
    throw Error("api_key_file " + path +
                ": must hold one key, printable ASCII without spaces, and nothing else");
  return key;
}

void deliverKey(const Settings& settings, const Machine& machine, const MachinePaths& paths, Systemd& systemd,
                gid_t proxyGroup) {
  applyPlan({MakeDirectory{settings.runtimeDirectory + "/keys", 0750, {0, proxyGroup}}}, systemd);
  if (!machine.card.apiKeyFile) return removeFile(paths.key);
  writeFileAtomically(paths.key, readKey(machine.card.apiKeyFile->str()), 0440, FileOwner{0, proxyGroup});
}

}  // namespace

void prepareMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  checkGuards(settings, machine, systemd);
  const uid_t agent = machine.allocation.uidBase + agentUid;
  // Opened once: what was judged is what is mounted.
  const Fd workspace = openWorkspace(machine.card.workspace.str());
  checkWorkspaceLimit(settings, machine, workspace.get());
  mountMapped(workspace.get(), paths.workspace, {agent, agent});
  deliverKey(settings, machine, paths, systemd, proxyGroup(settings));
  writeFileAtomically(paths.credentials + "/server-password", randomPassword(), 0600);
  removeEndRecord(paths.runtime);
  (void)consumeExpiredMark(paths.runtime);
  RunRecord record{.since = now(), .ttlDeadline = {}, .leader = 0};
  if (machine.card.ttl.count() > 0)
    record.ttlDeadline =
        systemd.ensureTimer(paths.ttlTimer, "TTL of agent " + machine.card.id.str(), machine.card.ttl);
  writeRunRecord(paths.runtime, record);
}

void connectMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  auto record = readRunRecord(paths.runtime);
  if (!record) throw Error("connect " + machine.name().str() + ": the machine was not prepared");
  record->leader = Machined(systemd.bus()).leader(machine.name().str());
  attachMachine(settings, machine.allocation.address, record->leader);
  writeRunRecord(paths.runtime, *record);
}

void releaseMachine(const Settings& settings, const Machine& machine, const std::string& result,
                    const std::string& status) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  removeFile(paths.key);
  removeFile(paths.credentials + "/server-password");
  unmountMapped(paths.workspace);
  detachMachine(settings, machine.allocation.address);
  writeEndRecord(
      paths.runtime,
      {.at = now(), .expired = consumeExpiredMark(paths.runtime), .result = result, .status = status});
}

void mountWorkspace(const Settings& settings, const AbsolutePath& workspace) {
  mountImage(imagePath(settings, workspace), workspace.str());
}

void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  markExpired(machinePaths(settings, machine.card.id, machine.allocation.address).runtime);
  systemd.stop(machine.name().unit());
}

}  // namespace agentmachine
