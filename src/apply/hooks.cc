#include "apply/hooks.h"

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <format>
#include <functional>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "apply/apply.h"
#include "apply/idle.h"
#include "plan/policy.h"
#include "system/api_key.h"
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

/// Does a step that keeps no other one from being done when it fails.
void attempt(const std::function<void()>& step) {
  try {
    step();
  } catch (const std::exception& problem) {
    spdlog::warn("{}", printable(problem.what()));
  }
}

/// Held while a machine's key is delivered or taken back, so that a key that changes just then can't outlive
/// the run.
FileLock lockKey(const Settings& settings, const MachineName& machine) {
  return FileLock(settings.runtimeDirectory + "/lock/key-" + machine.str());
}

void takeKeyBack(const MachinePaths& paths) {
  removeFile(paths.key);
  removeFile(paths.agentKey);
}

/// What a run is given on the host under names that only card and settings tell.
struct Held {
  std::string interface;
  Ipv4 address;
};

void noteHeld(const Settings& settings, const Machine& machine) {
  const Ipv4 address = machine.allocation.address;
  writeFileAtomically(machinePaths(settings, machine.card.id, address).held,
                      std::format("{} {}\n", hostInterface(settings, address), address.str()), 0600);
}

/// As noteHeld wrote it; nothing if it did not, or if the file is damaged.
std::optional<Held> readHeld(const AgentId& id) {
  constexpr std::size_t mostBytes = 64;
  std::optional<std::string> text;
  attempt([&] { text = readFileIfExists(machinePaths({}, id, {}).held, mostBytes); });
  const auto words = split(trim(text.value_or("")), ' ');
  const auto address = words.size() == 2 ? Ipv4::parse(words[1]) : std::nullopt;
  return address ? std::optional(Held{words[0], *address}) : std::nullopt;
}

