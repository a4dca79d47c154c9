#include "plan/plan.h"

#include <algorithm>
#include <format>
#include <set>

#include "plan/nspawn.h"
#include "plan/opencode.h"
#include "plan/policy.h"
#include "plan/unit.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// The lowest free address behind the gateway. Those of the network and of its broadcast are never given.
Ipv4 freeAddress(const Host& host) {
  std::set<std::uint32_t> used = {host.settings.gateway.value};
  for (const auto& [id, machine] : host.machines) used.insert(machine.allocation.address.value);
  const std::uint32_t hostMask = ~(~0u << (32 - host.settings.prefixLength));
  const std::uint32_t network = host.settings.gateway.value & ~hostMask;
  for (std::uint32_t index = 1; index < hostMask; ++index)
    if (!used.contains(network | index)) return {network | index};
  throw Error(
      std::format("all {} addresses of the bridge's network {}/{} are taken: remove machines, or give "
                  "`address` in agentmachine.conf a shorter prefix",
                  hostMask - 2, Ipv4{network}.str(), host.settings.prefixLength));
}

std::uint32_t freeUidBase(const Host& host) {
  std::set<std::uint32_t> used;
  for (const auto& [id, machine] : host.machines) used.insert(machine.allocation.uidBase);
  for (std::uint32_t range = 0; range < host.settings.uidRanges; ++range) {
    const std::uint32_t base = host.settings.uidBase + range * uidRangeSize;
    if (!used.contains(base)) return base;
  }
  throw Error(
      std::format("all {} ranges of user ids are taken: remove machines, or raise `uid_ranges` in "
                  "agentmachine.conf",
                  host.settings.uidRanges));
}

Allocation allocate(const Card& card, const Host& host) {
  const auto existing = host.machines.find(card.id.str());
  if (existing != host.machines.end()) return existing->second.allocation;
  if (host.images.empty())
    throw Error(
        "there is no image yet: `agentmachine image build` makes one, `agentmachine image import TARBALL` "
        "takes one made elsewhere");
  return {.image = host.images.front(), .address = freeAddress(host), .uidBase = freeUidBase(host)};
}

/// Two ids that become one machine name ("x" and "agent-x") can't both be machines.
void checkName(const Card& card, const Host& host) {
  for (const auto& [id, machine] : host.machines)
    if (id != card.id.str() && machine.name() == MachineName(card.id))
      throw Error(std::format("the machine {} is already that of the id \"{}\": choose another agent_id",
                              MachineName(card.id).str(), id));
}

/// Two machines on one workspace would overwrite each other's work without either being told.
void checkWorkspaceIsAlone(const Card& card, const Host& host) {
  for (const auto& [id, machine] : host.machines) {
    if (id == card.id.str()) continue;
    const std::string &ours = card.workspace.str(), &theirs = machine.card.workspace.str();
    if (ours == theirs || ours.starts_with(theirs + "/") || theirs.starts_with(ours + "/"))
      throw Error(
          std::format("workspace {}: the machine of \"{}\" has {}; give each agent a workspace of its own",
                      ours, id, ours == theirs ? "it already" : theirs));
  }
}

void checkWorkspace(const Card& card, const Host& host) {
  checkWorkspaceIsAlone(card, host);
  const std::string& path = card.workspace.str();
  const auto& facts = host.workspaces.at(path);
  if (facts.throughLink)
    throw Error(
        std::format("workspace {}: a part of it is a symbolic link; write the path it leads to", path));
  if (facts.exists && !facts.directory) throw Error(std::format("workspace {}: is no directory", path));
  if (facts.exists && facts.owner.user == 0)
    throw Error(std::format(
        "workspace {}: belongs to root, and what the agent writes would too; give it to the person "
        "it works for: chown -R USER: {}",
        path, path));
  if (!facts.idmappable)
    throw Error(std::format(
        "workspace {}: its file system ({}) can't map user ids (mount_setattr(2)); use a directory "
        "on ext4, xfs, btrfs or tmpfs",
        path, facts.fileSystem));
}

void checkProxy(const Card& card, const Settings& settings) {
  if (!card.proxy || isOwnProxy(*card.proxy, settings)) return;
  if (std::ranges::find(settings.parentProxies, *card.proxy) == settings.parentProxies.end())
    throw Error(std::format(
        "proxy {}: not a proxy that this host allows; leave `proxy` out for the host's own, or add "
        "it to `parent_proxies` in agentmachine.conf",
        card.proxy->str()));
}

