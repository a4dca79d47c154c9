// start, stop, restart and rm: the same shape, a list of ids and one act on each.
#include "apply/lifecycle.h"

#include <format>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "system/image_store.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

CLI::App* addIdsCommand(CLI::App& app, const std::string& name, const std::string& help,
                        const std::shared_ptr<std::vector<std::string>>& ids) {
  auto* command = app.add_subcommand(name, help);
  command->add_option("ID", *ids, "agent ids")->required();
  return command;
}

Machine findOrCreate(const Settings& settings, const std::string& id, Systemd& systemd) {
  auto found = findMachineOrCard(settings, id);
  return found.machine ? std::move(*found.machine) : createMachine(settings, *found.card, systemd);
}

std::optional<std::chrono::seconds> seconds(int value) {
  return value < 0 ? std::nullopt : std::optional(std::chrono::seconds(value));
}

CLI::Option* addTimeout(CLI::App& command, int& timeout) {
  return command.add_option("--timeout", timeout, "seconds until what has not ended is killed")
      ->type_name("SECONDS")
      ->check(wholeNumber(0, 86400));
}

}  // namespace

void addStartCommand(CLI::App& app) {
  auto ids = std::make_shared<std::vector<std::string>>();
  addIdsCommand(app, "start", "start machines; a card in the cards directory is enough", ids)
      ->callback([ids] {
        requireRoot("start");
        const Settings settings = readSettings();
        Systemd systemd;
        forEach(*ids, [&](const std::string& id) {
          const Machine machine = findOrCreate(settings, id, systemd);
          startMachine(settings, machine, systemd);
          tellOfCommand(machine, "start");
          std::cout << machine.name().str() << "\n";
        });
      });
}

void addStopCommand(CLI::App& app) {
  auto ids = std::make_shared<std::vector<std::string>>();
  auto timeout = std::make_shared<int>(-1);
  auto* command = addIdsCommand(app, "stop", "stop machines", ids);
  addTimeout(*command, *timeout);
  command->callback([ids, timeout] {
    requireRoot("stop");
    const Settings settings = readSettings();
    Systemd systemd;
    forEach(*ids, [&](const std::string& id) {
      const Machine machine = findMachine(settings, id);
      stopMachine(settings, machine, systemd, caller(), seconds(*timeout));
      tellOfCommand(machine, "stop");
      std::cout << machine.name().str() << "\n";
    });
  });
}

void addRestartCommand(CLI::App& app) {
  auto ids = std::make_shared<std::vector<std::string>>();
  auto timeout = std::make_shared<int>(-1);
  auto* command = addIdsCommand(app, "restart", "stop machines and start them again", ids);
  addTimeout(*command, *timeout);
  command->callback([ids, timeout] {
    requireRoot("restart");
    const Settings settings = readSettings();
    Systemd systemd;
    forEach(*ids, [&](const std::string& id) {
      const Machine machine = findOrCreate(settings, id, systemd);
      stopMachine(settings, machine, systemd, caller(), seconds(*timeout));
      startMachine(settings, machine, systemd);
      tellOfCommand(machine, "restart");
      std::cout << machine.name().str() << "\n";
    });
  });
}

