#include "apply/hooks.h"

#include <csignal>
#include <filesystem>
#include <format>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <unistd.h>

#include "apply/apply.h"
#include "apply/idle.h"
#include "apply/key.h"
#include "apply/run.h"
#include "apply/ttl.h"
#include "system/cgroup.h"
#include "system/clock.h"
#include "system/guest_limits.h"
#include "system/host.h"
#include "system/idmap.h"
#include "system/journal.h"
#include "system/machined.h"
#include "system/network.h"
#include "system/quota.h"
#include "system/run_record.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/file.h"
#include "util/lock.h"
#include "util/text.h"
#include "util/tree.h"

namespace agentmachine {

namespace {

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
  const Ipv4 address = machine.allocation.address;
  if (!isMachineAddress(settings, address))
    throw Error(std::format(
        "its address {} is no longer one of the bridge's network {}/{}: `agentmachine create {}/card.json` "
        "gives it another",
        address.str(), settings.gateway.str(), settings.prefixLength,
        machinePaths(settings, machine.card.id, address).state));
  checkNetworkGuards(settings);
  checkBridgeHasRoom(settings);
  if (systemd.activeState("agentmachine-proxy.service") != "active")
    throw Error("the filtering proxy is not running: systemctl status agentmachine-proxy");
}

/// systemd-nspawn --private-users=pick takes ranges out of the same numbers, and knows only those of machines
/// that run.
void checkUsers(const Machine& machine, Machined& machined) {
  const std::uint32_t first = machine.allocation.uidBase;
  const auto other = machined.machineOfUser(first);
  if (other && *other != machine.name().str())
    throw Error(std::format("machine {} has its users, {}-{}: stop that one first (machinectl stop {})",
                            *other, first, first + uidRangeSize - 1, *other));
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
    if (card.limits.diskMb && allocation.project != 0)
      limitProject(directory, allocation.project, workspaceLimit(card));
    if (card.limits.diskMb && !allocation.workspaceImage && allocation.project == 0)
      throw Error("disk_mb is not enforced for this machine: `agentmachine create` its card again");
  });
}

/// The record of the run that begins now.
RunRecord beginRun(const Machine& machine, const MachinePaths& paths, const std::string& invocation,
                   std::chrono::microseconds began, Systemd& systemd) {
  RunRecord record{.invocation = invocation,
                   .boot = bootId(),
                   .since = wallClock(),
                   .asked = wallClock(),
                   .restarts = systemd.restarts(machine.name().unit()),
                   .ttlDeadline = {},
                   .leader = 0,
                   .oomKills = oomKills(machine.name()),
                   .image = "",
                   .began = began};
  // The TTL counts from the start that somebody asked for: what systemd restarts goes on with the deadline
  // there was, which may have passed meanwhile, or with none if somebody took it away.
  if (const auto before = record.restarts > 0 ? readRunRecord(paths.state) : std::nullopt;
      before && before->boot == record.boot && record.restarts > before->restarts) {
    record.asked = before->asked;
    record.ttlDeadline = before->ttlDeadline;
    return record;
  }
  // systemd still counts those before a start that somebody asked for while the next one was due.
  if (record.restarts > 0) systemd.resetFailed(machine.name().unit());
  record.restarts = 0;
  if (machine.card.ttl.count() > 0) record.ttlDeadline = monotonicNow() + machine.card.ttl;
  return record;
}

/// Well below the time that systemd gives a unit for its end.
constexpr std::chrono::seconds longestSync{5};

/// Why the run ended, as far as systemd's words for it leave that open.
void judgeEnd(const MachineName& machine, const MachinePaths& paths, EndRecord& end) {
  end.at = wallClock();
  std::optional<RunRecord> run;
  attempt([&] { run = readRunRecord(paths.state); });
  try {
    const bool began = run && run->invocation == end.invocation;
    if (began) end.oomKills = oomKills(machine, run->oomKills);
    if (const auto reason = takeStopReason(paths.state)) {
      end.cause = reason->cause;
      end.by = reason->by;
      return;
    }
    // A failure, and PID 1 ended well: the hook that connects the machine failed.
    const bool unconnected = end.result == "exit-code" && end.code == "exited" && end.status == "0";
    Systemd systemd;
    const auto job = systemd.job(machine.unit());
    if (systemd.isStopping())
      end.cause = EndCause::shutdown;
    else if (job == "stop" || job == "restart" || job == "try-restart")
      end.cause = EndCause::systemd;
    else if (!began || run->leader == 0 || unconnected)
      end.cause = EndCause::start;
  } catch (const Error& problem) {
    // Nobody to ask: the host goes down.
    end.cause = end.result == "success" ? EndCause::shutdown : EndCause::payload;
    spdlog::warn("{}", printable(problem.what()));
  }
}

