// Every finding of the doctor: a host that has all, and one thing taken away at a time.
#include "observe/doctor.h"

#include <gtest/gtest.h>

#include "system/systemd.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

UnitFacts unit(const std::string& name) {
  return {.name = name, .load = "loaded", .active = "active", .enabled = "enabled"};
}

/// A host with everything, and one machine that runs.
DoctorFacts goodHost() {
  DoctorFacts facts;
  facts.systemdVersion = "257.13-1~deb13u1";
  facts.kernel = {.cgroup2 = true,
                  .controllers = {"cpu", "io", "memory", "pids"},
                  .cgroupBpf = true,
                  .seccomp = true,
                  .userNamespaces = true,
                  .veth = true,
                  .bridge = true,
                  .bandwidth = true,
                  .socketDestroy = true,
                  .loopDevices = true,
                  .clockSynchronized = true};
  facts.squid = "/usr/sbin/squid";
  facts.squidSays = "Squid Cache: Version 6.13\nconfigure options: '--with-openssl'\n";
  facts.directories = {{.path = "/var/lib/agentmachine/machines", .most = 0700, .mode = 040700}};
  facts.units = {unit("agentmachine-network.service"), unit("agentmachine-proxy.service"),
                 unit("agentmachine-render.service"), unit("agentmachine-filter.service")};
  facts.units.back().enabled = "static";
  facts.network = {.overlap = "",
                   .bridge = true,
                   .filterRefusal = "",
                   .filter = FilterState::inPlace,
                   .filterPorts = {{"am-2", {}}},
                   .machinePorts = {"am-2"}};
  facts.images = 1;
  facts.fileSystems = {{.path = "/var/lib/agentmachine",
                        .type = "ext2/ext3",
                        .idmappable = true,
                        .availableBytes = std::uint64_t{20} << 30,
                        .availableInodesPercent = 90}};
  facts.machines = {{.id = "ada", .name = "agent-ada", .running = true}};
  return facts;
}

/// What is not ok, a line each: "level check: what | remedy", with "fix" before what `--fix` does.
std::string complaints(const DoctorFacts& facts) {
  std::string text;
  for (const auto& finding : judge(facts)) {
    if (finding.level == Level::ok) continue;
    EXPECT_FALSE(finding.guards.empty() || finding.remedy.empty()) << finding.what;
    EXPECT_TRUE(finding.fix.empty() || finding.remedy == join(finding.fix, " ")) << finding.what;
    text += std::string(toString(finding.level)) + (finding.fix.empty() ? " " : " fix ") + finding.check +
            ": " + finding.what + " | " + finding.remedy + "\n";
  }
  return text;
}

/// The complaints about a good host after `change`.
template <class Change>
std::string without(const Change& change) {
  DoctorFacts facts = goodHost();
  change(facts);
  return complaints(facts);
}

#define EXPECT_COMPLAINT(expected, change) \
  EXPECT_EQ(expected "\n", without([](DoctorFacts& facts) { change; }))

TEST(Doctor, HasNothingToSayOfAGoodHost) {
  EXPECT_EQ(complaints(goodHost()), "");
  for (const auto& finding : judge(goodHost())) {
    EXPECT_FALSE(finding.check.empty() || finding.what.empty());
    EXPECT_TRUE(finding.guards.empty() && finding.remedy.empty() && finding.fix.empty()) << finding.what;
  }
}

TEST(Doctor, ChecksSystemd) {
  EXPECT_COMPLAINT(
      "problem systemd: systemd does not run this host, or does not answer | boot the host with systemd 257 "
      "or "
      "newer",
      facts.systemdVersion = "");
  EXPECT_COMPLAINT(
      "problem systemd: systemd 252.39-1~deb12u1 is older than 257, the oldest that agentmachine is tested "
      "with | "
      "upgrade the host: Debian 13 and Fedora 42 have 257",
      facts.systemdVersion = "252.39-1~deb12u1");
  for (const char* version : {"257", "257.11-1", "258~rc1", "258.5", "259.3"})
    EXPECT_TRUE(
        without([&](DoctorFacts& facts) { facts.systemdVersion = version; }).contains("CVE-2026-40226"))
        << version;
  for (const char* version : {"257.12", "258.6", "259.4-1ubuntu1", "260~rc2", "260", "262.1", "257.100"})
    EXPECT_EQ(without([&](DoctorFacts& facts) { facts.systemdVersion = version; }), "") << version;
}

