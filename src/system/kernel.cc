#include "system/kernel.h"

#include <cerrno>

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr auto cgroupRoot = "/sys/fs/cgroup";

/// Whether there is this child, and its exit status is 0.
bool exitsWell(pid_t child) {
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// In a network namespace of its own, which goes with the command.
bool canMakeLink(const std::string& kind) {
  try {
    return runProcess({"unshare", "--net", "ip", "link", "add", "am-probe", "type", kind}).status == 0;
  } catch (const Error&) {
    return false;  // no such program: that is found elsewhere
  }
}

/// In the same way, on the interface that each namespace has.
bool canLimitBandwidth() {
  try {
    return runProcess({"unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1mbit",
                       "burst", "68kb", "latency", "50ms"})
               .status == 0;
  } catch (const Error&) {
    return false;
  }
}

/// A socket of ours, in a network namespace of our own: ss names those that it could destroy.
bool canDestroySockets() {
  const pid_t child = fork();
  if (child == 0) {
    bool destroyed = false;
    try {
      if (unshare(CLONE_NEWNET) == 0) {
        const Fd ours{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        if (ours && listen(ours.get(), 1) == 0)
          destroyed =
              !trim(runProcess({"ss", "--kill", "--tcp", "--listening", "--numeric", "--no-header"}).output)
                   .empty();
      }
    } catch (const Error&) {
      // No such program.
    }
    _exit(destroyed ? 0 : 1);
  }
  return exitsWell(child);
}

/// What timedatectl calls "synchronized": an error below 16 s.
bool isClockSynchronized() {
  timex time{};
  return adjtimex(&time) >= 0 && time.maxerror < 16'000'000;
}

}  // namespace

bool hasCgroupBpf() {
  // As systemd finds out (bpf_firewall_supported): the smallest program is loaded, then attached to nothing.
  const bpf_insn program[] = {
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .src_reg = 0, .off = 0, .imm = 1},
      {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};
  bpf_attr load{};
  load.prog_type = BPF_PROG_TYPE_CGROUP_SKB;
  load.expected_attach_type = BPF_CGROUP_INET_EGRESS;
  load.insns = reinterpret_cast<std::uintptr_t>(program);
  load.insn_cnt = std::size(program);
  load.license = reinterpret_cast<std::uintptr_t>("GPL");
  const Fd loaded{static_cast<int>(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load))};
  if (!loaded) return false;
  bpf_attr attach{};
  attach.attach_type = BPF_CGROUP_INET_EGRESS;
  attach.target_fd = static_cast<std::uint32_t>(-1);
  attach.attach_bpf_fd = static_cast<std::uint32_t>(-1);
  return syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach) < 0 && errno == EBADF;
}

bool hasSeccomp() {
  const std::uint32_t action = SECCOMP_RET_ERRNO;
  return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

bool hasUserNamespaces() {
  const pid_t child = fork();
  if (child == 0) _exit(unshare(CLONE_NEWUSER) == 0 ? 0 : 1);
  return exitsWell(child);
}

KernelFacts kernelFacts() {
  KernelFacts facts;
  struct statfs root{};
  facts.cgroup2 = statfs(cgroupRoot, &root) == 0 && root.f_type == CGROUP2_SUPER_MAGIC;
  if (facts.cgroup2)
    for (auto& name : split(trim(readFile(std::string(cgroupRoot) + "/cgroup.controllers", 65536)), ' '))
      facts.controllers.insert(std::move(name));
  facts.cgroupBpf = hasCgroupBpf();
  facts.seccomp = hasSeccomp();
  facts.userNamespaces = hasUserNamespaces();
  facts.veth = canMakeLink("veth");
  facts.bridge = canMakeLink("bridge");
  facts.bandwidth = canLimitBandwidth();
  facts.socketDestroy = canDestroySockets();
  facts.loopDevices = static_cast<bool>(Fd{open("/dev/loop-control", O_RDWR | O_CLOEXEC)});
  facts.clockSynchronized = isClockSynchronized();
  return facts;
}

}  // namespace agentmachine
