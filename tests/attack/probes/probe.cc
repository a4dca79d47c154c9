// agentmachine-probe CALL [ARG…]: tries one thing that a machine ought to refuse, and says what came of it.
// Static, so that it runs in an image that has no library of ours. Changes nothing that outlives it, also
// where it succeeds, but for the files it is told to write.
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <asm/unistd.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/openat2.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/quota.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "guest/filter.h"

namespace {

using Arguments = std::vector<std::string>;

[[noreturn]] void usage(const std::string& text) {
  dprintf(STDERR_FILENO, "agentmachine-probe: %s\n", text.c_str());
  _exit(2);
}

const std::string& need(const Arguments& arguments, std::size_t index, const char* what) {
  if (index >= arguments.size()) usage(std::string("give ") + what);
  return arguments[index];
}

std::string given(const Arguments& arguments, std::size_t index, const char* otherwise) {
  return index < arguments.size() ? arguments[index] : otherwise;
}

struct Word {
  const char* name;
  long value;
};

// What a card's reader knows by name rather than by number.
constexpr Word words[] = {
    {"unix", AF_UNIX},
    {"inet", AF_INET},
    {"inet6", AF_INET6},
    {"netlink", AF_NETLINK},
    {"packet", AF_PACKET},
    {"vsock", AF_VSOCK},
    {"alg", AF_ALG},
    {"bluetooth", AF_BLUETOOTH},
    {"can", AF_CAN},
    {"tipc", AF_TIPC},
    {"key", AF_KEY},
    {"xdp", AF_XDP},
    {"rds", AF_RDS},
    {"ax25", AF_AX25},
    {"stream", SOCK_STREAM},
    {"dgram", SOCK_DGRAM},
    {"raw", SOCK_RAW},
    {"seqpacket", SOCK_SEQPACKET},
    {"icmp", IPPROTO_ICMP},
    {"tcp", IPPROTO_TCP},
    {"udp", IPPROTO_UDP},
    {"sctp", IPPROTO_SCTP},
    {"mptcp", 262},
    {"udplite", IPPROTO_UDPLITE},
    {"newuser", CLONE_NEWUSER},
    {"newns", CLONE_NEWNS},
    {"newpid", CLONE_NEWPID},
    {"newnet", CLONE_NEWNET},
    {"newipc", CLONE_NEWIPC},
    {"newuts", CLONE_NEWUTS},
    {"newcgroup", CLONE_NEWCGROUP},
    {"newtime", CLONE_NEWTIME},
    {"core", RLIMIT_CORE},
    {"nofile", RLIMIT_NOFILE},
    {"nproc", RLIMIT_NPROC},
    {"memlock", RLIMIT_MEMLOCK},
};

/// A number in C's notation, or one of the words.
long number(const std::string& text) {
  for (const auto& word : words)
    if (text == word.name) return word.value;
  char* end = nullptr;
  errno = 0;
  const long value = static_cast<long>(strtoull(text.c_str(), &end, 0));
  if (text.empty() || *end || errno) usage("\"" + text + "\" is no number and no word that is known");
  return value;
}

/// A path is a string of the program's, so the call sees readable memory.
long openPath(const std::string& path, int flags) {
  return open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
}

long readPath(const Arguments& arguments) {
  const int fd = static_cast<int>(openPath(need(arguments, 0, "a path"), O_RDONLY));
  std::array<char, 8192> buffer;  // a record of /dev/kmsg, which gives no part of one
  if (fd < 0) return -1;
  const long result = read(fd, buffer.data(), buffer.size());
  return result < 0 && errno == EISDIR ? 0 : result;
}

long writePath(const Arguments& arguments) {
  const int fd = static_cast<int>(openPath(need(arguments, 0, "a path"), O_WRONLY));
  if (fd < 0) return -1;
  const std::string text = given(arguments, 1, "");
  return text.empty() ? 0 : write(fd, text.data(), text.size());
}

/// Removed again.
long createPath(const Arguments& arguments) {
  const std::string path = need(arguments, 0, "a path");
  const long result = openPath(path, O_WRONLY | O_CREAT | O_EXCL);
  if (result >= 0) unlink(path.c_str());
  return result;
}

long makeDirectory(const Arguments& arguments) {
  const std::string path = need(arguments, 0, "a path");
  const long result = mkdir(path.c_str(), 0700);
  if (result >= 0) rmdir(path.c_str());
  return result;
}

/// A second name, which is removed again.
long makeHardLink(const Arguments& arguments) {
  const std::string path = need(arguments, 1, "two paths");
  const long result = link(arguments[0].c_str(), path.c_str());
  if (result >= 0) unlink(path.c_str());
  return result;
}

/// Within a few seconds, whatever is at the other side.
long connectTo(int type, const Arguments& arguments) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(number(need(arguments, 1, "ADDRESS PORT"))));
  if (inet_pton(AF_INET, arguments[0].c_str(), &to.sin_addr) != 1) usage(arguments[0] + ": no IPv4 address");
  const int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const timeval patience{3, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) < 0) return -1;
  return type == SOCK_DGRAM ? send(fd, "probe", 5, 0) : 0;
}

