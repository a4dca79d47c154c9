// check, plan and schema: what can be said of a card without touching anything.
#include "card/card.h"

#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "plan/plan.h"
#include "system/host.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

void addCheckCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("check", "say what is wrong with cards");
  auto cards = std::make_shared<std::vector<std::string>>();
  command->add_option("CARD", *cards, "card files, JSON or TOML")->required();
  command->callback([cards, &status] {
    for (const auto& path : *cards) {
      try {
        (void)loadCard(path);
        std::cout << printable(path) << ": ok\n";
      } catch (const Error& error) {
        std::cout << printable(error.what()) << "\n";
        status = failure;
      }
    }
  });
}

void addPlanCommand(CLI::App& app) {
  auto* command = app.add_subcommand("plan", "show what create would do, and do nothing");
  auto path = std::make_shared<std::string>();
  command->add_option("CARD", *path, "card file, JSON or TOML")->required();
  command->callback([path] {
    const Card card = loadCard(*path);
    requireRoot("plan");  // the state it is compared with is root's
    const Settings settings = readSettings();
    std::cout << printable(describe(planCreate(card, snapshot(settings, {card}))));
  });
}

void addSchemaCommand(CLI::App& app) {
  app.add_subcommand("schema", "print the JSON Schema of cards")->callback([] { std::cout << cardSchema(); });
}

}  // namespace agentmachine
