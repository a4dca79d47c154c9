// A card as a command line of bubblewrap, and as units of systemd that start it beside a Squid with the
// card's policy. Pure: no I/O.
#pragma once
#include <string>
#include <vector>

#include "export/files.h"

namespace agentmachine {

struct BwrapOptions {
  AbsolutePath root;                    ///< the image's tree
  std::string user = "opencode-agent";  ///< whose the workspace is
};

/// bwrap's arguments, its own name first, in which the agent has no network at all, not even the proxy: it
/// needs another program for that, which the units are.
std::vector<std::string> bwrapCommand(const Card& card, const BwrapOptions& options);

/// The files, from the root of a host's file system. Throws Error that says what to change if a card can't be
/// exported.
ExportedFiles exportBwrap(const std::vector<Card>& cards, const BwrapOptions& options);

}  // namespace agentmachine
