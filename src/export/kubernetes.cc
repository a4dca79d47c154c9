#include "export/kubernetes.h"

#include <algorithm>
#include <format>

#include <nlohmann/json.hpp>

#include "build_config.h"
#include "export/promises.h"
#include "export/proxy.h"
#include "export/yaml.h"
#include "plan/machine.h"
#include "plan/nspawn.h"
#include "plan/opencode.h"
#include "util/error.h"
#include "util/sha256.h"
#include "util/text.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view account = "opencode-agent";
/// Of the proxy, in its image and here: another one than the agent's.
constexpr std::uint64_t defaultDiskGib = 100;  // the seed's; nobody enforces it on a directory of the node
constexpr int retries = 9;                     ///< a machine gives up after ten starts, too

std::string mebibytes(std::uint64_t number) {
  return std::format("{}Mi", number);
}

/// In values of Kubernetes "$(NAME)" is a variable, and "$$" a dollar (EnvVar, v1 core).
std::string literal(std::string_view text) {
  std::string doubled;
  for (const char c : text) doubled += c == '$' ? "$$" : std::string(1, c);
  return doubled;
}

/// What Kubernetes calls the address of a Service in the environment of every pod that is made after it.
std::string serviceVariable(const std::string& service) {
  std::string name = service + "_SERVICE_HOST";
  std::ranges::transform(name, name.begin(),
                         [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  return name;
}

/// All that one card is rendered from.
struct Agent {
  const Card& card;
  const KubernetesOptions& options;
  KubernetesKind kind;
  std::optional<Url> proxy;  ///< absent: our own
  [[nodiscard]] std::string name() const { return MachineName(card.id).str(); }
  [[nodiscard]] std::string proxyName() const { return agentmachine::proxyName(card.id); }
  [[nodiscard]] std::string keyName() const { return name() + "-key"; }
  [[nodiscard]] std::string volumeName() const { return space() + "-" + name(); }
  [[nodiscard]] std::string space() const { return options.space.str(); }
};

Json labels(const Agent& agent, std::string_view role) {
  return {{"app.kubernetes.io/name", "agentmachine"},
          {"agentmachine.org/agent-id", agent.card.id.str()},
          {"agentmachine.org/role", role}};
}

Json selector(const Agent& agent, std::string_view role) {
  return {{"agentmachine.org/agent-id", agent.card.id.str()}, {"agentmachine.org/role", role}};
}

Json metadata(const Agent& agent, const std::string& name, std::string_view role) {
  return {{"name", name}, {"namespace", agent.space()}, {"labels", labels(agent, role)}};
}

Json object(std::string_view version, std::string_view kind, Json metadata) {
  return {{"apiVersion", version}, {"kind", kind}, {"metadata", std::move(metadata)}};
}

/// Of a pod's template. It changes with the card and with what renders it, and then a Deployment replaces its
/// pods: a policy that is tighter must not wait for the next restart. A digest, because annotations have a
/// limit.
Json podMetadata(const Agent& agent, std::string_view role) {
  return {{"labels", labels(agent, role)},
          {"annotations",
           {{"agentmachine.org/version", AGENTMACHINE_VERSION},
            {"agentmachine.org/card", "sha256:" + sha256(toJson(agent.card))}}}};
}

Json podSecurity(std::uint32_t user) {
  return {{"runAsNonRoot", true},
          {"runAsUser", user},
          {"runAsGroup", user},
          {"fsGroup", user},
          {"fsGroupChangePolicy", "OnRootMismatch"},
          {"seccompProfile", {{"type", "RuntimeDefault"}}}};
}

Json containerSecurity() {
  return {{"allowPrivilegeEscalation", false},
          {"readOnlyRootFilesystem", true},
          {"runAsNonRoot", true},
          {"capabilities", {{"drop", {"ALL"}}}},
          {"seccompProfile", {{"type", "RuntimeDefault"}}}};
}

Json memoryVolume(std::string_view name, std::uint64_t mebibytesOfIt) {
  return {{"name", name}, {"emptyDir", {{"medium", "Memory"}, {"sizeLimit", mebibytes(mebibytesOfIt)}}}};
}

Json keyVolume(const Agent& agent) {
  return {{"name", "key"},
          {"secret",
           {{"secretName", agent.keyName()},
            {"defaultMode", 0440},
            {"items", Json::array({{{"key", proxyKeyName}, {"path", proxyKeyName}}})}}}};
}

Json port(std::string_view protocol, std::uint16_t number) {
  return {{"protocol", protocol}, {"port", number}};
}

Json podsOf(const std::string& space, Json matchLabels) {
  return {{"namespaceSelector", {{"matchLabels", {{"kubernetes.io/metadata.name", space}}}}},
          {"podSelector", {{"matchLabels", std::move(matchLabels)}}}};
}

Json toClusterDns() {
  return {{"to", Json::array({podsOf("kube-system", {{"k8s-app", "kube-dns"}})})},
          {"ports", Json::array({port("UDP", 53), port("TCP", 53)})}};
}

Json networkPolicy(Json metadata, Json podLabels, Json ingress, Json egress) {
  Json policy = object("networking.k8s.io/v1", "NetworkPolicy", std::move(metadata));
  policy["spec"]["podSelector"] = Json::object();
  if (!podLabels.empty()) policy["spec"]["podSelector"]["matchLabels"] = std::move(podLabels);
  policy["spec"]["policyTypes"] = {"Ingress", "Egress"};
  policy["spec"]["ingress"] = std::move(ingress);
  policy["spec"]["egress"] = std::move(egress);
  return policy;
}

// The way out.

bool hasBroker(const Agent& agent) {
  return !agent.proxy && exportedPolicy(agent.card).broker.has_value();
}

bool isNamed(const Url& proxy) {
  return !Ipv4::parse(proxy.host);
}

/// "NAMESPACE" of "NAME.NAMESPACE.svc…"; a policy can't name any other host.
std::string namespaceOf(const Url& proxy) {
  const auto parts = split(proxy.host, '.');
  if (parts.size() < 3 || parts[2] != "svc")
    throw Error(
        std::format("--proxy {}: a NetworkPolicy knows addresses and pods, not names; give the proxy's IPv4 "
                    "address, or the name of a Service as NAME.NAMESPACE.svc",
                    proxy.str()));
  return parts[1];
}

Egress egressOf(const Agent& agent) {
  if (agent.proxy) return {.proxy = agent.proxy->str(), .broker = "", .direct = "localhost,127.0.0.1"};
  // By address, so that the agent needs no name service.
  const std::string variable = serviceVariable(agent.proxyName());
  const std::string host = std::format("$({})", variable);
  return {.proxy = std::format("http://{}:{}", host, exportedProxyPort),
          .broker = brokerUrl(agent.card, std::format("{{env:{}}}", variable)),
          .direct = "localhost,127.0.0.1," + host};
}

Json agentEgress(const Agent& agent) {
  Json rules = Json::array();
  if (!agent.proxy) {
    Json ports = Json::array({port("TCP", exportedProxyPort)});
    if (hasBroker(agent)) ports.push_back(port("TCP", exportedBrokerPort));
    rules.push_back(
        {{"to", Json::array({podsOf(agent.space(), selector(agent, "proxy"))})}, {"ports", ports}});
    return rules;
  }
  const Url& proxy = *agent.proxy;
  if (!isNamed(proxy)) {
    rules.push_back({{"to", Json::array({{{"ipBlock", {{"cidr", proxy.host + "/32"}}}}})},
                     {"ports", Json::array({port("TCP", proxy.port)})}});
    return rules;
  }
  rules.push_back(
      {{"to", Json::array({{{"namespaceSelector",
                             {{"matchLabels", {{"kubernetes.io/metadata.name", namespaceOf(proxy)}}}}}}})},
       {"ports", Json::array({port("TCP", proxy.port)})}});
  rules.push_back(toClusterDns());
  return rules;
}

Json proxyEgress(const Agent& agent) {
  // The proxy judges names, this addresses: what resolves to the cluster or the nodes' networks is refused
  // twice.
  Json internet = {{"ipBlock",
                    {{"cidr", "0.0.0.0/0"},
                     {"except",
                      {"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
                       "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"}}}}};
  Json ports = Json::array();
  for (const auto number : portsBeyondProxy(agent.card)) ports.push_back(port("TCP", number));
  Json rules = Json::array({toClusterDns()});
  // An empty list of ports would be all of them.
  if (!ports.empty()) rules.push_back({{"to", Json::array({internet})}, {"ports", ports}});
  return rules;
}

// The proxy's own objects.

Json proxyPod(const Agent& agent) {
  Json mounts = Json::array({{{"name", "config"}, {"mountPath", ProxyPlaces{}.config}, {"readOnly", true}},
                             {{"name", "run"}, {"mountPath", ProxyPlaces{}.runtime}}});
  Json volumes = Json::array(
      {{{"name", "config"}, {"configMap", {{"name", agent.proxyName()}}}}, memoryVolume("run", 16)});
  if (proxyHasKey(agent.card)) {
    mounts.push_back({{"name", "key"}, {"mountPath", ProxyPlaces{}.secret}, {"readOnly", true}});
    volumes.push_back(keyVolume(agent));
  }
  Json ports = Json::array({{{"name", "proxy"}, {"containerPort", exportedProxyPort}}});
  if (hasBroker(agent)) ports.push_back({{"name", "broker"}, {"containerPort", exportedBrokerPort}});
  const auto probe = [](unsigned seconds) {
    return Json{{"tcpSocket", {{"port", "proxy"}}}, {"periodSeconds", seconds}};
  };
  return {
      {"serviceAccountName", account},
      {"automountServiceAccountToken", false},
      {"enableServiceLinks", false},
      {"hostUsers", agent.options.hostUsers},
      {"terminationGracePeriodSeconds", 10},
      {"securityContext", podSecurity(proxyUid)},
      {"containers", Json::array({{{"name", "squid"},
                                   {"image", agent.options.proxyImage.str()},
                                   {"imagePullPolicy", "IfNotPresent"},
                                   {"command", {"/bin/sh", std::format("{}/start", ProxyPlaces{}.config)}},
                                   {"ports", ports},
                                   {"securityContext", containerSecurity()},
                                   {"readinessProbe", probe(5)},
                                   {"livenessProbe", probe(20)},
                                   {"resources",
                                    {{"requests", {{"memory", "64Mi"}, {"cpu", "50m"}}},
                                     {"limits", {{"memory", "512Mi"}, {"cpu", "500m"}}}}},
                                   {"volumeMounts", mounts}}})},
      {"volumes", volumes},
      {"nodeSelector", {{"kubernetes.io/os", "linux"}}}};
}

void addProxy(std::vector<Json>& objects, const Agent& agent) {
  const std::string name = agent.proxyName();
  Json config = object("v1", "ConfigMap", metadata(agent, name, "proxy"));
  config["data"] = {{"squid.conf", renderProxyConf(agent.card)}, {"start", startProxyScript(agent.card)}};
  objects.push_back(std::move(config));

  Json ports = Json::array({port("TCP", exportedProxyPort)});
  if (hasBroker(agent)) ports.push_back(port("TCP", exportedBrokerPort));
  objects.push_back(networkPolicy(
      metadata(agent, name, "proxy"), selector(agent, "proxy"),
      Json::array(
          {{{"from", Json::array({podsOf(agent.space(), selector(agent, "agent"))})}, {"ports", ports}}}),
      proxyEgress(agent)));

  Json servicePorts = Json::array({{{"name", "proxy"},
                                    {"protocol", "TCP"},
                                    {"port", exportedProxyPort},
                                    {"targetPort", exportedProxyPort}}});
  if (hasBroker(agent))
    servicePorts.push_back({{"name", "broker"},
                            {"protocol", "TCP"},
                            {"port", exportedBrokerPort},
                            {"targetPort", exportedBrokerPort}});
  Json service = object("v1", "Service", metadata(agent, name, "proxy"));
  service["spec"] = {{"type", "ClusterIP"},
                     // An address of IPv6 would need brackets, which Kubernetes' variables don't have.
                     {"ipFamilyPolicy", "SingleStack"},
                     {"ipFamilies", {"IPv4"}},
                     {"selector", selector(agent, "proxy")},
                     {"ports", servicePorts}};
  objects.push_back(std::move(service));

  Json deployment = object("apps/v1", "Deployment", metadata(agent, name, "proxy"));
  deployment["spec"] = {{"replicas", 1},
                        {"selector", {{"matchLabels", selector(agent, "proxy")}}},
                        {"template", {{"metadata", podMetadata(agent, "proxy")}, {"spec", proxyPod(agent)}}}};
  objects.push_back(std::move(deployment));
}

// The agent's.

Json environment(const Agent& agent) {
  Json list = Json::array();
  for (const auto& [name, value] : machineEnvironment(agent.card, egressOf(agent))) {
    // Only ours end so: a card can't have them. They hold the one variable that must be expanded.
    const bool ours = name.ends_with("_PROXY") || name.ends_with("_proxy");
    list.push_back({{"name", name}, {"value", ours ? value : literal(value)}});
  }
  return list;
}

Json command(const Card& card) {
  // Kubernetes has no such limit; a shell's is kept by all that it starts.
  Json words = {"/bin/sh", "-c",
                literal(std::format("ulimit -c 0; ulimit -n {}; exec \"$@\"", card.limits.maxOpenFiles)),
                "sh"};
  for (const auto& word : payloadCommand(card)) words.push_back(literal(word));
  return words;
}

Json resources(const ResourceLimits& limits) {
  // A kubelet turns 1000m into 1024 shares.
  std::uint64_t cpu = std::max<std::uint64_t>(limits.cpuShares * 1000 / 1024, 1);
  Json most = {{"memory", mebibytes(limits.memoryMb)}};
  if (limits.cpuQuotaPercent) {
    most["cpu"] = std::format("{}m", *limits.cpuQuotaPercent * 10);
    cpu = std::min(cpu, *limits.cpuQuotaPercent * 10);
  }
  return {{"requests",
           {{"memory", mebibytes(std::min<std::uint64_t>(limits.memoryMb, 512))},
            {"cpu", std::format("{}m", cpu)}}},
          {"limits", most}};
}

/// Only of its start: a server that is busy answers as late as one that hangs.
void addProbe(Json& container, const Card& card) {
  // Of another command nothing is known.
  if (!card.command.empty()) return;
  container["startupProbe"] = {{"exec",
                                {{"command",
                                  {"curl", "--silent", "--fail", "--output", "/dev/null", "--max-time", "5",
                                   std::format("http://127.0.0.1:{}/config", serverPort)}}}},
                               {"timeoutSeconds", 10},
                               {"periodSeconds", 5},
                               {"failureThreshold", 60}};
}

Json agentPod(const Agent& agent, std::string_view restartPolicy) {
  const Card& card = agent.card;
  const auto& limits = card.limits;
  Json mounts = Json::array({{{"name", "workspace"}, {"mountPath", "/workspace"}},
                             {{"name", "tmp"}, {"mountPath", "/tmp"}},
                             {{"name", "home"}, {"mountPath", "/home/agent"}},
                             {{"name", "config"},
                              {"mountPath", "/etc/opencode/opencode.json"},
                              {"subPath", "opencode.json"},
                              {"readOnly", true}}});
  Json volumes =
      Json::array({{{"name", "workspace"}, {"persistentVolumeClaim", {{"claimName", agent.name()}}}},
                   memoryVolume("tmp", tmpSizeMb(limits)),
                   memoryVolume("home", homeSizeMb(limits)),
                   {{"name", "config"}, {"configMap", {{"name", agent.name()}}}}});
  if (card.apiKeyFile && card.apiKeyDelivery == KeyDelivery::credential) {
    mounts.push_back({{"name", "key"}, {"mountPath", agentKeyDirectory}, {"readOnly", true}});
    volumes.push_back(keyVolume(agent));
  }
  Json container = {{"name", "agent"},
                    {"image", agent.options.image.str()},
                    {"imagePullPolicy", "IfNotPresent"},
                    {"command", command(card)},
                    {"workingDir", "/workspace"},
                    {"securityContext", containerSecurity()},
                    {"env", environment(agent)},
                    {"resources", resources(limits)},
                    {"volumeMounts", mounts}};
  addProbe(container, card);
  const bool needsNames = agent.proxy && isNamed(*agent.proxy);
  Json pod = {{"serviceAccountName", account},
              {"automountServiceAccountToken", false},
              // For the proxy's address.
              {"enableServiceLinks", !agent.proxy},
              {"hostUsers", agent.options.hostUsers},
              // PID 1 is the sandbox's then: opencode as PID 1 would ignore SIGTERM, and reap nobody.
              {"shareProcessNamespace", true},
              {"restartPolicy", restartPolicy},
              {"terminationGracePeriodSeconds", card.stopTimeout.count()},
              {"securityContext", podSecurity(agentUid)}};
  if (needsNames)
    pod["dnsPolicy"] = "ClusterFirst";
  else
    pod.update(Json{{"dnsPolicy", "None"}, {"dnsConfig", {{"nameservers", {"127.0.0.1"}}}}});
  pod.update(Json{{"containers", Json::array({container})},
                  {"volumes", volumes},
                  {"nodeSelector", {{"kubernetes.io/os", "linux"}}}});
  return pod;
}

/// Of a pod that no Deployment keeps.
std::string_view restartPolicy(const Agent& agent) {
  switch (agent.card.restart) {
    case RestartPolicy::no:
      return "Never";
    case RestartPolicy::onFailure:
      return "OnFailure";
    case RestartPolicy::always:
      break;
  }
  // A Job takes no other.
  return agent.kind == KubernetesKind::job ? "OnFailure" : "Always";
}

Json workload(const Agent& agent) {
  const Card& card = agent.card;
  Json meta = metadata(agent, agent.name(), "agent"), pods = podMetadata(agent, "agent");
  switch (agent.kind) {
    case KubernetesKind::deployment: {
      Json deployment = object("apps/v1", "Deployment", std::move(meta));
      deployment["spec"] = {{"replicas", agent.options.replicas},
                            // Two agents in one workspace would overwrite each other's work.
                            {"strategy", {{"type", "Recreate"}}},
                            {"selector", {{"matchLabels", selector(agent, "agent")}}},
                            {"template", {{"metadata", pods}, {"spec", agentPod(agent, "Always")}}}};
      return deployment;
    }
    case KubernetesKind::job: {
      Json job = object("batch/v1", "Job", std::move(meta));
      job["spec"] = {{"parallelism", agent.options.replicas},
                     {"completions", agent.options.replicas},
                     {"backoffLimit", card.restart == RestartPolicy::no ? 0 : retries}};
      if (card.ttl.count() > 0) job["spec"]["activeDeadlineSeconds"] = card.ttl.count();
      job["spec"]["template"] = {{"metadata", pods}, {"spec", agentPod(agent, restartPolicy(agent))}};
      return job;
    }
    case KubernetesKind::sandbox:
      break;
  }
  Json sandbox = object("agents.x-k8s.io/v1beta1", "Sandbox", std::move(meta));
  sandbox["spec"]["service"] = false;
  if (card.ttl.count() > 0) {
    sandbox["spec"]["shutdownTime"] = std::format("{:%FT%T}Z", agent.options.now + card.ttl);
    sandbox["spec"]["shutdownPolicy"] = "Delete";
  }
  sandbox["spec"]["podTemplate"] = {{"metadata", pods}, {"spec", agentPod(agent, restartPolicy(agent))}};
  return sandbox;
}

void addWorkspace(std::vector<Json>& objects, const Agent& agent) {
  const auto& disk = agent.card.limits.diskMb;
  const std::string volumeName = agent.volumeName();
  const std::string size = disk ? mebibytes(*disk) : std::format("{}Gi", defaultDiskGib);
  const Json modes = Json::array({agent.options.replicas > 1 ? "ReadWriteMany" : "ReadWriteOnce"});
  Json volume = object("v1", "PersistentVolume", {{"name", volumeName}, {"labels", labels(agent, "agent")}});
  volume["spec"] = {
      {"capacity", {{"storage", size}}},
      {"accessModes", modes},
      // A directory that the kubelet made would be root's, and fsGroup changes none of the node's.
      {"hostPath", {{"path", agent.card.workspace.str()}, {"type", "Directory"}}},
      {"persistentVolumeReclaimPolicy", "Retain"},
      {"storageClassName", ""},
      {"claimRef", {{"namespace", agent.space()}, {"name", agent.name()}}}};
  objects.push_back(std::move(volume));
  Json claim = object("v1", "PersistentVolumeClaim", metadata(agent, agent.name(), "agent"));
  claim["spec"] = {{"accessModes", modes},
                   {"resources", {{"requests", {{"storage", size}}}}},
                   {"storageClassName", ""},
                   {"volumeName", volumeName}};
  objects.push_back(std::move(claim));
}

void addAgent(std::vector<Json>& objects, const Agent& agent) {
  const auto key = agent.options.keys.find(agent.card.id.str());
  if (key != agent.options.keys.end()) {
    Json secret =
        object("v1", "Secret", metadata(agent, agent.keyName(), proxyHasKey(agent.card) ? "proxy" : "agent"));
    secret["type"] = "Opaque";
    secret["stringData"] = {{proxyKeyName, key->second}};
    objects.push_back(std::move(secret));
  }
  if (!agent.proxy) addProxy(objects, agent);
  Json config = object("v1", "ConfigMap", metadata(agent, agent.name(), "agent"));
  config["data"] = {{"opencode.json", renderOpencodeConfig(agent.card, egressOf(agent))}};
  objects.push_back(std::move(config));
  addWorkspace(objects, agent);
  objects.push_back(networkPolicy(metadata(agent, agent.name(), "agent"), selector(agent, "agent"),
                                  Json::array(), agentEgress(agent)));
  objects.push_back(workload(agent));
}

void addCommon(std::vector<Json>& objects, const NamespaceName& space) {
  Json common = {{"app.kubernetes.io/name", "agentmachine"}};
  Json levels = common;
  for (const char* mode : {"enforce", "audit", "warn"})
    levels[std::format("pod-security.kubernetes.io/{}", mode)] = "restricted";
  objects.push_back(object("v1", "Namespace", {{"name", space.str()}, {"labels", levels}}));
  Json serviceAccount =
      object("v1", "ServiceAccount", {{"name", account}, {"namespace", space.str()}, {"labels", common}});
  serviceAccount["automountServiceAccountToken"] = false;
  objects.push_back(std::move(serviceAccount));
  // Whatever else is put in the namespace reaches nobody and is reached by nobody.
  objects.push_back(
      networkPolicy({{"name", "nothing-by-default"}, {"namespace", space.str()}, {"labels", common}},
                    Json::object(), Json::array(), Json::array()));
}

/// A Deployment would begin anew what has ended.
KubernetesKind usualKind(const Card& card) {
  const bool once =
      card.restart == RestartPolicy::no || (!card.command.empty() && card.restart != RestartPolicy::always);
  return once || card.ttl.count() > 0 ? KubernetesKind::job : KubernetesKind::deployment;
}

Agent agentOf(const Card& card, const KubernetesOptions& options) {
  Agent agent{.card = card, .options = options, .kind = options.kind.value_or(usualKind(card)), .proxy = {}};
  if (options.proxy)
    agent.proxy = options.proxy->address;
  else if (card.proxy && !isOwnProxy(*card.proxy, Settings{}))
    agent.proxy = card.proxy;
  if (agent.kind == KubernetesKind::sandbox && options.replicas > 1)
    throw Error("--replicas: a Sandbox is one pod; leave it out, or choose another --kind");
  if (!agent.proxy) {
    (void)exportedPolicy(card);
    return agent;
  }
  if (isNamed(*agent.proxy)) (void)namespaceOf(*agent.proxy);
  if (card.apiKeyDelivery == KeyDelivery::broker && providerUrl(card))
    throw Error(
        std::format("proxy {}: it has no broker, which the card's api_key_delivery asks for; use --proxy "
                    "in-cluster, or let the card have \"api_key_delivery\": \"credential\" and an "
                    "api_key_file, which the agent can then read",
                    agent.proxy->str()));
  return agent;
}

bool hasDigest(const ImageReference& image) {
  return image.str().contains('@');
}

/// What the options, not the engine, make of the card's promises.
std::vector<std::string> warningsOf(const Agent& agent) {
  const Card& card = agent.card;
  std::vector<std::string> warnings;
  if (agent.proxy)
    warnings.push_back(
        std::format("proxy {}: it is not made by this export: whether it keeps to allowed_hosts, "
                    "max_connections and the log is its own affair",
                    agent.proxy->str()));
  if (agent.proxy && isNamed(*agent.proxy))
    warnings.emplace_back(
        "No name service: the proxy is named, so the agent can ask cluster DNS, and names that it asks "
        "for can carry data out; every pod in the proxy's namespace can be reached on its port");
  if (!agent.proxy && card.proxy && !isOwnProxy(*card.proxy, Settings{}))
    warnings.push_back(std::format("proxy {}: is not used with --proxy in-cluster", card.proxy->str()));
  if (card.ttl.count() > 0 && agent.kind == KubernetesKind::deployment)
    warnings.emplace_back("ttl_seconds: not kept: a Deployment has no end; --kind job or sandbox has");
  if (card.ttl.count() > 0 && agent.kind == KubernetesKind::sandbox)
    warnings.push_back(
        std::format("ttl_seconds: weaker: a Sandbox ends at a time of the clock, and this one's counts "
                    "from its export: {:%FT%T}Z",
                    agent.options.now + card.ttl));
  if (card.restart == RestartPolicy::no && agent.kind == KubernetesKind::deployment)
    warnings.emplace_back("restart: not kept: a Deployment starts again whatever ended; --kind job doesn't");
  if (card.restart == RestartPolicy::always && agent.kind == KubernetesKind::job)
    warnings.emplace_back("restart: weaker: a Job has ended when its program ends without an error");
  if (agent.options.hostUsers)
    warnings.emplace_back(
        "--host-users: the pods have no users of their own: who gets out of one is user 65532 or 65531 of "
        "the node");
  if (agent.options.replicas > 1)
    warnings.push_back(
        std::format("replicas: {} agents would work in one workspace and overwrite each other's work",
                    agent.options.replicas));
  warnings.push_back(
      std::format("workspace {0}: is a directory of the node that the pod runs on; make it there, "
                  "belonging to {1}:{1}",
                  card.workspace.str(), agentUid));
  return warnings;
}

/// With a label, by which it is found again when all of the agent is deleted.
std::string createSecret(const Agent& agent) {
  return std::format(
      "#   kubectl --namespace {0} create secret generic {1} --from-file={2}={3}\n"
      "#   kubectl --namespace {0} label secret {1} agentmachine.org/agent-id={4}\n",
      agent.space(), agent.keyName(), proxyKeyName, agent.card.apiKeyFile->str(), agent.card.id.str());
}

/// What takes all of an agent away but the directory that is its workspace.
std::string deleteAll(const Agent& agent) {
  const bool sandbox = agent.kind == KubernetesKind::sandbox;
  return std::format(
      "#   kubectl --namespace {} delete {}deployment,job,service,configmap,secret,networkpolicy,pvc "
      "--selector=agentmachine.org/agent-id={}\n"
      "#   kubectl delete persistentvolume {}\n",
      agent.space(), sandbox ? "sandbox," : "", agent.card.id.str(), agent.volumeName());
}

}  // namespace

Exported exportKubernetes(const std::vector<Card>& cards, const KubernetesOptions& options) {
  checkTogether(cards);
  std::vector<Json> objects;
  addCommon(objects, options.space);
  Exported result;
  std::string notes, secrets, deletions;
  std::vector<std::string> ids;
  for (const auto& card : cards) {
    const Agent agent = inContext("export " + card.id.str(), [&] { return agentOf(card, options); });
    addAgent(objects, agent);
    ids.push_back(card.id.str());
    auto warnings = warningsFor(Engine::kubernetes, card);
    append(warnings, warningsOf(agent));
    notes += std::format("# {}, less than on a machine, or to be seen to:\n", card.id.str());
    for (const auto& warning : warnings) {
      notes += "#   " + warning + "\n";
      result.warnings.push_back(card.id.str() + ": " + warning);
    }
    if (card.apiKeyFile && !options.keys.contains(card.id.str())) secrets += createSecret(agent);
    deletions += deleteAll(agent);
  }
  for (const auto* image : {&options.image, &options.proxyImage}) {
    if (hasDigest(*image)) continue;
    const auto warning = std::format(
        "image {}: has no digest, so what it is can change; name it NAME@sha256:DIGEST", image->str());
    notes += "# " + warning + "\n";
    result.warnings.push_back(warning);
  }
  result.text = "# Rendered by agentmachine " AGENTMACHINE_VERSION " from the cards of " + join(ids, ", ") +
                ", for kubectl apply --filename=FILE\n" + notes;
  if (!secrets.empty())
    result.text += "# Keys are in no object here. After the namespace, or with it:\n" + secrets;
  result.text +=
      "# To take an agent away, with its key and its proxy, which its own end leaves there; and before it "
      "is\n"
      "# applied again with what can't be changed: anything of a Job or Sandbox, of all of them workspace,\n"
      "# disk_mb and --replicas:\n" +
      deletions + renderYaml(objects);
  return result;
}

}  // namespace agentmachine
