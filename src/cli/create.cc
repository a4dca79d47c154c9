#include <format>
#include <iostream>
#include <map>
#include <memory>

#include "apply/lifecycle.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

void addCreateCommand(CLI::App& app) {
  auto* command = app.add_subcommand("create", "make a machine of each card, without starting it");
  auto cards = std::make_shared<std::vector<std::string>>();
  command->add_option("CARD", *cards, "card files, JSON or TOML")->required();
  command->callback([cards] {
    requireRoot("create");
    const Settings settings = readSettings();
    std::map<std::string, Card> loaded;
    std::map<std::string, std::string> pathOf;
    // All are read before any is made: a typing error in the second leaves nothing of the first.
    for (const auto& path : *cards) {
      const auto& card = loaded.insert_or_assign(path, loadCard(path)).first->second;
      const auto [other, isFirst] = pathOf.emplace(card.id.str(), path);
      if (!isFirst)
        throw Error(
            std::format("{} and {} are both cards of \"{}\": leave one of them out, or give it an "
                        "agent_id of its own",
                        other->second, path, card.id.str()));
    }
    Systemd systemd;
    forEach(*cards, [&](const std::string& path) {
      const Machine machine = createMachine(settings, loaded.at(path), systemd);
      tellOfCommand(machine, "create", inQuotes(path));
      std::cout << machine.name().str() << "\n";
      if (systemd.activeState(machine.name().unit()) == "active")
        std::cerr << machine.name().str()
                  << " is running: its hosts, provider, key and limits of memory, CPU and processes count at "
                     "once, the rest of the card from its next start\n";
    });
  });
}

}  // namespace agentmachine
