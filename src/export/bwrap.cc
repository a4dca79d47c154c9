#include "export/bwrap.h"

#include <algorithm>
#include <format>

#include "export/promises.h"
#include "export/proxy.h"
#include "plan/host.h"
#include "plan/ini.h"
#include "plan/machine.h"
#include "plan/nspawn.h"
#include "plan/opencode.h"
#include "plan/unit.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::uint32_t loopbackBase = 0x7fd60000;  // 127.214.0.0/16, an address each
constexpr std::uint32_t loopbackSlots = 65534;
constexpr std::string_view units = "etc/systemd/system/";
constexpr std::string_view configs = "etc/agentmachine/bwrap/";

/// `address` is the proxy's, on the host's loopback.
ProxyPlaces placesOf(const AgentId& id, const std::string& address) {
  return {.address = address,
          .config = std::format("/{}{}/proxy", configs, id.str()),
          .secret = "${CREDENTIALS_DIRECTORY}",
          .runtime = "/run/agentmachine-bwrap-squid/" + id.str(),
          .outputIsSocket = true};
}

/// The sockets of systemd listen there, in the agent's network namespace.
Egress egressOf(const Card& card) {
  return {.proxy = std::format("http://127.0.0.1:{}", exportedProxyPort),
          .broker = brokerUrl(card, "127.0.0.1"),
          .direct = "localhost,127.0.0.1"};
}

std::string configOf(const AgentId& id) {
  return std::format("/{}{}/opencode.json", configs, id.str());
}

/// What comes after bwrap's options for namespaces; `key` is where the key is, if the agent is to have it.
std::vector<std::string> sandbox(const Card& card, const BwrapOptions& options, const std::string& key) {
  const auto bytes = [](std::uint64_t mebibytes) { return std::to_string(mebibytes << 20); };
  const auto& limits = card.limits;
  std::vector<std::string> words = {
      "--unshare-user",
      // None of its own: in one it could mount, and reach more of the kernel.
      "--disable-userns", "--new-session", "--uid", std::to_string(agentUid), "--gid",
      std::to_string(agentUid), "--hostname", MachineName(card.id).str(), "--cap-drop", "ALL", "--ro-bind",
      options.root.str(), "/", "--proc", "/proc", "--dev", "/dev",
      // It is the agent's, and has no limit of its size.
      "--remount-ro", "/dev", "--size", bytes(leastScratchMb), "--perms", "1777", "--tmpfs", "/dev/shm",
      "--size", bytes(tmpSizeMb(limits)), "--perms", "1777", "--tmpfs", "/tmp", "--size",
      bytes(homeSizeMb(limits)), "--perms", "1777", "--tmpfs", "/home/agent", "--size", bytes(leastScratchMb),
      "--tmpfs", "/run", "--bind", card.workspace.str(), "/workspace", "--ro-bind", configOf(card.id),
      "/etc/opencode/opencode.json"};
  if (card.apiKeyFile && card.apiKeyDelivery == KeyDelivery::credential)
    append(words, {"--ro-bind", key, std::string(agentKeyFile)});
  words.emplace_back("--clearenv");
  for (const auto& [name, value] : machineEnvironment(card, egressOf(card)))
    append(words, {"--setenv", name, value});
  append(words, {"--chdir", "/workspace", "--"});
  append(words, payloadCommand(card));
  return words;
}

/// A command line of a unit; the one variable that systemd has to expand stays.
std::string commandLine(const std::vector<std::string>& words) {
  constexpr std::string_view variable = "${CREDENTIALS_DIRECTORY}/";
  std::vector<std::string> quoted;
  for (const auto& word : words) quoted.push_back(word.starts_with(variable) ? word : unitWord(word));
  return join(quoted, " ");
}

/// The seed's hardening, but for what bubblewrap needs itself: namespaces, mounts, a whole /proc to make its
/// own from, and openat2(2), which RestrictSUIDSGID= forbids.
std::string agentTemplate(const BwrapOptions& options) {
  IniFile file;
  file.comment("Rendered by agentmachine. What it runs is in each agent's drop-in.")
      .section("Unit")
      .set("Description", "Agent %i in bubblewrap")
      .set("Requires", "agentmachine-bwrap-proxy@%i.socket agentmachine-bwrap-broker@%i.socket")
      // Wanted, not required: a new policy restarts the proxy, not the agent. Without it the relays don't
      // run.
      .set("Wants", "agentmachine-bwrap-squid@%i.service")
      .set("After",
           "agentmachine-bwrap-squid@%i.service agentmachine-bwrap-proxy@%i.socket "
           "agentmachine-bwrap-broker@%i.socket")
      .section("Service")
      .set("User", escapeSpecifiers(options.user))
      // Its own, with nothing but loopback, which the sockets share.
      .set("PrivateNetwork", "yes")
      .set("PrivateTmp", "yes")
      .set("PrivateDevices", "yes")
      .set("PrivateIPC", "yes")
      .set("PrivateMounts", "yes")
      .set("ProtectSystem", "strict")
      .set("ProtectClock", "yes")
      .set("ProtectKernelModules", "yes")
      .set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_NETLINK")
      .set("NoNewPrivileges", "yes")
      .set("CapabilityBoundingSet", "")
      .set("AmbientCapabilities", "")
      .set("LockPersonality", "yes")
      .set("RestrictRealtime", "yes")
      .set("RemoveIPC", "yes")
      .set("SystemCallArchitectures", "native")
      .set("SystemCallFilter", "@system-service @mount @sandbox sethostname")
      .set("SystemCallErrorNumber", "EPERM")
      .set("KeyringMode", "private")
      .set("LimitCORE", "0")
      .set("MemorySwapMax", "0")
      .set("OOMPolicy", "continue")
      .section("Install")
      .set("WantedBy", "multi-user.target");
  return file.str();
}

