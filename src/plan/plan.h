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

using Action = std::variant<MakeDirectory, WriteFile, Link, Remove, StartUnit, StopUnit>;
/// Done from first to last; `apply` undoes what a failed one made.
using Plan = std::vector<Action>;

/// What `create` does: state, then everything rendered from it, the link under /run/machines last. The same
/// card again plans the same files, with the image, address and users that the machine has. Throws Error if
/// the host can't take the card: no image, no free address, a workspace that is root's, a proxy the host
/// doesn't list….
Plan planCreate(const Card& card, const Host& host);

/// What is rendered for a machine that has its allocation: planCreate without workspace and state. For boot.
Plan planRender(const Machine& machine, const Host& host);

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
