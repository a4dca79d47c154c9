// Idmapped mounts (mount_setattr(2)): a directory whose files seem to belong to somebody else.
#pragma once
#include <string>

#include "plan/snapshot.h"

namespace agentmachine {

/// Whether the file system at `path` can be idmapped. It is tried: no list of file systems is right for every
/// kernel.
bool canIdmap(const std::string& path);

/// Mounts an open directory at `target`, which is made: what belongs to the directory's owner seems to be
/// `seenAs`'s and the other way round; nobody else's files can be made or read there. User and group are
/// mapped each by itself, and neither setuid nor device nodes count. What is mounted below the directory is
/// not carried along. Throws Error. What an earlier call left at `target` is unmounted first.
void mountMapped(int directory, const std::string& target, Owner seenAs);

/// Undoes mountMapped; nothing there is no error.
void unmountMapped(const std::string& target);

}  // namespace agentmachine