/// A name that begins with '@' is an abstract one.
long connectUnix(const Arguments& arguments) {
  std::string path = need(arguments, 0, "a path");
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  if (path.size() >= sizeof to.sun_path) usage("the path is too long");
  path.copy(to.sun_path, sizeof to.sun_path - 1);
  socklen_t length = sizeof to;
  if (path.starts_with('@')) {
    to.sun_path[0] = '\0';
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  }
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  return fd < 0 ? -1 : connect(fd, reinterpret_cast<sockaddr*>(&to), length);
}

/// An ioctl of terminals on one of our own, which becomes the controlling one. `high`: bits that the kernel
/// ignores and a filter that compares 64 of them would not.
long terminalIoctl(unsigned long request, std::uint64_t high) {
  setsid();
  const int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  char name[64];
  if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0)
    usage(std::string("no terminal: ") + strerrorname_np(errno));
  const int terminal = open(name, O_RDWR | O_CLOEXEC);
  if (terminal < 0) usage(std::string(name) + ": " + strerrorname_np(errno));
  char argument[16] = {6};
  return syscall(SYS_ioctl, terminal, request | high << 32, argument);
}

long executableMemory(bool atOnce) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE | (atOnce ? PROT_EXEC : 0),
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return -1;
  return atOnce ? 0 : mprotect(page, 4096, PROT_READ | PROT_EXEC);
}

long executableSharedMemory() {
  const int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0700);
  if (segment < 0) return -1;
  void* at = shmat(segment, nullptr, SHM_EXEC);
  const int code = errno;
  shmctl(segment, IPC_RMID, nullptr);
  errno = code;
  return at == reinterpret_cast<void*>(-1) ? -1 : 0;
}

long setIdBits(const Arguments& arguments) {
  const std::string path = given(arguments, 0, "probe-setuid");
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
  if (fd < 0) return -1;
  const long result = fchmod(fd, 06755);
  const int code = errno;
  unlink(path.c_str());
  errno = code;
  return result;
}

/// A setuid and setgid file, by one of the calls that can make one.
long setIdBy(const Arguments& arguments) {
  const std::string how = need(arguments, 0, "a way"), path = given(arguments, 1, "probe-setid");
  const char* name = path.c_str();
  constexpr mode_t file = 06755;
  constexpr int make = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  open_how openHow{.flags = make, .mode = file, .resolve = 0};
  long result = -1;
  // Not by glibc's functions: they turn one call into another.
  if (how == "open")
    result = syscall(SYS_open, name, make, file);
  else if (how == "openat")
    result = syscall(SYS_openat, AT_FDCWD, name, make, file);
  else if (how == "openat2")
    result = syscall(SYS_openat2, AT_FDCWD, name, &openHow, sizeof openHow);
  else if (how == "creat")
    result = syscall(SYS_creat, name, file);
  else if (how == "mknod")
    result = syscall(SYS_mknod, name, S_IFREG | file, 0);
  else if (how == "mknodat")
    result = syscall(SYS_mknodat, AT_FDCWD, name, S_IFREG | file, 0);
  else if (how == "tmpfile") {
    const long fd = syscall(SYS_openat, AT_FDCWD, path.substr(0, path.rfind('/')).c_str(),
                            O_TMPFILE | O_WRONLY | O_CLOEXEC, file);
    result = fd < 0 ? -1
                    : linkat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(fd)).c_str(), AT_FDCWD, name,
                             AT_SYMLINK_FOLLOW);
  } else {
    const int fd = open(name, make, 0700);
    if (fd < 0) return -1;
    if (how == "chmod")
      result = syscall(SYS_chmod, name, file);
    else if (how == "fchmod")
      result = syscall(SYS_fchmod, fd, file);
    else if (how == "fchmodat")
      result = syscall(SYS_fchmodat, AT_FDCWD, name, file);
    else if (how == "fchmodat2")
      result = syscall(SYS_fchmodat2, AT_FDCWD, name, file, 0);
    else
      usage(how + ": no way to set the bits");
  }
  // A call may be obeyed but for these bits.
  struct stat st{};
  if (result >= 0 && (stat(name, &st) < 0 || !(st.st_mode & (S_ISUID | S_ISGID)))) {
    errno = ENODATA;
    result = -1;
  }
  const int code = errno;
  if (unlink(name) < 0) rmdir(name);
  errno = code;
  return result < 0 ? -1 : 0;
}

