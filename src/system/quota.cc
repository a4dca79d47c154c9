#include "system/quota.h"

#include <charconv>
#include <format>
#include <limits>

#include <fcntl.h>
#include <linux/dqblk_xfs.h>
#include <linux/fs.h>
#include <linux/quota.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/text.h"
#include "util/tree.h"

namespace agentmachine {

namespace {

constexpr std::uint64_t quotaBlockBytes = 512;  // linux/dqblk_xfs.h: "basic blocks"
constexpr std::size_t maxProjectsBytes = 16 * 1024 * 1024;

/// quotactl_fd(2) takes O_PATH descriptors and needs no block device.
int quotactl(int fd, int command, std::uint32_t id, void* data) {
  return static_cast<int>(syscall(SYS_quotactl_fd, fd, QCMD(command, PRJQUOTA), id, data));
}

/// Of a call that failed because there are no projects, or none any more: nothing to say. A disk that fails
/// says nothing of what there is.
void refuseDiskFault(const char* what) {
  if (errno == EIO) throw errnoError(what);
}

/// An inode that is open with O_PATH, opened so that its attributes can be asked for. FIFOs and devices are
/// never opened so: that has effects, and they have no such attributes.
Fd openForAttributes(int entry) {
  Fd fd{
      open(("/proc/self/fd/" + std::to_string(entry)).c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
  if (!fd) throw errnoError("open");
  return fd;
}

/// Moves one inode from project `from` to `to`; what is in `to` already stays. Directories hand it on.
void moveInode(int entry, bool isDirectory, std::uint32_t from, std::uint32_t to) {
  const Fd fd = openForAttributes(entry);
  fsxattr attributes{};
  if (ioctl(fd.get(), FS_IOC_FSGETXATTR, &attributes) < 0) {
    // On a file system without projects nothing is anybody's.
    if (to == 0 && (errno == ENOTTY || errno == EOPNOTSUPP)) return;
    throw errnoError("read its project");
  }
  if (attributes.fsx_projid != from && attributes.fsx_projid != to) {
    if (to == 0) return;  // somebody else's: only ours are taken back
    throw Error(
        std::format("belongs to project {} of somebody else, who may limit it already: leave disk_mb out, or "
                    "take it out of the project (chattr -p 0)",
                    attributes.fsx_projid));
  }
  const auto before = attributes;
  attributes.fsx_projid = to;
  if (isDirectory && to != 0) attributes.fsx_xflags |= FS_XFLAG_PROJINHERIT;
  if (isDirectory && to == 0 && before.fsx_projid == from) attributes.fsx_xflags &= ~FS_XFLAG_PROJINHERIT;
  if (attributes.fsx_projid == before.fsx_projid && attributes.fsx_xflags == before.fsx_xflags) return;
  if (ioctl(fd.get(), FS_IOC_FSSETXATTR, &attributes) < 0) throw errnoError("set its project");
}

/// The directory first, so that what is made in it meanwhile is counted too.
void moveTree(int directory, std::uint32_t from, std::uint32_t to) {
  moveInode(directory, true, from, to);
  walkTree(directory, {.enter =
                           [&](int, const std::string&, int entry, const struct stat& st) {
                             if (S_ISDIR(st.st_mode) || S_ISREG(st.st_mode))
                               moveInode(entry, S_ISDIR(st.st_mode), from, to);
                           },
                       .leave = [](int, const std::string&) {},
                       .mounted = [](const std::string&) {}});
}

void setLimits(int directory, std::uint32_t project, SizeLimit limit) {
  fs_disk_quota quota{};
  quota.d_version = FS_DQUOT_VERSION;
  quota.d_flags = FS_PROJ_QUOTA;
  quota.d_fieldmask = FS_DQ_BSOFT | FS_DQ_BHARD | FS_DQ_ISOFT | FS_DQ_IHARD;
  quota.d_id = project;
  quota.d_blk_hardlimit = limit.bytes / quotaBlockBytes;
  quota.d_ino_hardlimit = limit.inodes;
  if (quotactl(directory, Q_XSETQLIM, project, &quota) < 0) throw errnoError("set the limit");
}

bool isInherited(int directory) {
  fsxattr attributes{};
  const Fd fd = openForAttributes(directory);
  return ioctl(fd.get(), FS_IOC_FSGETXATTR, &attributes) == 0 &&
         (attributes.fsx_xflags & FS_XFLAG_PROJINHERIT);
}

}  // namespace

bool enforcesProjectQuotas(int directory) {
  fs_quota_statv state{};
  state.qs_version = FS_QSTATV_VERSION1;
  if (quotactl(directory, Q_XGETQSTATV, 0, &state) < 0) {
    refuseDiskFault("ask for the state of its quotas");
    return false;
  }
  constexpr unsigned wanted = FS_QUOTA_PDQ_ACCT | FS_QUOTA_PDQ_ENFD;
  return (state.qs_flags & wanted) == wanted;
}

std::uint32_t projectOf(int directory) {
  fsxattr attributes{};
  const Fd fd = openForAttributes(directory);
  if (ioctl(fd.get(), FS_IOC_FSGETXATTR, &attributes) == 0) return attributes.fsx_projid;
  refuseDiskFault("read its project");
  return 0;
}

std::set<std::uint32_t> projectsInUse(int directory, std::uint32_t first) {
  std::set<std::uint32_t> projects;
  // projid(5) of xfsprogs: "ID:PATH" in /etc/projects.
  for (const auto& line : split(readFileIfExists("/etc/projects", maxProjectsBytes).value_or(""), '\n')) {
    std::uint32_t id = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), id);
    if (error == std::errc() && end != line.data() + line.size() && *end == ':') projects.insert(id);
  }
  for (std::uint32_t id = first;;) {
    fs_disk_quota quota{};
    if (quotactl(directory, Q_XGETNEXTQUOTA, id, &quota) < 0) {
      refuseDiskFault("ask for the projects of the file system");
      return projects;  // ENOENT: that was the last
    }
    if (quota.d_bcount || quota.d_icount || quota.d_blk_hardlimit || quota.d_blk_softlimit ||
        quota.d_ino_hardlimit || quota.d_ino_softlimit)
      projects.insert(quota.d_id);
    if (quota.d_id == std::numeric_limits<std::uint32_t>::max()) return projects;
    id = quota.d_id + 1;
  }
}

ProjectUsage projectUsage(int directory, std::uint32_t project) {
  fs_disk_quota quota{};
  // ENOENT: nothing was ever counted for it.
  if (quotactl(directory, Q_XGETQUOTA, project, &quota) < 0 && errno != ENOENT)
    throw errnoError("ask for its quota");
  return {.bytes = quota.d_bcount * quotaBlockBytes,
          .limit = {.bytes = quota.d_blk_hardlimit * quotaBlockBytes, .inodes = quota.d_ino_hardlimit}};
}

void limitProject(int directory, std::uint32_t project, SizeLimit limit) {
  if (!enforcesProjectQuotas(directory))
    throw Error(
        "disk_mb: its file system does not enforce project quotas (any more): mount it with prjquota");
  const auto before = projectUsage(directory, project);
  // The limit is set last and taken away first: where it is, nothing is left to be walked.
  if (before.limit.bytes == 0 || projectOf(directory) != project || !isInherited(directory))
    moveTree(directory, 0, project);
  const auto now = projectUsage(directory, project);
  if (before.limit.bytes != limit.bytes && now.bytes > limit.bytes)
    throw Error(
        std::format("disk_mb: it holds {} MiB already, more than the {} allowed: remove some of it, or "
                    "allow more",
                    (now.bytes + (1 << 20) - 1) >> 20, limit.bytes >> 20));
  setLimits(directory, project, limit);
}

void unlimitProject(int directory, std::uint32_t project) {
  // Where nothing is enforced there is nothing to lift.
  if (enforcesProjectQuotas(directory)) setLimits(directory, project, {});
  moveTree(directory, project, 0);
}

}  // namespace agentmachine
