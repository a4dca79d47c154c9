// What `agentmachine doctor` says of a host: from facts to findings. Pure: no I/O; doctor_facts.h collects
// the facts.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "plan/machine.h"
#include "system/kernel.h"
#include "system/network.h"

namespace agentmachine {

/// A file system that something of ours is on.
struct FileSystemFacts {
  std::string path;  ///< the lowest directory there is of the one asked about
  std::string type;  ///< for messages
  bool idmappable = true;
  std::optional<std::uint64_t> availableBytes;     ///< absent: as for inodes
  std::optional<unsigned> availableInodesPercent;  ///< absent: this kind has no fixed number of them
};

struct UnitFacts {
  std::string name, load, active, enabled;  ///< LoadState, ActiveState and UnitFileState
};

struct DirectoryFacts {
  std::string path;
  mode_t most = 0;             ///< permission bits that it may have
  std::optional<mode_t> mode;  ///< absent: there is no such directory
};

struct MachineFacts {
  std::string id, name;
  bool running = false;
  bool imagePresent = true;
  std::vector<std::string> missing, altered;  ///< paths of what is rendered from its card
  bool filterKnows = true;                    ///< its element is in the packet filter's set
  std::string settingsOverride;               ///< the administrator's .nspawn file that replaces ours, or ""
  std::string keyFile, keyProblem;            ///< of the card, and what is wrong with it
};

/// Something that no machine of the state has any more.
struct Leftover {
  std::string what;
  std::string remedy;  ///< the command that removes it
};

struct DoctorFacts {
  std::string systemdVersion;  ///< of the manager that runs; "" if that is not systemd
  bool nixos = false;          ///< where nothing is installed by hand
  KernelFacts kernel;
  std::map<std::string, std::string> missingPrograms;  ///< program → Debian package
  std::string squid;                                   ///< where our unit looks for it
  std::optional<std::string> squidSays;                ///< `squid -v`; absent: it can't be run
  std::set<std::string> missingUsers;
  std::vector<DirectoryFacts> directories;
  std::string settingsProblem, stateProblem;  ///< what was said on reading them; "" if they are well
  Settings settings;
  std::vector<UnitFacts> units;
  NetworkFacts network;
  std::size_t images = 0;
  std::vector<FileSystemFacts> fileSystems;
  std::vector<MachineFacts> machines;
  std::vector<std::string> dropIns;  ///< the administrator's, which win over ours
  std::vector<Leftover> leftovers;
};

enum class Level {
  ok,
  warning,  ///< worth knowing; no guard is missing
  problem,  ///< a guard is missing, or machines can't start
};
std::string_view toString(Level level);

struct Finding {
  std::string check{};  ///< one word with hyphens, stable: for scripts
  Level level = Level::ok;
  std::string what{};              ///< what was found, a sentence without its full stop
  std::string guards{};            ///< what it is for, or what happens without it; "" if ok
  std::string remedy{};            ///< what to type or to do; "" if ok
  std::vector<std::string> fix{};  ///< the command that `--fix` runs; empty: a person must decide
};

/// All findings, good ones too, in the order in which they should be mended.
std::vector<Finding> judge(const DoctorFacts& facts);

}  // namespace agentmachine
