// What opencode is told: its configuration, its environment and its command line. Pure: no I/O.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "plan/machine.h"

namespace agentmachine {

/// Where an agent finds its way out.
struct Egress {
  std::string proxy;   ///< URL of the proxy
  std::string broker;  ///< URL to which opencode appends what it asks the provider for
  std::string direct;  ///< hosts that no proxy is asked for, as NO_PROXY has them
};

/// A machine's on this host: the broker puts the path of the provider's URL in front.
Egress egressOf(const Settings& settings);

/// /etc/opencode/opencode.json of the machine: the provider behind the broker, no updates, no sharing. It
/// beats the workspace's own opencode.json key by key.
std::string renderOpencodeConfig(const Card& card, const Egress& egress);

/// The payload's environment, in order: proxy, quiet mode, then the card's own variables.
std::vector<std::pair<std::string, std::string>> machineEnvironment(const Card& card, const Egress& egress);

/// The payload: the card's command, else opencode's server on the machine's loopback.
std::vector<std::string> payloadCommand(const Card& card);

/// "provider/model" as opencode writes it, or "" if the card names none: then opencode chooses, of those it
/// knows.
std::string opencodeModel(const Card& card);

}  // namespace agentmachine
