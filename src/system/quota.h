// Project quotas (quotactl(2), FS_IOC_FSSETXATTR): how much a directory with all below it may hold. The same
// calls serve ext4 and xfs.
#pragma once
#include <cstdint>
#include <set>

#include "plan/machine.h"

namespace agentmachine {

/// What a project holds and may hold.
struct ProjectUsage {
  std::uint64_t bytes = 0;
  SizeLimit limit;  ///< 0: none
};

/// Whether the file system of an open directory counts projects and enforces their limits: ext4 with the
/// feature `project`, xfs, each mounted with prjquota. Throws Error, as the next two do, if the disk fails.
bool enforcesProjectQuotas(int directory);

/// The project that an open directory belongs to; 0 is none.
std::uint32_t projectOf(int directory);

/// Projects from `first` on that hold something or have a limit on that file system, and all of
/// /etc/projects: not to be given to anybody else.
std::set<std::uint32_t> projectsInUse(int directory, std::uint32_t first);

/// Throws Error if the file system has no project quotas.
ProjectUsage projectUsage(int directory, std::uint32_t project);

/// Makes an open directory and all below it `project`'s, and limits them. A tree
/// that has both already only gets the new limit. Symbolic links, devices, FIFOs and sockets can't be given a
/// project, and what is mounted below is left alone. Throws Error if a part belongs to another project, or if
/// a new limit is below what the tree holds. Can be killed and run again.
void limitProject(int directory, std::uint32_t project, SizeLimit limit);

/// Undoes limitProject, as far as it came, and as far as the file system there is now knows of projects.
void unlimitProject(int directory, std::uint32_t project);

}  // namespace agentmachine