TEST(Doctor, ChecksPrograms) {
  EXPECT_COMPLAINT("problem programs: there is no program nft | apt-get install nftables",
                   facts.missingPrograms = (std::map<std::string, std::string>{{"nft", "nftables"}}));
  EXPECT_COMPLAINT("problem squid: there is no /usr/sbin/squid | apt-get install squid-openssl",
                   facts.squidSays.reset());
  EXPECT_COMPLAINT("problem squid: /usr/sbin/squid was built without OpenSSL | apt-get install squid-openssl",
                   facts.squidSays = "Squid Cache: Version 6.13\nconfigure options: '--with-gnutls'\n");
  EXPECT_COMPLAINT(
      "problem squid: /usr/sbin/squid is older than version 6 | upgrade the host: Debian 13 has squid 6",
      facts.squidSays = "Squid Cache: Version 5.7\nconfigure options: '--with-openssl'\n");
}

TEST(Doctor, TellsNixosUsersOfTheModule) {
  const auto complaints = without([](DoctorFacts& facts) {
    facts.nixos = true;
    facts.systemdVersion = "258.5";
    facts.missingPrograms = {{"nft", "nftables"}};
    facts.squidSays.reset();
    facts.network.filterRefusal = "no such table";
    facts.kernel.clockSynchronized = false;
  });
  EXPECT_FALSE(complaints.contains("apt-get")) << complaints;
  EXPECT_TRUE(
      complaints.contains("there is no program nft | set services.agentmachine.enable, which brings it; "
                          "then: nixos-rebuild switch"))
      << complaints;
}

TEST(Doctor, ChecksUsersAndDirectories) {
  EXPECT_COMPLAINT("problem fix users: there is no user \"agentmachine-proxy\" | systemd-sysusers",
                   facts.missingUsers = {"agentmachine-proxy"});
  EXPECT_COMPLAINT("problem fix users: there is no user \"opencode-agent\" | systemd-sysusers",
                   facts.missingUsers = {"opencode-agent"});
  EXPECT_COMPLAINT(
      "problem fix directories: there is no directory /var/lib/agentmachine/machines | systemd-tmpfiles "
      "--create",
      facts.directories[0].mode.reset());
  EXPECT_COMPLAINT(
      "problem fix directories: /var/lib/agentmachine/machines has mode 0755, should have 0700 at most | "
      "systemd-tmpfiles --create",
      facts.directories[0].mode = 040755);
}

TEST(Doctor, ChecksSettings) {
  EXPECT_COMPLAINT(
      "problem settings: agentmachine.conf:1: bridg is no setting | mend the file: agentmachine(1), "
      "SETTINGS, "
      "lists the keys",
      facts.settingsProblem = "agentmachine.conf:1: bridg is no setting");
}

TEST(Doctor, ChecksTheKernel) {
  EXPECT_COMPLAINT(
      "problem kernel: the kernel has no seccomp filters | boot a kernel with CONFIG_SECCOMP_FILTER",
      facts.kernel.seccomp = false);
  EXPECT_COMPLAINT(
      "problem kernel: no user namespace can be made | sysctl -w user.max_user_namespaces=65536, or boot a "
      "kernel with CONFIG_USER_NS",
      (facts.kernel.userNamespaces = false, facts.fileSystems[0].idmappable = false));
  EXPECT_COMPLAINT(
      "problem kernel: the kernel has no packet filters for control groups (BPF) | boot a kernel with "
      "CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF",
      facts.kernel.cgroupBpf = false);
  EXPECT_COMPLAINT(
      "problem kernel: no virtual Ethernet interface can be made | modprobe veth, or boot a kernel with "
      "CONFIG_VETH",
      facts.kernel.veth = false);
  EXPECT_COMPLAINT(
      "problem kernel: no bridge can be made | modprobe bridge, or boot a kernel with CONFIG_BRIDGE",
      facts.kernel.bridge = false);
  EXPECT_COMPLAINT(
      "warning kernel: the bandwidth of an interface can't be limited | modprobe sch_tbf, or boot a kernel "
      "with "
      "CONFIG_NET_SCH_TBF",
      facts.kernel.bandwidth = false);
  EXPECT_COMPLAINT(
      "warning kernel: connections of others can't be cut | boot a kernel with CONFIG_INET_DIAG_DESTROY",
      facts.kernel.socketDestroy = false);
  EXPECT_COMPLAINT(
      "warning kernel: there are no loop devices | modprobe loop, or boot a kernel with CONFIG_BLK_DEV_LOOP",
      facts.kernel.loopDevices = false);
}

TEST(Doctor, ChecksControlGroups) {
  EXPECT_COMPLAINT(
      "problem cgroups: /sys/fs/cgroup is not cgroup v2 | boot without systemd.unified_cgroup_hierarchy=0 on "
      "the kernel's command line",
      facts.kernel.cgroup2 = false);
  for (const std::string name : {"memory", "pids", "cpu", "io"})
    EXPECT_EQ(without([&](DoctorFacts& facts) { facts.kernel.controllers.erase(name); }),
              "problem cgroups: cgroup v2 has no controller \"" + name +
                  "\" here | boot without cgroup_disable=" + name +
                  " on the kernel's command line, or with cgroup_enable=" + name + "\n");
}