/// To the broker or to the agent, as the card says. Without a good key there is none afterwards: who removes
/// or empties a key file wants it to be used no more, and an old one that goes on working would hide the
/// fault until the next start.
void deliverKey(const Settings& settings, const Machine& machine) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  try {
    if (!machine.card.apiKeyFile) return takeKeyBack(paths);
    const auto key = readApiKey(*machine.card.apiKeyFile);
    if (machine.card.apiKeyDelivery == KeyDelivery::broker) {
      const auto broker = policyFor(machine.card, settings).broker.value();
      writeFileAtomically(paths.key, renderDeliveredKey(broker, key), 0440, FileOwner{0, proxyGroup()});
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

/// Whether the broker has the key as it reads it, or no key.
bool isDelivered(const Settings& settings, const Machine& machine) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const auto content = readFileIfExists(paths.key, 2 * maxKeyBytes);
  const auto broker = policyFor(machine.card, settings).broker;
  if (!content || !broker) return true;
  try {
    (void)deliveredKey(*content, *broker);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// Has the key's file watched, if there is one. To be called before deliverKey: then no change falls between
/// the two.
void watchKey(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  if (machine.card.apiKeyFile)
    systemd.startWatch(paths.keyWatch, "API key of agent " + machine.card.id.str(),
                       machine.card.apiKeyFile->str());
  else
    systemd.stop(paths.keyWatch);
}

/// The machine by now. The caller holds lockKey or lockRun: of two, the later has the later card.
Machine presentMachine(const Settings& settings, const Machine& machine) {
  auto found = readMachine(settings, machine.card.id);
  if (!found) throw Error("the machine was removed just now");
  return *std::move(found);
}

/// Whether it is between prepareMachine and releaseMachine, as far as systemd knows. To be asked while
/// lockKey is held: a machine that ends after this takes the key back when we are done.
bool isUp(const Machine& machine, Systemd& systemd) {
  const auto units = systemd.listUnits(machine.name().unit());
  return !units.empty() && (units[0].active == "active" || units[0].active == "activating") &&
         !units[0].sub.starts_with("auto-restart");
}

Error withoutKey(const Machine& machine, const Error& cause) {
  return Error(std::format("{}; agent {} has no key until the file is good again", cause.what(),
                           machine.card.id.str()));
}

/// What tells one state of a file from another, without reading it.
std::string stateOf(const std::string& path) {
  struct stat st{};
  if (stat(path.c_str(), &st) < 0) return "absent";
  return std::format("{}:{}:{}:{}.{}:{}.{}", st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec,
                     st.st_mtim.tv_nsec, st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

/// The record of the run that begins now.
RunRecord beginRun(const Machine& machine, const MachinePaths& paths, const std::string& invocation,
                   std::chrono::microseconds began, Systemd& systemd) {
  RunRecord record{.invocation = invocation,
                   .boot = bootId(),
                   .since = now(),
                   .asked = now(),
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

constexpr std::chrono::seconds longestWarning{60}, timersAccuracy{1};

/// Well below the time that systemd gives a unit for its end.
constexpr std::chrono::seconds longestSync{5};

/// The times at which the TTL's timer fires: for the warning, a minute before the end or a tenth of what is
/// left, and for the end.
std::vector<std::chrono::microseconds> timesOfTtl(std::chrono::microseconds deadline) {
  constexpr std::chrono::seconds shortestWarning{2};
  const auto ahead = std::min<std::chrono::microseconds>(longestWarning, (deadline - monotonicNow()) / 10);
  if (ahead < shortestWarning) return {deadline};
  return {deadline - ahead, deadline};
}

/// Why the run ended, as far as systemd's words for it leave that open.
void judgeEnd(const MachineName& machine, const MachinePaths& paths, EndRecord& end) {
  end.at = now();
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

void tellOfEnd(const Machine& machine, const EndRecord& end) {
  const bool failed =
      end.cause == EndCause::start || (end.cause == EndCause::payload && end.result != "success");
  tellJournal(machine, {.event = "end",
                        .message = "end of its run: " + describe(end),
                        .by = end.by,
                        .cause = std::string(toString(end.cause)),
                        .isWarning = failed || end.oomKills > 0});
}

/// What prepareMachine and connectMachine gave the run; `held` only if that is known. Whatever fails, the
/// rest is done. What is left `doctor` tells and `repair` takes away.
void takeBack(const Settings& settings, const MachineName& machine, const MachinePaths& paths,
              const std::optional<Held>& held) {
  attempt([&] {
    const auto lock = lockKey(settings, machine);
    takeKeyBack(paths);
  });
  attempt([&] { removeFile(paths.credentials + "/server-password"); });
  attempt([&] { unmountMapped(paths.workspace); });
  if (held) attempt([&] { removePort(held->interface, held->address); });
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
  writeFileAtomically(paths.credentials + "/server-password", randomPassword(), 0600);
  // Of a stop that was killed.
  (void)takeStopReason(paths.state);
  applyPlan({MakeDirectory{settings.runtimeDirectory + "/keys", 0750, {0, proxyGroup()}},
             MakeDirectory{paths.notices, 0755, {}}},
            systemd);
  {
    const auto lock = lockKey(settings, machine.name());
    const Machine present = presentMachine(settings, machine);
    watchKey(settings, present, systemd);
    deliverKey(settings, present);
  }
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

void takeKeyBackByRecord(const AgentId& id) {
  const auto held = readHeld(id);
  const auto lock = lockKey({}, MachineName(id));
  takeKeyBack(machinePaths({}, id, held ? held->address : Ipv4{}));
}

void changeKey(const Settings& settings, const Machine& machine, Systemd& systemd) {
  const auto lock = lockKey(settings, machine.name());
  if (!isUp(machine, systemd)) return;
  const Machine present = presentMachine(settings, machine);
  watchKey(settings, present, systemd);
  try {
    deliverKey(settings, present);
  } catch (const Error& cause) {
    throw withoutKey(machine, cause);
  }
}

bool isOfOlderProgram(const Settings& settings, const Machine& machine) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  // Of machines that run alone.
  if (!std::filesystem::exists(paths.credentials + "/server-password")) return false;
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

void renewKey(const Settings& settings, const Machine& known, Systemd& systemd) {
  const auto lock = lockKey(settings, known.name());
  if (!isUp(known, systemd)) return;
  const Machine machine = presentMachine(settings, known);
  if (!machine.card.apiKeyFile) return;
  const std::string file = machine.card.apiKeyFile->str();
  // systemd doesn't watch while this runs, so a change meanwhile is looked for here.
  for (std::string state;;) {
    state = stateOf(file);
    try {
      deliverKey(settings, machine);
    } catch (const Error& cause) {
      if (state == stateOf(file)) throw withoutKey(machine, cause);
      continue;
    }
    if (state != stateOf(file)) continue;
    return tellJournal(machine,
                       {.event = "key", .message = "its key file changed; the key was handed over again"});
  }
}

void mountWorkspace(const Settings& settings, const AbsolutePath& workspace) {
  mountImage(imagePath(settings, workspace), workspace.str());
}

FileLock lockRun(const Settings& settings, const Machine& machine) {
  return FileLock(settings.runtimeDirectory + "/lock/run-" + machine.name().str());
}

void removeRunLocks(const Settings& settings, const Machine& machine) {
  lockKey(settings, machine.name()).removeFile();
  lockRun(settings, machine).removeFile();
}

void startTtl(const Settings& settings, const Machine& machine, const RunRecord& record, Systemd& systemd) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  removeFile(paths.notices + "/warning");
  if (!record.ttlDeadline) {
    systemd.stop(paths.ttlTimer);
    return removeFile(paths.notices + "/ends-at");
  }
  systemd.startTimer(paths.ttlTimer, "TTL of agent " + machine.card.id.str(),
                     timesOfTtl(*record.ttlDeadline));
  writeFileAtomically(paths.notices + "/ends-at", inUtc(*record.ttlDeadline) + "\n", 0644);
}

void expireMachine(const Settings& settings, const Machine& machine, Systemd& systemd) {
  constexpr std::chrono::seconds sureToBeOver{10};
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  for (;;) {
    std::optional<RunRecord> run;
    bool longer = false;
    try {
      const auto lock = lockRun(settings, machine);
      run = readRunRecord(paths.state);
      if (run && !run->ttlDeadline) return;  // it was taken away just now
      longer = run && *run->ttlDeadline - monotonicNow() > longestWarning + timersAccuracy;
      if (longer) return startTtl(settings, machine, *run, systemd);  // it was made so just now
      if (run && *run->ttlDeadline - monotonicNow() > timersAccuracy) {
        const auto message = std::format("its TTL ends at {}, then it is stopped", inUtc(*run->ttlDeadline));
        tellJournal(machine, {.event = "ttl-warning", .message = message, .isWarning = true});
        writeFileAtomically(paths.notices + "/warning",
                            std::format("agent {}: {}\n", machine.card.id.str(), message), 0644);
      }
    } catch (const Error& problem) {
      // There is no timer any more: systemd has this tried again.
      if (longer) throw;
      // Neither a full disk nor a bad record makes a machine live longer.
      spdlog::warn("{}", printable(problem.what()));
    }
    const auto left = run ? *run->ttlDeadline - monotonicNow() : std::chrono::microseconds(0);
    if (left <= timersAccuracy) break;
    // The timer of the end does not start this once more while it runs, nor while systemd has yet to see that
    // it is over.
    if (left > sureToBeOver) return;
    std::this_thread::sleep_for(left);
  }
  endRun(settings, machine, systemd, {.cause = EndCause::ttl, .by = ""});
}

bool expireByRecord(const AgentId& id, Systemd& systemd) {
  const auto state = machinePaths({}, id, {}).state;
  try {
    const auto run = readRunRecord(state);
    if (run && !run->ttlDeadline) return true;  // it was taken away just now
    if (run && *run->ttlDeadline - monotonicNow() > timersAccuracy) return false;
    noteStopReason(state, {.cause = EndCause::ttl, .by = ""});
  } catch (const Error& problem) {
    spdlog::warn("{}", printable(problem.what()));
  }
  const auto unit = MachineName(id).unit();
  systemd.stopForSure(unit);
  // Its last hook could not read them either.
  systemd.resetFailed(unit);
  spdlog::warn("agent {} was stopped at the end of its TTL", id.str());
  return true;
}

void endRun(const Settings& settings, const Machine& machine, Systemd& systemd, const StopReason& reason,
            std::optional<std::chrono::seconds> timeout) {
  const std::string unit = machine.name().unit();
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const std::string& state = paths.state;
  const auto found = systemd.listUnits(unit);
  if (found.empty() || found[0].active == "inactive" || found[0].active == "failed") {
    // A start that waits for others, at boot for one, is called off.
    if (!systemd.job(unit).empty()) systemd.stop(unit);
    return;
  }
  const bool waits = found[0].sub.starts_with("auto-restart");
  // A full disk keeps nobody from stopping.
  attempt([&] { noteStopReason(state, reason); });
  try {
    // A start that is asked for before the stop begins would have the machine go on, without an end.
    if (reason.cause == EndCause::ttl)
      systemd.stopForSure(unit);
    else
      systemd.stop(unit, timeout);
  } catch (const Error& cause) {
    // It goes on, and will end for another reason.
    attempt([&] {
      if (systemd.activeState(unit) == "active") (void)takeStopReason(state);
    });
    throw Error(cause.what() + lastWords(unit));
  }
  systemd.resetFailed(unit);
  attempt([&] {
    // No hook took the reason. One that waited to be started again ended before; else the hook was killed, or
    // had told of an end that came first.
    const auto left = takeStopReason(state);
    if (!left) return;
    systemd.stop(paths.ttlTimer);
    const auto run = readRunRecord(state);
    auto end = readEndRecord(state);
    const bool told = end && (!run || endsAfter(*end, *run));
    if (told && !waits) return;
    if (!told && run) end = EndRecord{.invocation = run->invocation};
    if (!end) return;
    end->cause = left->cause;
    end->by = left->by;
    end->at = now();
    tellOfEnd(machine, *end);
    writeEndRecord(state, *end);
  });
}

}  // namespace agentmachine
