#include "guest/cgroup.h"

#include <cerrno>

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "util/error.h"
#include "util/fd.h"

namespace agentmachine {

namespace {

void put(const std::string& path, char digit) {
  const Fd file{open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (!file || write(file.get(), &digit, 1) != 1) throw errnoError("write " + path);
}

}  // namespace

std::string createCgroup(const std::string& name) {
  const std::string root = "/sys/fs/cgroup";
  struct statfs fs{};
  if (statfs(root.c_str(), &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC) return {};
  std::string path = root + "/" + name;
  return mkdir(path.c_str(), 0755) < 0 && errno != EEXIST ? std::string() : path;
}

void enterCgroup(const std::string& path) {
  put(path + "/cgroup.procs", '0');
}

void killCgroup(const std::string& path) {
  put(path + "/cgroup.kill", '1');
}

bool removeCgroup(const std::string& path) {
  return rmdir(path.c_str()) == 0 || errno != EBUSY;
}

}  // namespace agentmachine