/// A file that has CAP_SYS_ADMIN when it is run.
long setCapability(const Arguments& arguments) {
  const std::string path = given(arguments, 0, "probe-capability");
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
  if (fd < 0) return -1;
  vfs_cap_data data{};
  data.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE;
  data.data[0].permitted = 1U << CAP_SYS_ADMIN;
  const long result = fsetxattr(fd, "security.capability", &data, sizeof data, 0);
  const int code = errno;
  unlink(path.c_str());
  errno = code;
  return result;
}

long makeDevice(const Arguments& arguments) {
  const std::string path = given(arguments, 0, "probe-device");
  const long result = mknod(path.c_str(), S_IFCHR | 0600, 1 << 8 | 3);  // null(4)
  const int code = errno;
  if (result == 0) unlink(path.c_str());
  errno = code;
  return result;
}

/// Until it fails or MEBIBYTES are there; what it wrote is removed.
long fill(const Arguments& arguments) {
  const std::string path = need(arguments, 0, "a directory") + "/probe-fill";
  const long limit = number(need(arguments, 1, "a number of MiB"));
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return -1;
  const std::vector<char> mebibyte(1 << 20, 'x');
  long written = 0, result = 0;
  while (written < limit && (result = write(fd, mebibyte.data(), mebibyte.size())) > 0) ++written;
  const int code = errno;
  unlink(path.c_str());
  errno = code;
  return result < 0 ? -1 : written;
}

