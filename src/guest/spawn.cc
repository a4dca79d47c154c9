#include "guest/spawn.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "guest/cgroup.h"
#include "guest/filter.h"
#include "util/error.h"
#include "util/file.h"

namespace agentmachine {

namespace {

void check(int result, const std::string& what) {
  if (result < 0) throw errnoError(what);
}

void resetSignals() {
  // glibc keeps two signals for itself and refuses them: no error.
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

void connectStreams(const Command& command) {
  Fd terminal;
  if (!command.terminal.empty()) {
    terminal = Fd{open(command.terminal.c_str(), O_RDWR | O_NOCTTY | O_NOFOLLOW | O_CLOEXEC)};
    check(terminal.get(), "open " + command.terminal);
  }
  const Fd null{open("/dev/null", O_RDWR | O_CLOEXEC)};
  check(null.get(), "open /dev/null");
  // Standard error last: until then what goes wrong can be read in the journal.
  for (int target : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    const Fd& own = command.streams[static_cast<std::size_t>(target)];
    check(dup2(terminal ? terminal.get() : own ? own.get() : null.get(), target), "connect standard streams");
  }
}

void takeTerminal(const User& user) {
  check(ioctl(STDIN_FILENO, TIOCSCTTY, 0), "take the terminal");
  check(fchown(STDIN_FILENO, user.uid, static_cast<gid_t>(-1)), "own the terminal");
  termios settings;
  check(tcgetattr(STDIN_FILENO, &settings), "read the terminal's settings");
  settings.c_iflag |= IUTF8;  // so that erasing takes a character, not a byte; the kernel's default varies
  check(tcsetattr(STDIN_FILENO, TCSANOW, &settings), "set up the terminal");
}

/// What PID 1 starts goes before PID 1 and before everything of the host's when memory runs out. It can lower
/// this again, but not below what PID 1 has: only a process with CAP_SYS_RESOURCE on the host sets that bound
/// apart from the score (proc_pid_oom_score_adj(5)), and no child of PID 1 has ever been one.
void raiseOomScore() {
  const char* path = "/proc/self/oom_score_adj";
  constexpr int above = 500, most = 1000;
  const std::string score = std::to_string(std::min(atoi(readFile(path, 16).c_str()) + above, most));
  const Fd file{open(path, O_WRONLY | O_CLOEXEC)};
  if (!file || write(file.get(), score.data(), score.size()) < 0)
    throw errnoError(std::string("write ") + path);
}

void dropPrivileges(const User& user) {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability)
    check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop capabilities (needs CAP_SETPCAP)");
  check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient capabilities");
  check(setgroups(0, nullptr), "drop supplementary groups");
  check(setresgid(user.gid, user.gid, user.gid), "change group");
  check(setresuid(user.uid, user.uid, user.uid), "change user");
  // Changing to another user has done this already; staying root has not.
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  check(static_cast<int>(syscall(SYS_capset, &header, none)), "drop capabilities");
  check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no-new-privileges");
}

void enterDirectory(std::string directory, const User& user) {
  const bool mayFail = directory.starts_with('-');
  if (mayFail) directory.erase(0, 1);
  if (directory == "~") directory = user.home;
  if (chdir(directory.c_str()) == 0) return;
  if (!mayFail) throw errnoError("enter " + directory);
  check(chdir("/"), "enter /");
}

[[noreturn]] void execute(const Command& command, const Environment& environment) {
  clearenv();
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> argv;
  for (const auto& argument : command.argv) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execvp(command.path.c_str(), argv.data());
  const int code = errno;
  dprintf(STDERR_FILENO, "agentmachine-init: run %s: %s\n", command.path.c_str(), strerrordesc_np(code));
  _exit(code == ENOENT ? 127 : 126);
}

}  // namespace

pid_t spawn(const Command& command, const User& user, const Environment& environment,
            const std::string& cgroup) {
  static const SystemCallFilter filter = makeSystemCallFilter();  // here, so that a child need not make it
  const pid_t pid = fork();
  if (pid < 0) throw errnoError("start a process");
  if (pid > 0) return pid;
  try {
    resetSignals();
    setsid();
    if (!cgroup.empty()) enterCgroup(cgroup);
    connectStreams(command);
    close_range(STDERR_FILENO + 1, ~0U, 0);
    if (isatty(STDIN_FILENO)) takeTerminal(user);
    raiseOomScore();
    umask(022);
    dropPrivileges(user);
    load(filter);
    enterDirectory(command.directory, user);
    execute(command, environment);
  } catch (const std::exception& error) {
    dprintf(STDERR_FILENO, "agentmachine-init: %s: %s\n", command.path.c_str(), error.what());
    _exit(126);
  }
}

}  // namespace agentmachine
