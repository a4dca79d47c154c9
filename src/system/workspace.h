// The directory of a workspace on the host, and the image that holds it where a file system of its own has to
// limit it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "plan/snapshot.h"
#include "util/fd.h"

namespace agentmachine {

/// Opens a workspace without following any link, as O_PATH. Throws Error that says what became of it since
/// `create`: gone, a link, root's.
Fd openWorkspace(const std::string& path);

/// Makes a directory at `path`, whole or not at all, in a parent that no link leads to. False if something is
/// there already. Of a process that was killed ".#made-NAME" is left beside it, until the next.
bool makeWorkspace(const std::string& path, mode_t mode, Owner owner);

/// Removes a workspace and all in it, but nothing that is mounted in it; an absent one is no error. A
/// workspace that is a mount point itself is emptied.
void removeWorkspace(const std::string& path);

/// Makes, at `image`, a sparse file of so many bytes that holds an ext4 file system whose root is `owner`'s;
/// one that is there is made longer, never shorter. mountImage then lets the file system fill it.
void makeImage(const std::string& image, std::uint64_t bytes, Owner owner);

/// Mounts an image at a workspace, nosuid and nodev, and lets its file system fill the file. No link is
/// followed on the way to the mount point, which is made if it is missing and must be empty. What is mounted
/// already stays.
void mountImage(const std::string& image, const std::string& path);

/// Whether an open directory is the root of the image as it is mounted.
bool isImageMounted(int directory, const std::string& image);

/// Unmounts an image, also while somebody is in it, and removes it; an absent one is no error.
void removeImage(const std::string& image, const std::string& path);

/// Size of the file, or nothing if there is none.
std::optional<std::uint64_t> imageBytes(const std::string& image);

}  // namespace agentmachine
