#include "system/image_store.h"

#include <algorithm>
#include <cerrno>
#include <format>
#include <optional>

#include <fcntl.h>
#include <linux/openat2.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "plan/machine.h"
#include "system/clock.h"
#include "system/nix.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/lock.h"
#include "util/sha256.h"
#include "util/text.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view digestPrefix = "sha256-";
constexpr std::string_view temporaryPrefix = ".tmp-";
constexpr std::size_t smallFile = 1 << 20;

void writeDescription(const fs::path& directory, const Image& image) {
  const nlohmann::ordered_json json = {{"name", image.name},
                                       {"opencode_version", image.opencodeVersion},
                                       {"packages", image.packages},
                                       {"size_bytes", image.bytes},
                                       {"imported", image.imported.time_since_epoch().count()}};
  writeFileAtomically(directory / "image.json", json.dump(2) + "\n", 0644);
}

/// Nothing if the image was removed meanwhile.
std::optional<Image> readDescription(const fs::path& directory) {
  const auto path = directory / "image.json";
  const auto text = readFileIfExists(path, smallFile);
  if (!text) return std::nullopt;
  try {
    const auto json = nlohmann::json::parse(*text);
    return Image{
        .digest = directory.filename(),
        .name = json.at("name"),
        .opencodeVersion = json.at("opencode_version"),
        .packages = json.value("packages", std::set<std::string>()),
        .bytes = json.at("size_bytes"),
        .imported = std::chrono::sys_seconds{std::chrono::seconds{json.at("imported").get<std::int64_t>()}}};
  } catch (const nlohmann::json::exception& error) {
    throw Error(std::format("read {}: {}; remove {} and import the image again", path.string(), error.what(),
                            directory.string()));
  }
}