/// Files without content, until it fails or there are COUNT; removed again.
long inodes(const Arguments& arguments) {
  const std::string directory = need(arguments, 0, "a directory") + "/probe-inodes";
  const long limit = number(need(arguments, 1, "a count"));
  if (mkdir(directory.c_str(), 0700) < 0) return -1;
  const auto file = [&](long index) { return directory + "/" + std::to_string(index); };
  long made = 0;
  int code = 0;
  for (; made < limit && !code; ++made) {
    const int fd = open(file(made).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
      code = errno;
    else
      close(fd);
  }
  for (long index = 0; index < made; ++index) unlink(file(index).c_str());
  rmdir(directory.c_str());
  errno = code;
  return code ? -1 : made;
}

/// COUNT children at once.
long forks(const Arguments& arguments) {
  const long limit = number(need(arguments, 0, "a count"));
  std::vector<pid_t> children;
  int code = 0;
  while (static_cast<long>(children.size()) < limit && !code) {
    const pid_t pid = fork();
    if (pid == 0) {
      pause();
      _exit(0);
    }
    if (pid < 0)
      code = errno;
    else
      children.push_back(pid);
  }
  for (const pid_t pid : children) kill(pid, SIGKILL);
  for (const pid_t pid : children) waitpid(pid, nullptr, 0);
  errno = code;
  return code ? -1 : static_cast<long>(children.size());
}

/// COUNT descriptors of one kind, which the end of this process gives back.
long descriptors(const Arguments& arguments, const std::function<int()>& make) {
  const long limit = number(need(arguments, 0, "a count"));
  long made = 0;
  for (; made < limit; ++made)
    if (make() < 0) return -1;
  return made;
}

/// Memory that is used, in MiB.
long memory(const Arguments& arguments) {
  const auto bytes = static_cast<std::size_t>(number(need(arguments, 0, "a number of MiB"))) << 20;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return -1;
  memset(at, 1, bytes);
  return 0;
}

long cloneWith(unsigned long flags) {
  const long pid = syscall(SYS_clone, flags | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
  if (pid == 0) _exit(0);
  if (pid > 0) waitpid(static_cast<pid_t>(pid), nullptr, 0);
  return pid < 0 ? -1 : 0;
}

long loadBpf() {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = attributes.value_size = 4;
  attributes.max_entries = 1;
  return syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
}

long openPerf() {
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_CPU_CLOCK;
  attributes.disabled = 1;
  return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0UL);
}

long setLimit(const Arguments& arguments) {
  const auto resource = static_cast<__rlimit_resource>(number(need(arguments, 0, "a resource")));
  const auto value = static_cast<rlim_t>(number(need(arguments, 1, "a value")));
  const rlimit limit{value, value};
  return setrlimit(resource, &limit);
}

/// Ends by a signal that dumps a core; succeeds if the kernel says that it did.
long dumpCore() {
  const pid_t pid = fork();
  if (pid == 0) abort();
  int status = 0;
  waitpid(pid, &status, 0);
  errno = ENODATA;
  return WIFSIGNALED(status) && WCOREDUMP(status) ? 0 : -1;
}

long readOwnMemory() {
  char from = 'x', to = 0;
  const iovec local{&to, 1}, remote{&from, 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
}

long setOwnAffinity() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  return sched_getaffinity(0, sizeof cpus, &cpus) < 0 ? -1 : sched_setaffinity(0, sizeof cpus, &cpus);
}

long schedule(int policy, int priority) {
  const sched_param parameters{priority};
  return syscall(SYS_sched_setscheduler, 0, policy, &parameters);
}

#ifdef __x86_64__
/// getpid as 32-bit programs call it; the kernel runs it in 64-bit processes, too.
long call32() {
  long result = 20;
  asm volatile("int $0x80" : "+a"(result) : : "memory");
  if (result >= 0) return result;
  errno = static_cast<int>(-result);
  return -1;
}
#endif

struct Probe {
  const char* name;
  const char* arguments;
  std::function<long(const Arguments&)> run;  ///< like a system call: below 0 it failed and errno says why
};

// A call whose own arguments would make the kernel refuse it says so by another error than EPERM, so that one
// can tell a filter from the kernel.
const Probe probes[] = {
    // files
    {"read", "PATH", readPath},
    {"write", "PATH [TEXT]", writePath},
    {"create", "PATH", createPath},
    {"mkdir", "PATH", makeDirectory},
    {"link", "OLD NEW", makeHardLink},
    {"setid", "[PATH]", setIdBits},
    {"device", "[PATH]", makeDevice},
    {"setid-by", "open|openat|openat2|creat|tmpfile|mknod|mknodat|chmod|fchmod|fchmodat|fchmodat2 [PATH]",
     setIdBy},
    {"setcap", "[PATH]", setCapability},
    {"fill", "DIRECTORY MIB", fill},
    {"inodes", "DIRECTORY COUNT", inodes},
    // network
    {"socket", "FAMILY [TYPE [PROTOCOL]]",
     [](const Arguments& a) {
       return syscall(SYS_socket, number(need(a, 0, "a family")), number(given(a, 1, "stream")),
                      number(given(a, 2, "0")));
     }},
    {"socketpair", "FAMILY [TYPE]",
     [](const Arguments& a) {
       int fds[2];
       return syscall(SYS_socketpair, number(need(a, 0, "a family")), number(given(a, 1, "stream")), 0, fds);
     }},
    {"connect-tcp", "ADDRESS PORT", [](const Arguments& a) { return connectTo(SOCK_STREAM, a); }},
    {"connect-udp", "ADDRESS PORT", [](const Arguments& a) { return connectTo(SOCK_DGRAM, a); }},
    {"connect-unix", "PATH|@NAME", connectUnix},
    // processes
    {"ptrace", "", [](const Arguments&) { return ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); }},
    {"ptrace-attach", "PID",
     [](const Arguments& a) { return ptrace(PTRACE_SEIZE, number(need(a, 0, "a pid")), nullptr, nullptr); }},
    {"process_vm_readv", "", [](const Arguments&) { return readOwnMemory(); }},
    {"kcmp", "", [](const Arguments&) { return syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0); }},
    {"pidfd_getfd", "",
     [](const Arguments&) { return syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, getpid(), 0), 0, 0); }},
    {"personality", "[PERSONA]",
     [](const Arguments& a) { return syscall(SYS_personality, number(given(a, 0, "0x0040000"))); }},
    {"nice", "", [](const Arguments&) { return setpriority(PRIO_PROCESS, 0, 1); }},
    {"sched-fifo", "", [](const Arguments&) { return schedule(SCHED_FIFO, 1); }},
    {"sched-batch", "", [](const Arguments&) { return schedule(SCHED_BATCH, 0); }},
    {"sched_setaffinity", "", [](const Arguments&) { return setOwnAffinity(); }},
    {"rlimit", "RESOURCE VALUE", setLimit},
    {"core", "", [](const Arguments&) { return dumpCore(); }},
    {"oom", "SCORE",
     [](const Arguments& a) { return writePath({"/proc/self/oom_score_adj", need(a, 0, "a score")}); }},
    {"forks", "COUNT", forks},
    {"files", "COUNT",
     [](const Arguments& a) { return descriptors(a, [] { return open("/dev/null", O_RDONLY); }); }},
    {"ptys", "COUNT",
     [](const Arguments& a) { return descriptors(a, [] { return posix_openpt(O_RDWR | O_NOCTTY); }); }},
    {"inotify", "COUNT", [](const Arguments& a) { return descriptors(a, [] { return inotify_init(); }); }},
    {"memory", "MIB", memory},
    // memory that is written, then run
    {"mmap-wx", "", [](const Arguments&) { return executableMemory(true); }},
    {"mprotect-x", "", [](const Arguments&) { return executableMemory(false); }},
    {"shm-exec", "", [](const Arguments&) { return executableSharedMemory(); }},
    // namespaces
    {"unshare", "[FLAGS]",
     [](const Arguments& a) { return unshare(static_cast<int>(number(given(a, 0, "newuser")))); }},
    {"clone", "[FLAGS]",
     [](const Arguments& a) {
       return cloneWith(static_cast<unsigned long>(number(given(a, 0, "newuser"))));
     }},
    {"clone3", "", [](const Arguments&) { return syscall(SYS_clone3, nullptr, 0); }},
    {"setns", "[PATH]",
     [](const Arguments& a) {
       return setns(static_cast<int>(openPath(given(a, 0, "/proc/self/ns/uts"), O_RDONLY)), 0);
     }},
    // mounts: of what is not there
    {"mount", "",
     [](const Arguments&) { return syscall(SYS_mount, "none", "/no/such", "tmpfs", 0, nullptr); }},
    {"umount2", "", [](const Arguments&) { return syscall(SYS_umount2, "/no/such", 0); }},
    {"pivot_root", "", [](const Arguments&) { return syscall(SYS_pivot_root, "/no/such", "/no/such"); }},
    {"chroot", "", [](const Arguments&) { return chroot("/"); }},
    {"fsopen", "", [](const Arguments&) { return syscall(SYS_fsopen, "tmpfs", 0); }},
    {"open_tree", "", [](const Arguments&) { return syscall(SYS_open_tree, AT_FDCWD, "/", 0); }},
    {"mount_setattr", "",
     [](const Arguments&) { return syscall(SYS_mount_setattr, AT_FDCWD, "/no/such", 0, nullptr, 0); }},
    {"name_to_handle_at", "",
     [](const Arguments&) {
       int id = 0;
       struct file_handle handle{};
       handle.handle_bytes = 0;
       const long result = name_to_handle_at(AT_FDCWD, "/", &handle, &id, 0);
       return result < 0 && errno == EOVERFLOW ? 0 : result;  // it told the size
     }},
    {"open_by_handle_at", "",
     [](const Arguments&) {
       struct file_handle handle{};
       return open_by_handle_at(AT_FDCWD, &handle, O_RDONLY);
     }},
    // the kernel
    {"bpf", "", [](const Arguments&) { return loadBpf(); }},
    {"perf_event_open", "", [](const Arguments&) { return openPerf(); }},
    {"io_uring_setup", "",
     [](const Arguments&) {
       io_uring_params parameters{};
       return syscall(SYS_io_uring_setup, 1, &parameters);
     }},
    {"keyctl", "",
     [](const Arguments&) {
       return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1);
     }},
    {"add_key", "",
     [](const Arguments&) {
       return syscall(SYS_add_key, "user", "probe", "x", 1, KEY_SPEC_PROCESS_KEYRING);
     }},
    {"request_key", "",
     [](const Arguments&) { return syscall(SYS_request_key, "user", "probe", nullptr, 0); }},
    {"userfaultfd", "", [](const Arguments&) { return syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY); }},
    {"kexec_load", "", [](const Arguments&) { return syscall(SYS_kexec_load, 0, 0, nullptr, 0); }},
    {"kexec_file_load", "",
     [](const Arguments&) { return syscall(SYS_kexec_file_load, -1, -1, 0, nullptr, 0); }},
    {"init_module", "", [](const Arguments&) { return syscall(SYS_init_module, nullptr, 0, ""); }},
    {"finit_module", "", [](const Arguments&) { return syscall(SYS_finit_module, -1, "", 0); }},
    {"delete_module", "",
     [](const Arguments&) { return syscall(SYS_delete_module, "no_such_module", O_NONBLOCK); }},
    {"swapon", "", [](const Arguments&) { return syscall(SYS_swapon, "/no/such", 0); }},
    {"swapoff", "", [](const Arguments&) { return syscall(SYS_swapoff, "/no/such"); }},
    {"reboot", "", [](const Arguments&) { return syscall(SYS_reboot, 0, 0, 0, nullptr); }},
    {"acct", "", [](const Arguments&) { return syscall(SYS_acct, "/no/such"); }},
    {"quotactl", "",
     [](const Arguments&) { return syscall(SYS_quotactl, QCMD(Q_SYNC, 0), nullptr, 0, nullptr); }},
    {"syslog", "", [](const Arguments&) { return syscall(SYS_syslog, 10, nullptr, 0); }},
    {"vhangup", "",
     [](const Arguments&) {
       setsid();  // there is no terminal to hang up
       return vhangup();
     }},
    {"sethostname", "", [](const Arguments&) { return syscall(SYS_sethostname, "", -1); }},
    {"setdomainname", "", [](const Arguments&) { return syscall(SYS_setdomainname, "", -1); }},
    {"clock_settime", "",
     [](const Arguments&) {
       const timespec invalid{0, -1};
       return syscall(SYS_clock_settime, CLOCK_REALTIME, &invalid);
     }},
    {"settimeofday", "",
     [](const Arguments&) {
       const timeval invalid{0, -1};
       return syscall(SYS_settimeofday, &invalid, nullptr);
     }},
    {"adjtimex", "",
     [](const Arguments&) {
       timex only{};
       return syscall(SYS_adjtimex, &only);
     }},
