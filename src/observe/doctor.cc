#include "observe/doctor.h"

#include <algorithm>
#include <format>

#include "build_config.h"
#include "system/systemd.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::uint64_t mib = 1024 * 1024;
// A git clone, a compiler's output and a log fill the first in minutes; below the second systemd itself
// stumbles.
constexpr std::uint64_t fewBytes = 256 * mib, hardlyAnyBytes = 64 * mib;
constexpr unsigned fewInodesPercent = 5;
constexpr unsigned squidMin = 6;

/// The findings, in the order they are made.
class Findings {
 public:
  void ok(std::string check, std::string what) {
    list_.push_back({.check = std::move(check), .what = std::move(what)});
  }
  void add(Finding finding) { list_.push_back(std::move(finding)); }
  /// A problem that a person must mend.
  void problem(std::string check, std::string what, std::string guards, std::string remedy) {
    add({.check = std::move(check),
         .level = Level::problem,
         .what = std::move(what),
         .guards = std::move(guards),
         .remedy = std::move(remedy)});
  }
  void warning(std::string check, std::string what, std::string guards, std::string remedy) {
    problem(std::move(check), std::move(what), std::move(guards), std::move(remedy));
    list_.back().level = Level::warning;
  }
  /// One that `--fix` mends, with a command that a person could type.
  void mendable(Level level, std::string check, std::string what, std::string guards,
                std::vector<std::string> fix) {
    const auto remedy = join(fix, " ");
    add({.check = std::move(check),
         .level = level,
         .what = std::move(what),
         .guards = std::move(guards),
         .remedy = remedy,
         .fix = std::move(fix)});
  }

  [[nodiscard]] bool has(std::string_view check) const {
    return std::ranges::any_of(
        list_, [&](const Finding& finding) { return finding.check == check && finding.level != Level::ok; });
  }
  [[nodiscard]] std::vector<Finding> take() { return std::move(list_); }

 private:
  std::vector<Finding> list_;
};

// --- what is installed

/// How a host gets a package of Debian's: on NixOS the module brings it along.
std::string install(const DoctorFacts& facts, const std::string& package) {
  return facts.nixos ? "set services.agentmachine.enable, which brings it; then: nixos-rebuild switch"
                     : "apt-get install " + package;
}

/// The first version of each series without CVE-2026-40226; later series never had it.
bool hasSettingsHole(const SystemdVersion& version) {
  constexpr SystemdVersion fixedIn[] = {{257, 12}, {258, 6}, {259, 4}};
  if (version.major < fixedIn[0].major) return true;
  return std::ranges::any_of(fixedIn, [&](const auto& fixed) {
    return version.major == fixed.major && version.minor < fixed.minor;
  });
}

void checkSystemd(const DoctorFacts& facts, Findings& findings) {
  const auto version = SystemdVersion::parse(facts.systemdVersion);
  if (facts.systemdVersion.empty())
    findings.problem("systemd", "systemd does not run this host, or does not answer",
                     "every machine is a unit of it",
                     std::format("boot the host with systemd {} or newer", AGENTMACHINE_SYSTEMD_MIN));
  else if (version.major < AGENTMACHINE_SYSTEMD_MIN)
    findings.problem("systemd",
                     std::format("systemd {} is older than {}, the oldest that agentmachine is tested with",
                                 facts.systemdVersion, AGENTMACHINE_SYSTEMD_MIN),
                     "machines do not start", "upgrade the host: Debian 13 and Fedora 42 have 257");
  else if (hasSettingsHole(version))
    findings.problem(
        "systemd",
        std::format("systemd {} has a known hole in systemd-nspawn, CVE-2026-40226", facts.systemdVersion),
        "a crafted settings file beside an image takes over the host; agentmachine imports none, but other "
        "machines of this host may have one",
        std::string(facts.nixos ? "nix flake update nixpkgs, then: nixos-rebuild switch"
                                : "apt-get update && apt-get install systemd systemd-container") +
            ": fixed in 257.12, 258.6, 259.4 and 260");
  else
    findings.ok("systemd", "systemd " + facts.systemdVersion);
}

