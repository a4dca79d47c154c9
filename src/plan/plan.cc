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
  std::set<Ipv4> used;
  for (const auto& [id, machine] : host.machines) used.insert(machine.allocation.address);
  const std::uint32_t mask = hostMask(host.settings), network = host.settings.gateway.value & ~mask;
  for (std::uint32_t index = 1; index < mask; ++index)
    if (const Ipv4 address{network | index};
        isMachineAddress(host.settings, address) && !used.contains(address))
      return address;
  throw Error(
      std::format("all {} addresses of the bridge's network {}/{} are taken: remove machines, or give "
                  "`address` in agentmachine.conf a shorter prefix",
                  mask - 2, Ipv4{network}.str(), host.settings.prefixLength));
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

constexpr std::uint64_t mebibyte = 1 << 20;

/// What limits the size of a workspace.
enum class LimitedBy { nothing, project, image };

LimitedBy limitedBy(const Card& card, const WorkspaceFacts& facts) {
  // An image stays what the workspace is, whatever the card says by now.
  if (facts.imageBytes != 0) return LimitedBy::image;
  if (!card.limits.diskMb) return LimitedBy::nothing;
  if (facts.projectQuotas) return LimitedBy::project;
  if (!facts.exists || facts.empty) return LimitedBy::image;
  throw Error(std::format(
      "workspace {}: disk_mb can't be enforced on it: its file system ({}) has no project quotas, and there "
      "are files in it already, which an image of that size would hide. Give it a directory that is empty or "
      "isn't there yet, or one on ext4 (tune2fs -O project,quota) or xfs that is mounted with prjquota, or "
      "leave disk_mb out",
      card.workspace.str(), facts.fileSystem));
}

/// In the machine's own range of user ids, so that no two machines can be given the same.
std::uint32_t freeProject(std::uint32_t uidBase, const WorkspaceFacts& facts) {
  for (std::uint32_t project = uidBase; project - uidBase < uidRangeSize; ++project)
    if (project != 0 && !facts.projects.contains(project)) return project;
  throw Error("all project ids of the machine's range are in use");
}

std::set<std::string> packagesOf(const Card& card) {
  std::set<std::string> names;
  for (const auto& package : card.packages) names.insert(package.str());
  return names;
}

void checkPackages(const Card& card, const Settings& settings) {
  for (const auto& package : card.packages)
    if (!std::ranges::contains(settings.packages, package))
      throw Error(std::format(
          "packages: \"{0}\" is not one that this host allows: leave it out, or add it to `packages = "
          "[\"{0}\"]` in agentmachine.conf",
          package.str()));
}

/// What the host gives the machine, but for what limits its workspace.
Allocation allocate(const Card& card, const Host& host) {
  const auto existing = host.machines.find(card.id.str());
  if (existing == host.machines.end())
    return {.image = newestImage(card, host), .address = freeAddress(host), .uidBase = freeUidBase(host)};
  Allocation allocation = existing->second.allocation;
  // `address` of the settings was changed.
  if (!isMachineAddress(host.settings, allocation.address)) allocation.address = freeAddress(host);
  if (packagesOf(card) != packagesOf(existing->second.card)) {
    allocation.image = newestImage(card, host);
    // The one before is that of another card.
    allocation.provenImage.reset();
  }
  return allocation;
}

/// The size is the workspace's: with another one the old would stay limited and nobody would know by whom.
void checkWorkspaceStays(const Card& card, const Host& host) {
  const auto existing = host.machines.find(card.id.str());
  if (existing == host.machines.end()) return;
  const auto& [old, allocation] = existing->second;
  if (old.workspace != card.workspace && (allocation.project != 0 || allocation.workspaceImage))
    throw Error(std::format(
        "workspace {}: the machine has {}, whose size is limited; `agentmachine rm {}` first, which "
        "keeps the files",
        card.workspace.str(), old.workspace.str(), card.id.str()));
}

void checkProject(const Card& card, const WorkspaceFacts& facts, std::uint32_t ours) {
  if (facts.project != 0 && facts.project != ours)
    throw Error(
        std::format("workspace {}: belongs to project {} of somebody else, who may limit it already: leave "
                    "disk_mb out, or "
                    "take it out of the project (chattr -R -p 0 {})",
                    card.workspace.str(), facts.project, card.workspace.str()));
}