#ifdef __x86_64__
    {"ioperm", "", [](const Arguments&) { return syscall(SYS_ioperm, 0x80, 1, 1); }},
    {"iopl", "", [](const Arguments&) { return syscall(SYS_iopl, 3); }},
    {"modify_ldt", "",
     [](const Arguments&) {
       char table[64];
       return syscall(SYS_modify_ldt, 0, table, sizeof table);
     }},
    {"call-32bit", "", [](const Arguments&) { return call32(); }},
    {"call-x32", "", [](const Arguments&) { return syscall(0x40000000 | __NR_getpid); }},
#endif
    // users
    {"setuid", "[UID]", [](const Arguments& a) { return syscall(SYS_setuid, number(given(a, 0, "0"))); }},
    {"chown", "PATH [UID]",
     [](const Arguments& a) {
       return chown(need(a, 0, "a path").c_str(), static_cast<uid_t>(number(given(a, 1, "0"))),
                    static_cast<gid_t>(-1));
     }},
    // terminals
    {"tiocsti", "[HIGH-BITS]",
     [](const Arguments& a) {
       return terminalIoctl(TIOCSTI, static_cast<std::uint64_t>(number(given(a, 0, "0"))));
     }},
    {"tioclinux", "[HIGH-BITS]",
     [](const Arguments& a) {
       return terminalIoctl(TIOCLINUX, static_cast<std::uint64_t>(number(given(a, 0, "0"))));
     }},
    {"tiocsetd", "[HIGH-BITS]",
     [](const Arguments& a) {
       return terminalIoctl(TIOCSETD, static_cast<std::uint64_t>(number(given(a, 0, "0"))));
     }},
};