TEST(Doctor, ChecksUnits) {
  EXPECT_COMPLAINT(
      "problem fix units: agentmachine-proxy.service is not running (failed) | systemctl enable --now "
      "agentmachine-proxy.service",
      facts.units[1].active = "failed");
  EXPECT_COMPLAINT(
      "problem units: agentmachine-proxy.service is masked, so somebody switched it off | systemctl unmask "
      "agentmachine-proxy.service && systemctl enable --now agentmachine-proxy.service",
      facts.units[1].load = "masked");
  EXPECT_COMPLAINT(
      "problem units: agentmachine-network.service is not installed | install agentmachine again, then: "
      "systemctl daemon-reload",
      facts.units[0].load = "not-found");
  EXPECT_COMPLAINT(
      "warning fix units: agentmachine-network.service is not enabled: it does not start when the host boots "
      "| "
      "systemctl enable agentmachine-network.service",
      facts.units[0].enabled = "disabled");
  EXPECT_COMPLAINT(
      "problem fix units: agentmachine-render.service is not running (failed) | systemctl enable --now "
      "agentmachine-render.service",
      facts.units[2].active = "failed");
  EXPECT_COMPLAINT(
      "problem fix units: agentmachine-filter.service is not running (inactive) | systemctl enable --now "
      "agentmachine-filter.service",
      facts.units[3].active = "inactive");
  EXPECT_EQ("", without([](DoctorFacts& facts) { facts.units[2].active = "inactive"; }))
      << "no machines at the last boot";
}

TEST(Doctor, ChecksTheNetwork) {
  EXPECT_COMPLAINT(
      "problem network: the bridge's network 10.213.0.1/16 overlaps the host's route to 10.0.0.0/8 through "
      "eth0 "
      "| choose another `address` in /etc/agentmachine/agentmachine.conf, then: systemctl restart "
      "agentmachine-network agentmachine-proxy",
      facts.network.overlap = "10.0.0.0/8 through eth0");
  EXPECT_COMPLAINT(
      "problem fix network: the bridge agents0 is missing, down or without its address 10.213.0.1/16 | "
      "systemctl "
      "reload-or-restart agentmachine-network.service",
      facts.network.bridge = false);
  EXPECT_COMPLAINT(
      "problem packet-filter: the packet filter can't be loaded: nft: no | boot a kernel with "
      "CONFIG_NF_TABLES, "
      "CONFIG_NF_TABLES_BRIDGE, CONFIG_NF_TABLES_INET and CONFIG_NFT_CONNLIMIT, and: apt-get install "
      "nftables",
      facts.network.filterRefusal = "nft: no");
  EXPECT_COMPLAINT(
      "problem fix packet-filter: the packet filter is not in place: an nft table \"agentmachine\" is "
      "missing | "
      "systemctl reload-or-restart agentmachine-network.service",
      facts.network.filter = FilterState::missing);
  EXPECT_COMPLAINT(
      "problem fix packet-filter: the packet filter was altered: its rules are not those that the settings "
      "give "
      "| systemctl reload-or-restart agentmachine-network.service",
      facts.network.filter = FilterState::altered);
}

TEST(Doctor, ChecksImages) {
  EXPECT_COMPLAINT(
      "problem images: there is no image | agentmachine image build, or: agentmachine image import TARBALL",
      facts.images = 0);
  EXPECT_COMPLAINT(
      "problem images: the image of machine agent-ada is gone | agentmachine rm ada (its workspace is kept), "
      "and "
      "create it again",
      facts.machines[0].imagePresent = false);
}

TEST(Doctor, ChecksFileSystems) {
  EXPECT_COMPLAINT(
      "problem file-systems: the file system of /var/lib/agentmachine (ext2/ext3) can't map user ids "
      "(mount_setattr(2)) | use ext4, xfs, btrfs or tmpfs there",
      facts.fileSystems[0].idmappable = false);
  EXPECT_COMPLAINT(
      "warning file-systems: /var/lib/agentmachine has 200 MiB left | make room; agentmachine image prune "
      "removes images that no machine has",
      facts.fileSystems[0].availableBytes = 200u << 20);
  EXPECT_COMPLAINT(
      "problem file-systems: /var/lib/agentmachine has 63 MiB left | make room; agentmachine image prune "
      "removes "
      "images that no machine has",
      facts.fileSystems[0].availableBytes = 63u << 20);
  EXPECT_COMPLAINT(
      "warning file-systems: /var/lib/agentmachine has 4 % of its inodes left | make room; agentmachine "
      "image "
      "prune removes images that no machine has",
      facts.fileSystems[0].availableInodesPercent = 4);
  EXPECT_COMPLAINT(
      "problem file-systems: /var/lib/agentmachine has 0 % of its inodes left | make room; agentmachine "
      "image "
      "prune removes images that no machine has",
      facts.fileSystems[0].availableInodesPercent = 0);
  EXPECT_EQ("", without([](DoctorFacts& facts) { facts.fileSystems[0].availableInodesPercent.reset(); }));
}