void checkPrograms(const DoctorFacts& facts, Findings& findings) {
  for (const auto& [program, package] : facts.missingPrograms)
    findings.problem("programs", std::format("there is no program {}", program),
                     "machines are built and connected with it", install(facts, package));
  if (facts.missingPrograms.empty()) findings.ok("programs", "all programs that are used are there");
}

/// The number after "Version " in what `squid -v` prints.
unsigned squidMajor(std::string_view says) {
  constexpr std::string_view before = "Version ";
  const auto at = says.find(before);
  if (at == std::string_view::npos) return 0;
  return static_cast<unsigned>(SystemdVersion::parse(says.substr(at + before.size())).major);
}

void checkSquid(const DoctorFacts& facts, Findings& findings) {
  constexpr auto guards = "squid decides what machines may reach, and adds the API key";
  const auto remedy = facts.nixos ? "set services.agentmachine.proxyPackage; then: nixos-rebuild switch"
                                  : install(facts, "squid-openssl");
  if (!facts.squidSays)
    findings.problem("squid", std::format("there is no {}", facts.squid), guards, remedy);
  else if (!facts.squidSays->contains("--with-openssl"))
    findings.problem("squid", std::format("{} was built without OpenSSL", facts.squid),
                     "so it can't compare a TLS connection's server name with what was allowed", remedy);
  else if (squidMajor(*facts.squidSays) < squidMin)
    findings.problem("squid", std::format("{} is older than version {}", facts.squid, squidMin), guards,
                     "upgrade the host: Debian 13 has squid 6");
  else
    findings.ok("squid", std::format("squid {} with OpenSSL", squidMajor(*facts.squidSays)));
}

void checkUsers(const DoctorFacts& facts, Findings& findings) {
  for (const auto& user : facts.missingUsers)
    findings.mendable(
        Level::problem, "users", std::format("there is no user \"{}\"", user),
        user == proxyUser ? "the proxy runs as a user of its own" : "new workspaces belong to it",
        {"systemd-sysusers"});
  if (facts.missingUsers.empty()) findings.ok("users", "the proxy's and the workspaces' users are there");
}

void checkDirectories(const DoctorFacts& facts, Findings& findings) {
  bool well = true;
  for (const auto& directory : facts.directories) {
    if (directory.mode && !(*directory.mode & 07777 & ~directory.most)) continue;
    well = false;
    const auto what = directory.mode ? std::format("{} has mode {:04o}, should have {:04o} at most",
                                                   directory.path, *directory.mode & 07777, directory.most)
                                     : std::format("there is no directory {}", directory.path);
    findings.mendable(Level::problem, "directories", what, "cards and machines' states are root's alone",
                      {"systemd-tmpfiles", "--create"});
  }
  if (well) findings.ok("directories", "the directories of cards and states are root's");
}

void checkSettings(const DoctorFacts& facts, Findings& findings) {
  if (facts.settingsProblem.empty())
    findings.ok("settings", "the host's settings can be read");
  else
    findings.problem("settings", facts.settingsProblem,
                     "no machine starts; what is below was judged by the default settings",
                     "mend the file: agentmachine(1), SETTINGS, lists the keys");
}

// --- what the kernel can