void checkImageSize(const Card& card, const WorkspaceFacts& facts) {
  if (card.limits.diskMb && *card.limits.diskMb * mebibyte < facts.imageBytes)
    throw Error(
        std::format("workspace {}: is in an image of {} MiB, which can't be made smaller: let disk_mb be "
                    "that or more, or "
                    "remove machine and workspace and begin anew",
                    card.workspace.str(), facts.imageBytes / mebibyte));
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
  checkWorkspaceStays(card, host);
  const std::string& path = card.workspace.str();
  const auto& facts = host.workspaces.at(path);
  if (facts.throughLink)
    throw Error(
        std::format("workspace {}: a part of it is a symbolic link; write the path it leads to", path));
  if (facts.exists && !facts.directory) throw Error(std::format("workspace {}: is no directory", path));
  if (path.contains("/.#"))
    throw Error(std::format(
        "workspace {}: a part of it begins with \".#\", as what is half made does; choose another", path));
  if (facts.exists && facts.owner.user == 0 && facts.imageBytes == 0)
    throw Error(std::format(
        "workspace {}: belongs to root, and what the agent writes would too; give it to the person "
        "it works for: chown -R USER: {}",
        path, path));
  // An image's own file system can be mapped, whatever it is mounted on.
  if (!facts.idmappable && limitedBy(card, facts) != LimitedBy::image)
    throw Error(std::format(
        "workspace {}: its file system ({}) can't map user ids (mount_setattr(2)); use a directory "
        "on ext4, xfs, btrfs or tmpfs",
        path, facts.fileSystem));
}

void checkProxy(const Card& card, const Settings& settings) {
  const auto policy = policyFor(card, settings);
  if (!policy.parent) return;
  // As the proxy would say at the agent's first request, and at each one after it.
  if (policy.broker)
    throw Error(std::format(
        "proxy {}: the broker, which adds the key, can't reach the model provider through it; leave `proxy` "
        "out for the host's own, or let the machine reach the provider by itself with \"api_key_delivery\": "
        "\"credential\" and an api_key_file, which the agent can then read",
        card.proxy->str()));
  if (std::ranges::find(settings.parentProxies, *card.proxy) == settings.parentProxies.end())
    throw Error(std::format(
        "proxy {}: not a proxy that this host allows; leave `proxy` out for the host's own, or add "
        "it to `parent_proxies` in agentmachine.conf",
        card.proxy->str()));
}

/// A key that would not reach its provider, or would travel in the clear, is refused here rather than at the
/// agent's first request.
void checkKey(const Card& card, const Settings& settings) {
  if (!card.apiKeyFile) return;
  const auto url = providerUrl(card).value();
  if (!url.tls && !isOwnOllama(url))
    throw Error(
        std::format("api_base_url {}: a key is sent by https:// alone; write that, or leave "
                    "`api_key_file` out",
                    url.str()));
  if (card.apiKeyDelivery == KeyDelivery::broker) {
    const auto header = keyHeader(card).value();
    if (!std::ranges::contains(keyHeaders(settings), header))
      throw Error(std::format(
          "api_key_header {0}: not a header in which the broker of this host adds keys; add it to "
          "`api_key_headers = [\"{0}\"]` in agentmachine.conf and restart "
          "agentmachine-proxy.service",
          header.str()));
    return;
  }
  if (isOwnOllama(url))
    throw Error(
        std::format("api_key_delivery credential: {} is reached by the broker alone; leave "
                    "`api_key_delivery` out",
                    url.str()));
  if (const auto host = HostPattern::parse(std::format("{}:{}", url.host, url.port)); !host)
    throw Error(
        std::format("api_key_delivery credential: the machine itself has to reach the provider by the proxy, "
                    "and \"{}\" {}",
                    url.host, host.error()));
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
  std::string operator()(const ReloadUnit& action) const {
    return std::format("reload {} if it is loaded with another {}\n", action.unit, action.dropIn);
  }
  std::string operator()(const MakeWorkspace& action) const {
    return std::format("workspace {} {}\n", action.path, describeOwner(action.owner));
  }
  std::string operator()(const RemoveWorkspace& action) const {
    return std::format("remove workspace {}\n", action.path);
  }
  std::string operator()(const LimitTree& action) const {
    return std::format("limit {} to {} MiB and {} inodes, as project {}\n", action.path,
                       action.limit.bytes / mebibyte, action.limit.inodes, action.project);
  }
  std::string operator()(const UnlimitTree& action) const {
    return std::format("unlimit {}, no longer project {}\n", action.path, action.project);
  }
  std::string operator()(const MakeImage& action) const {
    return std::format("image {} of {} MiB {}\n", action.image, action.bytes / mebibyte,
                       describeOwner(action.owner));
  }
  std::string operator()(const Unmount& action) const { return std::format("unmount {}\n", action.path); }
  std::string operator()(const RemovePort& action) const {
    return std::format("remove port {} of {}\n", action.interface, action.address.str());
  }
  std::string operator()(const RemoveImage& action) const {
    return std::format("unmount {} and remove its image {}\n", action.workspace, action.image);
  }
};

