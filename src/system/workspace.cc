#include "system/workspace.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <format>
#include <system_error>

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "plan/machine.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"
#include "util/text.h"
#include "util/tree.h"

namespace agentmachine {

namespace fs = std::filesystem;

namespace {

/// The directory that `path` is in.
Fd openParent(const std::string& path) {
  Fd parent = openWithoutLinks(fs::path(path).parent_path().string(), O_PATH | O_DIRECTORY);
  if (!parent && errno == ELOOP)
    throw Error(path + ": a part of it is a symbolic link now; write the path it leads to into the card");
  return parent;
}

/// "loop7", for a directory on a loop device; else "".
std::string loopDevice(int directory) {
  struct stat st{};
  if (fstat(directory, &st) < 0) return {};
  std::error_code none;
  const auto device =
      fs::read_symlink(std::format("/sys/dev/block/{}:{}", major(st.st_dev), minor(st.st_dev)), none);
  const std::string name = device.filename().string();
  return name.starts_with("loop") ? name : "";
}

/// A loop device on the image. It ends with the last who has it open or mounted.
Fd loopOn(const std::string& image) {
  const Fd file{open(image.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC)};
  if (!file) throw errnoError("open " + image);
  const Fd control{open("/dev/loop-control", O_RDWR | O_CLOEXEC)};
  if (!control) throw errnoError("open /dev/loop-control");
  constexpr int mostTries = 64;  // as systemd's own
  for (int tries = 1;; ++tries) {
    const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) throw errnoError("find a free loop device");
    const std::string path = std::format("/dev/loop{}", number);
    Fd device{open(path.c_str(), O_RDWR | O_CLOEXEC)};
    if (!device) throw errnoError("open " + path);
    loop_config configuration{};
    configuration.fd = static_cast<std::uint32_t>(file.get());
    configuration.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (ioctl(device.get(), LOOP_CONFIGURE, &configuration) == 0) return device;
    // Somebody else was faster, or has it for himself alone.
    if (errno != EBUSY || tries == mostTries) throw errnoError("set up " + path);
  }
}

/// A mount of the image that is nowhere in the tree yet, and is gone with its descriptor.
Fd detachedMount(const std::string& image) {
  const Fd device = loopOn(image);
  const Fd context{fsopen("ext4", FSOPEN_CLOEXEC)};
  const auto source = fs::read_symlink(std::format("/proc/self/fd/{}", device.get()));
  if (!context || fsconfig(context.get(), FSCONFIG_SET_STRING, "source", source.c_str(), 0) < 0 ||
      fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) < 0)
    throw errnoError("open the file system in it");
  Fd tree{fsmount(context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)};
  if (!tree) throw errnoError("fsmount");
  return tree;
}

void checkEmpty(int directory) {
  const auto refuse = [] { throw Error("it would hide what is in the directory: move that away"); };
  walkTree(directory, {.enter = [&](auto&&...) { refuse(); },
                       .leave = [](auto&&...) {},
                       .mounted = [&](auto&&...) { refuse(); }});
}

}  // namespace

Fd openWorkspace(const std::string& path) {
  return inContext("workspace " + path, [&] {
    Fd directory = openWithoutLinks(path, O_PATH | O_DIRECTORY);
    if (!directory && errno == ELOOP)
      throw Error("a part of it is a symbolic link now; write the path it leads to into the card");
    if (!directory) throw errnoError("open");
    struct stat st{};
    if (fstat(directory.get(), &st) < 0) throw errnoError("stat");
    if (st.st_uid == 0)
      throw Error("belongs to root now; give it to the person it is for: chown -R USER: " + path);
    return directory;
  });
}