void checkKernel(const DoctorFacts& facts, Findings& findings) {
  const auto& kernel = facts.kernel;
  const auto need = [&](bool there, std::string_view what, std::string_view guards, std::string_view remedy) {
    if (!there) findings.problem("kernel", std::string(what), std::string(guards), std::string(remedy));
  };
  need(kernel.seccomp, "the kernel has no seccomp filters",
       "they refuse the system calls that no agent needs", "boot a kernel with CONFIG_SECCOMP_FILTER");
  need(kernel.userNamespaces, "no user namespace can be made",
       "root of a machine is nobody on the host only in one",
       "sysctl -w user.max_user_namespaces=65536, or boot a kernel with CONFIG_USER_NS");
  need(kernel.cgroupBpf, "the kernel has no packet filters for control groups (BPF)",
       "IPAddressDeny= is the second wall around a machine's network, behind the packet filter",
       "boot a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF");
  need(kernel.veth, "no virtual Ethernet interface can be made", "each machine is connected by one",
       "modprobe veth, or boot a kernel with CONFIG_VETH");
  need(kernel.bridge, "no bridge can be made", "machines are connected to one",
       "modprobe bridge, or boot a kernel with CONFIG_BRIDGE");
  const auto lacks = [&](bool there, std::string_view what, std::string_view guards,
                         std::string_view remedy) {
    if (!there) findings.warning("kernel", std::string(what), std::string(guards), std::string(remedy));
  };
  lacks(kernel.bandwidth, "the bandwidth of an interface can't be limited",
        "machines whose cards have network_mbit do not start",
        "modprobe sch_tbf, or boot a kernel with CONFIG_NET_SCH_TBF");
  lacks(kernel.socketDestroy, "connections of others can't be cut",
        "`deny` leaves open what a machine has open already", "boot a kernel with CONFIG_INET_DIAG_DESTROY");
  lacks(kernel.loopDevices, "there are no loop devices",
        "a workspace whose file system has no project quotas can't be limited by disk_mb",
        "modprobe loop, or boot a kernel with CONFIG_BLK_DEV_LOOP");
  if (!findings.has("kernel"))
    findings.ok("kernel",
                "seccomp, user namespaces, BPF for control groups, veth, bridge, tbf, SOCK_DESTROY and loop");
}

void checkCgroups(const DoctorFacts& facts, Findings& findings) {
  if (!facts.kernel.cgroup2)
    return findings.problem("cgroups", "/sys/fs/cgroup is not cgroup v2", "limits of machines do not hold",
                            "boot without systemd.unified_cgroup_hierarchy=0 on the kernel's command line");
  const std::pair<std::string_view, std::string_view> controllers[] = {
      {"memory", "an agent can use up the host's memory"},
      {"pids", "an agent can use up the host's processes"},
      {"cpu", "an agent can starve the others of CPU time"},
      {"io", "an agent can starve the others of disk time"}};
  for (const auto& [name, guards] : controllers)
    if (!facts.kernel.controllers.contains(std::string(name)))
      findings.problem(
          "cgroups", std::format("cgroup v2 has no controller \"{}\" here", name), std::string(guards),
          std::format("boot without cgroup_disable={} on the kernel's command line, or with cgroup_enable={}",
                      name, name));
  if (!findings.has("cgroups")) findings.ok("cgroups", "cgroup v2 with memory, pids, cpu and io");
}

// --- what runs

/// Whether something is to be done for this unit; the unit is one that runs, and is wanted at each boot.
void checkUnit(const UnitFacts& unit, bool mustRun, const std::string& guards, Findings& findings) {
  const std::vector<std::string> enable = {"systemctl", "enable", "--now", unit.name};
  if (unit.load == "not-found")
    return findings.problem("units", unit.name + " is not installed", guards,
                            "install agentmachine again, then: systemctl daemon-reload");
  if (unit.load == "masked")
    return findings.problem("units", unit.name + " is masked, so somebody switched it off", guards,
                            std::format("systemctl unmask {0} && systemctl enable --now {0}", unit.name));
  if (mustRun && unit.active != "active")
    return findings.mendable(Level::problem, "units",
                             std::format("{} is not running ({})", unit.name, unit.active), guards, enable);
  if (!unit.enabled.starts_with("enabled") && unit.enabled != "static" && unit.enabled != "linked")
    return findings.mendable(Level::warning, "units",
                             unit.name + " is not enabled: it does not start when the host boots", guards,
                             {"systemctl", "enable", unit.name});
  findings.ok("units", unit.name + (mustRun ? " runs" : " is enabled"));
}

void checkUnits(const DoctorFacts& facts, Findings& findings) {
  const std::map<std::string, std::string> guards = {
      {"agentmachine-network.service", "it is the bridge and the packet filter around machines"},
      {"agentmachine-filter.service", "it puts the packet filter back when somebody flushes nft's rules"},
      {"agentmachine-proxy.service", "it is machines' only way out, and no machine starts without it"},
      {"agentmachine-render.service", "after a boot it brings back the machines there were"}};
  for (const auto& unit : facts.units)
    // It is skipped at a boot without machines; those that are created later are rendered then.
    checkUnit(unit, unit.name != "agentmachine-render.service" || unit.active == "failed",
              guards.at(unit.name), findings);
}

