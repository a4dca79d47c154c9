#include "guest/filter.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <memory>
#include <string>

#include <fcntl.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/error.h"

namespace agentmachine {

namespace {

// The allow-list. It lies within systemd's @system-service less @privileged, @resources, @mount, @swap,
// @reboot, @module and @raw-io (systemd.exec(5), SystemCallFilter=; tests/lab/suites/inside compares), and
// leaves out more, which the remarks name. A call that is not here gives EPERM, one that libseccomp has never
// heard of ENOSYS.
constexpr CallGroup allowed[] = {
    // Without io_setup… and io_uring_…: asynchronous I/O past the filter, and a kernel attack surface of its
    // own.
    {"reading and writing",
     "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup "
     "dup2 dup3 "
     "pipe pipe2 sendfile splice tee copy_file_range readahead fadvise64 fsync fdatasync syncfs "
     "sync_file_range "
     "flock fcntl"},
    // ioctl: see `arguments`.
    {"devices and terminals", "ioctl"},
    // Without chown and its kin (@privileged), name_to_handle_at, statmount, listmount; without sync, which
    // waits
    // for every file system of the host.
    // openat2 passes its mode in memory, where a filter can't look. open, creat, mknod, chmod and their kin:
    // see
    // `arguments`.
    {"files and directories",
     "open openat creat access faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs "
     "getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir link linkat symlink symlinkat readlink "
     "readlinkat "
     "rename renameat renameat2 unlink unlinkat mknod mknodat truncate ftruncate fallocate chmod fchmod "
     "fchmodat "
     "fchmodat2 umask utime utimes futimesat utimensat getxattr lgetxattr fgetxattr setxattr lsetxattr "
     "fsetxattr "
     "listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr getxattrat setxattrat "
     "listxattrat "
     "removexattrat inotify_init inotify_init1 inotify_add_watch inotify_rm_watch"},
    {"waiting for events",
     "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 "
     "eventfd "
     "eventfd2 signalfd signalfd4"},
    // Without userfaultfd, remap_file_pages, pkey_…, memfd_secret, mbind and set_mempolicy (@resources).
    {"memory",
     "brk mmap munmap mprotect mremap madvise msync mseal membarrier mlock mlock2 mlockall munlock "
     "munlockall "
     "memfd_create get_mempolicy"},
    // Without ptrace, process_vm_…, process_madvise, pidfd_getfd, kcmp: other processes' memory and
    // descriptors.
    // Without unshare, setns and personality; clone: see `arguments`; clone3 passes its flags in memory,
    // where a
    // filter can't look: glibc and Bun take clone when it gives ENOSYS.
    {"processes and threads",
     "clone fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill rt_sigqueueinfo "
     "rt_tgsigqueueinfo pidfd_open pidfd_send_signal prctl arch_prctl set_tid_address set_robust_list "
     "get_robust_list rseq set_thread_area get_thread_area futex futex_waitv restart_syscall setpgid getpgid "
     "getpgrp "
     "setsid getsid getpid getppid gettid"},
    {"signals",
     "rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigreturn sigaltstack "
     "pause"},
    // Without all that changes users: there is one, and no way to be another.
    {"who one is", "getuid geteuid getgid getegid getresuid getresgid getgroups capget"},
    // Without setpriority, setrlimit, sched_set… and ioprio_set (@resources). prlimit64 can only lower.
    {"what one has and may use",
     "prlimit64 getrlimit getrusage getpriority ioprio_get sched_yield sched_getaffinity sched_getattr "
     "sched_getparam "
     "sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval getcpu sysinfo "
     "uname "
     "times getrandom"},
    // Without all that sets a clock, adjtimex's reading too.
    {"time",
     "time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep alarm getitimer setitimer "
     "timer_create "
     "timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime "
     "timerfd_settime"},
    // socket: see `arguments`.
    {"sockets",
     "socket socketpair bind connect listen accept accept4 shutdown getsockname getpeername getsockopt "
     "setsockopt "
     "sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg"},
    // The machine has a namespace of its own for these. Without POSIX message queues.
    {"System V IPC", "shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl"},
    {"giving up more", "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"},
};

// For these, "there is no such call" makes callers take another.
constexpr std::string_view pretendedMissing =
    "clone3 openat2 futex_wait futex_wake futex_requeue file_getattr file_setattr";

constexpr std::array namespaceFlags = {CLONE_NEWNS,   CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC,
                                       CLONE_NEWUSER, CLONE_NEWPID,    CLONE_NEWNET};

// TIOCSTI types into, TIOCLINUX pastes into a terminal that others read; TIOCSETD loads line disciplines.
constexpr std::array refusedRequests = {TIOCSTI, TIOCLINUX, TIOCSETD};

// Every number below this is asked for its name; the calls of Linux 6.16 end at 468.
constexpr int lastCall = 1023;

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    found.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return found;
}

/// libseccomp's functions return a negative errno.
void check(int result, const std::string& what) {
  if (result >= 0) return;
  errno = -result;
  throw errnoError("make the system call filter: " + what);
}

/// Compares one argument, all 64 bits of it. libseccomp's own macros are no C++.
scmp_arg_cmp argument(unsigned index, scmp_compare how, std::uint64_t value) {
  return {index, how, value, 0};
}
scmp_arg_cmp argumentMasked(unsigned index, std::uint64_t mask, std::uint64_t value) {
  return {index, SCMP_CMP_MASKED_EQ, mask, value};
}

int resolve(std::string_view name) {
  return seccomp_syscall_resolve_name(std::string(name).c_str());
}

class Filter {
 public:
  explicit Filter(std::uint32_t otherwise) : context_(seccomp_init(otherwise), seccomp_release) {
    if (!context_) throw Error("make the system call filter: no memory");
    // A tree instead of a list: a call costs nine comparisons, not three hundred.
    check(seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2), "optimize");
    // 32-bit and x32 calls have numbers of their own, which this filter does not know.
    check(seccomp_attr_set(context_.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "architecture");
  }

