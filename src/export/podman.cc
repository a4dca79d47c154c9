#include "export/podman.h"

#include <algorithm>
#include <format>

#include <nlohmann/json.hpp>

#include "export/promises.h"
#include "export/proxy.h"
#include "plan/host.h"
#include "plan/ini.h"
#include "plan/machine.h"
#include "plan/nspawn.h"
#include "plan/opencode.h"
#include "plan/unit.h"
#include "util/error.h"

namespace agentmachine {

namespace {

/// What Podman has to take a container apart, beyond what the card gives the agent to end.
constexpr int ownStopSeconds = 10;
constexpr unsigned networkBits = 3;  ///< each agent's network has eight addresses

/// All that one card is rendered from.
struct Agent {
  const Card& card;
  const PodmanOptions& options;
  Ipv4 network;
  [[nodiscard]] std::string name() const { return MachineName(card.id).str(); }
  [[nodiscard]] std::string proxyName() const { return agentmachine::proxyName(card.id); }
  [[nodiscard]] std::string proxyAddress() const { return Ipv4{network.value + 2}.str(); }
  [[nodiscard]] std::string address() const { return Ipv4{network.value + 3}.str(); }
};

Egress egressOf(const Agent& agent) {
  const std::string proxy = agent.proxyAddress();
  return {.proxy = std::format("http://{}:{}", proxy, exportedProxyPort),
          .broker = brokerUrl(agent.card, proxy),
          .direct = "localhost,127.0.0.1," + proxy};
}

std::string head(const Card& card) {
  return "Rendered by agentmachine from the card of " + card.id.str() + ".";
}

/// The whole command as the entry point: an empty `Entrypoint=` would leave the image's in front of it, and
/// quadlet loses empty words of `Exec=`.
std::string entryPoint(const std::vector<std::string>& command) {
  std::string text;
  for (const char c : nlohmann::json(command).dump()) {
    text += c;
    if (c == '%' || c == '$') text += c;
  }
  return text;
}

std::string tmpfs(std::string_view path, std::uint64_t mebibytes, std::string_view more) {
  return std::format("{}:rw,nosuid,nodev,size={}m,{}", path, mebibytes, more);
}

/// What both containers have.
void confine(IniFile& file) {
  file.set("ReadOnly", "true")
      .set("ReadOnlyTmpfs", "false")
      .set("NoNewPrivileges", "true")
      .set("DropCapability", "all")
      // Else it is read-only too, and squid needs it.
      .set("Tmpfs", tmpfs("/dev/shm", leastScratchMb, "mode=1777"))
      .set("LogDriver", "journald");
}

std::string subnetOf(const Agent& agent) {
  return std::format("{}/{}", agent.network.str(), 32 - networkBits);
}

std::string agentNetwork(const Agent& agent) {
  IniFile file;
  file.comment(head(agent.card) + " It leads nowhere, and nobody answers for names.")
      .section("Network")
      .set("NetworkName", agent.name())
      .set("Internal", "true")
      .set("DisableDNS", "true")
      // Without a gateway, or the host would have an address in it.
      .set("Subnet", subnetOf(agent));
  return file.str();
}

std::string proxyNetwork(const Agent& agent) {
  IniFile file;
  file.comment(head(agent.card) + " The proxy's way to the internet.")
      .section("Network")
      .set("NetworkName", agent.proxyName());
  return file.str();
}

std::string proxyContainer(const Agent& agent) {
  const Card& card = agent.card;
  const std::string name = agent.proxyName(), machine = agent.name();
  IniFile file;
  file.comment(head(card) + " What its agent may reach is in " + name + "/squid.conf.")
      .section("Unit")
      .set("Description", "Proxy of agent " + card.id.str())
      .set("StopWhenUnneeded", "yes")
      .section("Container")
      // squid tells when it listens, and the agent waits for that.
      .set("Notify", "true")
      .set("ContainerName", name)
      .set("Image", agent.options.proxyImage.str())
      .set("Entrypoint", "/bin/sh")
      .set("Exec", ProxyPlaces{}.config + "/start")
      .set("User", std::to_string(proxyUid))
      .set("Group", std::to_string(proxyUid))
      .set("Network", machine + ".network:ip=" + agent.proxyAddress())
      .set("Network", name + ".network");
  confine(file);
  file.set("Tmpfs", tmpfs(ProxyPlaces{}.runtime, leastScratchMb, "mode=1777"))
      .set("Volume", std::format("./{}:{}:ro,Z", name, ProxyPlaces{}.config));
  if (proxyHasKey(card))
    file.set("Secret", std::format("{}-key,type=mount,target={}/{},uid={},gid={},mode=0400", machine,
                                   ProxyPlaces{}.secret, proxyKeyName, proxyUid, proxyUid));
  if (agent.options.rootful) file.set("UserNS", "auto:size=65536");
  file.section("Service").set("Restart", "on-failure").set("MemoryMax", "512M").set("TasksMax", "64");
  return file.str();
}

void setService(IniFile& file, const Agent& agent) {
  const Card& card = agent.card;
  const auto& limits = card.limits;
  file.section("Service");
  setRestart(file, unitRestart(card));
  // opencode's, when it is told to end.
  file.set("SuccessExitStatus", "143")
      .set("TimeoutStopSec", std::format("{}s", card.stopTimeout.count() + ownStopSeconds))
      .set("MemoryMax", std::format("{}M", limits.memoryMb))
      .set("MemorySwapMax", "0")
      .set("CPUWeight", std::to_string(cpuWeight(limits.cpuShares)));
  if (agent.options.rootful) file.set("IOWeight", std::to_string(limits.ioWeight));
  if (limits.cpuQuotaPercent) file.set("CPUQuota", std::format("{}%", *limits.cpuQuotaPercent));
  if (card.ttl.count() > 0) file.set("RuntimeMaxSec", std::to_string(card.ttl.count()));
  if (card.autostart)
    file.section("Install").set("WantedBy", agent.options.rootful ? "multi-user.target" : "default.target");
}

std::string agentContainer(const Agent& agent) {
  const Card& card = agent.card;
  const PodmanOptions& options = agent.options;
  const std::string name = agent.name();
  const auto& limits = card.limits;
  IniFile file;
  file.comment(head(card))
      .section("Unit")
      .set("Description", "Agent " + card.id.str())
      // Wanted, not required: a new policy restarts the proxy, not the agent.
      .set("Wants", agent.proxyName() + ".service")
      .set("After", agent.proxyName() + ".service");
  setStartLimit(file, unitRestart(card));
  file.section("Container")
      .set("ContainerName", name)
      .set("Image", options.image.str())
      .set("Entrypoint", entryPoint(payloadCommand(card)))
      .set("WorkingDir", "/workspace")
      .set("User", std::to_string(agentUid))
      .set("Group", std::to_string(agentUid))
      .set("Network", name + ".network:ip=" + agent.address())
      // Without it the host's resolvers would be in /etc/resolv.conf.
      .set("DNS", "none")
      // The image has an /etc/hosts; without it the host's would be there.
      .set("PodmanArgs", "--no-hosts");
  confine(file);
  // opencode as PID 1 would ignore SIGTERM.
  file.set("RunInit", "true")
      .set("StopTimeout", std::to_string(card.stopTimeout.count()))
      .set("UserNS", options.rootful ? "auto:size=65536" : std::format("keep-id:uid={0},gid={0}", agentUid))
      .set("Volume", std::format("{}:/workspace:rw,nosuid,nodev{}", card.workspace.str(),
                                 options.rootful ? ",idmap" : ""))
      .set("Volume", std::format("./{}/opencode.json:/etc/opencode/opencode.json:ro,Z", name))
      .set("Tmpfs", tmpfs("/tmp", tmpSizeMb(limits), "mode=1777"))
      .set("Tmpfs", tmpfs("/home/agent", homeSizeMb(limits), "mode=1777"))
      // The card's, and catatonit, which is PID 1.
      .set("PidsLimit", std::to_string(limits.maxProcesses + 1))
      .set("Ulimit", std::format("nofile={0}:{0}", limits.maxOpenFiles))
      .set("Ulimit", "core=0:0");
  if (card.apiKeyFile && card.apiKeyDelivery == KeyDelivery::credential)
    file.set("Secret", std::format("{}-key,type=mount,target={},uid={},gid={},mode=0400", name, agentKeyFile,
                                   agentUid, agentUid));
  for (const auto& [variable, value] : machineEnvironment(card, egressOf(agent)))
    file.set("Environment", unitWord(std::format("{}={}", variable, value)));
  setService(file, agent);
  return file.str();
}

}  // namespace

ExportedFiles exportPodman(const std::vector<Card>& cards, const PodmanOptions& options) {
  checkTogether(cards);
  ExportedFiles result;
  const auto slots = slotsFor(cards, 1U << (32 - networkBits - options.subnet.prefixLength));
  for (const auto& card : cards) {
    const std::string& id = card.id.str();
    inContext("export " + id, [&] { (void)exportedPolicy(card); });
    const Agent agent{.card = card,
                      .options = options,
                      .network = {options.subnet.base.value + (slots.at(id) << networkBits)}};
    const std::string name = agent.name(), proxy = agent.proxyName();
    // Not where the host, and what else runs on it, could ask the proxy.
    const ProxyPlaces places{.address = agent.proxyAddress()};
    result.files[name + ".network"] = agentNetwork(agent);
    result.addresses[name + ".network"] = "Subnet=" + subnetOf(agent);
    result.files[proxy + ".network"] = proxyNetwork(agent);
    result.files[proxy + ".container"] = proxyContainer(agent);
    result.files[name + ".container"] = agentContainer(agent);
    result.files[name + "/opencode.json"] = renderOpencodeConfig(card, egressOf(agent));
    result.files[proxy + "/squid.conf"] = renderProxyConf(card, places);
    result.files[proxy + "/start"] = startProxyScript(card, places);
    auto warnings = warningsFor(Engine::podman, card);
    if (options.rootful)
      warnings.emplace_back(
          "UserNS=auto: /etc/subuid and /etc/subgid must have a line for \"containers\", such as "
          "containers:1000000:1048576");
    warnings.push_back(
        options.rootful
            ? std::format("workspace {0}: must belong to {1}:{1}", card.workspace.str(), agentUid)
            : std::format("workspace {}: must belong to the user whose Podman it is", card.workspace.str()));
    if (card.proxy && !isOwnProxy(*card.proxy, Settings{}))
      warnings.push_back(std::format("proxy {}: is not used", card.proxy->str()));
    if (card.apiKeyFile)
      warnings.push_back(
          std::format("api_key_file: type `podman secret create {}-key {}`", name, card.apiKeyFile->str()));
    for (const auto& warning : warnings) result.warnings.push_back(id + ": " + warning);
  }
  return result;
}

}  // namespace agentmachine