TEST(Doctor, ChecksTheClock) {
  EXPECT_COMPLAINT(
      "warning clock: the clock is not synchronized | apt-get install systemd-timesyncd, then: timedatectl "
      "set-ntp true",
      facts.kernel.clockSynchronized = false);
}

TEST(Doctor, ChecksTheState) {
  EXPECT_COMPLAINT(
      "problem state: read /x/machine.json: nonsense | restore that directory from a backup, or remove it: "
      "the "
      "workspace is elsewhere",
      facts.stateProblem = "read /x/machine.json: nonsense");
}

TEST(Doctor, ChecksMachines) {
  EXPECT_COMPLAINT(
      "problem machines: /etc/systemd/nspawn/agent-ada.nspawn replaces the settings of machine agent-ada as "
      "a "
      "whole, so it does not start | rm /etc/systemd/nspawn/agent-ada.nspawn",
      facts.machines[0].settingsOverride = "/etc/systemd/nspawn/agent-ada.nspawn");
  EXPECT_COMPLAINT(
      "warning machines: /etc/systemd/nspawn/agent-ada.nspawn replaces the settings of machine agent-ada as "
      "a "
      "whole, as `allow_settings_override` tolerates | rm /etc/systemd/nspawn/agent-ada.nspawn",
      (facts.settings.allowSettingsOverride = true,
       facts.machines[0].settingsOverride = "/etc/systemd/nspawn/agent-ada.nspawn"));
  EXPECT_COMPLAINT(
      "problem fix machines: of machine agent-ada is missing: /run/a /run/b | systemctl restart "
      "agentmachine-render.service",
      facts.machines[0].missing = (std::vector<std::string>{"/run/a", "/run/b"}));
  EXPECT_COMPLAINT(
      "problem fix machines: of machine agent-ada was altered: /run/a | systemctl restart "
      "agentmachine-render.service",
      facts.machines[0].altered = {"/run/a"});
  EXPECT_COMPLAINT(
      "problem fix machines: machine agent-ada runs, and the packet filter does not know it | systemctl "
      "reload-or-restart agentmachine-network.service",
      facts.machines[0].filterKnows = false);
  EXPECT_EQ("", without([](DoctorFacts& facts) {
              facts.machines[0].running = facts.machines[0].filterKnows = false;
            }));
  EXPECT_COMPLAINT(
      "problem machines: key file /etc/k of machine agent-ada has mode 0644: others can use it | chown root: "
      "/etc/k && chmod 0400 /etc/k",
      (facts.machines[0].keyFile = "/etc/k",
       facts.machines[0].keyProblem = "has mode 0644: others can use it"));
  EXPECT_COMPLAINT(
      "warning drop-ins: /etc/x.conf is an administrator's, and wins over what agentmachine sets | read it; "
      "systemctl cat systemd-nspawn@agent-ID shows what holds",
      facts.dropIns = {"/etc/x.conf"});
}

TEST(Doctor, ChecksLeftovers) {
  EXPECT_COMPLAINT(
      "warning leftovers: /run/machines/agent-old is left over from a machine that is gone or ended | rm "
      "/run/machines/agent-old",
      facts.leftovers = (std::vector<Leftover>{{"/run/machines/agent-old", "rm /run/machines/agent-old"}}));
}

TEST(SystemdVersion, IsReadAsDistributionsWriteIt) {
  const auto is = [](const char* text, int major, int minor) {
    EXPECT_EQ(SystemdVersion::parse(text), (SystemdVersion{major, minor})) << text;
  };
  is("257.13-1~deb13u1", 257, 13);
  is("257", 257, 0);
  is("258~rc1", 258, 0);
  is("v257", 0, 0);
  is("", 0, 0);
  is("257.", 257, 0);
}

TEST(SystemdVersion, AnOldOneIsRefusedByName) {
  EXPECT_NO_THROW(checkSystemdVersion("257.4"));
  try {
    checkSystemdVersion("256.7-3");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "this host runs systemd 256.7-3, and agentmachine needs 257 or newer, as Debian 13 "
                 "has: upgrade the host");
  }
}

}  // namespace

}  // namespace agentmachine