void addUpgradeCommand(CLI::App& app) {
  auto ids = std::make_shared<std::vector<std::string>>();
  auto all = std::make_shared<bool>(false);
  auto name = std::make_shared<std::string>();
  auto* command = app.add_subcommand("upgrade", "give machines another image from their next start on");
  auto* everyone = command->add_flag("--all", *all, "all machines");
  command->add_option("ID", *ids, "agent ids")->excludes(everyone);
  command->add_option("--image", *name, "digest, or digits that only one begins with; the newest if left out")
      ->type_name("IMAGE");
  command->footer("A machine whose payload doesn't get ready with it goes back to the image it had.");
  command->callback([ids, all, name] {
    requireRoot("upgrade");
    if (ids->empty() && !*all) throw CLI::RequiredError("ID or --all");
    const Settings settings = readSettings();
    const ImageStore store(settings.stateDirectory + "/images");
    const auto digest = name->empty() ? std::nullopt : std::optional(store.find(*name).digest);
    if (*all)
      for (const auto& [id, machine] : readMachines(settings)) ids->push_back(id);
    Systemd systemd;
    forEach(*ids, [&](const std::string& id) {
      const Machine machine = findMachine(settings, id);
      if (!upgradeMachine(settings, machine.card.id, digest, systemd)) {
        std::cerr << machine.name().str() << " has that image already\n";
        return;
      }
      tellOfCommand(machine, "upgrade", digest.value_or(""));
      std::cout << machine.name().str() << "\n";
      if (systemd.activeState(machine.name().unit()) == "active")
        std::cerr << std::format(
            "{} runs on with the image it has; to change it now: agentmachine restart {}\n",
            machine.name().str(), id);
    });
  });
}

void addTtlCommand(CLI::App& app) {
  auto* command = app.add_subcommand("ttl", "change when a running machine's time is up");
  auto id = std::make_shared<std::string>();
  auto text = std::make_shared<std::string>();
  command->add_option("ID", *id, "agent id")->required();
  command
      ->add_option("TIME", *text,
                   "from now, as in 90s, 5min, 2h30min, 1d; +TIME: more than now set; off: no end")
      ->required();
  command->footer("For the present run only: its next start begins with the card's ttl_seconds again.");
  command->callback([id, text] {
    requireRoot("ttl");
    TtlChange change;
    if (*text != "off") {
      const bool more = text->starts_with('+');
      const auto duration = parseDuration(std::string_view(*text).substr(more ? 1 : 0));
      if (!duration)
        throw Error(std::format("{} is no time: write 90s, 5min, 2h30min or 1d, +1h for an hour more, or off",
                                inQuotes(*text)));
      change = {.kind = more ? TtlChange::Kind::by : TtlChange::Kind::in, .duration = *duration};
    }
    const Settings settings = readSettings();
    Systemd systemd;
    const Machine machine = findMachine(settings, *id);
    const auto left = changeTtl(settings, machine, systemd, change);
    tellOfCommand(machine, "ttl", *text);
    std::cout << (left ? humanDuration(*left) : "off") << "\n";
  });
}

void addRemoveCommand(CLI::App& app) {
  auto ids = std::make_shared<std::vector<std::string>>();
  auto workspace = std::make_shared<bool>(false);
  auto* command = addIdsCommand(app, "rm", "stop machines and forget them; workspaces are kept", ids);
  command->add_flag("--workspace", *workspace, "remove the workspaces and all in them, too");
  command->callback([ids, workspace] {
    requireRoot("rm");
    const Settings settings = readSettings();
    Systemd systemd;
    forEach(*ids, [&](const std::string& id) {
      const Machine machine = findMachine(settings, id);
      removeMachine(settings, machine, systemd, caller(), *workspace);
      tellOfCommand(machine, "rm", *workspace ? "with its workspace" : "");
      std::cout << machine.name().str() << "\n";
      if (machine.allocation.workspaceImage && !*workspace)
        std::cerr << std::format(
            "{0} stays, mounted at every boot, in {1}; to remove it: umount {0} && rm {1}\n",
            machine.card.workspace.str(), imagePath(settings, machine.card.workspace));
    });
  });
}

void addRepairCommand(CLI::App& app) {
  auto* command = app.add_subcommand("repair", "bring this host to what its machines' cards say");
  auto dryRun = std::make_shared<bool>(false);
  command->add_flag("--dry-run", *dryRun, "only say what would be done");
  command->footer(
      "Removes what no machine has any more, renders what is missing or was altered. Stops no machine that "
      "has a card.");
  command->callback([dryRun] {
    requireRoot("repair");
    Systemd systemd;
    repairMachines(readSettings(), systemd, *dryRun, [](const std::string& line) {
      std::cout << printable(line) << "\n" << std::flush;
    });
  });
}

}  // namespace agentmachine
