#include "system/network.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <format>
#include <iterator>

#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "plan/nftables.h"
#include "system/host.h"
#include "util/error.h"
#include "util/fd.h"
#include "util/file.h"
#include "util/lock.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

bool interfaceExists(const std::string& name) {
  return std::filesystem::exists("/sys/class/net/" + name);
}

struct Prefix {
  std::uint32_t network = 0;
  unsigned length = 32;
  [[nodiscard]] bool overlaps(const Prefix& other) const {
    const unsigned shorter = std::min(length, other.length);
    const std::uint32_t mask = shorter == 0 ? 0 : ~0u << (32 - shorter);
    return (network & mask) == (other.network & mask);
  }
};

/// "10.0.0.0/8" or "10.1.2.3"; nothing for "default".
std::optional<Prefix> parsePrefix(const std::string& text) {
  const auto parts = split(text, '/');
  const auto address = Ipv4::parse(parts[0]);
  if (!address) return std::nullopt;
  return Prefix{address->value, parts.size() > 1 ? static_cast<unsigned>(std::stoul(parts[1])) : 32};
}

/// "10.0.0.0/8 through eth0": the host's route that overlaps the bridge's network; "" if none does.
std::string overlappingRoute(const Settings& settings) {
  const Prefix ours{settings.gateway.value, settings.prefixLength};
  const auto routes =
      nlohmann::json::parse(runChecked({"ip", "-json", "-4", "route", "show", "table", "all"}));
  for (const auto& route : routes) {
    const auto destination = parsePrefix(route.value("dst", ""));
    const std::string device = route.value("dev", "");
    if (!destination || device == settings.bridge || device == "lo" || !destination->overlaps(ours)) continue;
    return route.value("dst", "") + " through " + device;
  }
  return "";
}

void refuseOverlap(const Settings& settings) {
  if (const auto route = overlappingRoute(settings); !route.empty())
    throw Error(std::format(
        "the network of the bridge {}, {}/{}, overlaps this host's route to {}: choose another `address` in "
        "/etc/agentmachine/agentmachine.conf",
        settings.bridge, settings.gateway.str(), settings.prefixLength, route));
}

bool tableExists(const std::string& family) {
  return runProcess({"nft", "list", "table", family, "agentmachine"}).status == 0;
}

/// tbf passes a burst at full speed and then `mbit`; with less than one of the kernel's largest packets
/// (64 KiB) it would have to split each. What waits longer than the latency is dropped, and TCP slows down.
std::string limitRate(const std::string& interface, std::uint64_t mbit) {
  const std::uint64_t bytesIn10Ms = mbit * 1'000'000 / 8 / 100;
  return std::format("qdisc replace dev {} root tbf rate {}mbit burst {} latency 50ms\n", interface, mbit,
                     std::max<std::uint64_t>(bytesIn10Ms, 68 * 1024));
}

/// The machine's ends of TCP connections to the proxy's port, "ADDRESS:PORT".
std::vector<std::string> proxyConnections(const std::vector<std::string>& filter) {
  std::vector<std::string> command = {"ss", "--tcp", "--numeric", "--no-header"};
  append(command, filter);
  std::vector<std::string> peers;
  for (const auto& line : split(runChecked(command), '\n'))
    if (const auto at = line.find_last_not_of(' '); at != std::string::npos)
      peers.push_back(line.substr(line.find_last_of(' ', at) + 1, at - line.find_last_of(' ', at)));
  return peers;
}

/// Whether the bridge is as bringNetworkUp makes it.
bool bridgeIsUp(const Settings& settings) {
  const auto result = runProcess({"ip", "-json", "-4", "address", "show", "dev", settings.bridge, "up"});
  if (result.status != 0) return false;
  for (const auto& link : nlohmann::json::parse(result.output, nullptr, false))
    for (const auto& address : link.value("addr_info", nlohmann::json::array()))
      if (address.value("local", "") == settings.gateway.str() &&
          address.value("prefixlen", 0u) == settings.prefixLength)
        return true;
  return false;
}

/// Our tables, without counters' values and machines' elements and chains; "" if one is missing.
std::string listTables() {
  std::string text;
  for (const std::string family : {"bridge", "inet"}) {
    const auto result =
        runProcess({"nft", "--stateless", "--terse", "list", "table", family, "agentmachine"});
    if (result.status != 0) return "";
    text += result.output;
  }
  const auto result =
      runProcess({"nft", "--stateless", "list", "chain", "inet", "agentmachine_connections", "input"});
  return result.status == 0 ? text + result.output : "";
}

