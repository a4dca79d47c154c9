// check, plan and schema: what can be said of a card without touching anything.
#include "card/card.h"

#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "plan/plan.h"
#include "system/host.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

void addCheckCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("check", "say what is wrong with cards, or with settings");
  auto cards = std::make_shared<std::vector<std::string>>();
  auto settings = std::make_shared<std::string>();
  command->add_option("CARD", *cards, "card files, JSON or TOML");
  command->add_option("--settings", *settings, "a file as /etc/agentmachine/agentmachine.conf")
      ->type_name("FILE");
  command->require_option(1, 0);
  command->callback([cards, settings, &status] {
    const auto check = [&status](const std::string& path, const auto& read) {
      try {
        (void)read();
        std::cout << printable(path) << ": ok\n";
      } catch (const Error& error) {
        std::cout << printable(error.what()) << "\n";
        status = failure;
      }
    };
    if (!settings->empty())
      check(*settings, [&] { return parseSettings(readFile(*settings, maxCardBytes), *settings); });
    for (const auto& path : *cards) check(path, [&] { return loadCard(path); });
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
