#include <iostream>
#include <memory>

#include "apply/lifecycle.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "util/text.h"

namespace agentmachine {

void addCreateCommand(CLI::App& app) {
  auto* command = app.add_subcommand("create", "make a machine of each card, without starting it");
  auto cards = std::make_shared<std::vector<std::string>>();
  command->add_option("CARD", *cards, "card files, JSON or TOML")->required();
  command->callback([cards] {
    requireRoot("create");
    const Settings settings = readSettings();
    std::vector<Card> loaded;
    // All are read before any is made: a typing error in the second leaves nothing of the first.
    for (const auto& path : *cards) loaded.push_back(loadCard(path));
    Systemd systemd;
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      const Machine machine = createMachine(settings, loaded[i], systemd);
      tellOfCommand(machine, "create", inQuotes((*cards)[i]));
      std::cout << machine.name().str() << "\n";
      if (systemd.activeState(machine.name().unit()) == "active")
        std::cerr << machine.name().str()
                  << " is running: its hosts, provider and key count at once, the rest of the card from its next start\n";
    }
  });
}

}  // namespace agentmachine