/// Any system call by its name; an argument that begins with '"' or '/' is a pointer to the text.
long anyCall(const std::string& name, const Arguments& arguments) {
  const int call = seccomp_syscall_resolve_name(name.c_str());
  if (call < 0) usage("no probe and no system call \"" + name + "\"; --list lists the probes");
  if (arguments.size() > 6) usage("a system call has six arguments at most");
  long values[6] = {};
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& text = arguments[i];
    if (text.starts_with('/'))
      values[i] = reinterpret_cast<long>(text.c_str());
    else if (text.starts_with('"'))
      values[i] = reinterpret_cast<long>(text.c_str() + 1);
    else
      values[i] = number(text);
  }
  return syscall(call, values[0], values[1], values[2], values[3], values[4], values[5]);
}

/// In a process of its own, which a filter may kill. 0: it succeeded; 1: it was refused; 2: not tried.
int probe(const Arguments& line) {
  std::string title;
  for (const auto& word : line) title += (title.empty() ? "" : " ") + word;
  fflush(stdout);
  const pid_t pid = fork();
  if (pid < 0) usage(std::string("fork: ") + strerrorname_np(errno));
  if (pid == 0) {
    const Arguments arguments(line.begin() + 1, line.end());
    const Probe* known = nullptr;
    for (const auto& candidate : probes)
      if (line[0] == candidate.name) known = &candidate;
    errno = 0;
    const long result = known ? known->run(arguments) : anyCall(line[0], arguments);
    if (result >= 0) {
      dprintf(STDOUT_FILENO, "%s: ok %ld\n", title.c_str(), result);
      _exit(0);
    }
    const char* name = strerrorname_np(errno);
    dprintf(STDOUT_FILENO, "%s: %s\n", title.c_str(), name ? name : "?");
    _exit(1);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  printf("%s: SIG%s\n", title.c_str(), sigabbrev_np(WTERMSIG(status)));
  return 1;
}

Arguments split(const std::string& line) {
  Arguments words;
  std::size_t at = 0;
  while ((at = line.find_first_not_of(' ', at)) != std::string::npos) {
    const std::size_t end = std::min(line.find(' ', at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

/// One probe a line; 1 if any was refused.
int probeLines() {
  int worst = 0;
  char* line = nullptr;
  std::size_t size = 0;
  ssize_t length = 0;
  while ((length = getline(&line, &size, stdin)) > 0) {
    const Arguments words = split({line, static_cast<std::size_t>(length - (line[length - 1] == '\n'))});
    if (!words.empty()) worst = std::max(worst, probe(words));
  }
  free(line);
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments(argv + 1, argv + argc);
  if (arguments.empty() || arguments[0] == "--help") {
    printf(
        "agentmachine-probe CALL [ARG...]: tries CALL and prints \"CALL: ok RESULT\", its errno's name, or "
        "the\n"
        "signal that ended it; exits with 0 if it succeeded, 1 if it was refused, 2 if it was not tried.\n"
        "--filtered before it: under the filter that PID 1 gives its children.\n"
        "agentmachine-probe - reads one such line after the other; --list lists what is known. Any other "
        "CALL is\n"
        "the system call of that name; its arguments are numbers, or text after a '\"' or from a '/' on.\n");
    return arguments.empty() ? 2 : 0;
  }
  if (arguments[0] == "--filtered") {
    // What PID 1 loads into each of its children, for a process that is not one of them.
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) usage("no-new-privileges");
    agentmachine::load(agentmachine::makeSystemCallFilter());
    arguments.erase(arguments.begin());
    if (arguments.empty()) usage("--filtered goes before a CALL");
  }
  if (arguments[0] == "--list") {
    for (const auto& known : probes) printf("%s %s\n", known.name, known.arguments);
    return 0;
  }
  if (arguments[0] == "--allowed") {
    for (const auto name : agentmachine::allowedSystemCalls())
      printf("%.*s\n", static_cast<int>(name.size()), name.data());
    return 0;
  }
  return arguments[0] == "-" ? probeLines() : probe(arguments);
}
