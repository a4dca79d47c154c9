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
    {"No way out but the proxy",
     {{{Kept::weaker,
        "a NetworkPolicy, which only some network plugins enforce: try that one is before you rely on it"},
       {Kept::yes, "an internal network without a gateway"},
       {Kept::yes, "a network namespace with nothing but loopback"}}},
     always},
    {"No name service",
     {{{Kept::yes,
        "no resolver in the pod, and the network policy allows none; with a proxy that is named, cluster "
        "DNS"},
       {Kept::yes, "DisableDNS= of the network"},
       {Kept::yes, "none can be reached"}}},
     always},
    {"Only the card's hosts, ports and methods",
     {{{Kept::yes, "a Squid of the card's own"},
       {Kept::yes, "a Squid of the card's own"},
       {Kept::yes, "a Squid of the card's own"}}},
     always},
    {"A tunnel's TLS is for the host it was opened for",
     {{{Kept::weaker,
        "the server name must fit the same line of allowed_hosts; a tunnel without a server name passes"},
       {Kept::weaker,
        "the server name must fit the same line of allowed_hosts; a tunnel without a server name passes"},
       {Kept::weaker,
        "the server name must fit the same line of allowed_hosts; a tunnel without a server name passes"}}},
     [](const Card& card) { return !card.allowedHosts.empty(); }},
    {"No private address, whatever a name resolves to",
     {{{Kept::yes, "the proxy, and the network policy of its pod"},
       {Kept::yes, "the proxy"},
       {Kept::yes, "the proxy"}}},
     always},
    {"The API key never where the agent is",
     {{{Kept::weaker,
        "only the proxy's pod has it; but whoever may make pods in the namespace can read its Secret, "
        "and a new key counts when the proxy is restarted"},
       {Kept::weaker, "only the proxy's container has it; a new key counts when the proxy is restarted"},
       {Kept::weaker,
        "only the proxy has it; but everybody on the host can send requests with it through the "
        "proxy's port on loopback"}}},
     hasKeyOutside},
    {"What is allowed changes at once",
     {{{Kept::weaker, "a new policy restarts the proxy, which ends what is open"},
       {Kept::weaker, "a new policy needs a restart of the proxy's unit"},
       {Kept::weaker, "a new policy needs a restart of the proxy's unit"}}},
     [](const Card&) { return false; }},
    {"Every request in the log, with who, what and why",
     {{{Kept::yes, "standard output of the proxy's pod: one line of JSON each"},
       {Kept::yes, "the journal: one line of JSON each"},
       {Kept::yes, "the journal: one line of JSON each"}}},
     always},
    {"Users of its own, not the host's",
     {{{Kept::weaker,
        "hostUsers: false, which needs Kubernetes 1.33 and a file system that maps ids; older ones ignore "
        "it"},
       {Kept::weaker, "UserNS=; with a user's Podman the agent is that user outside"},
       {Kept::weaker, "a user namespace, in which the agent is its unit's user"}}},
     always},
    {"No capability, no new privileges, a read-only root",
     {{{Kept::yes, "securityContext, enforced by Pod Security \"restricted\""},
       {Kept::yes, "DropCapability=, NoNewPrivileges=, ReadOnly="},
       {Kept::yes, "bwrap's own, and the unit's"}}},
     always},
    {"System calls by an allow-list",
     {{{Kept::weaker, "the runtime's default profile, which allows more"},
       {Kept::weaker, "the runtime's default profile, which allows more, among it user namespaces inside"},
       {Kept::weaker, "SystemCallFilter= of the unit, which allows more; run without the unit, none"}}},
     always},
    {"memory_deny_write_execute",
     {{{Kept::no, "nothing sets it"},
       {Kept::no, "nothing sets it"},
       {Kept::yes, "MemoryDenyWriteExecute= of the unit"}}},
     [](const Card& card) { return card.memoryDenyWriteExecute; }},
    {"memory_mb, and no swap",
     {{{Kept::weaker, "the limit is kept; swap is the node's choice"},
       {Kept::yes, "MemoryMax=, MemorySwapMax="},
       {Kept::yes, "MemoryMax=, MemorySwapMax="}}},
     always},
    {"cpu_shares",
     {{{Kept::yes, "requests.cpu, which a node must have free"},
       {Kept::yes, "CPUWeight="},
       {Kept::yes, "CPUWeight="}}},
     always},
    {"cpu_quota_percent",
     {{{Kept::yes, "limits.cpu"}, {Kept::yes, "CPUQuota="}, {Kept::yes, "CPUQuota="}}},
     [](const Card& card) { return card.limits.cpuQuotaPercent.has_value(); }},
    {"max_processes",
     {{{Kept::no, "a pod can't say it; the node's kubelet can (podPidsLimit)"},
       {Kept::yes, "PidsLimit="},
       {Kept::yes, "TasksMax="}}},
     always},
    {"max_open_files",
     {{{Kept::yes, "ulimit, before the agent begins"}, {Kept::yes, "Ulimit="}, {Kept::yes, "LimitNOFILE="}}},
     always},
    {"io_weight",
     {{{Kept::no, "Kubernetes knows none"},
       {Kept::weaker, "IOWeight=, which only units of root have"},
       {Kept::yes, "IOWeight="}}},
     [](const Card& card) { return card.limits.ioWeight != ResourceLimits{}.ioWeight; }},
    {"disk_mb",
     {{{Kept::no, "the volume is a directory of the node and has its disk's size"},
       {Kept::no, "the workspace is a directory and has its disk's size"},
       {Kept::no, "the workspace is a directory and has its disk's size"}}},
     [](const Card& card) { return card.limits.diskMb.has_value(); }},
    {"tmp_mb",
     {{{Kept::yes, "sizeLimit of a volume in memory"}, {Kept::yes, "Tmpfs="}, {Kept::yes, "--size"}}},
     always},
    {"network_mbit",
     {{{Kept::weaker, "what comes in only, by the proxy"},
       {Kept::weaker, "what comes in only, by the proxy"},
       {Kept::weaker, "what comes in only, by the proxy"}}},
     [](const Card& card) { return card.limits.networkMbit.has_value(); }},
    {"max_connections",
     {{{Kept::yes, "the proxy"}, {Kept::yes, "the proxy"}, {Kept::yes, "the proxy"}}},
     always},
    {"requests_per_second",
     {{{Kept::no, "the proxy counts connections only"},
       {Kept::no, "the proxy counts connections only"},
       {Kept::no, "the proxy counts connections only"}}},
     [](const Card& card) { return card.limits.requestsPerSecond != ResourceLimits{}.requestsPerSecond; }},
    {"ttl_seconds",
     {{{Kept::yes, "activeDeadlineSeconds of a Job, shutdownTime of a Sandbox; a Deployment has no end"},
       {Kept::yes, "RuntimeMaxSec=; the unit is then not restarted when it fails"},
       {Kept::yes, "RuntimeMaxSec=; the unit is then not restarted when it fails"}}},
     [](const Card& card) { return card.ttl.count() > 0; }},
    {"packages",
     {{{Kept::weaker, "whatever --image holds"},
       {Kept::weaker, "whatever --image holds"},
       {Kept::weaker, "whatever --root holds"}}},
     [](const Card& card) { return !card.packages.empty(); }},
    {"idle_seconds",
     {{{Kept::no, "nothing looks whether a pod is idle"},
       {Kept::no, "nothing looks whether a container is idle"},
       {Kept::no, "nothing looks whether the unit is idle"}}},
     [](const Card& card) { return card.idle.count() > 0; }},
    {"Writes nowhere but the workspace and scratch of a limited size",
     {{{Kept::yes, "the volume, and volumes in memory"},
       {Kept::yes, "Volume=, Tmpfs="},
       {Kept::yes, "--bind, --tmpfs"}}},
     always},
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
