#include "system/idmap.h"

#include <filesystem>
#include <format>
#include <fstream>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/pipe.h"

namespace agentmachine {

namespace {

/// A user namespace with these maps (user_namespaces(7)), for a mount to take them from; empty if the kernel
/// gives none.
Fd userNamespace(const std::string& uidMap, const std::string& gidMap) {
  Pipe ready = makePipe(), done = makePipe();
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    done.write.reset();
    if (unshare(CLONE_NEWUSER) == 0 && write(ready.write.get(), "x", 1) == 1)
      // Its end is ours: were we killed now, a child that stays would hold the locks that we held.
      (void)!read(done.read.get(), &byte, 1);
    _exit(0);
  }
  if (child < 0) return {};
  ready.write.reset();
  char byte = 0;
  Fd space;
  // No byte: unshare failed.
  if (read(ready.read.get(), &byte, 1) == 1) {
    const std::filesystem::path process = "/proc/" + std::to_string(child);
    const bool mapped = static_cast<bool>(std::ofstream(process / "uid_map") << uidMap << std::flush) &&
                        static_cast<bool>(std::ofstream(process / "gid_map") << gidMap << std::flush);
    if (mapped) space = Fd{open((process / "ns/user").c_str(), O_RDONLY | O_CLOEXEC)};
  }
  done.write.reset();
  waitpid(child, nullptr, 0);
  return space;
}

/// A detached copy of the mount at an open directory, idmapped; empty, with errno, if the kernel won't.
Fd mappedTree(int directory, const Fd& space) {
  Fd tree{static_cast<int>(
      syscall(SYS_open_tree, directory, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC))};
  if (!tree || !space) return {};
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  // Else what the host mounts below the directory later would show here, too (mount_namespaces(7)).
  attributes.propagation = MS_PRIVATE;
  attributes.userns_fd = static_cast<std::uint64_t>(space.get());
  if (syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0)
    return {};
  return tree;
}

/// Runs `act`, nothing but system calls, in the mount namespace of the host's PID 1, and returns the errno
/// that it returns. The hooks of a unit with PrivateMounts=yes are in one of their own, '+' or not, and a
/// mount made there would go with them.
template <class Act>
int inHostMounts(const Act& act) {
  const pid_t child = fork();  // setns(2) wants a process without other threads
  if (child < 0) return errno;
  if (child == 0) {
    const Fd host{open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC)};
    _exit(!host || setns(host.get(), CLONE_NEWNS) < 0 ? errno : act());
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

}  // namespace

bool canIdmap(const std::string& path) {
  const Fd directory{open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  return directory && mappedTree(directory.get(), userNamespace("0 0 65536\n", "0 0 65536\n"));
}

void mountMapped(int directory, const std::string& target, Owner seenAs) {
  inContext("mount the workspace", [&] {
    struct stat st{};
    if (fstat(directory, &st) < 0) throw errnoError("stat");
    const Fd tree = mappedTree(directory, userNamespace(std::format("{} {} 1\n", st.st_uid, seenAs.user),
                                                        std::format("{} {} 1\n", st.st_gid, seenAs.group)));
    if (!tree) throw errnoError("map its users");
    unmountMapped(target);
    std::filesystem::create_directories(target);
    const int failed = inHostMounts([&] {
      const long moved =
          syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH);
      return moved < 0 ? errno : 0;
    });
    if (failed) throw errnoError("mount at " + target, failed);
  });
}

void unmountMapped(const std::string& target) {
  inHostMounts([&] {
    while (umount2(target.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
    }
    return 0;
  });
  // Only ever the empty mount point: a directory that is still mounted, or holds anything, is not removed.
  rmdir(target.c_str());
}

}  // namespace agentmachine