/// The tables as nft lists them right after our rules were loaded, in a network namespace that goes again.
/// Throws Error with what nft says if it refuses them.
std::string listIntendedTables(const Settings& settings) {
  constexpr auto script =
      "nft -f - && for family in bridge inet; do nft --stateless --terse list table $family agentmachine || "
      "exit; done && nft --stateless list chain inet agentmachine_connections input";
  // With the rules of one machine, which are not listed: the kernel must know them, too.
  const Ipv4 address{settings.gateway.value + 1};
  const auto machine = renderNftElementAdd(hostInterface(settings, address), macAddress(address), address, 1);
  return runChecked({"unshare", "--net", "sh", "-c", script}, renderNftRuleset(settings) + machine);
}

FilterState filterState(const std::string& intended) {
  const auto actual = listTables();
  if (actual.empty()) return FilterState::missing;
  return actual == intended ? FilterState::inPlace : FilterState::altered;
}

/// Holds what listTables gave right after our rules were loaded: quicker to compare with than
/// listIntendedTables.
std::string loadedTablesPath(const Settings& settings) {
  return settings.runtimeDirectory + "/filter";
}

constexpr std::size_t maxListingBytes = std::size_t{1} << 20;

FilterState filterSinceLoading(const Settings& settings) {
  const auto loaded = readFileIfExists(loadedTablesPath(settings), maxListingBytes);
  return filterState(loaded ? *loaded : listIntendedTables(settings));
}

/// Puts the host side on the bridge, apart from all others on it. Its rules must be there.
void joinBridge(const Settings& settings, const std::string& interface, const std::string& mac) {
  runChecked(
      {"ip", "-batch", "-"},
      std::format("link set dev {0} addrgenmode none\n"
                  "link set dev {0} master {1}\n"
                  "link set dev {0} type bridge_slave isolated on learning off flood off mcast_flood off\n",
                  interface, settings.bridge));
  runChecked({"bridge", "fdb", "replace", mac, "dev", interface, "master", "static"});
}

/// Held while the rules are loaded and noted, and while they are compared with what was noted.
FileLock lockFilter(const Settings& settings) {
  return FileLock(settings.runtimeDirectory + "/lock/filter");
}

/// The machines that have a port on this host, so run or begin to, by its name.
std::map<std::string, Machine> connectedMachines(const Settings& settings) {
  std::map<std::string, Machine> connected;
  const auto ports = machinePorts();
  if (ports.empty()) return connected;
  for (const auto& [id, machine] : readMachineRecords(settings).machines)
    if (auto port = hostInterface(settings, machine.allocation.address); ports.contains(port))
      connected.emplace(std::move(port), machine);
  return connected;
}

/// Our rules, and what was flushed with them of these machines.
void loadRules(const Settings& settings, const std::map<std::string, Machine>& connected) {
  auto rules = renderNftRuleset(settings);
  for (const auto& [port, machine] : connected)
    rules += renderNftElementAdd(port, macAddress(machine.allocation.address), machine.allocation.address,
                                 machine.card.limits.maxConnections);
  runChecked({"nft", "-f", "-"}, rules);
  writeFileAtomically(loadedTablesPath(settings), listTables(), 0600);
}

/// The host's settings, or those known before if they can't be read.
std::optional<Settings> presentOr(const std::optional<Settings>& known) {
  try {
    return readSettings();
  } catch (const Error& problem) {
    spdlog::warn("{}", printable(problem.what()));
    return known;
  }
}

/// Sets the ports of all machines up or down. Throws Error for those that it can't be done for, after all
/// were tried.
void setMachinePorts(const std::string& state) {
  std::string failures;
  for (const auto& port : machinePorts())
    if (const auto result = runProcess({"ip", "link", "set", "dev", port, state});
        result.status != 0 && interfaceExists(port))
      failures += std::format("\n  {}: {}", port, trim(result.errors));
  if (!failures.empty()) throw Error(std::format("can't set ports {}:{}", state, failures));
}

/// A socket that is told of every change to nft's tables.
Fd changesOfTables() {
  Fd socket{::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER)};
  const sockaddr_nl address{
      .nl_family = AF_NETLINK, .nl_pad = 0, .nl_pid = 0, .nl_groups = 1U << (NFNLGRP_NFTABLES - 1)};
  if (!socket || bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    throw errnoError("watch nft's tables");
  return socket;
}