/// Whether a process accepts connections at this TCP port in the network that `pid` sees (proc_pid_net(5)).
bool listens(pid_t pid, std::uint16_t port) {
  constexpr std::size_t mostBytes = std::size_t{1} << 20;
  constexpr std::string_view listening = "0A";  // TCP_LISTEN
  const auto table = readFileIfExists(std::format("/proc/{}/net/tcp", pid), mostBytes).value_or("");
  for (const auto& line : split(table, '\n')) {
    // "sl: local_address:port rem_address:port st …"
    std::istringstream words(line);
    std::string slot, local, remote, state;
    words >> slot >> local >> remote >> state;
    if (state == listening && local.ends_with(std::format(":{:04X}", port))) return true;
  }
  return false;
}

/// Ends an upgrade if the run that it was about had the image `ran`: keeps that, or goes back to the one
/// before.
void settleImage(const Settings& settings, const Machine& machine, const std::string& ran, bool good,
                 Systemd& systemd) {
  const auto lock = lockRun(settings, machine);
  auto present = readMachine(settings, machine.card.id);
  if (!present || !present->allocation.provenImage || present->allocation.image != ran) return;
  if (good)
    present->allocation.provenImage.reset();
  else
    present = withImage(*present, *present->allocation.provenImage);
  applyPlan(planImage(*present, settings), systemd);
  if (!good)
    tellJournal(machine,
                {.event = "image-back",
                 .message = std::format("its payload did not get ready with image {}; from the next start "
                                        "on it has {} again",
                                        ran, present->allocation.image),
                 .isWarning = true});
}

/// What an ended run says of the image that the machine was upgraded to. Nothing, if a guard was missing or
/// somebody stopped it.
void judgeImage(const Settings& settings, const Machine& machine, const EndRecord& end, Systemd& systemd) {
  if (!machine.allocation.provenImage) return;
  const auto run = readRunRecord(machinePaths(settings, machine.card.id, machine.allocation.address).state);
  if (!run || run->invocation != end.invocation) return;
  if (end.cause != EndCause::payload && end.cause != EndCause::start) return;
  settleImage(settings, machine, run->image, end.result == "success", systemd);
}

/// What prepareMachine and connectMachine gave the run; `held` only if that is known. Whatever fails, the
/// rest is done. What is left `doctor` tells and `repair` takes away.
void takeBack(const Settings& settings, const MachineName& machine, const MachinePaths& paths,
              const std::optional<Held>& held) {
  attempt([&] { takeKeyBack(settings, machine, paths); });
  attempt([&] { removeFile(paths.serverPassword); });
  attempt([&] { unmountMapped(paths.workspace); });
  if (held) attempt([&] { removePort(held->interface, held->address); });
  // systemd-nspawn's own, which it takes away unless it is killed.
  for (const auto* left : {"propagate", "unix-export"})
    attempt(
        [&] { std::filesystem::remove_all(std::format("/run/systemd/nspawn/{}/{}", left, machine.str())); });
}

}  // namespace

void prepareMachine(const Settings& settings, const Machine& known, const std::string& invocation,
                    Systemd& systemd) {
  const auto began = monotonicNow();
  // From before the first thing that an ended run would not have: `repair` takes such things away.
  const auto runLock = lockRun(settings, known);
  const Machine machine = presentMachine(settings, known);
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  attempt([&] { forgetOlderEnd(paths.state); });
  // First: if a guard is missing and systemd tries again, the TTL counts from this start, not from that of
  // the run before. Without the image, which is not to blame for a missing guard.
  RunRecord record = beginRun(machine, paths, invocation, began, systemd);
  writeRunRecord(paths.state, record);
  checkGuards(settings, machine, systemd);
  // The last one, if it was killed: this is the unit's start, so nothing of it runs.
  Machined machined(systemd.bus());
  machined.forget(machine.name().str(), machine.name().unit());
  checkUsers(machine, machined);
  const uid_t agent = machine.allocation.uidBase + agentUid;
  // Opened once: what was judged is what is mounted.
  const Fd workspace = openWorkspace(machine.card.workspace.str());
  checkWorkspaceLimit(settings, machine, workspace.get());
  // Before anything is given.
  noteHeld(settings, machine);
  mountMapped(workspace.get(), paths.workspace, {agent, agent});
  writeFileAtomically(paths.serverPassword, randomPassword(), 0600);
  // Of a stop that was killed.
  (void)takeStopReason(paths.state);
  applyPlan({MakeDirectory{settings.runtimeDirectory + "/keys", 0750, {0, proxyGroup()}},
             MakeDirectory{paths.notices, 0755, {}}},
            systemd);
  giveKey(settings, machine, systemd);
  record.image = machine.allocation.image;
  writeRunRecord(paths.state, record);
  startTtl(settings, machine, record, systemd);
  startIdleTimer(settings, machine, systemd);
}

void connectMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const auto lock = lockRun(settings, machine);
  auto record = readRunRecord(paths.state);
  if (!record) throw Error("connect " + machine.name().str() + ": the machine was not prepared");
  record->leader = Machined(systemd.bus()).leader(machine.name().str());
  // First: the payload waits for its network.
  limitKernelObjects(record->leader);
  // Then this: the payload begins, and may end, while the rest is done.
  writeRunRecord(paths.state, *record);
  attachMachine(settings, machine, record->leader);
  // A full disk keeps nobody from starting.
  attempt([&] {
    if (record->began) noteStart(paths.state, monotonicNow() - *record->began);
  });
}

