// Whole files: read with a cap, written so that a reader or a crash never sees half of one.
#pragma once
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace agentmachine {

/// Reads a regular file of at most `maxBytes`. Throws Error ("read PATH: …") if it is missing, larger or no
/// file.
std::string readFile(const std::filesystem::path& path, std::size_t maxBytes);

/// As readFile, but nothing if the file does not exist.
std::optional<std::string> readFileIfExists(const std::filesystem::path& path, std::size_t maxBytes);

struct FileOwner {
  uid_t user;
  gid_t group;
};

/// Writes beside `path`, fsyncs, renames over it and fsyncs the directory: rename(2) is atomic, so the old
/// content or the new is seen, never a part. The directory must exist. Throws Error ("write PATH: …").
void writeFileAtomically(const std::filesystem::path& path, std::string_view content, mode_t mode,
                         std::optional<FileOwner> owner = std::nullopt);

/// Makes a directory, which gets its name last: nobody finds it with another mode or owner. The directory it
/// is in must exist. False if something is there already. Throws Error ("make directory PATH: …").
bool makeDirectoryAtomically(const std::filesystem::path& path, mode_t mode, FileOwner owner);

/// Makes `link` point at `target`, atomically, replacing a link that is there.
void linkAtomically(const std::filesystem::path& link, const std::filesystem::path& target);

/// Removes a file or link; nothing to do if it is absent. Throws Error.
void removeFile(const std::filesystem::path& path);

/// The names in `directory`, sorted; none if there is no such directory. Throws Error ("list PATH: …") if it
/// can't be read: who takes that for empty takes what is in it for gone.
std::vector<std::string> namesIn(const std::filesystem::path& directory);

/// To walk what is below `directory`; its end if there is no such directory. Throws Error as namesIn does; an
/// increment throws std::filesystem::filesystem_error.
std::filesystem::recursive_directory_iterator walkIfExists(const std::filesystem::path& directory);

/// Waits until what was created, renamed or removed in `directory` is on disk.
void syncDirectory(const std::filesystem::path& directory);

}  // namespace agentmachine
