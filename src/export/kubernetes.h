// Cards as objects of Kubernetes: for each a Squid with the card's policy, and an agent that reaches nothing
// else. Pure: no I/O, no clock.
#pragma once
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "export/names.h"

namespace agentmachine {

/// What keeps the agent running.
enum class KubernetesKind { deployment, job, sandbox };

struct KubernetesOptions {
  std::optional<KubernetesKind> kind{};  ///< absent: a Job if what runs is to end, else a Deployment
  unsigned replicas = 1;
  /// Absent: the card's own `proxy` if it names one that isn't a machine's usual one, else in the cluster.
  std::optional<ProxyPlace> proxy{};
  NamespaceName space = NamespaceName::parse("opencode-agent").value();
  ImageReference image = ImageReference::parse(defaultAgentImage).value();
  ImageReference proxyImage = ImageReference::parse(defaultProxyImage).value();
  bool hostUsers = false;          ///< the pods' users are the node's, for nodes that can't map them
  std::chrono::sys_seconds now{};  ///< from which a Sandbox's time counts
  std::map<std::string, std::string>
      keys;  ///< by agent id: to be written into Secrets; the others are referred to
};

/// A file for `kubectl apply`, and what a person should know before applying it, which its head says as well.
/// Objects are in the order in which they must be applied. Throws Error that says what to change if a card
/// can't be exported.
Exported exportKubernetes(const std::vector<Card>& cards, const KubernetesOptions& options);

}  // namespace agentmachine
