#include "system/oci.h"

#include <algorithm>
#include <array>
#include <format>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plan/machine.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/sha256.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t blockSize = 1 << 20;

using Writer = std::unique_ptr<archive, decltype(&archive_write_free)>;
using Header = std::unique_ptr<archive_entry, decltype(&archive_entry_free)>;

Writer newWriter() {
  return {archive_write_new(), archive_write_free};
}

Header newHeader() {
  return {archive_entry_new(), archive_entry_free};
}

/// A warning is about something that would be lost or changed: nothing may be.
void check(archive* writer, la_ssize_t result) {
  if (result >= ARCHIVE_OK) return;
  const char* text = archive_error_string(writer);
  throw Error(text ? text : "libarchive failed");
}

void writeAll(int fd, const void* data, std::size_t size) {
  for (const auto* at = static_cast<const char*>(data); size > 0;) {
    const ssize_t written = write(fd, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw errnoError("write");
    at += written;
    size -= static_cast<std::size_t>(written);
  }
}

/// Calls `take` with each piece of the file; returns how much there was.
template <class Take>
std::uint64_t readAll(int fd, const Take& take) {
  std::vector<char> block(blockSize);
  std::uint64_t total = 0;
  for (;;) {
    const ssize_t size = pread(fd, block.data(), block.size(), static_cast<off_t>(total));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw errnoError("read");
    if (size == 0) return total;
    take(block.data(), static_cast<std::size_t>(size));
    total += static_cast<std::uint64_t>(size);
  }
}

/// Tar goes in, compressed tar comes out at a descriptor; both are hashed. libarchive calls back through C,
/// which no exception may pass: it is kept and thrown again by whoever sees libarchive fail.
struct Sink {
  int out;
  Writer compressor = newWriter();
  Sha256 tar{}, compressed{};
  std::uint64_t bytes = 0;
  std::exception_ptr thrown{};

  template <class Body>
  la_ssize_t guarded(std::size_t size, const Body& body) {
    try {
      body();
      return static_cast<la_ssize_t>(size);
    } catch (...) {
      thrown = std::current_exception();
      return -1;
    }
  }
  static la_ssize_t takeTar(archive*, void* self, const void* data, std::size_t size) {
    auto& sink = *static_cast<Sink*>(self);
    return sink.guarded(size, [&] {
      sink.tar.add(data, size);
      check(sink.compressor.get(), archive_write_data(sink.compressor.get(), data, size));
    });
  }
  static la_ssize_t takeCompressed(archive*, void* self, const void* data, std::size_t size) {
    auto& sink = *static_cast<Sink*>(self);
    return sink.guarded(size, [&] {
      sink.compressed.add(data, size);
      writeAll(sink.out, data, size);
      sink.bytes += size;
    });
  }

  void open(LayerCompression compression) {
    archive* writer = compressor.get();
    check(writer, archive_write_set_format_raw(writer));
    if (compression == LayerCompression::gzip) {
      check(writer, archive_write_add_filter_gzip(writer));
      check(writer, archive_write_set_filter_option(writer, "gzip", "timestamp", nullptr));
    } else {
      check(writer, archive_write_add_filter_zstd(writer));
      check(writer, archive_write_set_filter_option(writer, "zstd", "compression-level", "9"));
    }
    check(writer, archive_write_set_bytes_in_last_block(writer, 1));
    check(writer, archive_write_open(writer, this, nullptr, takeCompressed, nullptr));
    const Header header = newHeader();
    archive_entry_set_filetype(header.get(), AE_IFREG);
    check(writer, archive_write_header(writer, header.get()));
  }
};

/// Every path below the tree, relative to it, in the order of its bytes.
std::vector<std::string> pathsBelow(const fs::path& tree) {
  std::vector<std::string> paths;
  for (const auto& entry : fs::recursive_directory_iterator(tree))
    paths.push_back(entry.path().lexically_relative(tree).string());
  std::ranges::sort(paths);
  return paths;
}

struct Owned {
  std::string_view path;
  uid_t owner;
  mode_t mode;
};
/// What belongs to the agent or is open to all, as a tarball of the image has it: the Nix store, where an
/// image may be, holds neither owners nor all modes.
constexpr std::array<Owned, 5> owned = {{{"home/agent", agentUid, 0700},
                                         {"root", 0, 0700},
                                         {"tmp", 0, 01777},
                                         {"var/tmp", 0, 01777},
                                         {"workspace", agentUid, 0755}}};

class TreeWriter {
 public:
  TreeWriter(archive* writer, const fs::path& tree, UnpackProgress progress)
      : writer_(writer), tree_(tree), progress_(std::move(progress)) {}

  void add(const std::string& path) {
    const fs::path full = tree_ / path;
    struct stat st{};
    if (lstat(full.c_str(), &st) < 0) throw errnoError("look at it");
    if (const auto* known = std::ranges::find(owned, path, &Owned::path);
        known != owned.end() && S_ISDIR(st.st_mode)) {
      st.st_uid = st.st_gid = known->owner;
      st.st_mode = S_IFDIR | known->mode;
    }
    const Header header = newHeader();
    archive_entry* entry = header.get();
    archive_entry_set_pathname(entry, path.c_str());
    archive_entry_set_mode(entry, st.st_mode);
    archive_entry_set_uid(entry, st.st_uid);
    archive_entry_set_gid(entry, st.st_gid);
    archive_entry_set_mtime(entry, 1, 0);
    if (S_ISLNK(st.st_mode)) {
      archive_entry_set_symlink(entry, fs::read_symlink(full).c_str());
    } else if (S_ISREG(st.st_mode)) {
      const auto [first, isNew] = files_.emplace(std::pair(st.st_dev, st.st_ino), path);
      if (!isNew) {
        archive_entry_set_hardlink(entry, first->second.c_str());
      } else {
        archive_entry_set_size(entry, st.st_size);
        addFile(full, entry, static_cast<std::uint64_t>(st.st_size));
        return;
      }
    } else if (!S_ISDIR(st.st_mode)) {
      throw Error("it is no file, directory or link");
    }
    check(writer_, archive_write_header(writer_, entry));
  }

 private:
  void addFile(const fs::path& path, archive_entry* entry, std::uint64_t size) {
    const Fd file{open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
    if (!file) throw errnoError("open it");
    check(writer_, archive_write_header(writer_, entry));
    const auto read = readAll(file.get(), [&](const char* data, std::size_t length) {
      check(writer_, archive_write_data(writer_, data, length));
      done_ += length;
      if (progress_) progress_(done_, 0);
    });
    if (read != size) throw Error("it changed while it was read");
  }

  archive* writer_;
  fs::path tree_;
  UnpackProgress progress_;
  std::uint64_t done_ = 0;
  std::map<std::pair<dev_t, ino_t>, std::string> files_;
};

void addToTar(archive* writer, const std::string& path, std::uint64_t size, bool directory) {
  const Header header = newHeader();
  archive_entry_set_pathname(header.get(), path.c_str());
  archive_entry_set_filetype(header.get(), directory ? AE_IFDIR : AE_IFREG);
  archive_entry_set_perm(header.get(), directory ? 0755 : 0644);
  archive_entry_set_mtime(header.get(), 1, 0);
  archive_entry_set_size(header.get(), static_cast<la_int64_t>(size));
  check(writer, archive_write_header(writer, header.get()));
}

void writeTar(int out, const std::map<std::string, std::string>& documents, const std::string& layerPath,
              int layer) {
  const Writer writer = newWriter();
  check(writer.get(), archive_write_set_format_ustar(writer.get()));
  check(writer.get(), archive_write_open_fd(writer.get(), out));
  addToTar(writer.get(), "blobs", 0, true);
  addToTar(writer.get(), "blobs/sha256", 0, true);
  for (const auto& [path, content] : documents) {
    addToTar(writer.get(), path, content.size(), false);
    check(writer.get(), archive_write_data(writer.get(), content.data(), content.size()));
  }
  struct stat st{};
  if (fstat(layer, &st) < 0) throw errnoError("look at the layer");
  addToTar(writer.get(), layerPath, static_cast<std::uint64_t>(st.st_size), false);
  readAll(layer, [&](const char* data, std::size_t size) {
    check(writer.get(), archive_write_data(writer.get(), data, size));
  });
  check(writer.get(), archive_write_close(writer.get()));
}

void writeDirectory(const fs::path& directory, const std::map<std::string, std::string>& documents,
                    const std::string& layerPath, int layer) {
  if (!fs::is_empty(directory)) throw Error("it is a directory that isn't empty: name a new one, or a file");
  fs::create_directories(directory / "blobs/sha256");
  const fs::path path = directory / layerPath;
  const Fd out{open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)};
  if (!out) throw errnoError("create " + path.string());
  readAll(layer, [&](const char* data, std::size_t size) { writeAll(out.get(), data, size); });
  if (fsync(out.get()) < 0) throw errnoError("write " + path.string());
  // The index last: without it there is no image.
  for (const auto& [name, content] : documents)
    if (name != "index.json") writeFileAtomically(directory / name, content, 0644);
  writeFileAtomically(directory / "index.json", documents.at("index.json"), 0644);
}

}  // namespace

