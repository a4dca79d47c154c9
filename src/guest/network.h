// Waits for the network that the host sets up in the machine. Never configures any.
#pragma once
#include <string>

#include "util/fd.h"

namespace agentmachine {

/// A socket that becomes readable when a link or an IPv4 address changes (rtnetlink(7)). Throws Error.
Fd watchNetwork();

/// Takes the messages off the socket; they say only that it is time to look again.
void drainNetwork(const Fd& watch);

/// Up, connected (the host raises its end last) and with an IPv4 address. Throws Error.
bool isInterfaceReady(const std::string& name);

}  // namespace agentmachine