void checkNetwork(const DoctorFacts& facts, Findings& findings) {
  const auto& [overlap, bridge, refusal, filter, filterPorts, machinePorts] = facts.network;
  const auto& settings = facts.settings;
  // reload-or-restart: a restart would cut off the machines that run.
  const std::vector<std::string> reload = {"systemctl", "reload-or-restart", "agentmachine-network.service"};
  if (!overlap.empty())
    findings.problem(
        "network",
        std::format("the bridge's network {}/{} overlaps the host's route to {}", settings.gateway.str(),
                    settings.prefixLength, overlap),
        "machines and that network would be taken for each other",
        "choose another `address` in /etc/agentmachine/agentmachine.conf, then: systemctl restart "
        "agentmachine-network agentmachine-proxy");
  else if (!bridge)
    findings.mendable(Level::problem, "network",
                      std::format("the bridge {} is missing, down or without its address {}/{}",
                                  settings.bridge, settings.gateway.str(), settings.prefixLength),
                      "machines are connected to it", reload);
  else
    findings.ok("network", std::format("the bridge {} with {}/{}", settings.bridge, settings.gateway.str(),
                                       settings.prefixLength));
  constexpr auto filterGuards = "it keeps a machine from all but the proxy, whatever runs in it";
  if (!refusal.empty())
    // Without the proxy's user no kernel takes the rules.
    findings.problem(
        "packet-filter", "the packet filter can't be loaded: " + refusal, filterGuards,
        "boot a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_BRIDGE, CONFIG_NF_TABLES_INET and "
        "CONFIG_NFT_CONNLIMIT, and: " +
            install(facts, "nftables"));
  else if (filter == FilterState::missing)
    findings.mendable(Level::problem, "packet-filter",
                      "the packet filter is not in place: an nft table \"agentmachine\" is missing",
                      filterGuards, reload);
  else if (filter == FilterState::altered)
    findings.mendable(Level::problem, "packet-filter",
                      "the packet filter was altered: its rules are not those that the settings give",
                      filterGuards, reload);
  else
    findings.ok("packet-filter", "the packet filter is in place and as it should be");
}

// --- what machines are made of

void checkImages(const DoctorFacts& facts, Findings& findings) {
  const std::string get = "agentmachine image build, or: agentmachine image import TARBALL";
  for (const auto& machine : facts.machines)
    if (!machine.imagePresent)
      findings.problem(
          "images", std::format("the image of machine {} is gone", machine.name), "it does not start",
          std::format("agentmachine rm {} (its workspace is kept), and create it again", machine.id));
  if (facts.images == 0)
    findings.problem("images", "there is no image", "machines start from one", get);
  else if (!findings.has("images"))
    findings.ok("images", std::format("{} image{}", facts.images, facts.images == 1 ? "" : "s"));
}

void checkFileSystems(const DoctorFacts& facts, Findings& findings) {
  for (const auto& [path, type, idmappable, bytes, inodes] : facts.fileSystems) {
    // Without user namespaces nothing can be mapped, and that has been said.
    if (!idmappable && facts.kernel.userNamespaces)
      findings.problem(
          "file-systems",
          std::format("the file system of {} ({}) can't map user ids (mount_setattr(2))", path, type),
          "the users of a machine are not those of the host only if files are mapped, too",
          "use ext4, xfs, btrfs or tmpfs there");
    if ((bytes && *bytes < fewBytes) || (inodes && *inodes < fewInodesPercent)) {
      const auto what = bytes && *bytes < fewBytes
                            ? std::format("{} has {} MiB left", path, *bytes / mib)
                            : std::format("{} has {} % of its inodes left", path, *inodes);
      const bool hardlyAny = (bytes && *bytes < hardlyAnyBytes) || (inodes && *inodes == 0);
      findings.add({.check = "file-systems",
                    .level = hardlyAny ? Level::problem : Level::warning,
                    .what = what,
                    .guards = "states, keys and workspaces can't be written on a full disk",
                    .remedy = "make room; agentmachine image prune removes images that no machine has"});
    }
  }
  if (!findings.has("file-systems"))
    findings.ok("file-systems", "images and workspaces can be mapped and have room");
}

