#include "export/promises.h"

#include <format>

namespace agentmachine {

namespace {

bool always(const Card&) {
  return true;
}

bool hasKeyOutside(const Card& card) {
  return card.apiKeyFile && card.apiKeyDelivery == KeyDelivery::broker;
}

constexpr Promise table[] = {
    {"reaches the hosts and ports on its card, its model provider, and nothing else",
     "No way out but the proxy",
     {{{Kept::weaker,
        "a NetworkPolicy, which only some network plugins enforce: try that one is before you rely on it"},
       {Kept::yes, "an internal network without a gateway"},
       {Kept::yes, "a network namespace with nothing but loopback"}}},
     always},
    {"reaches the hosts and ports on its card, its model provider, and nothing else",
     "No name service",
     {{{Kept::yes,
        "no resolver in the pod, and the network policy allows none; with a proxy that is named, cluster "
        "DNS"},
       {Kept::yes, "DisableDNS= of the network"},
       {Kept::yes, "none can be reached"}}},
     always},
    {"reaches the hosts and ports on its card, its model provider, and nothing else",
     "Only the card's hosts, ports and methods",
     {{{Kept::yes, "a Squid of the card's own"},
       {Kept::yes, "a Squid of the card's own"},
       {Kept::yes, "a Squid of the card's own"}}},
     always},
    {"can't reach the host, its networks or the cloud's metadata through a name that it may use",
     "No private address, whatever a name resolves to",
     {{{Kept::yes, "the proxy, and the network policy of its pod"},
       {Kept::weaker, "the proxy alone, without a packet filter that looks a second time"},
       {Kept::weaker, "the proxy alone, without a packet filter that looks a second time"}}},
     always},
    {"can't turn a tunnel to a listed host into one to another",
     "A tunnel's TLS is for the host it was opened for",
     {{{Kept::weaker,
        "the server name must fit the same line of allowed_hosts; a tunnel without a server name passes"},
       {Kept::weaker,
        "the server name must fit the same line of allowed_hosts; a tunnel without a server name passes"},
       {Kept::weaker,
        "the server name must fit the same line of allowed_hosts; a tunnel without a server name passes"}}},
     [](const Card& card) { return !card.allowedHosts.empty(); }},
    {"can't be taken for another machine, nor speak to one",
     "Not taken for another agent, nor speaking to one",
     {{{Kept::weaker,
        "network policies let an agent speak to its own proxy alone, where they are enforced; raw sockets "
        "need a capability that it lacks"},
       {Kept::yes, "a network of its own"},
       {Kept::yes, "a network namespace of its own"}}},
     always},
    {"can't take the network or the proxy from others",
     "network_mbit",
     {{{Kept::weaker, "what comes in only, by the proxy"},
       {Kept::weaker, "what comes in only, by the proxy"},
       {Kept::weaker, "what comes in only, by the proxy"}}},
     [](const Card& card) { return card.limits.networkMbit.has_value(); }},
    {"can't take the network or the proxy from others",
     "max_connections",
     {{{Kept::yes, "the proxy"}, {Kept::yes, "the proxy"}, {Kept::yes, "the proxy"}}},
     always},
    {"can't take the network or the proxy from others",
     "requests_per_second",
     {{{Kept::no, "the proxy counts connections only"},
       {Kept::no, "the proxy counts connections only"},
       {Kept::no, "the proxy counts connections only"}}},
     [](const Card& card) { return card.limits.requestsPerSecond != ResourceLimits{}.requestsPerSecond; }},
    {"can't fill the log with lines",
     "What the agent prints can't crowd out what others log",
     {{{Kept::yes, "the node limits the size of each container's log"},
       {Kept::weaker, "by the journal's usual limit alone, 10000 lines in 30 s"},
       {Kept::weaker, "by the journal's usual limit alone, 10000 lines in 30 s"}}},
     [](const Card&) { return false; }},
    {"loses what its card no longer lists at once, what is open included",
     "What is allowed changes at once",
     {{{Kept::weaker, "a new policy restarts the proxy, which ends what is open"},
       {Kept::weaker, "a new policy needs a restart of the proxy's unit, which ends what is open"},
       {Kept::weaker, "a new policy needs a restart of the proxy's unit, which ends what is open"}}},
     [](const Card&) { return false; }},
    {"never sees the API key (unless the card asks for that)",
     "The API key never where the agent is",
     {{{Kept::weaker,
        "only the proxy's pod has it; but whoever may make pods in the namespace can read its Secret, and a "
        "new key counts when the proxy is restarted"},
       {Kept::weaker, "only the proxy's container has it; a new key counts when the proxy is restarted"},
       {Kept::weaker,
        "only the proxy has it; but everybody on the host can send requests with it through the proxy's port "
        "on loopback, and a new key counts when the proxy is restarted"}}},
     hasKeyOutside},
    {"can't send the provider a key of its own by the broker",
     "No key of the agent's own reaches the provider",
     {{{Kept::yes, "the broker takes out headers and refuses parameters that carry keys"},
       {Kept::yes, "the broker takes out headers and refuses parameters that carry keys"},
       {Kept::yes, "the broker takes out headers and refuses parameters that carry keys"}}},
     hasKeyOutside},
    {"can't have the key sent to another provider, nor can a card that names another while it runs",
     "The key goes to the provider that it is for",
     {{{Kept::weaker, "a new provider in the card and the new key count together once both were applied"},
       {Kept::yes, "the proxy restarts with both"},
       {Kept::yes, "the proxy restarts with both"}}},
     hasKeyOutside},
    {"writes to its workspace and to tmpfs that ends with it, and nowhere else",
     "Writes nowhere but the workspace and scratch of a limited size",
     {{{Kept::yes, "the volume, and volumes in memory"},
       {Kept::yes, "Volume=, Tmpfs="},
       {Kept::yes, "--bind, --tmpfs"}}},
     always},
    {"can't fill the host's disk or memory",
     "disk_mb",
     {{{Kept::no, "the volume is a directory of the node and has its disk's size"},
       {Kept::no, "the workspace is a directory and has its disk's size"},
       {Kept::no, "the workspace is a directory and has its disk's size"}}},
     [](const Card& card) { return card.limits.diskMb.has_value(); }},
    {"can't fill the host's disk or memory",
     "memory_mb, and no swap",
     {{{Kept::weaker, "the limit is kept; swap is the node's choice"},
       {Kept::yes, "MemoryMax=, MemorySwapMax="},
       {Kept::yes, "MemoryMax=, MemorySwapMax="}}},
     always},
    {"can't fill the host's disk or memory",
     "tmp_mb",
     {{{Kept::yes, "sizeLimit of a volume in memory"}, {Kept::yes, "Tmpfs="}, {Kept::yes, "--size"}}},
     always},
    {"leaves no file behind that does something to the host: setuid, device, link",
     "No setuid file or device left in the workspace",
     {{{Kept::weaker,
        "no device can be made, but setuid files of the agent's own user can, and the volume is mounted "
        "without nosuid"},
       {Kept::weaker,
        "no device can be made, but setuid files of the workspace's owner can: mount what holds it with "
        "nosuid"},
       {Kept::weaker,
        "no device can be made, but setuid files of the workspace's owner can: mount what holds it with "
        "nosuid"}}},
     always},
    {"is nobody, on either side: no capability, no way to one, no new namespace",
     "Users of its own, not the host's",
     {{{Kept::weaker,
        "hostUsers: false, which needs Kubernetes 1.33 and file systems that map ids; older ones ignore it, "
        "and --host-users does without"},
       {Kept::weaker, "UserNS=; with a user's Podman the agent is that user outside"},
       {Kept::weaker, "a user namespace, in which the agent is its unit's user"}}},
     always},
    {"is nobody, on either side: no capability, no way to one, no new namespace",
     "No capability, no new privileges, a read-only root",
     {{{Kept::yes, "securityContext, enforced by Pod Security \"restricted\""},
       {Kept::yes, "DropCapability=, NoNewPrivileges=, ReadOnly="},
       {Kept::yes, "bwrap's own, and the unit's"}}},
     always},
    {"reaches little of the kernel",
     "System calls by an allow-list",
     {{{Kept::weaker, "the runtime's default profile, which allows more"},
       {Kept::weaker, "the runtime's default profile, which allows more, among it user namespaces inside"},
       {Kept::weaker, "SystemCallFilter= of the unit, which allows more; run without the unit, none"}}},
     always},
    {"reaches little of the kernel",
     "memory_deny_write_execute",
     {{{Kept::no, "nothing sets it"},
       {Kept::no, "nothing sets it"},
       {Kept::yes, "MemoryDenyWriteExecute= of the unit"}}},
     [](const Card& card) { return card.memoryDenyWriteExecute; }},
    {"can't change what agentmachine sets for opencode (provider, sharing, updates, denied tools) by "
     "settings in its workspace",
     "opencode's settings are the card's",
     {{{Kept::yes, "a ConfigMap, mounted read-only"},
       {Kept::yes, "Volume=, read-only"},
       {Kept::yes, "--ro-bind"}}},
     always},
    {"can't exhaust the host: processes, memory, files, terminals",
     "max_processes",
     {{{Kept::no, "a pod can't say it; the node's kubelet can (podPidsLimit)"},
       {Kept::yes, "PidsLimit="},
       {Kept::yes, "TasksMax="}}},
     always},
    {"can't exhaust the host: processes, memory, files, terminals",
     "max_open_files",
     {{{Kept::yes, "ulimit, before the agent begins"}, {Kept::yes, "Ulimit="}, {Kept::yes, "LimitNOFILE="}}},
     always},
    {"can't exhaust the host: processes, memory, files, terminals",
     "cpu_shares",
     {{{Kept::yes, "requests.cpu, which a node must have free"},
       {Kept::yes, "CPUWeight="},
       {Kept::yes, "CPUWeight="}}},
     always},
    {"can't exhaust the host: processes, memory, files, terminals",
     "cpu_quota_percent",
     {{{Kept::yes, "limits.cpu"}, {Kept::yes, "CPUQuota="}, {Kept::yes, "CPUQuota="}}},
     [](const Card& card) { return card.limits.cpuQuotaPercent.has_value(); }},
    {"can't exhaust the host: processes, memory, files, terminals",
     "io_weight",
     {{{Kept::no, "Kubernetes knows none"},
       {Kept::weaker, "IOWeight=, which only units of root have"},
       {Kept::yes, "IOWeight="}}},
     [](const Card& card) { return card.limits.ioWeight != ResourceLimits{}.ioWeight; }},
    {"can't talk to systemd, machined or the Nix daemon of the host, nor to PID 1 of its machine as more "
     "than itself",
     "No socket of the host",
     {{{Kept::yes, "none is in the pod"},
       {Kept::yes, "none is in the container"},
       {Kept::yes, "none is inside: /run is its own"}}},
     always},
    {"ends when its time is up",
     "ttl_seconds",
     {{{Kept::yes, "activeDeadlineSeconds of a Job, shutdownTime of a Sandbox; a Deployment has no end"},
       {Kept::yes, "RuntimeMaxSec="},
       {Kept::yes, "RuntimeMaxSec="}}},
     [](const Card& card) { return card.ttl.count() > 0; }},
    {"ends when its time is up",
     "What is restarted goes on with what is left of ttl_seconds",
     {{{Kept::yes, "the time counts from the start of the Job"},
       {Kept::weaker, "the unit is not restarted, whatever the card says: its time would begin anew"},
       {Kept::weaker, "the unit is not restarted, whatever the card says: its time would begin anew"}}},
     [](const Card& card) { return card.ttl.count() > 0 && card.restart != RestartPolicy::no; }},
    {"can't refuse to be stopped",
     "stop_timeout_seconds, then killed",
     {{{Kept::yes, "terminationGracePeriodSeconds"},
       {Kept::yes, "StopTimeout="},
       {Kept::yes, "TimeoutStopSec="}}},
     always},
    {"leaves no key, address or way out behind when it or its manager is killed",
     "Nothing left behind",
     {{{Kept::weaker,
        "a Job or Sandbox that has ended leaves its proxy and its Secret; one command takes them, which is "
        "in the head of the output"},
       {Kept::weaker,
        "the proxy stops with the agent; a key stays in Podman's store until `podman secret rm`"},
       {Kept::yes, "proxy, sockets and credentials end with the agent's unit"}}},
     always},
    {"can't deceive who looks at it",
     "Every request in the log, with who, what and why",
     {{{Kept::yes, "standard output of the proxy's pod: one line of JSON each"},
       {Kept::yes, "the journal: one line of JSON each"},
       {Kept::yes, "the journal: one line of JSON each"}}},
     always},
    {"can't deceive who looks at it",
     "What the agent logs can't pass for something else",
     {{{Kept::weaker,
        "`kubectl logs` of the agent shows it as it is, control characters included; the proxy's log is "
        "apart"},
       {Kept::weaker,
        "`podman logs` of the agent shows it as it is, control characters included; the proxy's log is "
        "apart"},
       {Kept::yes, "the journal has it, under the agent's unit"}}},
     always},
    {"",
     "restart",
     {{{Kept::weaker,
        "a Job is started ten times in all, not in an hour; a Sandbox has no such limit, nor has a "
        "Deployment, which starts again whatever ended"},
       {Kept::yes, "Restart=, StartLimitBurst="},
       {Kept::yes, "Restart=, StartLimitBurst="}}},
     [](const Card& card) { return card.restart != RestartPolicy::no; }},
    {"",
     "autostart, and no start at boot without it",
     {{{Kept::weaker, "a node starts its pods when it boots, whatever the card says"},
       {Kept::yes, "WantedBy="},
       {Kept::yes, "WantedBy=, once `systemctl enable` was typed"}}},
     [](const Card& card) { return !card.autostart; }},
    {"",
     "packages",
     {{{Kept::weaker, "whatever --image holds"},
       {Kept::weaker, "whatever --image holds"},
       {Kept::weaker, "whatever --root holds"}}},
     [](const Card& card) { return !card.packages.empty(); }},
    {"",
     "idle_seconds",
     {{{Kept::no, "nothing looks whether a pod is idle"},
       {Kept::no, "nothing looks whether a container is idle"},
       {Kept::no, "nothing looks whether the unit is idle"}}},
     [](const Card& card) { return card.idle.count() > 0; }},
};

std::string_view sign(Kept kept) {
  switch (kept) {
    case Kept::yes:
      return "kept";
    case Kept::weaker:
      return "weaker";
    case Kept::no:
      return "not kept";
  }
  return "";
}

}  // namespace

std::string_view toString(Engine engine) {
  switch (engine) {
    case Engine::kubernetes:
      return "Kubernetes";
    case Engine::podman:
      return "Podman";
    case Engine::bwrap:
      return "bubblewrap";
  }
  return "";
}

std::span<const Promise> promises() {
  return table;
}

std::vector<std::string> warningsFor(Engine engine, const Card& card) {
  std::vector<std::string> warnings;
  for (const auto& promise : promises()) {
    const auto& [kept, how] = promise.on[static_cast<std::size_t>(engine)];
    if (kept != Kept::yes && promise.matters(card))
      warnings.push_back(std::format("{}: {}: {}", promise.what, sign(kept), how));
  }
  return warnings;
}

std::string renderFidelityTable() {
  std::string text = "| a machine's promise |", rule = "|---|";
  for (const auto engine : engines) {
    text += std::format(" {} |", toString(engine));
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (const auto& promise : promises()) {
    text += std::format("| {} |", promise.what);
    for (const auto& [kept, how] : promise.on) text += std::format(" **{}**: {} |", sign(kept), how);
    text += "\n";
  }
  return text;
}

}  // namespace agentmachine