/// Whether one of these messages tells that a table of ours went, or a rule that is no machine's own.
bool tellsOfLoss(std::string_view messages) {
  using namespace std::string_view_literals;
  while (messages.size() >= sizeof(nlmsghdr)) {
    nlmsghdr header{};
    std::memcpy(&header, messages.data(), sizeof header);
    if (header.nlmsg_len < sizeof header || header.nlmsg_len > messages.size()) return true;
    // An attribute of each is the table's name, which ends with a 0.
    const auto message = messages.substr(0, header.nlmsg_len);
    if (header.nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE) &&
        message.contains("agentmachine"))
      return true;
    // In the other table that rule leads to the machines' own, which end with them.
    if (header.nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELRULE) &&
        (message.contains("agentmachine\0"sv) || message.contains("input\0"sv)))
      return true;
    messages.remove_prefix(std::min<std::size_t>(NLMSG_ALIGN(header.nlmsg_len), messages.size()));
  }
  return false;
}

/// Returns when something of ours was lost, once all is read that was told by then.
void awaitLoss(const Fd& changes) {
  constexpr std::size_t longest = std::size_t{1} << 16;
  std::string messages(longest, '\0');
  for (bool lost = false;;) {
    const auto count = recv(changes.get(), messages.data(), messages.size(), lost ? MSG_DONTWAIT : 0);
    if (count < 0 && errno == EAGAIN) return;
    // More than the socket holds: something was not told.
    if (count < 0 && errno != EINTR && errno != ENOBUFS) throw errnoError("watch nft's tables");
    if (count < 0)
      lost = lost || errno == ENOBUFS;
    else
      lost = lost || tellsOfLoss(std::string_view(messages).substr(0, static_cast<std::size_t>(count)));
  }
}

}  // namespace

std::map<std::string, Ipv4> filterPorts() {
  std::map<std::string, Ipv4> ports;
  // An element is `"am-2" . 02:00:0a:d5:00:02 . 10.213.0.2`, perhaps with more behind it.
  const auto elements =
      split(runProcess({"nft", "list", "set", "bridge", "agentmachine", "agents"}).output, '"');
  for (std::size_t i = 0; i + 1 < elements.size(); ++i) {
    if (!elements[i].starts_with(machinePortPrefix)) continue;
    for (const auto& word : split(elements[i + 1], ' '))
      if (const auto address = Ipv4::parse(trim(word).substr(0, word.find(','))))
        ports.emplace(elements[i], *address);
  }
  return ports;
}

std::set<std::string> machinePorts() {
  std::set<std::string> ports;
  for (const auto& name : namesIn("/sys/class/net"))
    if (name.starts_with(machinePortPrefix)) ports.insert(name);
  return ports;
}

NetworkFacts networkFacts(const Settings& settings) {
  NetworkFacts facts{.overlap = overlappingRoute(settings), .bridge = bridgeIsUp(settings)};
  try {
    facts.filter = filterState(listIntendedTables(settings));
  } catch (const Error& cause) {
    facts.filterRefusal = cause.what();
  }
  facts.filterPorts = filterPorts();
  facts.machinePorts = machinePorts();
  return facts;
}

void bringNetworkUp(const Settings& settings) {
  inContext("set up the network", [&] {
    refuseOverlap(settings);
    const auto connected = connectedMachines(settings);
    // The rules first: a port that was left on the bridge passes nothing before them.
    {
      const auto lock = lockFilter(settings);
      loadRules(settings, connected);
    }
    std::string commands;
    if (!interfaceExists(settings.bridge))
      commands += std::format("link add name {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n",
                              settings.bridge);
    commands += std::format(
        "link set dev {0} addrgenmode none\n"
        "address replace {1}/{2} dev {0}\n"
        "link set dev {0} up\n",
        settings.bridge, settings.gateway.str(), settings.prefixLength);
    runChecked({"ip", "-batch", "-"}, commands);
    for (const auto& [port, machine] : connected) {
      if (std::filesystem::exists("/sys/class/net/" + port + "/brport")) continue;
      try {
        joinBridge(settings, port, macAddress(machine.allocation.address));
        runChecked({"ip", "link", "set", "dev", port, "up"});
      } catch (const Error& problem) {
        // It has ended meanwhile; if not, it is cut off.
        spdlog::warn("connect {} again: {}", machine.name().str(), printable(problem.what()));
      }
    }
  });
}

void takeNetworkDown(const Settings& settings) {
  inContext("take the network down", [&] {
    if (interfaceExists(settings.bridge)) runChecked({"ip", "link", "delete", "dev", settings.bridge});
    // Without rules the port of a machine that goes on would reach the host.
    setMachinePorts("down");
    runChecked({"nft", "-f", "-"}, renderNftTeardown());
  });
}

void checkNetworkGuards(const Settings& settings) {
  constexpr auto remedy = "systemctl reload-or-restart agentmachine-network";
  const auto filter = filterSinceLoading(settings);
  if (filter == FilterState::missing)
    throw Error(std::format(
        "the packet filter is not in place (an nft table \"agentmachine\" is missing): {}", remedy));
  if (filter == FilterState::altered)
    throw Error(std::format("the packet filter is not in place (its rules in nft were altered): {}", remedy));
  if (!interfaceExists(settings.bridge))
    throw Error(std::format("the bridge {} is missing: {}", settings.bridge, remedy));
}

