#include "observe/list.h"

#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

template <class Value>
nlohmann::ordered_json orNull(const std::optional<Value>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json toJson(const MachineStatus& status) {
  const auto& [card, allocation] = status.machine;
  nlohmann::ordered_json json = {
      {"id", card.id.str()},
      {"machine", status.machine.name().str()},
      {"state", toString(status.state)},
      {"leader", orNull(status.leader)},
      {"address", allocation.address.str()},
      {"image", allocation.image},
      {"proven_image", orNull(allocation.provenImage)},
      {"workspace", card.workspace.str()},
      {"since", status.since ? nlohmann::ordered_json(std::format("{:%FT%TZ}", *status.since)) : nullptr},
      {"ttl_remaining_seconds",
       status.ttlRemaining ? nlohmann::ordered_json(status.ttlRemaining->count()) : nullptr},
      {"memory_bytes", orNull(status.memoryBytes)},
      {"tasks", orNull(status.tasks)},
      {"unit", status.machine.name().unit()},
      {"restarts", status.restarts},
  };
  if (status.workspace) {
    json["workspace_bytes"] = status.workspace->bytes;
    json["workspace_limit_bytes"] = status.workspace->limitBytes;
  }
  json["end"] = nullptr;
  if (!status.end && !status.ending.empty()) json["end"] = {{"cause", "lost"}, {"text", status.ending}};
  if (status.end)
    json["end"] = {{"cause", toString(status.end->cause)},
                   {"by", status.end->by},
                   {"result", status.end->result},
                   {"code", status.end->code},
                   {"status", status.end->status},
                   {"oom_kills", status.end->oomKills},
                   {"at", std::format("{:%FT%TZ}", status.end->at)},
                   {"text", status.ending}};
  return json;
}

std::vector<std::string> tableRow(const MachineStatus& status) {
  return {status.machine.card.id.str(),
          std::string(toString(status.state)),
          status.machine.allocation.address.str(),
          status.memoryBytes ? humanBytes(*status.memoryBytes) : "-",
          status.tasks ? std::to_string(*status.tasks) : "-",
          status.ttlRemaining ? humanDuration(*status.ttlRemaining) : "-",
          status.since ? humanTime(*status.since) : "-",
          status.ending.empty() ? "-" : status.ending,
          status.machine.card.workspace.str()};
}

void printDetails(const MachineStatus& status) {
  const auto row = [](const std::string& name, const std::string& value) {
    std::cout << std::format("{:>12}: {}\n", name, printable(value));
  };
  const auto& [card, allocation] = status.machine;
  row("ID", card.id.str());
  row("Machine", status.machine.name().str());
  row("State", std::string(toString(status.state)));
  if (status.since) row("Since", humanTime(*status.since));
  if (status.leader) row("Leader", std::to_string(*status.leader));
  if (status.ttlRemaining) row("TTL left", humanDuration(*status.ttlRemaining));
  if (status.restarts > 0) row("Restarts", std::to_string(status.restarts));
  if (!status.ending.empty())
    row("Last end", status.ending + (status.end ? ", " + humanTime(status.end->at) : ""));
  row("Address", allocation.address.str());
  row("Workspace", card.workspace.str());
  if (status.workspace)
    row("Space", humanBytes(status.workspace->bytes) + " of " + humanBytes(status.workspace->limitBytes));
  row("Image", allocation.image);
  if (allocation.provenImage) row("Until ready", *allocation.provenImage);
  row("Users", std::format("{}-{}", allocation.uidBase, allocation.uidBase + uidRangeSize - 1));
  row("Memory", (status.memoryBytes ? humanBytes(*status.memoryBytes) + " of " : "at most ") +
                    humanBytes(card.limits.memoryMb * 1024 * 1024));
  row("Tasks", (status.tasks ? std::to_string(*status.tasks) + " of " : "at most ") +
                   std::to_string(card.limits.maxProcesses));
  row("Provider", std::string(toString(card.apiProvider)));
  std::string hosts;
  for (const auto& host : card.allowedHosts) hosts += (hosts.empty() ? "" : ", ") + host.str();
  row("Hosts", hosts.empty() ? "the provider only" : hosts);
  row("Unit", status.machine.name().unit());
  if (status.state == MachineState::failed) row("Last words", "agentmachine logs " + card.id.str());
}

}  // namespace

void addListCommand(CLI::App& app) {
  auto* command = app.add_subcommand("ls", "list machines");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "print a JSON array");
  command->callback([json] {
    requireRoot("ls");
    const Settings settings = readSettings();
    Systemd systemd;
    const auto list = listMachines(settings, systemd);
    if (*json) {
      auto array = nlohmann::ordered_json::array();
      for (const auto& status : list.machines) array.push_back(toJson(status));
      std::cout << array.dump(2) << "\n";
    } else if (!list.machines.empty()) {
      std::vector<std::vector<std::string>> rows;
      for (const auto& status : list.machines) rows.push_back(tableRow(status));
      printTable({"ID", "STATE", "ADDRESS", "MEMORY", "TASKS", "TTL", "SINCE", "LAST END", "WORKSPACE"},
                 rows);
    } else if (list.unreadable.empty()) {
      std::cerr << "no machines; `agentmachine create CARD` makes one\n";
    }
    // What is there is told all the same.
    std::string problems;
    for (const auto& [id, why] : list.unreadable) problems += (problems.empty() ? "" : "\n") + why;
    if (!problems.empty()) throw Error(problems);
  });
}

void addShowCommand(CLI::App& app) {
  auto* command = app.add_subcommand("show", "show one machine");
  auto id = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  command->add_option("ID", *id, "agent id")->required();
  command->add_flag("--json", *json, "print a JSON object");
  command->callback([id, json] {
    requireRoot("show");
    const Settings settings = readSettings();
    const Machine wanted = findMachine(settings, *id);
    Systemd systemd;
    for (const auto& status : listMachines(settings, systemd).machines) {
      if (status.machine.card.id != wanted.card.id) continue;
      if (!*json) return printDetails(status);
      auto object = toJson(status);
      object["card"] = nlohmann::ordered_json::parse(toJson(status.machine.card));
      std::cout << object.dump(2) << "\n";
      return;
    }
    throw Error("machine " + *id + " was removed meanwhile");
  });
}

}  // namespace agentmachine
