#include "plan/nspawn.h"

#include <algorithm>
#include <format>

#include "plan/ini.h"
#include "plan/opencode.h"
#include "util/text.h"

namespace agentmachine {

namespace {

// Where PID 1 and its credentials are inside; the image has the mount point of the first, /run is nspawn's
// tmpfs.
constexpr auto initInside = "/usr/lib/agentmachine/init";
constexpr auto credentialsInside = "/run/agentmachine/credentials";

// What PID 1 needs to start the payload as `agent`, hand it its terminal and end it. The payload has none of
// them.
constexpr auto keptCapabilities = {"CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"};
// nspawn's own default set (systemd-nspawn(1), --capability=); the rest is never given.
constexpr auto nspawnCapabilities = {"CAP_AUDIT_CONTROL", "CAP_AUDIT_WRITE",      "CAP_CHOWN",
                                     "CAP_DAC_OVERRIDE",  "CAP_DAC_READ_SEARCH",  "CAP_FOWNER",
                                     "CAP_FSETID",        "CAP_IPC_OWNER",        "CAP_KILL",
                                     "CAP_LEASE",         "CAP_LINUX_IMMUTABLE",  "CAP_MKNOD",
                                     "CAP_NET_ADMIN",     "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
                                     "CAP_NET_RAW",       "CAP_SETFCAP",          "CAP_SETGID",
                                     "CAP_SETPCAP",       "CAP_SETUID",           "CAP_SYS_ADMIN",
                                     "CAP_SYS_BOOT",      "CAP_SYS_CHROOT",       "CAP_SYS_NICE",
                                     "CAP_SYS_PTRACE",    "CAP_SYS_RESOURCE",     "CAP_SYS_TTY_CONFIG"};

// What neither PID 1 nor the payload calls, refused for both. The payload has an allow-list besides
// (guest/filter.cc). nspawn leaves out a call that is named here itself or by one of its own groups, so some
// calls are named beside their group.
constexpr auto refusedSystemCalls =
    "~@aio @clock @cpu-emulation @debug @keyring @module @mount @obsolete @pkey @raw-io @reboot @swap "
    // keys, asynchronous I/O, other processes
    "add_key keyctl request_key io_uring_setup io_uring_enter io_uring_register kcmp process_madvise "
    "process_vm_readv process_vm_writev ptrace pidfd_getfd "
    // namespaces, mounts, files by handle
    "unshare setns chroot pivot_root mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig "
    "fsmount "
    "fspick name_to_handle_at open_by_handle_at "
    // the kernel's own
    "acct bpf fanotify_init fanotify_mark perf_event_open personality quotactl quotactl_fd setdomainname "
    "sethostname syslog userfaultfd vhangup "
    // scheduling and resources
    "ioprio_set mbind migrate_pages move_pages sched_setaffinity sched_setattr sched_setparam "
    "sched_setscheduler "
    "set_mempolicy set_mempolicy_home_node setpriority";

std::string droppedCapabilities() {
  std::vector<std::string> dropped;
  for (const std::string_view capability : nspawnCapabilities)
    if (std::ranges::find(keptCapabilities, capability) == keptCapabilities.end())
      dropped.emplace_back(capability);
  return join(dropped, " ");
}

/// A tmpfs for everybody, of `size` MiB. It counts as the machine's memory, and so do its inodes: one for 8
/// KiB.
std::string scratch(std::string_view path, std::uint64_t size) {
  return std::format("{}:mode=1777,size={}M,nr_inodes={},nosuid,nodev", path, size, size * 128);
}

std::string quoteWords(const std::vector<std::string>& words) {
  std::vector<std::string> quoted;
  for (const auto& word : words) quoted.push_back(quoteWord(word));
  return join(quoted, " ");
}

std::vector<std::string> initCommand(const Card& card) {
  std::vector<std::string> command = {initInside, "--wait-interface=host0", "--user=agent",
                                      "--directory=/workspace",
                                      std::format("--stop-timeout={}", card.stopTimeout.count())};
  if (card.command.empty())
    command.push_back(
        std::format("--secret-env=OPENCODE_SERVER_PASSWORD={}/server-password", credentialsInside));
  command.push_back("--");
  append(command, payloadCommand(card));
  return command;
}

}  // namespace

std::string renderNspawnSettings(const Machine& machine, const Settings& settings, const std::string& init) {
  const Card& card = machine.card;
  const auto paths = machinePaths(settings, card.id, machine.allocation.address);
  IniFile file;
  file.comment("Rendered by agentmachine from the card of " + card.id.str() + "; changes are lost.")
      .section("Exec")
      .set("Boot", "no")
      .set("Parameters", quoteWords(initCommand(card)));
  for (const auto& [name, value] : machineEnvironment(card, egressOf(settings)))
    file.set("Environment", quoteWord(std::format("{}={}", name, value)));
  file.set("PrivateUsers", std::format("{}:{}", machine.allocation.uidBase, uidRangeSize))
      .set("DropCapability", droppedCapabilities())
      .set("NoNewPrivileges", "yes")
      .set("SystemCallFilter", refusedSystemCalls)
      .set("NotifyReady", "yes")
      // Without it nspawn kills the machine at once when it is told to stop (systemd-nspawn(1),
      // --kill-signal=).
      .set("KillSignal", "SIGTERM")
      .set("LimitNOFILE", std::to_string(card.limits.maxOpenFiles))
      .set("LimitCORE", "0")
      .set("ResolvConf", "off")
      .set("Timezone", "off")
      .set("LinkJournal", "no");
  // Paths need no escaping: AbsolutePath has no ':', no space and no backslash.
  file.section("Files")
      .set("ReadOnly", "yes")
      .set("PrivateUsersOwnership", "map")
      .set("BindReadOnly", init + ":" + initInside)
      .set("BindReadOnly", paths.opencode + ":/etc/opencode/opencode.json:idmap")
      .set("BindReadOnly", paths.credentials + ":" + credentialsInside + ":idmap")
      .set("BindReadOnly", std::format("{}:{}:idmap", paths.notices, noticesDirectory))
      .set("Bind", paths.workspace + ":/workspace")
      // Without /run, which is root's alone: these are all the places that the agent can write.
      .set("TemporaryFileSystem", scratch("/tmp", tmpSizeMb(card.limits)))
      .set("TemporaryFileSystem", scratch("/home/agent", homeSizeMb(card.limits)))
      .set("TemporaryFileSystem", scratch("/dev/shm", homeSizeMb(card.limits)));
  if (card.apiKeyDelivery == KeyDelivery::credential)
    file.set("BindReadOnly", std::format("{}:{}:idmap", directoryOf(paths.agentKey), agentKeyDirectory));
  file.section("Network")
      .set("Private", "yes")
      .set("VirtualEthernet", "no")
      .set("VirtualEthernetExtra", hostInterface(settings, machine.allocation.address) + ":host0");
  return file.str();
}

}  // namespace agentmachine
