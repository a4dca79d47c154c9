// check, plan and schema: what can be said of a card without touching anything.
#include "card/card.h"

#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/common.h"
#include "plan/plan.h"
#include "system/host.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// What is wrong with the card in this file, which may be that it can't be read.
std::vector<Problem> problemsOf(const std::string& path) {
  try {
    auto card = readCard(path);
    return card ? std::vector<Problem>() : std::move(card.error());
  } catch (const Error& error) {
    return {{.message = error.what()}};
  }
}

/// As the manual says, and whether there were none.
std::pair<std::string, bool> inJson(const std::vector<std::string>& cards) {
  auto array = nlohmann::ordered_json::array();
  for (const auto& path : cards)
    for (const auto& [pointer, message] : problemsOf(path))
      array.push_back({{"card", path}, {"pointer", pointer}, {"message", message}});
  // The name of a file need not be UTF-8.
  return {array.dump(2, ' ', false, nlohmann::json::error_handler_t::replace), array.empty()};
}

/// As the manual says; contents alone are on lines of their own in the text for people.
std::string inJson(const Plan& plan) {
  auto array = nlohmann::ordered_json::array();
  for (const auto& action : plan) {
    const auto text = describe(Plan{action});
    array.push_back({{"action", text.substr(0, text.find('\n'))}});
    if (const auto* write = std::get_if<WriteFile>(&action)) array.back()["content"] = write->content;
  }
  return array.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

void addCheckCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("check", "say what is wrong with cards, or with settings");
  auto cards = std::make_shared<std::vector<std::string>>();
  auto json = std::make_shared<bool>(false);
  auto settings = std::make_shared<std::string>();
  auto* cardOption = command->add_option("CARD", *cards, "card files, JSON or TOML");
  auto* settingsOption =
      command->add_option("--settings", *settings, "a file as /etc/agentmachine/agentmachine.conf")
          ->type_name("FILE");
  command->add_flag("--json", *json, "print a JSON array, with an object for each problem")
      ->needs(cardOption)
      ->excludes(settingsOption);
  command->callback([cards, json, settings, &status] {
    if (cards->empty() && settings->empty()) throw CLI::RequiredError("CARD or --settings");
    if (*json) {
      const auto [array, good] = inJson(*cards);
      std::cout << array << "\n";
      if (!good) status = failure;
      return;
    }
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
  auto json = std::make_shared<bool>(false);
  command->add_option("CARD", *path, "card file, JSON or TOML")->required();
  command->add_flag("--json", *json, "print a JSON array, with an object for each action");
  command->callback([path, json] {
    const Card card = loadCard(*path);
    requireRoot("plan");  // the state it is compared with is root's
    const Settings settings = readSettings();
    const Plan plan = planCreate(card, snapshot(settings, {card}));
    std::cout << (*json ? inJson(plan) + "\n" : printable(describe(plan)));
  });
}

void addSchemaCommand(CLI::App& app) {
  app.add_subcommand("schema", "print the JSON Schema of cards")->callback([] { std::cout << cardSchema(); });
}

}  // namespace agentmachine