void keepFilter() {
  const Fd changes = changesOfTables();
  std::optional<Settings> settings = presentOr({});
  // At first, too: what changed before was not told.
  for (;; awaitLoss(changes)) {
    try {
      const auto lock = lockFilter({});
      const auto loaded = readFileIfExists(loadedTablesPath({}), maxListingBytes);
      if (!loaded || filterState(*loaded) != FilterState::inPlace) {
        settings = presentOr(settings);
        if (!settings)
          throw Error("the packet filter can't be put back without the settings: mend " +
                      std::string(settingsPath));
        loadRules(*settings, connectedMachines(*settings));
        spdlog::warn("the packet filter was flushed or altered in nft; it is in place again");
      }
    } catch (...) {
      setMachinePorts("down");
      throw;
    }
    // They may be down since the time before.
    setMachinePorts("up");
    sd_notify(0, "READY=1");
  }
}

void checkBridgeHasRoom(const Settings& settings) {
  // To the kernel: BR_MAX_PORTS is 1024, and 0 is no port's number (net/bridge/br_private.h).
  constexpr std::size_t mostPorts = 1023;
  if (namesIn("/sys/class/net/" + settings.bridge + "/brif").size() >= mostPorts)
    throw Error(
        std::format("all {} ports that a bridge can have are taken on {}: stop machines that are not needed",
                    mostPorts, settings.bridge));
}

void attachMachine(const Settings& settings, const Machine& machine, pid_t leader) {
  const Ipv4 address = machine.allocation.address;
  const auto& limits = machine.card.limits;
  const std::string interface = hostInterface(settings, address), mac = macAddress(address);
  inContext("connect " + interface, [&] {
    runChecked({"nft", "-f", "-"}, renderNftElementAdd(interface, mac, address, limits.maxConnections));
    joinBridge(settings, interface, mac);
    const std::string nsenter = std::format("--net=/proc/{}/ns/net", leader);
    const std::vector<std::string> inside = {"nsenter", nsenter, "ip", "-batch", "-"};
    if (limits.networkMbit) {
      runChecked({"tc", "-batch", "-"}, limitRate(interface, *limits.networkMbit));
      // The way out is limited where it begins, so that it waits instead of being lost: nobody inside may
      // change it.
      runChecked({"nsenter", nsenter, "tc", "-batch", "-"}, limitRate("host0", *limits.networkMbit));
    }
    // A route to the gateway and to nothing else: the machine has no neighbours to ask for.
    runChecked(inside, std::format("link set dev host0 addrgenmode none address {}\n"
                                   "address replace {}/32 dev host0\n",
                                   mac, address.str()));
    runChecked({"ip", "link", "set", "dev", interface, "up"});
    // PID 1 inside waits for this before it starts the payload.
    runChecked(inside, std::format("link set dev host0 up\n"
                                   "route replace {} dev host0 scope link\n",
                                   settings.gateway.str()));
  });
}

void cutConnections(const Settings& settings, Ipv4 address) {
  const std::vector<std::string> filter = {
      "src", std::format("{}:{}", settings.gateway.str(), settings.proxyPort), "dst", address.str()};
  inContext("cut the open connections of " + address.str(), [&] {
    const auto open = proxyConnections(filter);
    if (open.empty()) return;
    std::vector<std::string> kill = {"--kill"};
    append(kill, std::vector(filter));
    proxyConnections(kill);
    // ss says nothing if the kernel can't, so that is seen by what is left. New ones were judged by the new
    // policy.
    for (const auto& peer : proxyConnections(filter))
      if (std::ranges::contains(open, peer))
        throw Error("this kernel can't (CONFIG_INET_DIAG_DESTROY): restart the machine to end what is open");
  });
}

std::uint64_t receivedBytes(const std::string& interface) {
  constexpr std::size_t mostBytes = 64;
  const auto path = "/sys/class/net/" + interface + "/statistics/rx_bytes";
  return std::strtoull(readFileIfExists(path, mostBytes).value_or("0").c_str(), nullptr, 10);
}

void removePort(const std::string& interface, Ipv4 address) {
  inContext("disconnect " + interface, [&] {
    // The interface goes with the machine's network namespace; only one that was killed half-way leaves it.
    if (interfaceExists(interface)) runProcess({"ip", "link", "delete", "dev", interface});
    if (tableExists("bridge"))
      runChecked({"nft", "-f", "-"}, renderNftElementDelete(interface, macAddress(address), address));
  });
}

}  // namespace agentmachine