/// A tree that is not trusted: a link in it leads to where it would lead with the tree as /.
class Tree {
 public:
  explicit Tree(const fs::path& path) : root_(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {
    if (!root_) throw errnoError("open " + path.string());
  }

  /// None if there is nothing there, or nothing that can be reached. Throws Error if it can't be told.
  [[nodiscard]] Fd find(const std::string& path, int flags) const {
    open_how how{};
    how.flags = static_cast<std::uint64_t>(flags) | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    Fd fd{static_cast<int>(syscall(SYS_openat2, root_.get(), path.c_str(), &how, sizeof how))};
    if (!fd && errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != EXDEV)
      throw errnoError("open /" + path);
    return fd;
  }
  [[nodiscard]] std::optional<struct stat> status(const std::string& path) const {
    struct stat st{};
    const Fd fd = find(path, O_PATH);
    if (!fd || fstat(fd.get(), &st) < 0) return std::nullopt;
    return st;
  }
  [[nodiscard]] std::string read(const std::string& path) const {
    const Fd fd = find(path, O_RDONLY | O_NONBLOCK);
    // The way to a file that is open, whatever its name now leads to.
    return fd ? readFile("/proc/self/fd/" + std::to_string(fd.get()), smallFile) : "";
  }

 private:
  Fd root_;
};

/// Third and fourth field of `name`'s line in passwd, or the third in group: its numbers.
bool hasLine(const std::string& file, const std::string& name, std::size_t numbers) {
  return std::ranges::any_of(split(file, '\n'), [&](const std::string& line) {
    const auto fields = split(line, ':');
    if (fields.size() < 2 + numbers || fields[0] != name) return false;
    return std::all_of(fields.begin() + 2, fields.begin() + 2 + static_cast<std::ptrdiff_t>(numbers),
                       [](const std::string& field) { return field == std::to_string(agentUid); });
  });
}

/// The value of KEY= in os-release(5), unquoted.
std::string osReleaseField(const Tree& tree, std::string_view key) {
  for (const auto& line : split(tree.read("etc/os-release"), '\n')) {
    if (!line.starts_with(std::string(key) + "=")) continue;
    auto value = trim(line.substr(key.size() + 1));
    if (value.size() >= 2 && (value.front() == '"' || value.front() == '\'') && value.back() == value.front())
      value = value.substr(1, value.size() - 2);
    // It is shown on terminals.
    std::erase_if(value, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
    return value;
  }
  return "";
}

std::set<std::string> packagesIn(const Tree& tree) {
  std::set<std::string> packages;
  for (const auto& name : split(osReleaseField(tree, "AGENTMACHINE_PACKAGES"), ' '))
    if (!name.empty()) packages.insert(printable(name));
  return packages;
}

/// Throws Error if the tree is no image.
Image describeTree(const fs::path& tree, const std::string& digest, std::uint64_t bytes) {
  if (auto problems = imageProblems(tree); !problems.empty()) {
    constexpr std::size_t shown = 5;
    if (const auto count = problems.size(); count > shown) {
      problems.resize(shown);
      problems.push_back(
          std::format("and {} more; `agentmachine image build` makes one that has all", count - shown));
    }
    throw Error("this is no image for agentmachine:\n  " + join(problems, "\n  "));
  }
  const Tree files(tree);
  return {.digest = digest,
          .name = printable(osReleaseField(files, "PRETTY_NAME")),
          .opencodeVersion = printable(osReleaseField(files, "AGENTMACHINE_OPENCODE_VERSION")),
          .packages = packagesIn(files),
          .bytes = bytes,
          .imported = wallClock()};
}

bool isDigest(std::string_view name) {
  return name.size() == digestPrefix.size() + 64 && name.starts_with(digestPrefix) &&
         std::ranges::all_of(name.substr(digestPrefix.size()),
                             [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

/// A directory that is being filled or removed. Its lock, which dies with us, tells others that we live.
class Temporary {
 public:
  explicit Temporary(const fs::path& parent) {
    // Made 0700, and an image stays so: its /tmp is writable for all, which is for machines, not for the
    // host's users.
    auto pattern = (parent / (std::string(temporaryPrefix) + "XXXXXX")).string();
    if (!mkdtemp(pattern.data())) throw errnoError("create a directory in " + parent.string());
    path_ = pattern;
    lock_ = Fd{open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!lock_ || flock(lock_.get(), LOCK_EX | LOCK_NB) < 0) throw errnoError("lock " + path_.string());
  }
  ~Temporary() {
    std::error_code ignored;  // the next import or removal tries again
    fs::remove_all(path_, ignored);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] int fd() const { return lock_.get(); }

 private:
  fs::path path_;
  Fd lock_;
};

}  // namespace

std::string shortDigest(const std::string& digest) {
  return digest.substr(digestPrefix.size(), 12);
}

std::vector<std::string> imageProblems(const fs::path& path) {
  const Tree tree(path);
  std::vector<std::string> problems;
  for (const auto* program : {"bin/sh", "usr/bin/sh", "usr/bin/env", "usr/bin/git", "usr/bin/opencode",
                              "usr/lib/agentmachine/init"}) {
    const auto st = tree.status(program);
    if (!st || !S_ISREG(st->st_mode) || !(st->st_mode & S_IXOTH))
      problems.push_back(std::format("/{} is no program that everyone may run", program));
  }
  // systemd-nspawn mounts on these and with ReadOnly=yes can't make them.
  for (const auto* directory :
       {"dev", "home/agent", "proc", "run", "sys", "tmp", "var/run", "var/tmp", "workspace"}) {
    const auto st = tree.status(directory);
    if (!st || !S_ISDIR(st->st_mode)) problems.push_back(std::format("/{} is no directory", directory));
  }
  for (const auto* file :
       {"etc/group", "etc/hostname", "etc/localtime", "etc/machine-id", "etc/opencode/.gitignore",
        "etc/opencode/opencode.json", "etc/opencode/plugin/permissions.js", "etc/os-release", "etc/passwd",
        "etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"}) {
    const auto st = tree.status(file);
    if (!st || !S_ISREG(st->st_mode)) problems.push_back(std::format("/{} is no file", file));
  }
  const auto run = tree.status("run"), varRun = tree.status("var/run");
  if (run && varRun && run->st_ino != varRun->st_ino) problems.emplace_back("/var/run is no link to /run");
  if (!hasLine(tree.read("etc/passwd"), "agent", 2))
    problems.push_back(std::format("/etc/passwd has no user \"agent\" with uid and gid {}", agentUid));
  if (!hasLine(tree.read("etc/group"), "agent", 1))
    problems.push_back(std::format("/etc/group has no group \"agent\" with gid {}", agentUid));
  return problems;
}

std::vector<Image> ImageStore::list() const {
  std::vector<Image> images;
  for (const auto& name : namesIn(directory_))
    if (isDigest(name))
      if (auto image = readDescription(directory_ / name)) images.push_back(std::move(*image));
  std::ranges::sort(images, [](const Image& a, const Image& b) {
    return a.imported != b.imported ? a.imported > b.imported : a.digest < b.digest;
  });
  return images;
}

Image ImageStore::find(std::string_view name) const {
  auto digits = name;
  if (digits.starts_with("sha256-") || digits.starts_with("sha256:"))
    digits.remove_prefix(digestPrefix.size());
  std::vector<Image> found;
  if (!digits.empty())
    for (auto& image : list())
      if (image.digest.starts_with(std::string(digestPrefix) + std::string(digits)))
        found.push_back(std::move(image));
  if (found.empty())
    throw Error(std::format("there is no image \"{}\": `agentmachine image ls` lists what there is", name));
  if (found.size() > 1)
    throw Error(std::format("\"{}\" begins the digests of {} images: give more digits", name, found.size()));
  return found.front();
}

fs::path ImageStore::tree(const Image& image) const {
  return directory_ / image.digest / "root";
}

fs::path ImageStore::storePath(const Image& image) const {
  std::error_code copied;
  return fs::read_symlink(tree(image), copied);
}

Image ImageStore::import(int archive, const UnpackLimits& limits, const UnpackProgress& progress) {
  fs::create_directories(directory_);
  std::optional<Temporary> temporary;
  {
    const FileLock lock(directory_ / ".lock");
    cleanUp();
    temporary.emplace(directory_);
  }
  const auto tree = temporary->path() / "root";
  fs::create_directory(tree);
  const auto unpacked = unpack(archive, tree, limits, progress);
  const auto image =
      describeTree(tree, std::string(digestPrefix) + sha256(unpacked.manifest), unpacked.bytes);
  writeFileAtomically(temporary->path() / "manifest", unpacked.manifest, 0644);
  writeDescription(temporary->path(), image);
  // Thousands of files: one syncfs(2) is cheaper than an fsync(2) of each.
  if (syncfs(temporary->fd()) < 0) throw errnoError("sync " + temporary->path().string());

  const FileLock lock(directory_ / ".lock");
  const auto place = directory_ / image.digest;
  if (fs::exists(place)) {
    writeDescription(place, image);
  } else {
    if (::rename(temporary->path().c_str(), place.c_str()) < 0) throw errnoError("create " + place.string());
    syncDirectory(directory_);
  }
  return image;
}

Image ImageStore::importStorePath(const fs::path& path) {
  const auto known = queryStorePath(path);
  auto image = describeTree(path, std::string(digestPrefix) + known.sha256, known.bytes);
  fs::create_directories(directory_);
  const FileLock lock(directory_ / ".lock");
  cleanUp();
  const auto place = directory_ / image.digest;
  fs::create_directory(place);
  keepStorePath(path, place / "root");
  writeDescription(place, image);
  syncDirectory(directory_);
  return image;
}

void ImageStore::remove(const Image& image, const std::set<std::string>& inUse) {
  if (inUse.contains(image.digest))
    throw Error(
        std::format("image {} is in use: remove its machines first, or restart those that are to have "
                    "another by now",
                    shortDigest(image.digest)));
  const FileLock lock(directory_ / ".lock");
  cleanUp();
  discard(image.digest);
}

std::vector<Image> ImageStore::prune(const std::set<std::string>& inUse) {
  const FileLock lock(directory_ / ".lock");
  cleanUp();
  std::vector<Image> removed;
  // The newest for each choice of packages is what a machine would be made of.
  std::set<std::set<std::string>> seen;
  for (auto& image : list()) {
    if (seen.insert(image.packages).second || inUse.contains(image.digest)) continue;
    discard(image.digest);
    removed.push_back(std::move(image));
  }
  return removed;
}

/// Takes the image out of sight in one step, then removes it at leisure.
void ImageStore::discard(const std::string& digest) {
  const Temporary temporary(directory_);
  const auto place = directory_ / digest;
  if (::rename(place.c_str(), (temporary.path() / digest).c_str()) < 0) {
    if (errno == ENOENT) return;
    throw errnoError("remove " + place.string());
  }
  syncDirectory(directory_);
}

/// Removes what dead processes left. With the store's lock held no new directory is yet without its own, and
/// no image without its description.
void ImageStore::cleanUp() {
  for (const auto& entry : fs::directory_iterator(directory_)) {
    if (isDigest(entry.path().filename().string()) && !fs::exists(entry.path() / "image.json"))
      fs::remove_all(entry.path());
    if (!entry.path().filename().string().starts_with(temporaryPrefix)) continue;
    const Fd fd{open(entry.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)};
    if (fd && flock(fd.get(), LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry.path());
  }
}

}  // namespace agentmachine