  void add(std::uint32_t action, int call, std::vector<scmp_arg_cmp> arguments = {}) {
    check(seccomp_rule_add_array(context_.get(), action, call, static_cast<unsigned>(arguments.size()),
                                 arguments.data()),
          "call " + std::to_string(call));
  }

  [[nodiscard]] std::vector<sock_filter> program() const {
    std::size_t bytes = 0;
    check(seccomp_export_bpf_mem(context_.get(), nullptr, &bytes), "size");
    std::vector<sock_filter> result(bytes / sizeof(sock_filter));
    check(seccomp_export_bpf_mem(context_.get(), result.data(), &bytes), "export");
    return result;
  }

 private:
  std::unique_ptr<void, void (*)(scmp_filter_ctx)> context_;
};

std::vector<sock_filter> callFilter() {
  Filter filter(SCMP_ACT_ERRNO(ENOSYS));
  std::vector<int> named;
  const auto addAll = [&](std::uint32_t action, const std::vector<std::string_view>& names) {
    for (const auto name : names)
      // Below 0: another architecture's, or unknown to libseccomp.
      if (const int call = resolve(name); call >= 0 && std::ranges::find(named, call) == named.end()) {
        if (action != SCMP_ACT_ERRNO(ENOSYS)) filter.add(action, call);
        named.push_back(call);
      }
  };
  addAll(SCMP_ACT_ALLOW, allowedSystemCalls());
  addAll(SCMP_ACT_ERRNO(ENOSYS), words(pretendedMissing));
  for (int call = 0; call <= lastCall; ++call) {
    const std::unique_ptr<char, void (*)(void*)> name(
        seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, call), free);
    if (name && std::ranges::find(named, call) == named.end()) filter.add(SCMP_ACT_ERRNO(EPERM), call);
  }
  return filter.program();
}

