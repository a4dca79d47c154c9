#include "system/machined.h"

#include <cstdint>
#include <format>

#include <sdbus-c++/sdbus-c++.h>

#include "util/error.h"

namespace agentmachine {

namespace {

const sdbus::ServiceName service{"org.freedesktop.machine1"};
const sdbus::ObjectPath managerPath{"/org/freedesktop/machine1"};
constexpr auto managerInterface = "org.freedesktop.machine1.Manager";
constexpr auto machineInterface = "org.freedesktop.machine1.Machine";

/// Throws sdbus::Error.
sdbus::ObjectPath pathOf(sdbus::IConnection& bus, const std::string& machine) {
  sdbus::ObjectPath path;
  sdbus::createProxy(bus, service, managerPath)
      ->callMethod("GetMachine")
      .onInterface(managerInterface)
      .withArguments(machine)
      .storeResultsTo(path);
  return path;
}

}  // namespace

std::vector<std::string> Machined::list() {
  using Entry = sdbus::Struct<std::string, std::string, std::string, sdbus::ObjectPath>;
  try {
    std::vector<Entry> entries;
    sdbus::createProxy(bus_, service, managerPath)
        ->callMethod("ListMachines")
        .onInterface(managerInterface)
        .storeResultsTo(entries);
    std::vector<std::string> names;
    for (const auto& entry : entries) names.push_back(entry.get<0>());
    return names;
  } catch (const sdbus::Error& cause) {
    throw Error("list machines: " + cause.getMessage());
  }
}

pid_t Machined::leader(const std::string& machine) {
  try {
    return static_cast<pid_t>(sdbus::createProxy(bus_, service, pathOf(bus_, machine))
                                  ->getProperty("Leader")
                                  .onInterface(machineInterface)
                                  .get<std::uint32_t>());
  } catch (const sdbus::Error& cause) {
    throw Error("find machine " + machine + ": " + cause.getMessage());
  }
}

void Machined::forget(const std::string& machine, const std::string& unit) {
  try {
    const auto owner = sdbus::createProxy(bus_, service, pathOf(bus_, machine))
                           ->getProperty("Unit")
                           .onInterface(machineInterface)
                           .get<std::string>();
    if (owner != unit) return;  // systemd-nspawn(1) says of that one that it is there
    sdbus::createProxy(bus_, service, managerPath)
        ->callMethod("UnregisterMachine")
        .onInterface(managerInterface)
        .withArguments(machine);
  } catch (const sdbus::Error& cause) {
    if (cause.getName() == "org.freedesktop.machine1.NoSuchMachine") return;
    throw Error("unregister machine " + machine + ": " + cause.getMessage());
  }
}

std::optional<std::string> Machined::machineOfUser(uid_t user) {
  try {
    std::string machine;
    sdbus::ObjectPath path;
    std::uint32_t inside = 0;
    sdbus::createProxy(bus_, service, managerPath)
        ->callMethod("MapToMachineUser")
        .onInterface(managerInterface)
        .withArguments(std::uint32_t{user})
        .storeResultsTo(machine, path, inside);
    return machine;
  } catch (const sdbus::Error& cause) {
    if (cause.getName() == "org.freedesktop.machine1.NoSuchUserMapping") return std::nullopt;
    throw Error(std::format("find the machine of user {}: {}", user, cause.getMessage()));
  }
}

MachineTerminal Machined::openTerminal(const std::string& machine) {
  try {
    sdbus::UnixFd master;
    std::string path;
    sdbus::createProxy(bus_, service, managerPath)
        ->callMethod("OpenMachinePTY")
        .onInterface(managerInterface)
        .withArguments(machine)
        .storeResultsTo(master, path);
    return {Fd{master.release()}, path};
  } catch (const sdbus::Error& cause) {
    throw Error("open a terminal in " + machine + ": " + cause.getMessage());
  }
}

}  // namespace agentmachine