void checkClock(const DoctorFacts& facts, Findings& findings) {
  if (facts.kernel.clockSynchronized)
    findings.ok("clock", "the clock is synchronized");
  else
    findings.warning("clock", "the clock is not synchronized",
                     "certificates of providers are checked by it, and logs carry its time",
                     facts.nixos ? "services.timesyncd.enable = true; then: nixos-rebuild switch"
                                 : "apt-get install systemd-timesyncd, then: timedatectl set-ntp true");
}

void checkState(const DoctorFacts& facts, Findings& findings) {
  if (facts.stateProblem.empty())
    return findings.ok("state", std::format("{} machines", facts.machines.size()));
  findings.problem("state", facts.stateProblem, "its machines can't be listed, started or removed",
                   "restore that directory from a backup, or remove it: the workspace is elsewhere");
}

void checkMachine(const DoctorFacts& facts, const MachineFacts& machine, Findings& findings) {
  constexpr auto check = "machines";
  if (const auto& file = machine.settingsOverride; !file.empty()) {
    const auto what = std::format("{} replaces the settings of machine {} as a whole", file, machine.name);
    constexpr auto guards =
        "with them go private users and network, the read-only root and the dropped capabilities";
    if (facts.settings.allowSettingsOverride)
      findings.warning(check, what + ", as `allow_settings_override` tolerates", guards, "rm " + file);
    else
      findings.problem(check, what + ", so it does not start", guards, "rm " + file);
  }
  const auto rendered = [&](const std::vector<std::string>& paths, std::string_view how) {
    if (!paths.empty())
      findings.mendable(Level::problem, check,
                        std::format("of machine {} {}: {}", machine.name, how, join(paths, " ")),
                        machine.running ? "they are what holds it in at its next start; the present run is "
                                          "as it was begun"
                                        : "they are what holds it in",
                        {"systemctl", "restart", "agentmachine-render.service"});
  };
  rendered(machine.missing, "is missing");
  rendered(machine.altered, "was altered");
  if (machine.running && !machine.filterKnows)
    findings.mendable(Level::problem, check,
                      std::format("machine {} runs, and the packet filter does not know it", machine.name),
                      "it is cut off from the proxy",
                      {"systemctl", "reload-or-restart", "agentmachine-network.service"});
  if (!machine.keyProblem.empty())
    findings.problem(
        check, std::format("key file {} of machine {} {}", machine.keyFile, machine.name, machine.keyProblem),
        "the key is root's alone", std::format("chown root: {0} && chmod 0400 {0}", machine.keyFile));
}

void checkMachines(const DoctorFacts& facts, Findings& findings) {
  for (const auto& machine : facts.machines) checkMachine(facts, machine, findings);
  for (const auto& path : facts.dropIns)
    findings.warning("drop-ins", path + " is an administrator's, and wins over what agentmachine sets",
                     "limits and guards of machines may be others than their cards say",
                     "read it; systemctl cat systemd-nspawn@agent-ID shows what holds");
  if (!findings.has("machines")) findings.ok("machines", "what is rendered is as their cards say");
}

void checkLeftovers(const DoctorFacts& facts, Findings& findings) {
  for (const auto& [what, remedy] : facts.leftovers)
    findings.warning("leftovers", what + " is left over from a machine that is gone or ended",
                     "it takes up names and addresses, and a key that is left over can be used", remedy);
  if (facts.leftovers.empty()) findings.ok("leftovers", "nothing is left over");
}

}  // namespace

std::string_view toString(Level level) {
  switch (level) {
    case Level::ok:
      return "ok";
    case Level::warning:
      return "warning";
    case Level::problem:
      return "problem";
  }
  return "";
}

std::vector<Finding> judge(const DoctorFacts& facts) {
  Findings findings;
  for (const auto check : {checkSystemd, checkPrograms, checkSquid, checkUsers, checkDirectories,
                           checkSettings, checkKernel, checkCgroups, checkUnits, checkNetwork, checkImages,
                           checkFileSystems, checkClock, checkState, checkMachines, checkLeftovers})
    check(facts, findings);
  return findings.take();
}

}  // namespace agentmachine