std::string describeOwner(const Owner& owner) {
  return std::format("{}:{}", owner.user, owner.group);
}

struct Describe {
  std::string operator()(const MakeDirectory& action) const {
    return std::format("directory {} {:04o} {}\n", action.path, action.mode, describeOwner(action.owner));
  }
  std::string operator()(const WriteFile& action) const {
    auto text = std::format("write {} {:04o} {}\n", action.path, action.mode, describeOwner(action.owner));
    for (const auto& line : split(trim(action.content), '\n'))
      text += line.empty() ? "  |\n" : "  | " + line + "\n";
    return text;
  }
  std::string operator()(const Link& action) const {
    return std::format("link {} -> {}\n", action.path, action.target);
  }
  std::string operator()(const Remove& action) const { return std::format("remove {}\n", action.path); }
  std::string operator()(const StartUnit& action) const { return std::format("start {}\n", action.unit); }
  std::string operator()(const StopUnit& action) const { return std::format("stop {}\n", action.unit); }
};

}  // namespace

std::string imageTree(const Settings& settings, const std::string& digest) {
  return settings.stateDirectory + "/images/" + digest + "/root";
}

Plan planRender(const Machine& machine, const Host& host) {
  const Settings& settings = host.settings;
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const Owner proxy{0, host.proxyGroup};
  return {
      MakeDirectory{paths.runtime, 0700, {}},
      MakeDirectory{paths.credentials, 0700, {}},
      WriteFile{paths.opencode, renderOpencodeConfig(machine.card, settings), 0644, {}},
      MakeDirectory{settings.runtimeDirectory + "/policy", 0750, proxy},
      WriteFile{paths.policy, renderPolicy(policyFor(machine.card, settings)), 0640, proxy},
      MakeDirectory{"/run/systemd/system/" + machine.name().unit() + ".d", 0755, {}},
      WriteFile{paths.dropIn, renderDropIn(machine, settings, host.program), 0644, {}},
      MakeDirectory{"/run/systemd/nspawn", 0755, {}},
      // Root's alone: it holds the card's environment.
      WriteFile{paths.settings, renderNspawnSettings(machine, settings, host.init), 0600, {}},
      MakeDirectory{"/run/machines", 0755, {}},
      // Last: without the link neither nspawn nor machinectl finds anything to start.
      Link{paths.rootLink, imageTree(settings, machine.allocation.image)},
  };
}

Plan planCreate(const Card& card, const Host& host) {
  checkName(card, host);
  checkProxy(card, host.settings);
  checkWorkspace(card, host);
  const Machine machine{card, allocate(card, host)};
  const auto paths = machinePaths(host.settings, card.id, machine.allocation.address);
  Plan plan;
  if (!host.workspaces.at(card.workspace.str()).exists)
    plan.push_back(MakeDirectory{card.workspace.str(), 0750, host.requester});
  plan.push_back(MakeDirectory{paths.state, 0700, {}});
  plan.push_back(WriteFile{paths.state + "/card.json", toJson(card), 0600, {}});
  plan.push_back(WriteFile{paths.state + "/machine.json", toJson(machine.allocation), 0600, {}});
  append(plan, planRender(machine, host));
  return plan;
}

Machine withIdlePayload(Machine machine) {
  machine.card.command = {PlainText::parse("sleep").value(), PlainText::parse("infinity").value()};
  return machine;
}

Plan planRemove(const Machine& machine, const Settings& settings, bool removeWorkspace) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  Plan plan = {
      StopUnit{machine.name().unit()},
      Remove{paths.rootLink},
      Remove{paths.settings},
      Remove{"/run/systemd/system/" + machine.name().unit() + ".d"},
      Remove{paths.policy},
      Remove{paths.key},
      Remove{paths.runtime},
  };
  if (removeWorkspace) plan.push_back(Remove{machine.card.workspace.str()});
  // The address and the users are free for others from here on.
  plan.push_back(Remove{paths.state});
  return plan;
}

std::string describe(const Plan& plan) {
  std::string text;
  for (const auto& action : plan) text += std::visit(Describe{}, action);
  return text;
}

}  // namespace agentmachine
