#include "system/archive.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <format>
#include <map>
#include <memory>
#include <ranges>
#include <vector>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <locale.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "util/error.h"
#include "util/fd.h"
#include "util/sha256.h"
#include "util/text.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

constexpr uid_t highestId = 65535;                            // a machine's range of users has 65536
constexpr std::size_t longestName = 255, longestPath = 4095;  // NAME_MAX, PATH_MAX less its NUL
constexpr timespec epochPlusOne[2] = {{.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 0}};

/// libarchive converts names to the locale's charset. This one takes any UTF-8, and is the thread's only
/// here.
class Utf8Locale {
 public:
  Utf8Locale() : locale_(newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr)), previous_(uselocale(locale_)) {}
  ~Utf8Locale() {
    uselocale(previous_);
    if (locale_) freelocale(locale_);
  }
  Utf8Locale(const Utf8Locale&) = delete;
  Utf8Locale& operator=(const Utf8Locale&) = delete;

 private:
  locale_t locale_, previous_;
};

/// What libarchive says of its last failure; of some it says nothing, and then the string is null.
std::string whatIsWrong(archive* reader) {
  const char* text = archive_error_string(reader);
  return text ? text : "it is damaged";
}

bool hasControlCharacter(std::string_view text) {
  return std::ranges::any_of(text, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

/// "./usr//bin/" → "usr/bin"; "" is the root itself.
std::string normalPath(std::string_view path) {
  if (path.starts_with('/')) throw Error("its path is absolute");
  if (hasControlCharacter(path)) throw Error("its name has a control character");
  if (path.size() > longestPath) throw Error("its path is too long");
  std::vector<std::string> parts;
  for (auto& part : split(path, '/')) {
    if (part.empty() || part == ".") continue;
    if (part == "..") throw Error("its path has a \"..\"");
    if (part.size() > longestName) throw Error("its name is too long");
    parts.push_back(std::move(part));
  }
  return join(parts, "/");
}

/// Refuses a target that climbs above the root. An absolute one begins at the machine's root, so it can't.
void checkLinkTarget(const std::string& path, std::string_view target) {
  if (target.empty() || target.size() > longestPath || hasControlCharacter(target))
    throw Error("its target is no path");
  const auto parent = directoryOf(path);
  std::ptrdiff_t depth = target.starts_with('/') || parent.empty() ? 0 : std::ranges::count(parent, '/') + 1;
  for (const auto& part : split(target, '/')) {
    if (part.empty() || part == ".") continue;
    depth += part == ".." ? -1 : 1;
    if (depth < 0) throw Error(std::format("it leaves the root: it points to {}", target));
  }
}

class Unpacker {
 public:
  Unpacker(archive* reader, const fs::path& directory, const UnpackLimits& limits, std::function<void()> tick)
      : reader_(reader),
        root_(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
        limits_(limits),
        tick_(std::move(tick)) {
    if (!root_) throw errnoError("open " + directory.string());
    nodes_[""] = {.type = 'd', .mode = 0755, .implied = true};
  }

  void add(archive_entry* entry) {
    const char* given = archive_entry_pathname(entry);
    if (!given) throw Error("the name of an entry is neither ASCII nor UTF-8");
    inContext(escaped(given, longestPath), [&] { addEntry(entry, normalPath(given)); });
  }

  Unpacked finish() {
    // Directories last, the lowest first: an entry below changes the time, and a mode may forbid it.
    for (const auto& [path, node] : std::views::reverse(nodes_))
      if (node.type == 'd') finishDirectory(path, node);
    Unpacked result{.manifest = {}, .bytes = bytes_};
    for (const auto& [path, node] : nodes_)
      result.manifest += std::format("{}\t{:04o}\t{}\t{}\t{}\t{}\n", node.type, node.mode, node.uid, node.gid,
                                     node.content, path.empty() ? "." : path);
    return result;
  }

 private:
  struct Node {
    char type;
    mode_t mode;
    uid_t uid = 0;
    gid_t gid = 0;
    std::string content = "-";
    bool implied = false;  ///< a directory that only a path named so far
  };

  void addEntry(archive_entry* entry, const std::string& path) {
    if (++entries_ > limits_.entries)
      throw Error(std::format("the archive has more than {} entries", limits_.entries));
    checkCommon(entry, path);
    const auto known = nodes_.find(path);
    const char* hardlink = archive_entry_hardlink(entry);
    if (known != nodes_.end() &&
        !(known->second.implied && !hardlink && archive_entry_filetype(entry) == AE_IFDIR))
      throw Error("the archive has this path twice");
    makeParents(path);

    const auto type = archive_entry_filetype(entry);
    Node node{.type = type == AE_IFDIR   ? 'd'
                      : type == AE_IFLNK ? 'l'
                                         : 'f',
              .mode = archive_entry_perm(entry) & 07777u,
              .uid = static_cast<uid_t>(archive_entry_uid(entry)),
              .gid = static_cast<gid_t>(archive_entry_gid(entry))};
    if (hardlink)
      node = addHardlink(path, hardlink);
    else if (node.type == 'd')
      addDirectory(path, node, known != nodes_.end());
    else if (node.type == 'l')
      addSymlink(path, node, archive_entry_symlink(entry));
    else
      addFile(entry, path, node);
    nodes_.insert_or_assign(path, std::move(node));
  }

  void checkCommon(archive_entry* entry, const std::string& path) {
    const auto type = archive_entry_filetype(entry);
    if (type == AE_IFBLK || type == AE_IFCHR) throw Error("it is a device node");
    if (type == AE_IFIFO) throw Error("it is a FIFO");
    if (type == AE_IFSOCK) throw Error("it is a socket");
    if (archive_entry_perm(entry) & (S_ISUID | S_ISGID)) throw Error("it is setuid or setgid");
    if (archive_entry_xattr_count(entry) > 0)
      throw Error("it has extended attributes, which may be file capabilities: pack it without them");
    if (archive_entry_acl_types(entry) != 0) throw Error("it has an access control list: pack it without");
    if (archive_entry_uid(entry) < 0 || archive_entry_uid(entry) > highestId ||
        archive_entry_gid(entry) < 0 || archive_entry_gid(entry) > highestId)
      throw Error(std::format("its owner {}:{} is above {}, and no machine has such users",
                              archive_entry_uid(entry), archive_entry_gid(entry), highestId));
    // As a directory, too, which may be there because something is in it.
    if (path.substr(0, path.find('/')).ends_with(".nspawn"))
      throw Error("it is a settings file of systemd-nspawn: an image must not bring its own");
    if (path.empty() && (type != AE_IFDIR || archive_entry_hardlink(entry)))
      throw Error("the root is not a directory");
    // In base 256 a header can say so.
    if (archive_entry_size(entry) < 0) throw Error("its size is below zero");
    const auto size = static_cast<std::uint64_t>(archive_entry_size(entry));
    if (size > limits_.bytes - bytes_)
      throw Error(std::format("with it the image is larger than the {} MiB allowed", limits_.bytes >> 20));
    bytes_ += size;
  }

  void makeParents(const std::string& path) {
    for (auto slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
      const auto parent = path.substr(0, slash);
      if (const auto known = nodes_.find(parent); known != nodes_.end()) {
        if (known->second.type == 'd') continue;
        throw Error(std::format("its path leads through {}, which is not a directory", parent));
      }
      const Node node{.type = 'd', .mode = 0755, .implied = true};
      addDirectory(parent, node, false);
      nodes_[parent] = node;
    }
  }

  /// A directory already unpacked. The map of nodes says that no part of it is a link; the kernel is asked as
  /// well.
  [[nodiscard]] Fd openDirectory(const std::string& path) const {
    open_how how{};
    how.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    Fd fd{static_cast<int>(
        syscall(SYS_openat2, root_.get(), path.empty() ? "." : path.c_str(), &how, sizeof how))};
    if (!fd) throw errnoError("open its directory");
    return fd;
  }

  static std::string nameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }

  void giveAway(int directory, const std::string& name, const Node& node) const {
    if (owners_ && fchownat(directory, name.c_str(), node.uid, node.gid, AT_SYMLINK_NOFOLLOW) < 0)
      throw errnoError("change its owner");
  }

  void addDirectory(const std::string& path, const Node& node, bool exists) {
    if (path.empty()) return;
    const Fd parent = openDirectory(directoryOf(path));
    // Its own mode waits for finish().
    if (!exists && mkdirat(parent.get(), nameOf(path).c_str(), 0700) < 0) throw errnoError("create it");
    giveAway(parent.get(), nameOf(path), node);
  }

  void finishDirectory(const std::string& path, const Node& node) const {
    inContext(path, [&] {
      const Fd fd = openDirectory(path);
      if (path.empty() && owners_ && fchown(fd.get(), node.uid, node.gid) < 0)
        throw errnoError("change its owner");
      if (futimens(fd.get(), epochPlusOne) < 0 || fchmod(fd.get(), node.mode) < 0)
        throw errnoError("change its mode");
    });
  }

  void addSymlink(const std::string& path, Node& node, const char* target) {
    node.mode = 0777;  // of every link; nobody looks at it
    node.content = target ? target : "";
    checkLinkTarget(path, node.content);
    const Fd parent = openDirectory(directoryOf(path));
    const auto name = nameOf(path);
    if (symlinkat(node.content.c_str(), parent.get(), name.c_str()) < 0) throw errnoError("create it");
    giveAway(parent.get(), name, node);
    if (utimensat(parent.get(), name.c_str(), epochPlusOne, AT_SYMLINK_NOFOLLOW) < 0)
      throw errnoError("set its time");
  }

  Node addHardlink(const std::string& path, const char* given) {
    const auto target = inContext(std::format("it is a hard link to {}", escaped(given, longestPath)),
                                  [&] { return normalPath(given); });
    const auto known = nodes_.find(target);
    if (known == nodes_.end() || known->second.type != 'f')
      throw Error(std::format("it is a hard link to {}, which is no file before it in the archive", target));
    const Fd from = openDirectory(directoryOf(target)), to = openDirectory(directoryOf(path));
    if (linkat(from.get(), nameOf(target).c_str(), to.get(), nameOf(path).c_str(), 0) < 0)
      throw errnoError("create it");
    return known->second;
  }

  void addFile(archive_entry* entry, const std::string& path, Node& node) {
    const Fd parent = openDirectory(directoryOf(path));
    const Fd file{openat(parent.get(), nameOf(path).c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!file) throw errnoError("create it");
    node.content = copyContent(file.get(), archive_entry_size(entry));
    if (owners_ && fchown(file.get(), node.uid, node.gid) < 0) throw errnoError("change its owner");
    if (fchmod(file.get(), node.mode) < 0) throw errnoError("change its mode");
    if (futimens(file.get(), epochPlusOne) < 0) throw errnoError("set its time");
  }

  /// Writes the entry's content, holes left as such, and returns its SHA-256.
  std::string copyContent(int file, la_int64_t size) {
    Sha256 hash;
    la_int64_t done = 0;
    for (;;) {
      const void* block = nullptr;
      std::size_t length = 0;
      la_int64_t offset = 0;
      const int result = archive_read_data_block(reader_, &block, &length, &offset);
      if (result == ARCHIVE_EOF) break;
      if (result != ARCHIVE_OK) throw Error(whatIsWrong(reader_));
      if (offset < done || offset + static_cast<la_int64_t>(length) > size)
        throw Error("its size is not what it says");
      hash.addZeros(static_cast<std::uint64_t>(offset - done));
      hash.add(block, length);
      for (std::size_t written = 0; written < length;) {
        const ssize_t n = pwrite(file, static_cast<const char*>(block) + written, length - written,
                                 offset + static_cast<la_int64_t>(written));
        if (n < 0 && errno != EINTR) throw errnoError("write it");
        if (n > 0) written += static_cast<std::size_t>(n);
      }
      done = offset + static_cast<la_int64_t>(length);
      tick_();
    }
    hash.addZeros(static_cast<std::uint64_t>(size - done));
    if (ftruncate(file, size) < 0) throw errnoError("write it");
    return hash.hex();
  }

  archive* reader_;
  Fd root_;
  UnpackLimits limits_;
  std::function<void()> tick_;
  const bool owners_ = geteuid() == 0;  // nobody else can give files away
  std::uint64_t bytes_ = 0, entries_ = 0;
  std::map<std::string, Node> nodes_;  // sorted: the manifest's order
};

}  // namespace

Unpacked unpack(int archiveFd, const fs::path& directory, const UnpackLimits& limits,
                const UnpackProgress& progress) {
  const Utf8Locale locale;
  const std::unique_ptr<archive, decltype(&archive_read_free)> reader{archive_read_new(), archive_read_free};
  archive_read_support_format_tar(reader.get());
  archive_read_support_filter_gzip(reader.get());
  archive_read_support_filter_xz(reader.get());
  archive_read_support_filter_zstd(reader.get());
  constexpr std::size_t blockSize = 1 << 20;
  struct stat st{};
  const bool known = fstat(archiveFd, &st) == 0;
  if (known && S_ISDIR(st.st_mode)) throw Error("it is a directory: pack it with tar first");
  if (archive_read_open_fd(reader.get(), archiveFd, blockSize) != ARCHIVE_OK)
    throw Error(
        std::format("it is no tar archive, plain or compressed with gzip, xz or zstd, or it is damaged ({})",
                    whatIsWrong(reader.get())));
  const auto total = known && S_ISREG(st.st_mode) ? static_cast<std::uint64_t>(st.st_size) : 0;

  Unpacker unpacker(reader.get(), directory, limits, [&] {
    if (progress) progress(static_cast<std::uint64_t>(archive_filter_bytes(reader.get(), -1)), total);
  });
  archive_entry* entry = nullptr;
  for (;;) {
    const int result = archive_read_next_header(reader.get(), &entry);
    if (result == ARCHIVE_EOF) break;
    // A warning is about something that would be lost or changed: nothing may be.
    if (result != ARCHIVE_OK) throw Error(whatIsWrong(reader.get()));
    unpacker.add(entry);
  }
  return unpacker.finish();
}

}  // namespace agentmachine
