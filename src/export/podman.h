// A card as quadlets of Podman (podman-systemd.unit(5)): the agent in a network that leads nowhere, and a
// Squid with the card's policy in that and in another. Pure: no I/O.
#pragma once
#include <vector>

#include "export/files.h"

namespace agentmachine {

struct PodmanOptions {
  bool rootful = false;  ///< for /etc/containers/systemd instead of a user's ~/.config/containers/systemd
  ImageReference image = ImageReference::parse(defaultAgentImage).value();
  ImageReference proxyImage = ImageReference::parse(defaultProxyImage).value();
  Subnet subnet{.base = {0x0ad60000}, .prefixLength = 16};  ///< 10.214.0.0/16: agents' networks are in it
};

/// The files, for the directory of quadlets. Throws Error that says what to change if a card can't be
/// exported.
ExportedFiles exportPodman(const std::vector<Card>& cards, const PodmanOptions& options);

}  // namespace agentmachine