bool makeWorkspace(const std::string& path, mode_t mode, Owner owner) {
  return inContext("make directory " + path, [&] {
    const std::string name = fs::path(path).filename().string();
    const Fd parent = openParent(path);
    if (!parent) throw errnoError("open " + fs::path(path).parent_path().string());
    // What it is, is judged where it is opened.
    if (faccessat(parent.get(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) return false;
    // It gets its name last: were we killed before it has its owner, it would be root's, and be refused.
    const std::string unfinished = ".#made-" + name;
    const auto remove = [&] { return unlinkat(parent.get(), unfinished.c_str(), AT_REMOVEDIR); };
    if (remove() < 0 && errno != ENOENT) throw errnoError("remove " + unfinished);
    if (mkdirat(parent.get(), unfinished.c_str(), 0700) < 0) throw errnoError("mkdir");
    try {
      const Fd made{
          openat(parent.get(), unfinished.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
      struct stat st{};
      if (!made || fstat(made.get(), &st) < 0) throw errnoError("open");
      if (st.st_uid != geteuid()) throw Error("somebody replaced it");
      if (fchown(made.get(), owner.user, owner.group) < 0) throw errnoError("chown");
      if (fchmod(made.get(), mode) < 0) throw errnoError("chmod");
      if (fsync(made.get()) < 0) throw errnoError("fsync");
      if (renameat2(parent.get(), unfinished.c_str(), parent.get(), name.c_str(), RENAME_NOREPLACE) < 0)
        throw errnoError("rename");
      return true;
    } catch (const Error&) {
      remove();
      throw;
    }
  });
}

void removeWorkspace(const std::string& path) {
  inContext("remove " + path, [&] {
    const Fd parent = openParent(path);
    if (!parent && (errno == ENOENT || errno == ENOTDIR)) return;
    if (!parent) throw errnoError("open " + fs::path(path).parent_path().string());
    const std::string name = fs::path(path).filename().string();
    // It goes under another name first: a killed removal leaves no half of one under its own.
    const std::string doomed = ".#removed-" + name;
    removeTree(parent.get(), doomed);
    if (renameat(parent.get(), name.c_str(), parent.get(), doomed.c_str()) < 0) {
      if (errno == ENOENT) return;
      const int failed = errno;
      const Fd itself{openat(parent.get(), name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
      if (failed != EBUSY || !itself) throw errnoError("rename", failed);
      return emptyDirectory(itself.get());
    }
    removeTree(parent.get(), doomed);
  });
}

void makeImage(const std::string& image, std::uint64_t bytes, Owner owner) {
  inContext("image " + image, [&] {
    const auto size = static_cast<off_t>(bytes);
    if (const auto old = imageBytes(image)) {
      if (*old < bytes && truncate(image.c_str(), size) < 0) throw errnoError("make it longer");
      return;
    }
    const fs::path directory = fs::path(image).parent_path();
    fs::create_directories(directory);
    const std::string temporary = (directory / (".#" + fs::path(image).filename().string())).string();
    removeFile(temporary);  // of a killed run; the state's lock keeps others away
    const Fd file{open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!file) throw errnoError("create " + temporary);
    try {
      if (ftruncate(file.get(), size) < 0) throw errnoError("make it that long");
      runChecked({"mkfs.ext4", "-q", "-F", "-m", "0", "-i", std::to_string(bytesPerInode), "-E",
                  std::format("root_owner={}:{},root_perms=0750", owner.user, owner.group), temporary});
      if (fsync(file.get()) < 0) throw errnoError("fsync");
      if (rename(temporary.c_str(), image.c_str()) < 0) throw errnoError("rename");
      syncDirectory(directory);
    } catch (const Error&) {
      unlink(temporary.c_str());
      throw;
    }
  });
}

bool isImageMounted(int directory, const std::string& image) {
  const std::string device = loopDevice(directory);
  std::error_code none;
  if (device.empty()) return false;
  const auto file = readFileIfExists("/sys/block/" + device + "/loop/backing_file", 8192);
  return file && trim(*file) == image;
}

void mountImage(const std::string& image, const std::string& path) {
  inContext("mount the image of " + path, [&] {
    if (!imageBytes(image)) throw Error("there is no " + image);
    std::error_code exists;
    fs::create_directories(fs::path(path).parent_path(), exists);
    makeWorkspace(path, 0755, {});
    Fd target = openWithoutLinks(path, O_PATH | O_DIRECTORY);
    if (!target) throw errnoError("open " + path);
    if (!isImageMounted(target.get(), image)) {
      checkEmpty(target.get());
      const Fd tree = detachedMount(image);
      // Made by mkfs; the agent could not look into it. e2fsck(8) makes it again when it needs it.
      unlinkat(tree.get(), "lost+found", AT_REMOVEDIR);
      if (syscall(SYS_move_mount, tree.get(), "", target.get(), "",
                  MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        throw errnoError("mount");
      target = openWithoutLinks(path, O_PATH | O_DIRECTORY);
    }
    const std::string device = "/dev/" + loopDevice(target.get());
    runChecked({"losetup", "--set-capacity", device});
    runChecked({"resize2fs", device});
  });
}

void removeImage(const std::string& image, const std::string& path) {
  inContext("remove the image of " + path, [&] {
    const Fd directory = openIfExists(path, O_PATH | O_DIRECTORY);
    if (directory && isImageMounted(directory.get(), image) &&
        umount2(("/proc/self/fd/" + std::to_string(directory.get())).c_str(), MNT_DETACH) < 0)
      throw errnoError("unmount");
    removeFile(image);
    // And the directories above it that were only there for it; rmdir(2) takes none that holds anything.
    for (auto above = fs::path(image).parent_path(); rmdir(above.c_str()) == 0; above = above.parent_path()) {
    }
  });
}

std::optional<std::uint64_t> imageBytes(const std::string& image) {
  struct stat st{};
  const bool there = lstat(image.c_str(), &st) == 0;
  if (!there && errno != ENOENT && errno != ENOTDIR) throw errnoError("look at " + image);
  if (!there || !S_ISREG(st.st_mode)) return std::nullopt;
  return static_cast<std::uint64_t>(st.st_size);
}

}  // namespace agentmachine
