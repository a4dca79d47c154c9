#include "system/guest_limits.h"

#include <algorithm>
#include <cerrno>
#include <format>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// Of /proc/sys/user, which shows each process the limits of its own user namespace.
std::string userLimit(const std::string& name) {
  return "/proc/sys/user/" + name;
}

/// Writes a limit of the leader's user namespace.
void setUserLimit(pid_t leader, const std::string& name, unsigned long value) {
  const std::string path = userLimit(name), text = std::to_string(value);
  const Fd space{open(std::format("/proc/{}/ns/user", leader).c_str(), O_RDONLY | O_CLOEXEC)};
  if (!space) throw errnoError("open the user namespace of process " + std::to_string(leader));
  const pid_t child = fork();  // setns(2) wants a process without other threads
  if (child < 0) throw errnoError("fork");
  if (child == 0) {
    if (setns(space.get(), CLONE_NEWUSER) < 0) _exit(errno);
    const int file = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    _exit(file < 0 || write(file, text.data(), text.size()) < 0 ? errno : 0);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int failed = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
  if (failed) throw errnoError("write " + path, failed);
}

/// "gid=7,mode=620" of a line of mountinfo (proc_pid_mountinfo(5)), in pairs.
std::vector<std::pair<std::string, std::string>> superOptions(const std::string& line) {
  std::vector<std::pair<std::string, std::string>> options;
  std::string text = line.substr(line.rfind(' ') + 1);
  while (!text.empty()) {
    const auto end = std::min(text.find(','), text.size());
    const std::string word = text.substr(0, end);
    if (const auto sign = word.find('='); sign != std::string::npos)
      options.emplace_back(word.substr(0, sign), word.substr(sign + 1));
    text.erase(0, end + 1);
  }
  return options;
}

void limitTerminals(pid_t leader) {
  const std::string process = std::format("/proc/{}", leader), where = "/dev/pts";
  constexpr std::size_t most = 1 << 20;
  std::string line, rest = readFile(process + "/mountinfo", most);
  while (!rest.empty() && !line.contains(" " + where + " ")) {
    const auto end = std::min(rest.find('\n'), rest.size());
    line = rest.substr(0, end);
    rest.erase(0, end + 1);
  }
  const Fd mounted{
      static_cast<int>(syscall(SYS_fspick, AT_FDCWD, (process + "/root" + where).c_str(), FSPICK_CLOEXEC))};
  if (!mounted) throw errnoError("open " + where);
  const auto set = [&](const std::string& name, const std::string& value) {
    if (syscall(SYS_fsconfig, mounted.get(), FSCONFIG_SET_STRING, name.c_str(), value.c_str(), 0) < 0)
      throw errnoError("set " + name + "=" + value);
  };
  // devpts forgets all options that a remount doesn't name.
  for (const auto& [name, value] : superOptions(line))
    if (name != "max") set(name, value);
  set("max", std::to_string(machineTerminals));
  if (syscall(SYS_fsconfig, mounted.get(), FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr, 0) < 0)
    throw errnoError("remount " + where);
}

}  // namespace

void limitKernelObjects(pid_t leader) {
  inContext("limit the machine's terminals", [&] { limitTerminals(leader); });
  const auto limit = [&](const std::string& name, unsigned long value) {
    inContext("limit the machine", [&] { setUserLimit(leader, name, value); });
  };
  for (const std::string name : {"max_inotify_instances", "max_inotify_watches"}) {
    constexpr std::size_t most = 64;
    limit(name, std::max(1UL, std::stoul(readFile(userLimit(name), most)) / inotifyParts));
  }
  // It has those that it needs.
  for (const auto* kind : {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"})
    limit(std::format("max_{}_namespaces", kind), 0);
}

}  // namespace agentmachine
