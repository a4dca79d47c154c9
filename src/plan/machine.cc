#include "plan/machine.h"

#include <format>
#include <limits>

#include <nlohmann/json.hpp>

#include "util/error.h"

namespace agentmachine {

namespace {
constexpr int stateVersion = 1;
constexpr std::size_t maxUnitName = 255;  // systemd's UNIT_NAME_MAX

/// systemd.unit(5): "/" becomes "-", what a unit's name can't hold \xNN.
std::string escapePath(std::string_view path) {
  std::string name;
  for (const char c : path.substr(1)) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '_' || (c == '.' && !name.empty());
    if (c == '/')
      name += '-';
    else
      name += plain ? std::string(1, c) : std::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return name;
}
}  // namespace

std::string toJson(const Allocation& allocation) {
  nlohmann::ordered_json json = {{"version", stateVersion},
                                 {"image", allocation.image},
                                 {"address", allocation.address.str()},
                                 {"uid_base", allocation.uidBase}};
  if (allocation.provenImage) json["proven_image"] = *allocation.provenImage;
  if (allocation.project != 0) json["project"] = allocation.project;
  if (allocation.workspaceImage) json["workspace_image"] = true;
  return json.dump(2) + "\n";
}

Allocation parseAllocation(std::string_view text) {
  try {
    const auto json = nlohmann::json::parse(text);
    if (const int version = json.at("version"); version > stateVersion)
      throw NewerState(std::format("written by a newer agentmachine (state version {}, this one knows {})",
                                   version, stateVersion));
    const auto address = Ipv4::parse(json.at("address").get<std::string>());
    if (!address) throw Error("\"address\" is no IPv4 address");
    const std::int64_t uidBase = json.at("uid_base");
    if (uidBase <= 0 || uidBase > std::numeric_limits<std::uint32_t>::max() || uidBase % uidRangeSize != 0)
      throw Error("\"uid_base\" begins no range of users");
    Allocation allocation{.image = json.at("image"),
                          .provenImage = {},
                          .address = *address,
                          .uidBase = static_cast<std::uint32_t>(uidBase),
                          .project = json.value("project", std::uint32_t{0}),
                          .workspaceImage = json.value("workspace_image", false)};
    if (json.contains("proven_image")) allocation.provenImage = json.at("proven_image");
    return allocation;
  } catch (const nlohmann::json::exception& cause) {
    throw Error(cause.what());
  }
}

SizeLimit workspaceLimit(const Card& card) {
  const std::uint64_t bytes = card.limits.diskMb.value() << 20;
  return {.bytes = bytes, .inodes = bytes / bytesPerInode};
}

std::string imagesOfWorkspaces(const Settings& settings) {
  return settings.stateDirectory + "/workspaces";
}

std::string imagePath(const Settings& settings, const AbsolutePath& workspace) {
  return imagesOfWorkspaces(settings) + workspace.str() + ".img";
}

std::string imageUnit(const AbsolutePath& workspace) {
  const std::string name = "agentmachine-workspace@" + escapePath(workspace.str()) + ".service";
  if (name.size() > maxUnitName)
    throw Error(std::format(
        "workspace {}: its path is too long for the unit that would mount an image there; use a shorter one",
        workspace.str()));
  return name;
}

bool isMachineAddress(const Settings& settings, Ipv4 address) {
  const std::uint32_t mask = hostMask(settings), place = address.value & mask;
  return (address.value & ~mask) == (settings.gateway.value & ~mask) && address != settings.gateway &&
         place != 0 && place != mask;
}

std::string hostInterface(const Settings& settings, Ipv4 address) {
  return std::format(
      "am-{}", isMachineAddress(settings, address) ? address.value & hostMask(settings) : address.value);
}

std::string macAddress(Ipv4 address) {
  return std::format("02:00:{:02x}:{:02x}:{:02x}:{:02x}", address.value >> 24, address.value >> 16 & 255,
                     address.value >> 8 & 255, address.value & 255);
}

MachinePaths machinePaths(const Settings& settings, const AgentId& id, Ipv4 address) {
  const MachineName name(id);
  const std::string runtime = settings.runtimeDirectory + "/machines/" + name.str();
  return {.state = settings.stateDirectory + "/machines/" + id.str(),
          .runtime = runtime,
          .settings = "/run/systemd/nspawn/" + name.str() + ".nspawn",
          .dropIn = "/run/systemd/system/" + name.unit() + ".d/10-agentmachine.conf",
          .rootLink = "/run/machines/" + name.str(),
          .opencode = runtime + "/opencode.json",
          .credentials = runtime + "/credentials",
          .serverPassword = runtime + "/credentials/server-password",
          .workspace = settings.runtimeDirectory + "/workspaces/" + name.str(),
          .held = runtime + "/held",
          .notices = runtime + "/notices",
          .policy = settings.runtimeDirectory + "/policy/" + address.str(),
          .key = settings.runtimeDirectory + "/keys/" + address.str(),
          .agentKey = runtime + "/agent/api-key",
          .keyWatch = "agentmachine-key@" + id.str() + ".path",
          .ttlTimer = "agentmachine-expire@" + id.str() + ".timer",
          .idleTimer = "agentmachine-idle@" + id.str() + ".timer",
          .syncUnit = "agentmachine-sync@" + id.str() + ".service"};
}

}  // namespace agentmachine
