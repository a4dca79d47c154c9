#include "plan/machine.h"

#include <format>

#include <nlohmann/json.hpp>

#include "util/error.h"

namespace agentmachine {

namespace {
constexpr int stateVersion = 1;
}

std::string toJson(const Allocation& allocation) {
  return nlohmann::ordered_json{{"version", stateVersion},
                                {"image", allocation.image},
                                {"address", allocation.address.str()},
                                {"uid_base", allocation.uidBase}}
             .dump(2) +
         "\n";
}

Allocation parseAllocation(std::string_view text) {
  try {
    const auto json = nlohmann::json::parse(text);
    if (const int version = json.at("version"); version > stateVersion)
      throw Error(std::format("written by a newer agentmachine (state version {}, this one knows {})",
                              version, stateVersion));
    const auto address = Ipv4::parse(json.at("address").get<std::string>());
    if (!address) throw Error("\"address\" is no IPv4 address");
    return {.image = json.at("image"), .address = *address, .uidBase = json.at("uid_base")};
  } catch (const nlohmann::json::exception& cause) {
    throw Error(cause.what());
  }
}

std::string hostInterface(const Settings& settings, Ipv4 address) {
  const std::uint32_t hostBits = settings.prefixLength == 0 ? ~0u : ~(~0u << (32 - settings.prefixLength));
  return std::format("am-{}", address.value & hostBits);
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
          .workspace = settings.runtimeDirectory + "/workspaces/" + name.str(),
          .policy = settings.runtimeDirectory + "/policy/" + address.str(),
          .key = settings.runtimeDirectory + "/keys/" + address.str(),
          .agentKey = runtime + "/agent/api-key",
          .keyWatch = "agentmachine-key@" + id.str() + ".path",
          .ttlTimer = "agentmachine-expire@" + id.str() + ".timer"};
}

}  // namespace agentmachine