Layer packLayer(const fs::path& tree, int out, LayerCompression compression, const UnpackProgress& progress) {
  Sink sink{.out = out};
  try {
    sink.open(compression);
    const Writer tar = newWriter();
    check(tar.get(), archive_write_set_format_pax_restricted(tar.get()));
    // Names are bytes.
    check(tar.get(), archive_write_set_format_option(tar.get(), "pax", "hdrcharset", "BINARY"));
    check(tar.get(), archive_write_set_bytes_in_last_block(tar.get(), 1));
    check(tar.get(), archive_write_open(tar.get(), &sink, nullptr, Sink::takeTar, nullptr));
    TreeWriter writer(tar.get(), tree, progress);
    for (const auto& path : pathsBelow(tree)) inContext("pack " + path, [&] { writer.add(path); });
    check(tar.get(), archive_write_close(tar.get()));
    check(sink.compressor.get(), archive_write_close(sink.compressor.get()));
  } catch (...) {
    if (sink.thrown) std::rethrow_exception(sink.thrown);
    throw;
  }
  return {.diffId = sink.tar.hex(), .digest = sink.compressed.hex(), .bytes = sink.bytes};
}

void writeOciLayout(const fs::path& target, const std::map<std::string, std::string>& documents,
                    const std::string& layerPath, int layer) {
  inContext("write " + target.string(), [&] {
    if (fs::is_directory(target)) {
      writeDirectory(target, documents, layerPath, layer);
      return;
    }
    const fs::path temporary = target.string() + ".new";
    const Fd out{open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644)};
    if (!out) throw errnoError("create " + temporary.string());
    try {
      writeTar(out.get(), documents, layerPath, layer);
      if (fsync(out.get()) < 0) throw errnoError("fsync");
      fs::rename(temporary, target);
    } catch (...) {
      unlink(temporary.c_str());
      throw;
    }
  });
}

}  // namespace agentmachine