/// Where systemd tells journald of a unit's LogExtraFields=. systemd 257 leaves it there when the unit is
/// gone: the name would stay in /run for each agent that there ever was.
std::string extraFields(std::string_view unit) {
  return std::format("/run/systemd/units/log-extra-fields:{}", unit);
}

/// The service that a transient unit of this name starts.
std::string serviceOf(std::string_view unit) {
  return std::format("{}.service", unit.substr(0, unit.rfind('.')));
}
}  // namespace

std::string imageTree(const Settings& settings, const std::string& digest) {
  return settings.stateDirectory + "/images/" + digest + "/root";
}

std::string newestImage(const Card& card, const Host& host) {
  const auto wanted = packagesOf(card);
  const auto found = std::ranges::find(host.images, wanted, &HostImage::packages);
  if (found != host.images.end()) return found->digest;
  if (wanted.empty())
    throw Error(
        "there is no image yet: `agentmachine image build` makes one, `agentmachine image import TARBALL` "
        "takes one made elsewhere");
  std::string options;
  for (const auto& name : wanted) options += " --package " + name;
  throw Error(std::format(
      "there is no image with these packages yet; this makes it: agentmachine image build{}", options));
}

std::string imageFor(const Card& card, const std::string& digest, const Host& host) {
  const auto found = std::ranges::find(host.images, digest, &HostImage::digest);
  if (found == host.images.end()) throw Error("the image was removed just now");
  for (const auto& package : packagesOf(card))
    if (!found->packages.contains(package))
      throw Error(
          std::format("the image has no {}, for which the card asks; without --image the machine gets the "
                      "newest one that has",
                      package));
  return digest;
}

WriteFile planPolicy(const Machine& machine, const Host& host) {
  const auto paths = machinePaths(host.settings, machine.card.id, machine.allocation.address);
  return {paths.policy, renderPolicy(policyFor(machine.card, host.settings)), 0640, {0, host.proxyGroup}};
}

Plan planHosts(const Machine& machine, const Host& host) {
  const auto paths = machinePaths(host.settings, machine.card.id, machine.allocation.address);
  return {WriteFile{paths.state + "/card.json", toJson(machine.card), 0600, {}}, planPolicy(machine, host),
          // Whether there is any host decides what opencode offers, from the next start on.
          WriteFile{paths.opencode, renderOpencodeConfig(machine.card, egressOf(host.settings)), 0644, {}}};
}

Plan planRender(const Machine& machine, const Host& host) {
  const Settings& settings = host.settings;
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  Plan plan;
  if (machine.allocation.workspaceImage) plan.push_back(StartUnit{imageUnit(machine.card.workspace)});
  append(plan,
         Plan{
             MakeDirectory{paths.runtime, 0700, {}},
             MakeDirectory{paths.credentials, 0700, {}},
             // As seen inside: the agent's to read, nobody's to write. `runtime` keeps everybody else out.
             MakeDirectory{directoryOf(paths.agentKey), 0750, {0, agentUid}},
             MakeDirectory{paths.notices, 0755, {}},
             WriteFile{paths.opencode, renderOpencodeConfig(machine.card, egressOf(settings)), 0644, {}},
             MakeDirectory{settings.runtimeDirectory + "/policy", 0750, {0, host.proxyGroup}},
             planPolicy(machine, host),
             MakeDirectory{"/run/systemd/system/" + machine.name().unit() + ".d", 0755, {}},
             WriteFile{paths.dropIn, renderDropIn(machine, settings, host.program), 0644, {}},
             // Before there is anything to start: it must not start without its drop-in.
             ReloadUnit{machine.name().unit(), paths.dropIn},
             MakeDirectory{"/run/systemd/nspawn", 0755, {}},
             // Root's alone: it holds the card's environment.
             WriteFile{paths.settings, renderNspawnSettings(machine, settings, host.init), 0600, {}},
             MakeDirectory{"/run/machines", 0755, {}},
             // Last: without the link neither nspawn nor machinectl finds anything to start.
             Link{paths.rootLink, imageTree(settings, machine.allocation.image)},
         });
  return plan;
}