void proveImage(const Settings& settings, const Machine& machine, bool server, Systemd& systemd) {
  // Below systemd's own time for a start (DefaultTimeoutStartSec=, 90 s).
  constexpr std::chrono::seconds serverTime{60}, goesOn{5};
  constexpr std::chrono::milliseconds step{100};
  const auto& image = machine.allocation.image;
  if (!machine.allocation.provenImage) return;
  const auto run = readRunRecord(machinePaths(settings, machine.card.id, machine.allocation.address).state);
  if (!run || run->image != image) return;
  const auto deadline = monotonicNow() + (server ? serverTime : goesOn);
  // Looked at again and again: the kernel tells nobody when a program in another network begins to listen.
  for (; monotonicNow() < deadline; std::this_thread::sleep_for(step)) {
    if (kill(run->leader, 0) < 0) {
      if (server) throw Error(std::format("opencode ended before it listened, with image {}", image));
      // A command that is done, or failed; the release hook is told how.
      return;
    }
    if (server && listens(run->leader, serverPort))
      return settleImage(settings, machine, image, true, systemd);
  }
  if (server) throw Error(std::format("opencode does not listen after {} with image {}", serverTime, image));
  settleImage(settings, machine, image, true, systemd);
}

void releaseMachine(const Settings& settings, const Machine& machine, EndRecord end) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  // Whatever fails, the rest is done, and the hook ends well: a full disk or a bus that is gone makes no run
  // that ended well a failure, which systemd would start again. What was noted counts: the settings may be
  // others by now.
  const auto held = readHeld(machine.card.id);
  takeBack(
      settings, machine.name(), paths,
      held.value_or(Held{hostInterface(settings, machine.allocation.address), machine.allocation.address}));
  judgeEnd(machine.name(), paths, end);
  attempt([&] { tellOfEnd(machine, end); });
  attempt([&] { noteOomKills(paths.state, end); });
  attempt([&] { writeEndRecord(paths.state, end); });
  // While the host goes down there may be no bus any more. A watch that is left finds no running machine to
  // deliver to, a timer none to end, and the next start replaces both. Not by Wants= and StopWhenUnneeded=: a
  // failed unit, and one whose next start is queued, keep what they want loaded, and the next run would have
  // the watch or the deadline of the last, or none.
  attempt([&] {
    Systemd systemd;
    attempt([&] { systemd.stop(paths.ttlTimer); });
    attempt([&] { systemd.stop(paths.idleTimer); });
    if (machine.card.apiKeyFile) attempt([&] { systemd.stop(paths.keyWatch); });
    attempt([&] { judgeImage(settings, machine, end, systemd); });
    // Once all else is done: it may take as long as the disk does. A host that goes down does it by itself.
    if (end.cause != EndCause::shutdown) attempt([&] { systemd.start(paths.syncUnit, longestSync); });
  });
}

void syncWorkspace(const Machine& machine) {
  const std::string& path = machine.card.workspace.str();
  const Fd directory = openWithoutLinks(path, O_RDONLY | O_DIRECTORY);
  if (!directory || syncfs(directory.get()) < 0) throw errnoError("sync " + path);
}

void releaseByRecord(const AgentId& id, EndRecord end) {
  const MachineName machine(id);
  const auto held = readHeld(id);
  const auto paths = machinePaths({}, id, held ? held->address : Ipv4{});
  takeBack({}, machine, paths, held);
  judgeEnd(machine, paths, end);
  attempt([&] {
    if (std::filesystem::exists(paths.state)) writeEndRecord(paths.state, end);
  });
  attempt([&] {
    Systemd systemd;
    for (const auto& unit : {paths.ttlTimer, paths.idleTimer, paths.keyWatch})
      attempt([&] { systemd.stop(unit); });
  });
}

bool isOfOlderProgram(const Settings& settings, const Machine& machine) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  // Of machines that run alone.
  if (!std::filesystem::exists(paths.serverPassword)) return false;
  return !std::filesystem::exists(paths.held) || !isDelivered(settings, machine);
}

void adoptRun(const Settings& settings, const Machine& machine, Systemd& systemd) {
  {
    const auto lock = lockRun(settings, machine);
    if (!isUp(machine, systemd)) return;
    noteHeld(settings, machine);
  }
  changeKey(settings, machine, systemd);
}

void adoptRuns(const Settings& settings) {
  for (const auto& [id, machine] : readMachineRecords(settings).machines) {
    attempt([&settings, &machine = machine] {
      if (!isOfOlderProgram(settings, machine)) return;
      Systemd systemd;
      adoptRun(settings, machine, systemd);
    });
  }
}

void mountWorkspace(const Settings& settings, const AbsolutePath& workspace) {
  mountImage(imagePath(settings, workspace), workspace.str());
}

}  // namespace agentmachine
