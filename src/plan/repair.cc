#include "plan/repair.h"

#include <algorithm>
#include <charconv>

#include "plan/nftables.h"
#include "util/text.h"

namespace agentmachine {

namespace {

// IniFile::comment of what we render.
constexpr std::string_view ourMark = "# Rendered by agentmachine ";
constexpr std::string_view unitBefore = "systemd-nspawn@", unitAfter = ".service.d";
constexpr std::string_view dropInName = "10-agentmachine.conf";
constexpr std::string_view unitsDirectory = "/run/systemd/system", settingsDirectory = "/run/systemd/nspawn";
constexpr std::string_view linksDirectory = "/run/machines";

std::set<std::string> namesIn(const Remains& remains, const std::string& directory) {
  const auto found = remains.names.find(directory);
  return found == remains.names.end() ? std::set<std::string>() : found->second;
}

/// The part of `text` between the two, or "" if it is not.
std::string between(std::string_view text, std::string_view before, std::string_view after) {
  if (text.size() < before.size() + after.size() || !text.starts_with(before) || !text.ends_with(after))
    return "";
  return std::string(text.substr(before.size(), text.size() - before.size() - after.size()));
}

/// Calls `act` with the machine's name and the path of each entry of `directory` that is named like a
/// machine.
void eachNamed(const Remains& remains, std::string_view directory, std::string_view before,
               std::string_view after, auto&& act) {
  for (const auto& entry : namesIn(remains, std::string(directory)))
    if (const auto name = between(entry, before, after); name.starts_with("agent-"))
      act(name, std::string(directory) + "/" + entry);
}

bool isOurs(const FoundAt& found, const std::string& path) {
  const auto at = found.find(path);
  return at != found.end() && at->second.kind == Found::Kind::file && at->second.content.starts_with(ourMark);
}

bool isLink(const FoundAt& found, const std::string& path) {
  const auto at = found.find(path);
  return at != found.end() && at->second.kind == Found::Kind::link;
}

/// Names, addresses and ports of the machines there are, and of those that run.
struct Known {
  std::set<std::string> names, addresses, runningAddresses, runningPorts, runningUnits;
};

Known knownOf(const Host& host, const Remains& remains) {
  Known known;
  for (const auto& [id, machine] : host.machines) {
    const auto name = machine.name().str(), address = machine.allocation.address.str();
    const auto paths = machinePaths(host.settings, machine.card.id, machine.allocation.address);
    known.names.insert(name);
    known.addresses.insert(address);
    if (!remains.running.contains(name)) continue;
    known.runningAddresses.insert(address);
    known.runningPorts.insert(hostInterface(host.settings, machine.allocation.address));
    known.runningUnits.insert({paths.keyWatch, paths.ttlTimer, paths.idleTimer});
  }
  return known;
}

/// The address that hostInterface made `port` of; nothing if it didn't.
std::optional<Ipv4> addressOf(const Settings& settings, const std::string& port) {
  const auto number = between(port, machinePortPrefix, "");
  std::uint32_t index = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
  const std::uint32_t mask = hostMask(settings);
  if (error != std::errc() || end != number.data() + number.size()) return std::nullopt;
  // Beyond the network it is the whole address.
  return index > mask ? Ipv4{index} : Ipv4{(settings.gateway.value & ~mask) | index};
}

void addPorts(const Host& host, const Remains& remains, const Known& known, Plan& plan) {
  for (const auto& [port, address] : remains.filterPorts)
    if (!known.runningPorts.contains(port)) plan.push_back(RemovePort{port, address});
  for (const auto& port : remains.ports)
    if (const auto address = addressOf(host.settings, port);
        address && !known.runningPorts.contains(port) && !remains.filterPorts.contains(port))
      plan.push_back(RemovePort{port, *address});
}

/// The last component of each path below `directory`.
void addOthers(const Remains& remains, const std::string& directory, const std::set<std::string>& known,
               Plan& plan) {
  for (const auto& name : namesIn(remains, directory))
    if (!known.contains(name)) plan.push_back(Remove{directory + "/" + name});
}

void addRendered(const Remains& remains, const FoundAt& found, const Known& known, Plan& plan) {
  const auto gone = [&](const std::string& name) { return !known.names.contains(name); };
  eachNamed(remains, linksDirectory, "", "", [&](const std::string& name, const std::string& path) {
    if (gone(name) && isLink(found, path)) plan.push_back(Remove{path});
  });
  eachNamed(remains, settingsDirectory, "", ".nspawn", [&](const std::string& name, const std::string& path) {
    if (gone(name) && isOurs(found, path)) plan.push_back(Remove{path});
  });
  eachNamed(remains, unitsDirectory, unitBefore, unitAfter,
            [&](const std::string& name, const std::string& path) {
              const auto dropIn = path + "/" + std::string(dropInName);
              const auto inside = namesIn(remains, path);
              if (!gone(name) || (!inside.empty() && !isOurs(found, dropIn))) return;
              // An administrator's own drop-ins stay.
              plan.push_back(Remove{inside.size() <= 1 ? path : dropIn});
            });
}

}  // namespace

std::string pathOf(const Action& action) {
  if (const auto* file = std::get_if<WriteFile>(&action)) return file->path;
  if (const auto* link = std::get_if<Link>(&action)) return link->path;
  if (const auto* directory = std::get_if<MakeDirectory>(&action)) return directory->path;
  return "";
}

Rendered compare(const Action& action, const FoundAt& found) {
  const auto path = pathOf(action);
  if (path.empty()) return Rendered::asPlanned;
  const auto at = found.find(path);
  if (at == found.end()) return Rendered::missing;
  const Found& there = at->second;
  bool same = there.kind == Found::Kind::directory;
  if (const auto* file = std::get_if<WriteFile>(&action))
    same = there.kind == Found::Kind::file && there.mode == file->mode && there.owner == file->owner &&
           there.content == file->content;
  if (const auto* link = std::get_if<Link>(&action))
    same = there.kind == Found::Kind::link && there.content == link->target;
  return same ? Rendered::asPlanned : Rendered::altered;
}

std::vector<std::string> pathsToLookAt(const Host& host, const Remains& remains) {
  std::vector<std::string> paths;
  for (const auto& [id, machine] : host.machines)
    for (const auto& action : planRender(machine, host))
      if (auto path = pathOf(action); !path.empty()) paths.push_back(std::move(path));
  const auto add = [&](const std::string&, const std::string& path) { paths.push_back(path); };
  eachNamed(remains, linksDirectory, "", "", add);
  eachNamed(remains, settingsDirectory, "", ".nspawn", add);
  eachNamed(remains, unitsDirectory, unitBefore, unitAfter, [&](const std::string&, const std::string& path) {
    paths.push_back(path + "/" + std::string(dropInName));
  });
  return paths;
}

Plan planLeftovers(const Host& host, const Remains& remains, const FoundAt& found) {
  const Settings& settings = host.settings;
  const Known known = knownOf(host, remains);
  Plan plan;
  // It would all look left over.
  if (!host.unreadable.empty()) return plan;
  // A key that is left can be used, and a machine without a state is bound to nothing.
  addOthers(remains, settings.runtimeDirectory + "/keys", known.runningAddresses, plan);
  for (const auto& [id, machine] : host.machines) {
    if (remains.running.contains(machine.name().str())) continue;
    const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
    for (const auto& path : {paths.agentKey, paths.serverPassword})
      if (namesIn(remains, directoryOf(path)).contains(path.substr(path.rfind('/') + 1)))
        plan.push_back(Remove{path});
  }
  for (const auto& name : remains.running)
    if (const auto unit = "systemd-nspawn@" + name + ".service";
        !known.names.contains(name) &&
        isOurs(found, std::string(unitsDirectory) + "/" + unit + ".d/" + std::string(dropInName)))
      plan.push_back(StopUnit{unit});
  addOthers(remains, settings.runtimeDirectory + "/policy", known.addresses, plan);
  addPorts(host, remains, known, plan);
  for (const auto& unit : remains.units)
    if ((unit.ends_with(".timer") || unit.ends_with(".path")) && !known.runningUnits.contains(unit))
      plan.push_back(StopUnit{unit});
  for (const auto& name : namesIn(remains, settings.runtimeDirectory + "/workspaces"))
    if (!remains.running.contains(name))
      plan.push_back(Unmount{settings.runtimeDirectory + "/workspaces/" + name});
  addRendered(remains, found, known, plan);
  addOthers(remains, settings.runtimeDirectory + "/machines", known.names, plan);
  const auto states = settings.stateDirectory + "/machines";
  // A `create` that was killed: the card is where it was made from.
  for (const auto& id : namesIn(remains, states))
    if (AgentId::parse(id) && !host.machines.contains(id)) plan.push_back(Remove{states + "/" + id});
  for (const auto& path : remains.unfinished) plan.push_back(Remove{path});
  return plan;
}

const Machine* whoseRun(const Action& action, const Host& host) {
  for (const auto& [id, machine] : host.machines) {
    const auto address = machine.allocation.address;
    const auto paths = machinePaths(host.settings, machine.card.id, address);
    const auto* file = std::get_if<Remove>(&action);
    const auto* unit = std::get_if<StopUnit>(&action);
    const auto* mount = std::get_if<Unmount>(&action);
    const auto* port = std::get_if<RemovePort>(&action);
    if ((file &&
         (file->path == paths.key || file->path == paths.agentKey || file->path == paths.serverPassword)) ||
        (mount && mount->path == paths.workspace) ||
        (unit &&
         (unit->unit == paths.keyWatch || unit->unit == paths.ttlTimer || unit->unit == paths.idleTimer)) ||
        (port && port->interface == hostInterface(host.settings, address)))
      return &machine;
  }
  return nullptr;
}

Plan planMissing(const Machine& machine, const Host& host, const Remains& remains, const FoundAt& found) {
  const auto plan = planRender(machine, host), waiting = planRender(withIdlePayload(machine), host);
  const bool running = remains.running.contains(machine.name().str());
  Plan missing;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    if (std::holds_alternative<StartUnit>(plan[i])) {
      if (!remains.mounts.contains(machine.card.workspace.str())) missing.push_back(plan[i]);
    } else if (const auto* reload = std::get_if<ReloadUnit>(&plan[i])) {
      if (!missing.empty() && pathOf(missing.back()) == reload->dropIn) missing.push_back(plan[i]);
    } else if (compare(plan[i], found) != Rendered::asPlanned &&
               !(running && compare(waiting[i], found) == Rendered::asPlanned)) {
      missing.push_back(plan[i]);
    }
  }
  return missing;
}

}  // namespace agentmachine