std::string agentDropIn(const Card& card, const BwrapOptions& options) {
  const auto& limits = card.limits;
  // Without --unshare-net: the unit's network namespace is private already, and has the proxy's sockets. And
  // without --die-with-parent: bwrap ends at SIGTERM, and would take the agent's time to end with it. What is
  // left systemd ends.
  std::vector<std::string> command = {"/usr/bin/bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-uts",
                                      "--unshare-cgroup"};
  append(command, sandbox(card, options, "${CREDENTIALS_DIRECTORY}/api-key"));
  IniFile file;
  file.comment("Rendered by agentmachine from the card of " + card.id.str() + ".").section("Unit");
  setStartLimit(file, unitRestart(card));
  file.section("Service").set("ExecStart", commandLine(command)).set("ReadWritePaths", card.workspace.str());
  setRestart(file, unitRestart(card));
  file.set("TimeoutStopSec", std::format("{}s", card.stopTimeout.count()))
      .set("MemoryMax", std::format("{}M", limits.memoryMb))
      .set("CPUWeight", std::to_string(cpuWeight(limits.cpuShares)))
      .set("IOWeight", std::to_string(limits.ioWeight))
      // The card counts the agent's processes; bwrap's two come on top.
      .set("TasksMax", std::to_string(limits.maxProcesses + 2))
      .set("LimitNOFILE", std::to_string(limits.maxOpenFiles));
  if (limits.cpuQuotaPercent) file.set("CPUQuota", std::format("{}%", *limits.cpuQuotaPercent));
  if (card.ttl.count() > 0) file.set("RuntimeMaxSec", std::to_string(card.ttl.count()));
  if (card.memoryDenyWriteExecute) file.set("MemoryDenyWriteExecute", "yes");
  if (card.apiKeyFile && card.apiKeyDelivery == KeyDelivery::credential)
    file.set("LoadCredential", std::format("api-key:{}", card.apiKeyFile->str()));
  return file.str();
}

std::string socketTemplate(std::string_view what, std::uint16_t port) {
  IniFile file;
  file.comment(
          "Rendered by agentmachine: listens in the agent's network namespace, and serves from the host's.")
      .section("Unit")
      .set("Description", std::format("The way of agent %i to its {}", what))
      .set("JoinsNamespaceOf", "agentmachine-bwrap@%i.service")
      .set("PartOf", "agentmachine-bwrap@%i.service")
      .set("StopWhenUnneeded", "yes")
      .section("Socket")
      .set("PrivateNetwork", "yes")
      .set("ListenStream", std::format("127.0.0.1:{}", port));
  return file.str();
}

std::string relayCommand(const std::string& address, std::uint16_t port) {
  return std::format("/usr/lib/systemd/systemd-socket-proxyd {}:{}", address, port);
}

std::string relay(const Card& card, std::string_view what, const std::string& address, std::uint16_t port) {
  // Else what listens at the address might be another agent's.
  const auto squid = std::format("agentmachine-bwrap-squid@{}.service", card.id.str());
  IniFile file;
  file.comment("Rendered by agentmachine from the card of " + card.id.str() + ".")
      .section("Unit")
      .set("Description", std::format("Relay of agent {} to its {}", card.id.str(), what))
      .set("BindsTo", std::format("agentmachine-bwrap-{}@{}.socket", what, card.id.str()))
      .set("Requires", squid)
      .set("After", squid)
      .section("Service")
      .set("ExecStart", relayCommand(address, port))
      .set("DynamicUser", "yes")
      .set("ProtectHome", "yes")
      .set("NoNewPrivileges", "yes")
      .set("IPAddressDeny", "any")
      .set("IPAddressAllow", "localhost");
  return file.str();
}