/// No setuid and no setgid file, by any call. systemd's RestrictSUIDSGID= leaves out O_TMPFILE (257,
/// seccomp_restrict_sxid). mkdir(2) ignores the bits.
void addSetIdRules(Filter& filter) {
  struct Call {
    const char* name;
    unsigned mode;  ///< which argument
    bool opens;     ///< the mode counts where the argument before it says that a file is made
  };
  constexpr Call calls[] = {{"open", 2, true},    {"openat", 3, true},    {"creat", 1, false},
                            {"mknod", 1, false},  {"mknodat", 2, false},  {"chmod", 1, false},
                            {"fchmod", 1, false}, {"fchmodat", 2, false}, {"fchmodat2", 2, false}};
  constexpr std::uint64_t making[] = {O_CREAT, O_TMPFILE & ~O_DIRECTORY};
  for (const auto& [name, mode, opens] : calls) {
    const int call = resolve(name);
    if (call < 0) continue;  // of another architecture
    for (const std::uint64_t bit : {S_ISUID, S_ISGID}) {
      const auto set = argumentMasked(mode, bit, bit);
      if (!opens) filter.add(SCMP_ACT_ERRNO(EPERM), call, {set});
      for (const auto flag : making)
        if (opens) filter.add(SCMP_ACT_ERRNO(EPERM), call, {argumentMasked(mode - 1, flag, flag), set});
    }
  }
}

std::vector<sock_filter> argumentFilter() {
  Filter filter(SCMP_ACT_ALLOW);
  const int clone = resolve("clone"), socket = resolve("socket"), pair = resolve("socketpair");
  for (const auto flag : namespaceFlags) {
    const auto bit = static_cast<std::uint32_t>(flag);
    filter.add(SCMP_ACT_ERRNO(EPERM), clone, {argumentMasked(0, bit, bit)});
  }
  // The kernel reads 32 bits of a request; comparing all 64 would let it pass with one of the others set.
  for (const auto request : refusedRequests)
    filter.add(SCMP_ACT_ERRNO(EPERM), resolve("ioctl"), {argumentMasked(1, UINT_MAX, request)});

  addSetIdRules(filter);

  // AF_UNIX (1), and of AF_INET (2) TCP and UDP; what glibc looks up by netlink it does without.
  const std::uint32_t family = SCMP_ACT_ERRNO(EAFNOSUPPORT), type = SCMP_ACT_ERRNO(ESOCKTNOSUPPORT),
                      protocol = SCMP_ACT_ERRNO(EPROTONOSUPPORT);
  static_assert(AF_UNSPEC == 0 && AF_UNIX == 1 && AF_INET == 2);
  filter.add(family, socket, {argument(0, SCMP_CMP_EQ, AF_UNSPEC)});
  filter.add(family, socket, {argument(0, SCMP_CMP_GT, AF_INET)});
  filter.add(family, pair, {argument(0, SCMP_CMP_NE, AF_UNIX)});
  // Above the type are SOCK_CLOEXEC and SOCK_NONBLOCK.
  constexpr unsigned typeMask = 0xf;
  for (unsigned other = 0; other <= typeMask; ++other)
    if (other != SOCK_STREAM && other != SOCK_DGRAM)
      filter.add(type, socket, {argument(0, SCMP_CMP_EQ, AF_INET), argumentMasked(1, typeMask, other)});
  for (unsigned other = 0; other < IPPROTO_UDP; ++other)
    if (other != IPPROTO_IP && other != IPPROTO_TCP)
      filter.add(protocol, socket, {argument(0, SCMP_CMP_EQ, AF_INET), argument(2, SCMP_CMP_EQ, other)});
  filter.add(protocol, socket, {argument(0, SCMP_CMP_EQ, AF_INET), argument(2, SCMP_CMP_GT, IPPROTO_UDP)});
  return filter.program();
}

void load(const std::vector<sock_filter>& filter) {
  const sock_fprog program{static_cast<unsigned short>(filter.size()),
                           const_cast<sock_filter*>(filter.data())};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0) throw errnoError("filter system calls");
}

}  // namespace

std::span<const CallGroup> allowedCallGroups() {
  return allowed;
}

std::vector<std::string_view> allowedSystemCalls() {
  std::vector<std::string_view> names;
  for (const auto& group : allowed) std::ranges::move(words(group.calls), std::back_inserter(names));
  return names;
}

SystemCallFilter makeSystemCallFilter() {
  return {callFilter(), argumentFilter()};
}

void load(const SystemCallFilter& filter) {
  load(filter.calls);  // has seccomp on its list
  load(filter.arguments);
}

}  // namespace agentmachine
