#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

void addLogsCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("logs", "show what a machine's payload and its unit logged");
  auto id = std::make_shared<std::string>();
  auto follow = std::make_shared<bool>(false);
  auto lines = std::make_shared<int>(-1);
  command->add_option("ID", *id, "agent id")->required();
  auto json = std::make_shared<bool>(false);
  command->add_flag("-f,--follow", *follow, "go on with what is logged from now on");
  command->add_option("-n,--lines", *lines, "only the last lines")
      ->type_name("NUMBER")
      ->check(wholeNumber(0, 1'000'000'000));
  command->add_flag("--json", *json, "print an object a line, as journalctl's");
  command->callback([=, &status] {
    requireRoot("logs");
    const Machine machine = findMachine(readSettings(), *id);
    std::vector<std::string> words = {"journalctl", "--unit=" + machine.name().unit()};
    if (*follow) words.emplace_back("--follow");
    if (*lines >= 0) words.push_back("--lines=" + std::to_string(*lines));
    if (*json) words.emplace_back("--output=json");
    // journalctl lets through carriage returns, backspaces and what turns the direction of writing.
    status = runLines(words, [json](const std::string& line) {
      std::cout << (*json ? nlohmann::ordered_json::parse(line).dump(-1, ' ', true) : printable(line)) << "\n"
                << std::flush;
      return std::cout.good();
    });
  });
}

}  // namespace agentmachine