Plan planCreate(const Card& card, const Host& host) {
  // Its address, its users and its workspace may be any.
  if (!host.unreadable.empty()) throw Error(host.unreadable.begin()->second);
  checkName(card, host);
  checkPackages(card, host.settings);
  checkProxy(card, host.settings);
  checkKey(card, host.settings);
  checkWorkspace(card, host);
  const WorkspaceFacts& facts = host.workspaces.at(card.workspace.str());
  const LimitedBy limit = limitedBy(card, facts);
  Machine machine{card, allocate(card, host)};
  const std::uint32_t oldProject = machine.allocation.project;
  machine.allocation.workspaceImage = limit == LimitedBy::image;
  if (limit != LimitedBy::project)
    machine.allocation.project = 0;
  else if (oldProject == 0)
    machine.allocation.project = freeProject(machine.allocation.uidBase, facts);
  const auto paths = machinePaths(host.settings, card.id, machine.allocation.address);
  Plan plan;
  if (const auto before = host.machines.find(card.id.str());
      before != host.machines.end() && before->second.allocation.address != machine.allocation.address)
    plan.push_back(Remove{machinePaths(host.settings, card.id, before->second.allocation.address).policy});
  if (!facts.exists) {
    plan.push_back(MakeDirectory{directoryOf(card.workspace.str()), 0755, {}});
    plan.push_back(MakeWorkspace{card.workspace.str(), host.requester});
  }
  if (oldProject != 0 && machine.allocation.project == 0)
    plan.push_back(UnlimitTree{card.workspace.str(), oldProject});
  if (limit == LimitedBy::image) {
    checkImageSize(card, facts);
    plan.push_back(MakeImage{imagePath(host.settings, card.workspace), card.workspace.str(),
                             card.limits.diskMb ? *card.limits.diskMb * mebibyte : facts.imageBytes,
                             facts.exists ? facts.owner : host.requester});
  }
  plan.push_back(MakeDirectory{paths.state, 0700, {}});
  Plan records = {WriteFile{paths.state + "/card.json", toJson(card), 0600, {}},
                  WriteFile{paths.state + "/machine.json", toJson(machine.allocation), 0600, {}}};
  // A new machine is there with its second one. Of one that is there the card is replaced last: a `create`
  // that was killed before that is run again as the same change.
  if (host.machines.contains(card.id.str())) std::ranges::reverse(records);
  append(plan, std::move(records));
  if (limit == LimitedBy::project) {
    checkProject(card, facts, machine.allocation.project);
    plan.push_back(LimitTree{card.workspace.str(), machine.allocation.project, workspaceLimit(card)});
  }
  append(plan, planRender(machine, host));
  return plan;
}

Machine withImage(Machine machine, const std::string& digest) {
  auto& allocation = machine.allocation;
  const std::string proven = allocation.provenImage.value_or(allocation.image);
  allocation.image = digest;
  allocation.provenImage.reset();
  if (digest != proven) allocation.provenImage = proven;
  return machine;
}

Plan planImage(const Machine& machine, const Settings& settings) {
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  return {WriteFile{paths.state + "/machine.json", toJson(machine.allocation), 0600, {}},
          MakeDirectory{"/run/machines", 0755, {}},
          Link{paths.rootLink, imageTree(settings, machine.allocation.image)}};
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
      // The unit's end took these away, unless it was killed.
      Remove{paths.key},
      StopUnit{paths.keyWatch},
      StopUnit{paths.ttlTimer},
      StopUnit{paths.idleTimer},
      RemovePort{hostInterface(settings, machine.allocation.address), machine.allocation.address},
      Unmount{paths.workspace},
      Remove{paths.settings},
      Remove{"/run/systemd/system/" + machine.name().unit() + ".d"},
      Remove{paths.policy},
      Remove{paths.runtime},
      Remove{extraFields(machine.name().unit())},
      Remove{extraFields(serviceOf(paths.keyWatch))},
      Remove{extraFields(serviceOf(paths.ttlTimer))},
      Remove{extraFields(serviceOf(paths.idleTimer))},
  };
  const std::string& workspace = machine.card.workspace.str();
  // Before the machine's id is another's: a kept workspace belongs to no project any more.
  if (machine.allocation.project != 0) plan.push_back(UnlimitTree{workspace, machine.allocation.project});
  if (removeWorkspace && machine.allocation.workspaceImage)
    plan.push_back(RemoveImage{imagePath(settings, machine.card.workspace), workspace});
  if (removeWorkspace) plan.push_back(RemoveWorkspace{workspace});
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
