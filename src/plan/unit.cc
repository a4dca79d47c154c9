#include "plan/unit.h"

#include <algorithm>
#include <format>

namespace agentmachine {

namespace {

// What systemd-nspawn itself needs to build a machine with private users and network; found by taking away
// one at a time. The machine's own set is smaller still (see nspawn.cc).
constexpr auto nspawnBoundingSet =
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_ADMIN "
    "CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_SYS_PTRACE "
    "CAP_SYS_RESOURCE";

constexpr int ownStopSeconds = 10;

// Lines of the machine that the journal takes in logInterval. journald takes up to four times as many where
// it has gigabytes left (burst_modulate() of systemd's journald-rate-limit.c).
constexpr auto logInterval = "30s";
constexpr auto logBurst = "500";

void setHooks(IniFile& file, const Machine& machine, const std::string& program) {
  // '+': outside the unit's own sandbox, as root of the host.
  const auto hook = [&](std::string_view name) {
    return std::format("+{} hook {} {}", escapeSpecifiers(program), name, machine.card.id.str());
  };
  // `run` has something else than opencode's server wait in the machine.
  const bool server = machine.card.command.empty();
  file.set("ExecStartPre", hook("prepare"))
      .set("ExecStartPost", hook(server ? "attach --server" : "attach"))
      .set("ExecStopPost", hook("release"));
}

void setLimits(IniFile& file, const ResourceLimits& limits) {
  file.set("MemoryMax", std::format("{}M", limits.memoryMb))
      .set("MemorySwapMax", "0")
      .set("CPUWeight", std::to_string(cpuWeight(limits.cpuShares)))
      .set("IOWeight", std::to_string(limits.ioWeight));
  if (limits.cpuQuotaPercent) file.set("CPUQuota", std::format("{}%", *limits.cpuQuotaPercent));
  // The card counts the agent's processes; nspawn's two and PID 1 come on top.
  file.set("TasksMax", std::to_string(limits.maxProcesses + 3))
      .set("OOMPolicy", "continue")
      // PID 1 raises the payload's, so that the payload goes first. Not below 0 here: the payload can lower
      // its own to this again, and must never be dearer than the host's services.
      .set("OOMScoreAdjust", "0");
}

// The journal has so much room, for the records of the others as well. Lines over the limit are dropped, and
// journald says how many. It counts each level apart, so what is printed can't choose its own.
void setLog(IniFile& file, const Machine& machine) {
  // On every line of the unit, the payload's and systemd's own too.
  file.set("LogExtraFields",
           std::format("AGENT_ID={} AGENT_MACHINE={}", machine.card.id.str(), machine.name().str()))
      .set("LogRateLimitIntervalSec", logInterval)
      .set("LogRateLimitBurst", logBurst)
      .set("SyslogLevelPrefix", "no");
}

void setHardening(IniFile& file, const Card& card, const Settings& settings) {
  file.set("PrivateMounts", "yes")
      .set("CapabilityBoundingSet", nspawnBoundingSet)
      .set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_NETLINK")
      .set("RestrictSUIDSGID", "yes")
      .set("RestrictRealtime", "yes")
      .set("LockPersonality", "yes")
      .set("SystemCallArchitectures", "native")
      // What neither nspawn nor anything in the machine calls. The .nspawn file and PID 1 leave out much
      // more.
      .set("SystemCallFilter", "~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap")
      .set("SystemCallErrorNumber", "EPERM")
      .set("ProtectClock", "yes")
      .set("ProtectKernelModules", "yes")
      .set("KeyringMode", "private")
      // The template allows loop and block devices; none is needed here.
      .set("DeviceAllow", "")
      .set("DeviceAllow", "char-pts rw")
      .set("DeviceAllow", "/dev/net/tun m")
      .set("DeviceAllow", "/dev/fuse m")
      .set("IPAddressDeny", "any")
      .set("IPAddressAllow", "localhost")
      .set("IPAddressAllow", settings.gateway.str());
  // The payload inherits it (PR_SET_MDWE is kept by fork and exec, PR_SET_MDWE(2const)).
  if (card.memoryDenyWriteExecute) file.set("MemoryDenyWriteExecute", "yes");
}

}  // namespace

std::uint64_t cpuWeight(std::uint64_t cpuShares) {
  return std::clamp<std::uint64_t>(cpuShares * 100 / 1024, 1, 10000);
}

void setStartLimit(IniFile& file, RestartPolicy policy) {
  if (policy != RestartPolicy::no) file.set("StartLimitIntervalSec", "1h").set("StartLimitBurst", "10");
}

void setRestart(IniFile& file, RestartPolicy policy) {
  file.set("Restart", toString(policy));
  if (policy == RestartPolicy::no) return;
  // After 10 s, then 20, 39, 77, 152, and 300 s from there on; ten starts in an hour end it
  // (StartLimitBurst=).
  file.set("RestartSec", "10s").set("RestartSteps", "5").set("RestartMaxDelaySec", "5min");
}

std::string renderDropIn(const Machine& machine, const Settings& settings, const std::string& program) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  IniFile file;
  file.comment("Rendered by agentmachine from the card of " + machine.card.id.str() +
               "; changes are lost. Drop-ins that sort later win.")
      .section("Unit")
      .set("Description", "Agent " + machine.card.id.str())
      // nspawn's template alone would start the image writable and with the host's network.
      .set("AssertPathExists", paths.settings)
      // Wanted, not required: restarting one of them must not restart the machines. That they are there is
      // checked by the prepare hook, which names the one that is missing.
      .set("Wants", "agentmachine-network.service agentmachine-proxy.service")
      // nspawn tells machined of its end. Were that started only then, it would wait for this unit's end, and
      // be waited for until nspawn is killed: both are ordered after what is mounted at /var/lib/machines.
      .set("Upholds", "systemd-machined.service")
      .set("After", "agentmachine-network.service agentmachine-proxy.service");
  if (machine.allocation.workspaceImage)
    file.set("Requires", imageUnit(machine.card.workspace)).set("After", imageUnit(machine.card.workspace));
  setStartLimit(file, machine.card.restart);
  file.section("Service").set("Slice", machineSlice);
  setLog(file, machine);
  setRestart(file, machine.card.restart);
  // Beyond what the payload has: PID 1 kills what is left of it, and nspawn takes the machine apart. Then
  // systemd kills all of it, a PID 1 that is stopped (SIGSTOP) too.
  file.set("TimeoutStopSec", std::format("{}s", machine.card.stopTimeout.count() + ownStopSeconds));
  setHooks(file, machine, program);
  setLimits(file, machine.card.limits);
  setHardening(file, machine.card, settings);
  return file.str();
}

}  // namespace agentmachine
