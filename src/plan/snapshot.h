// The host as it was just before planning: all that a plan may depend on besides its card. Pure: no I/O.
#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <sys/types.h>

#include "plan/machine.h"

namespace agentmachine {

struct Owner {
  uid_t user = 0;
  gid_t group = 0;
  bool operator==(const Owner&) const = default;
};

/// What is at a card's workspace.
struct WorkspaceFacts {
  bool exists = false;
  bool directory = false;
  bool throughLink = false;  ///< some component is a symbolic link
  Owner owner;
  bool idmappable = false;           ///< mount_setattr(2) can map its users
  std::string fileSystem;            ///< its type, for messages
  bool empty = false;                ///< a directory with nothing in it
  bool projectQuotas = false;        ///< its file system counts projects and enforces their limits
  std::uint32_t project = 0;         ///< the one the directory belongs to; 0: none
  std::set<std::uint32_t> projects;  ///< of its file system that are somebody's
  std::uint64_t imageBytes = 0;      ///< size of the image (imagePath) that holds it; 0: there is none
};

/// What is at a path.
struct Found {
  enum class Kind { file, link, directory, other } kind = Kind::other;
  mode_t mode = 0;  ///< permission bits
  Owner owner;
  std::string content;  ///< of a file; where a link points
};

/// What is there in the places where things are named after machines.
struct Remains {
  std::map<std::string, std::set<std::string>> names;  ///< by directory
  std::set<std::string> running;                       ///< machines whose units are up, or on their way
  std::set<std::string> units;                         ///< loaded units that begin with "agentmachine-"
  std::set<std::string> mounts;                        ///< every mount point of the host
  std::set<std::string> ports;                         ///< interfaces named like machines' host sides
  std::map<std::string, Ipv4> filterPorts;             ///< those that the packet filter knows
  std::set<std::string> unfinished;  ///< left by processes that were killed while they wrote or removed
};

/// An image that is here.
struct HostImage {
  std::string digest;
  std::set<std::string> packages;  ///< that were chosen for it
};

/// A snapshot of the host, taken before planning.
struct Host {
  Settings settings;
  std::string program;                               ///< the agentmachine binary
  std::string init;                                  ///< agentmachine-init
  std::vector<HostImage> images;                     ///< newest first
  std::map<std::string, Machine> machines;           ///< by id
  std::map<std::string, std::string> unreadable;     ///< by id, too: why; nobody knows what these hold
  std::map<std::string, WorkspaceFacts> workspaces;  ///< by path
  Owner requester;                                   ///< whom a new workspace belongs to
  gid_t proxyGroup = 0;                              ///< group of proxyUser
};

}  // namespace agentmachine
