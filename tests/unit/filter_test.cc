// The system call filters as programs: an interpreter of classic BPF asks them, so that no call is made.
#include "guest/filter.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

namespace agentmachine {
namespace {

/// What the kernel would be told; libseccomp uses only these instructions.
std::uint32_t ask(const std::vector<sock_filter>& program, const seccomp_data& data) {
  std::uint32_t accumulator = 0;
  for (std::size_t at = 0; at < program.size(); ++at) {
    const auto& [code, jumpTrue, jumpFalse, k] = program[at];
    const auto jump = [&](bool condition) { at += condition ? jumpTrue : jumpFalse; };
    switch (code) {
      case BPF_LD | BPF_W | BPF_ABS:
        memcpy(&accumulator, reinterpret_cast<const char*>(&data) + k, sizeof accumulator);
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        accumulator &= k;
        break;
      case BPF_JMP | BPF_JA:
        at += k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        jump(accumulator == k);
        break;
      case BPF_JMP | BPF_JGT | BPF_K:
        jump(accumulator > k);
        break;
      case BPF_JMP | BPF_JGE | BPF_K:
        jump(accumulator >= k);
        break;
      case BPF_JMP | BPF_JSET | BPF_K:
        jump((accumulator & k) != 0);
        break;
      case BPF_RET | BPF_K:
        return k;
      default:
        ADD_FAILURE() << "instruction " << code;
        return 0;
    }
  }
  ADD_FAILURE() << "ran off its end";
  return 0;
}

#ifdef __x86_64__
constexpr std::uint32_t native = AUDIT_ARCH_X86_64;
#else
constexpr std::uint32_t native = AUDIT_ARCH_AARCH64;
#endif
constexpr int allowed = 0;
constexpr int killed = -1;

/// 0, the errno that the call gives, or `killed`.
int answer(long call, std::vector<std::uint64_t> arguments = {}, std::uint32_t architecture = native) {
  static const SystemCallFilter filter = makeSystemCallFilter();
  seccomp_data data{static_cast<int>(call), architecture, 0, {}};
  std::copy(arguments.begin(), arguments.end(), data.args);
  for (const auto* program : {&filter.calls, &filter.arguments}) {
    const std::uint32_t action = ask(*program, data);
    if (action == SECCOMP_RET_KILL_PROCESS) return killed;
    if ((action & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_ERRNO)
      return static_cast<int>(action & SECCOMP_RET_DATA);
    EXPECT_EQ(action, SECCOMP_RET_ALLOW);
  }
  return allowed;
}

TEST(Filter, WhatProgramsNeedIsAllowed) {
  for (const long call :
       {SYS_read, SYS_openat, SYS_execve, SYS_mmap, SYS_futex, SYS_socket, SYS_statx, SYS_seccomp,
        SYS_prlimit64, SYS_rseq, SYS_getrandom, SYS_epoll_pwait2, SYS_close_range})
    EXPECT_EQ(answer(call, {1, 1}), allowed) << call;
}

TEST(Filter, TheRestIsRefused) {
  for (const long call : {SYS_ptrace,
                          SYS_bpf,
                          SYS_perf_event_open,
                          SYS_io_uring_setup,
                          SYS_keyctl,
                          SYS_userfaultfd,
                          SYS_unshare,
                          SYS_setns,
                          SYS_mount,
                          SYS_open_by_handle_at,
                          SYS_setuid,
                          SYS_fchownat,
                          SYS_personality,
                          SYS_reboot,
                          SYS_sync,
                          SYS_adjtimex,
                          SYS_process_vm_readv,
                          SYS_pidfd_getfd,
                          SYS_setpriority,
                          SYS_sched_setscheduler})
    EXPECT_EQ(answer(call), EPERM) << call;
}

TEST(Filter, WhatCallersDoWithoutIsMissing) {
  EXPECT_EQ(answer(SYS_clone3), ENOSYS);
  EXPECT_EQ(answer(1000), ENOSYS);  // there is none yet
}

TEST(Filter, ForeignCallsKill) {
#ifdef __x86_64__
  EXPECT_EQ(answer(20, {}, AUDIT_ARCH_I386), killed);
  EXPECT_EQ(answer(0x40000000 | SYS_getpid), killed);  // x32
#endif
  EXPECT_EQ(answer(SYS_getpid, {}, AUDIT_ARCH_S390X), killed);
}

TEST(Filter, NoNewNamespaces) {
  constexpr std::uint64_t thread =
      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SETTLS;
  EXPECT_EQ(answer(SYS_clone, {thread}), allowed);
  for (const int flag :
       {CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET})
    EXPECT_EQ(answer(SYS_clone, {thread | static_cast<std::uint32_t>(flag)}), EPERM) << flag;
}

TEST(Filter, NoTypingIntoTerminals) {
  EXPECT_EQ(answer(SYS_ioctl, {0, TCGETS}), allowed);
  for (const std::uint64_t request : {TIOCSTI, TIOCLINUX, TIOCSETD}) {
    EXPECT_EQ(answer(SYS_ioctl, {0, request}), EPERM);
    EXPECT_EQ(answer(SYS_ioctl, {0, request | std::uint64_t{1} << 32}), EPERM);  // the kernel cuts it off
  }
}

TEST(Filter, NoSetuidFiles) {
  constexpr std::uint64_t plain = 0755, uid = 04755, gid = 02755, high = std::uint64_t{1} << 32;
  for (const long call : {SYS_fchmod, SYS_creat, SYS_chmod, SYS_mknod}) {
    EXPECT_EQ(answer(call, {0, plain}), allowed) << call;
    for (const auto mode : {uid, gid, uid | high}) EXPECT_EQ(answer(call, {0, mode}), EPERM) << call;
  }
  for (const long call : {SYS_fchmodat, SYS_fchmodat2, SYS_mknodat}) {
    EXPECT_EQ(answer(call, {0, 0, plain}), allowed) << call;
    for (const auto mode : {uid, gid}) EXPECT_EQ(answer(call, {0, 0, mode}), EPERM) << call;
  }
  for (const std::uint64_t flags : {O_CREAT | O_WRONLY, O_TMPFILE | O_RDWR}) {
    EXPECT_EQ(answer(SYS_open, {0, flags, plain}), allowed);
    EXPECT_EQ(answer(SYS_openat, {0, 0, flags, plain}), allowed);
    for (const auto mode : {uid, gid}) {
      EXPECT_EQ(answer(SYS_open, {0, flags, mode}), EPERM) << flags;
      EXPECT_EQ(answer(SYS_openat, {0, 0, flags, mode}), EPERM) << flags;
    }
  }
  // Where no file is made, whatever is in that register is no mode.
  EXPECT_EQ(answer(SYS_openat, {0, 0, O_RDONLY | O_DIRECTORY, uid}), allowed);
  EXPECT_EQ(answer(SYS_openat2, {0, 0, 0, 0}), ENOSYS);
}

TEST(Filter, SocketsAreLocalOrTcpOrUdp) {
  constexpr std::uint64_t high = std::uint64_t{1} << 32;
  EXPECT_EQ(answer(SYS_socket, {AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC}), allowed);
  EXPECT_EQ(answer(SYS_socket, {AF_INET, SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP}), allowed);
  EXPECT_EQ(answer(SYS_socket, {AF_INET, SOCK_DGRAM, 0}), allowed);
  for (const std::uint64_t family : std::initializer_list<std::uint64_t>{
           AF_UNSPEC, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK, AF_ALG, AF_INET6 | high, AF_INET | high})
    EXPECT_EQ(answer(SYS_socket, {family, SOCK_STREAM}), EAFNOSUPPORT) << family;
  EXPECT_EQ(answer(SYS_socket, {AF_INET, SOCK_RAW, 0}), ESOCKTNOSUPPORT);
  EXPECT_EQ(answer(SYS_socket, {AF_INET, SOCK_RAW | high, IPPROTO_TCP}), ESOCKTNOSUPPORT);
  EXPECT_EQ(answer(SYS_socket, {AF_INET, SOCK_DGRAM, IPPROTO_ICMP}), EPROTONOSUPPORT);
  EXPECT_EQ(answer(SYS_socket, {AF_INET, SOCK_STREAM, 262}), EPROTONOSUPPORT);  // MPTCP
  EXPECT_EQ(answer(SYS_socketpair, {AF_UNIX, SOCK_STREAM}), allowed);
  EXPECT_EQ(answer(SYS_socketpair, {AF_TIPC, SOCK_STREAM}), EAFNOSUPPORT);
}

}  // namespace
}  // namespace agentmachine
