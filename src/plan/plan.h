// From a card and a snapshot of the host to the list of things to do. Pure: no I/O, no clock, no D-Bus.
#pragma once
#include <string>
#include <variant>
#include <vector>

#include "plan/snapshot.h"

namespace agentmachine {

/// Makes a directory and, root's and 0755, those above it; one that exists is left as it is.
struct MakeDirectory {
  std::string path;
  mode_t mode = 0755;
  Owner owner;
};
/// Replaces a file as a whole.
struct WriteFile {
  std::string path;
  std::string content;
  mode_t mode = 0644;
  Owner owner;
};
/// Points a symbolic link at a target.
struct Link {
  std::string path;
  std::string target;
};
/// Removes a file, a link (never what it points at) or a directory with all below; an absent one is no error.
struct Remove {
  std::string path;
};
/// Starts a unit, or stops it and waits until it is down.
struct StartUnit {
  std::string unit;
};
struct StopUnit {
  std::string unit;
};
/// Has systemd read a unit's files again if it has it loaded without this drop-in, or with an older one.
struct ReloadUnit {
  std::string unit;
  std::string dropIn;
};

/// Makes a workspace, in a directory that is there, and follows no link on the way to it.
struct MakeWorkspace {
  std::string path;
  Owner owner;
};
/// Removes a workspace and all in it; an absent one is no error.
struct RemoveWorkspace {
  std::string path;
};
/// Limits what a directory with all below it may hold, by the quota of a project.
struct LimitTree {
  std::string path;
  std::uint32_t project = 0;
  SizeLimit limit;
};
/// Undoes LimitTree; an absent directory is no error.
struct UnlimitTree {
  std::string path;
  std::uint32_t project = 0;
};
/// Makes the image of a workspace, or makes it longer.
struct MakeImage {
  std::string image;
  std::string workspace;
  std::uint64_t bytes = 0;
  Owner owner;
};
/// Unmounts the image of a workspace and removes it.
struct RemoveImage {
  std::string image;
  std::string workspace;
};
/// Unmounts what is mounted for a machine's workspace, and removes the mount point; nothing there is no
/// error.
struct Unmount {
  std::string path;
};
/// Removes the host's side of a machine's interface and what the packet filter knows of it; nothing there is
/// no error.
struct RemovePort {
  std::string interface;
  Ipv4 address;
};

using Action =
    std::variant<MakeDirectory, WriteFile, Link, Remove, StartUnit, StopUnit, ReloadUnit, MakeWorkspace,
                 RemoveWorkspace, LimitTree, UnlimitTree, MakeImage, RemoveImage, Unmount, RemovePort>;
/// Done from first to last; `apply` undoes what a failed one made.
using Plan = std::vector<Action>;

/// What `create` does: state, then everything rendered from it, the link under /run/machines last. The same
/// card again plans the same files, with the image, address and users that the machine has. Throws Error if
/// the host can't take the card: no image, no free address, a workspace that is root's, a proxy the host
/// doesn't list….
Plan planCreate(const Card& card, const Host& host);

/// What is rendered for a machine that has its allocation: planCreate without workspace and state. For boot.
Plan planRender(const Machine& machine, const Host& host);

/// The proxy's view of a machine, for what must count before everything else.
WriteFile planPolicy(const Machine& machine, const Host& host);

/// What `allow` and `deny` do: the card of the state, what the proxy reads and what opencode does.
Plan planHosts(const Machine& machine, const Host& host);

/// Digest of the newest image with exactly the card's packages. Throws Error if there is none.
std::string newestImage(const Card& card, const Host& host);

/// This digest, if an image with it and all of the card's packages is there. Throws Error if not.
std::string imageFor(const Card& card, const std::string& digest, const Host& host);

/// The machine with another image from its next start on. The one it has proven itself with stays known until
/// it does with the new one.
Machine withImage(Machine machine, const std::string& digest);

/// What `upgrade` does, and its rollback: the state, and where the next start finds the image.
Plan planImage(const Machine& machine, const Settings& settings);

/// The machine as `run` starts it: nothing runs in it but what `run` brings.
Machine withIdlePayload(Machine machine);

/// What `rm` does: the link first, the state last, so that a killed `rm` can be run again. The workspace is
/// removed only if asked.
Plan planRemove(const Machine& machine, const Settings& settings, bool removeWorkspace);

/// The plan for people and golden tests: a line an action, contents indented below.
std::string describe(const Plan& plan);

/// Where the tree of an image is.
std::string imageTree(const Settings& settings, const std::string& digest);

}  // namespace agentmachine