std::string squidTemplate() {
  IniFile file;
  file.comment("Rendered by agentmachine: the proxy of one agent.")
      .section("Unit")
      .set("Description", "Proxy of agent %i")
      .set("After", "network-online.target")
      .set("Wants", "network-online.target")
      .set("StopWhenUnneeded", "yes")
      .section("Service")
      // squid tells when it listens, and the agent waits for that.
      .set("Type", "notify")
      .set("ExecStart", std::format("/bin/sh /{}%i/proxy/start", configs))
      .set("DynamicUser", "yes")
      .set("RuntimeDirectory", "agentmachine-bwrap-squid/%i")
      .set("RuntimeDirectoryMode", "0700")
      .set("ProtectHome", "yes")
      .set("PrivateDevices", "yes")
      .set("ProtectKernelTunables", "yes")
      .set("ProtectKernelModules", "yes")
      .set("ProtectControlGroups", "yes")
      .set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")
      .set("RestrictNamespaces", "yes")
      .set("CapabilityBoundingSet", "")
      .set("NoNewPrivileges", "yes")
      .set("SystemCallFilter", "@system-service")
      .set("MemoryMax", "512M")
      .set("Restart", "on-failure");
  return file.str();
}

/// For sh(1).
std::string shellWord(const std::string& word) {
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

void addCard(ExportedFiles& result, const Card& card, const std::string& address,
             const BwrapOptions& options) {
  const std::string& id = card.id.str();
  const auto unit = [&](std::string_view name) { return std::format("{}{}", units, name); };
  result.files[unit(std::format("agentmachine-bwrap@{}.service.d/card.conf", id))] =
      agentDropIn(card, options);
  const auto proxyRelay = unit(std::format("agentmachine-bwrap-proxy@{}.service", id));
  result.files[proxyRelay] = relay(card, "proxy", address, exportedProxyPort);
  result.addresses[proxyRelay] = "ExecStart=" + relayCommand(address, exportedProxyPort);
  result.files[unit(std::format("agentmachine-bwrap-broker@{}.service", id))] =
      relay(card, "broker", address, exportedBrokerPort);
  // Always there, so that the next export without a key takes it away.
  IniFile key;
  key.comment("Rendered by agentmachine from the card of " + id + ".")
      .section("Service")
      .set("LoadCredential",
           proxyHasKey(card) ? std::format("{}:{}", proxyKeyName, card.apiKeyFile->str()) : "");
  result.files[unit(std::format("agentmachine-bwrap-squid@{}.service.d/key.conf", id))] = key.str();
  const auto places = placesOf(card.id, address);
  const auto config = std::format("{}{}/", configs, id);
  result.files[config + "opencode.json"] = renderOpencodeConfig(card, egressOf(card));
  result.files[config + "proxy/squid.conf"] = renderProxyConf(card, places);
  result.files[config + "proxy/start"] = startProxyScript(card, places);
  std::vector<std::string> quoted;
  for (const auto& word : bwrapCommand(card, options)) quoted.push_back(shellWord(word));
  result.files[config + "without-network"] = "#!/bin/sh\n# The agent of " + id +
                                             " with no network at all. The units give it its proxy.\nexec " +
                                             join(quoted, " ") + "\n";
}

}  // namespace

std::vector<std::string> bwrapCommand(const Card& card, const BwrapOptions& options) {
  std::vector<std::string> command = {"bwrap", "--unshare-all", "--die-with-parent"};
  append(command, sandbox(card, options, card.apiKeyFile ? card.apiKeyFile->str() : ""));
  return command;
}

ExportedFiles exportBwrap(const std::vector<Card>& cards, const BwrapOptions& options) {
  checkTogether(cards);
  ExportedFiles result;
  const auto unit = [&](std::string_view name) { return std::format("{}{}", units, name); };
  result.files[unit("agentmachine-bwrap@.service")] = agentTemplate(options);
  result.files[unit("agentmachine-bwrap-squid@.service")] = squidTemplate();
  result.files[unit("agentmachine-bwrap-proxy@.socket")] = socketTemplate("proxy", exportedProxyPort);
  result.files[unit("agentmachine-bwrap-broker@.socket")] = socketTemplate("broker", exportedBrokerPort);
  const auto slots = slotsFor(cards, loopbackSlots);
  for (const auto& card : cards) {
    const std::string& id = card.id.str();
    inContext("export " + id, [&] { (void)exportedPolicy(card); });
    addCard(result, card, Ipv4{loopbackBase + 1 + slots.at(id)}.str(), options);
    auto warnings = warningsFor(Engine::bwrap, card);
    warnings.push_back(std::format("workspace {}: must belong to {}", card.workspace.str(), options.user));
    if (card.autostart)
      warnings.push_back(std::format("autostart: type `systemctl enable agentmachine-bwrap@{}`", id));
    if (card.proxy && !isOwnProxy(*card.proxy, Settings{}))
      warnings.push_back(std::format("proxy {}: is not used", card.proxy->str()));
    for (const auto& warning : warnings) result.warnings.push_back(id + ": " + warning);
  }
  return result;
}

}  // namespace agentmachine
