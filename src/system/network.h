// The bridge, the machines' interfaces and nft, through iproute2 and nft(8): both take their commands on
// standard input, so no value becomes an argument list of a shell.
#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>

#include <sys/types.h>

#include "plan/machine.h"

namespace agentmachine {

/// Makes the bridge with the gateway's address and loads our nft tables; what is there already stays.
/// Machines that run are given back what they had of either. Refuses, by name, if another route of the host
/// overlaps the bridge's network.
void bringNetworkUp(const Settings& settings);
/// Removes the bridge and our tables.
void takeNetworkDown(const Settings& settings);
/// Throws Error, naming the guard, unless the bridge is there and our nft tables are what they were right
/// after loading.
void checkNetworkGuards(const Settings& settings);
/// Whenever nft tells that a table or a rule of ours went, loads ours again unless they are what they were
/// right after loading. Settings that can't be read are those of the time before. Tells systemd when the
/// rules are in place for the first time. Returns never; throws Error if they can't be loaded, or the
/// settings could never be read, with the ports of all machines down: then none reaches anything.
[[noreturn]] void keepFilter();
/// Throws Error if the bridge has as many ports as the kernel allows.
void checkBridgeHasRoom(const Settings& settings);

enum class FilterState { missing, altered, inPlace };

/// The network as it is.
struct NetworkFacts {
  std::string overlap;  ///< the host's route that overlaps the bridge's network; "" if none does
  bool bridge = false;  ///< the bridge is there, is up and has the gateway's address
  std::string
      filterRefusal;  ///< what nft says to our rules in a network namespace of their own; "" if it takes them
  FilterState filter = FilterState::missing;  ///< our tables, compared with what they are right after loading
  std::map<std::string, Ipv4> filterPorts;    ///< interfaces that have an element in the filter's set
  std::set<std::string> machinePorts;         ///< interfaces of this host that are named like machines'
};
/// NetworkFacts::filterPorts and machinePorts by themselves.
std::map<std::string, Ipv4> filterPorts();
std::set<std::string> machinePorts();

/// Throws Error if `ip` can't be asked.
NetworkFacts networkFacts(const Settings& settings);

/// Connects a started machine: nft elements, bandwidth, bridge port (isolated), address and connected route
/// inside, and only then up, so that no packet passes before its rules. `leader` is the machine's PID 1.
void attachMachine(const Settings& settings, const Machine& machine, pid_t leader);
/// What came in at an interface so far, in bytes; 0 if it is not there.
std::uint64_t receivedBytes(const std::string& interface);
/// Cuts the machine's TCP connections to the proxy's port. Throws Error if one is left: a kernel without
/// CONFIG_INET_DIAG_DESTROY.
void cutConnections(const Settings& settings, Ipv4 address);
/// Removes what attachMachine left on the host, of the machine with this host side and address. Nothing there
/// is no error.
void removePort(const std::string& interface, Ipv4 address);

}  // namespace agentmachine
