// Directories that somebody else may be changing at the same time: by descriptor, never through a symbolic
// link, never into another mount. No domain words.
#pragma once
#include <functional>
#include <string>

#include <sys/stat.h>

#include "util/fd.h"

namespace agentmachine {

/// Opens an absolute path of which no component is a symbolic link (openat2(2), RESOLVE_NO_SYMLINKS). None,
/// with errno, if it can't be opened; errno is ELOOP if one is.
Fd openWithoutLinks(const std::string& path, int flags);

/// The same, and none only if there is nothing at the path or a link is on the way: what can't be told is an
/// Error.
Fd openIfExists(const std::string& path, int flags);

/// What walkTree meets. `directory` is open; `name` is in it.
struct TreeVisitor {
  /// Everything but directories when it is met, a directory before what is in it. `entry` is open with O_PATH
  /// only: nothing happens to a device or FIFO by it.
  std::function<void(int directory, const std::string& name, int entry, const struct stat&)> enter;
  /// A directory after all in it.
  std::function<void(int directory, const std::string& name)> leave;
  /// Something is mounted here; it is not looked into.
  std::function<void(const std::string& name)> mounted;
};

/// Visits all that is below `root`, an open directory, not itself. Needs few descriptors however deep the
/// tree is. What vanishes meanwhile is left out. Throws Error with the place if it can't be read, or was
/// moved while it was walked.
void walkTree(int root, const TreeVisitor& visitor);

/// Removes `name`, a directory or anything else, with all below it; an absent one is no error. Throws Error,
/// with whatever it met before that removed, if something is mounted in it.
void removeTree(int directory, const std::string& name);

/// removeTree of what is in `directory`, which stays.
void emptyDirectory(int directory);

}  // namespace agentmachine
