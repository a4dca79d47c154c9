#include "apply/apply.h"

#include <filesystem>
#include <functional>
#include <memory>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include "system/idmap.h"
#include "system/journal.h"
#include "system/network.h"
#include "system/quota.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"
#include "util/tree.h"

namespace agentmachine {

namespace fs = std::filesystem;

namespace {

/// Larger than anything a plan writes.
constexpr std::size_t maxReplacedBytes = 8 * 1024 * 1024;

class Application {
 public:
  explicit Application(Systemd& systemd) : systemd_(systemd) {}

  void operator()(const MakeDirectory& action) {
    const fs::path path = action.path;
    if (fs::is_directory(path)) return;
    makeParents(path.parent_path());
    if (makeDirectoryAtomically(path, action.mode, {action.owner.user, action.owner.group}))
      undo_.emplace_back([path] { fs::remove(path); });
  }

  void operator()(const WriteFile& action) {
    const fs::path path = action.path;
    const FileOwner owner{action.owner.user, action.owner.group};
    const auto old = readFileIfExists(path, maxReplacedBytes);
    if (old) {
      struct stat st{};
      if (lstat(path.c_str(), &st) < 0) throw errnoError("lstat " + action.path);
      // systemd takes a file that is newer for another one.
      if (S_ISREG(st.st_mode) && *old == action.content && (st.st_mode & 07777) == action.mode &&
          Owner{st.st_uid, st.st_gid} == action.owner)
        return;
      undo_.emplace_back([path, old = *old, st] {
        writeFileAtomically(path, old, st.st_mode & 07777, FileOwner{st.st_uid, st.st_gid});
      });
    } else {
      undo_.emplace_back([path] { removeFile(path); });
    }
    writeFileAtomically(path, action.content, action.mode, owner);
  }

  void operator()(const Link& action) {
    const fs::path path = action.path;
    std::error_code absent;
    const fs::path old = fs::read_symlink(path, absent);
    if (absent)
      undo_.emplace_back([path] { removeFile(path); });
    else
      undo_.emplace_back([path, old] { linkAtomically(path, old); });
    linkAtomically(path, action.target);
  }

  void operator()(const Remove& action) {
    const fs::path path = action.path;
    std::error_code error;
    if (fs::symlink_status(path, error).type() != fs::file_type::directory) return removeFile(path);
    // A directory goes under another name first: a killed removal leaves no half of one under its own.
    const fs::path doomed = path.parent_path() / (".#removed-" + path.filename().string());
    fs::remove_all(doomed);
    inContext("remove " + action.path, [&] {
      if (rename(path.c_str(), doomed.c_str()) < 0) throw errnoError("rename");
      syncDirectory(path.parent_path());
      fs::remove_all(doomed, error);
      if (error) throw Error(error.message());
    });
  }

  void operator()(const StartUnit& action) {
    undo_.emplace_back([this, unit = action.unit] { systemd_.stop(unit); });
    try {
      systemd_.start(action.unit);
    } catch (const Error& cause) {
      throw Error(cause.what() + lastWords(action.unit));
    }
  }

  void operator()(const StopUnit& action) {
    try {
      systemd_.stop(action.unit);
    } catch (const Error& cause) {
      throw Error(cause.what() + lastWords(action.unit));
    }
    systemd_.resetFailed(action.unit);
  }

  void operator()(const ReloadUnit& action) { systemd_.reloadUnit(action.unit, action.dropIn); }

  void operator()(const MakeWorkspace& action) {
    if (makeWorkspace(action.path, 0750, action.owner))
      undo_.emplace_back([path = action.path] { removeWorkspace(path); });
  }

  void operator()(const RemoveWorkspace& action) { removeWorkspace(action.path); }

  void operator()(const LimitTree& action) {
    inContext("limit " + action.path, [&] {
      const auto directory = std::make_shared<Fd>(openWorkspace(action.path));
      const SizeLimit before = projectUsage(directory->get(), action.project).limit;
      undo_.emplace_back([directory, before, project = action.project] {
        if (before.bytes != 0)
          limitProject(directory->get(), project, before);
        else
          unlimitProject(directory->get(), project);
      });
      limitProject(directory->get(), action.project, action.limit);
    });
  }

  void operator()(const UnlimitTree& action) {
    inContext("unlimit " + action.path, [&] {
      // Another kind of thing is not what we limited.
      if (const Fd directory = openIfExists(action.path, O_PATH | O_DIRECTORY))
        unlimitProject(directory.get(), action.project);
    });
  }

  void operator()(const MakeImage& action) {
    if (!imageBytes(action.image))
      undo_.emplace_back([action] { removeImage(action.image, action.workspace); });
    makeImage(action.image, action.bytes, action.owner);
  }

  void operator()(const Unmount& action) { unmountMapped(action.path); }

  void operator()(const RemovePort& action) { removePort(action.interface, action.address); }

  void operator()(const RemoveImage& action) { removeImage(action.image, action.workspace); }

  void undo() noexcept {
    for (auto step = undo_.rbegin(); step != undo_.rend(); ++step) {
      try {
        (*step)();
      } catch (const std::exception& error) {
        spdlog::warn("while undoing: {}", printable(error.what()));
      }
    }
  }

 private:
  void makeParents(const fs::path& path) {
    if (fs::is_directory(path)) return;
    makeParents(path.parent_path());
    (*this)(MakeDirectory{path.string(), 0755, {}});
  }

  Systemd& systemd_;
  std::vector<std::function<void()>> undo_;
};

}  // namespace

void applyPlan(const Plan& plan, Systemd& systemd) {
  Application application(systemd);
  for (const auto& action : plan) {
    const std::string text = describe(Plan{action});
    spdlog::debug("{}", text.substr(0, text.find('\n')));  // without the content: it may be long
    try {
      std::visit(application, action);
    } catch (const std::filesystem::filesystem_error& error) {
      application.undo();
      throw Error(error.what());
    } catch (...) {
      application.undo();
      throw;
    }
  }
}

}  // namespace agentmachine
