#include "observe/doctor.h"

#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/common.h"
#include "observe/doctor_facts.h"
#include "util/error.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// Runs each finding's command once; one that fails doesn't keep the others from being tried.
void fix(const std::vector<Finding>& findings) {
  std::set<std::vector<std::string>> done;
  for (const auto& finding : findings) {
    if (finding.fix.empty() || !done.insert(finding.fix).second) continue;
    std::cerr << "agentmachine: doing: " << join(finding.fix, " ") << "\n";
    try {
      runChecked(finding.fix);
    } catch (const Error& cause) {
      std::cerr << "agentmachine: " << cause.what() << "\n";
    }
  }
}

void printJson(const std::vector<Finding>& findings) {
  auto array = nlohmann::ordered_json::array();
  for (const auto& finding : findings)
    array.push_back({{"check", finding.check},
                     {"level", toString(finding.level)},
                     {"what", finding.what},
                     {"guards", finding.guards},
                     {"remedy", finding.remedy},
                     {"fixable", !finding.fix.empty()}});
  // What other programs said may be no UTF-8.
  std::cout << array.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
}

std::string coloured(Level level) {
  std::string text(toString(level));
  if (!useColour()) return text;
  const char* colour = level == Level::ok ? "\033[32m" : level == Level::warning ? "\033[33m" : "\033[31m";
  return colour + text + "\033[0m";
}

void printForPeople(const std::vector<Finding>& findings) {
  std::size_t problems = 0, warnings = 0, fixable = 0;
  for (const auto& finding : findings) {
    std::cout << std::string(std::string_view("problem").size() - toString(finding.level).size(), ' ')
              << coloured(finding.level) << "  " << finding.check << ": " << finding.what << "\n";
    if (finding.level == Level::ok) continue;
    std::cout << "         why it matters: " << finding.guards << "\n         what to do: " << finding.remedy
              << "\n";
    ++(finding.level == Level::problem ? problems : warnings);
    fixable += !finding.fix.empty();
  }
  const auto count = [](std::size_t number, const std::string& noun) {
    return std::to_string(number) + " " + noun + (number == 1 ? "" : "s");
  };
  std::cout << count(problems, "problem") << ", " << count(warnings, "warning");
  if (fixable) std::cout << "; agentmachine doctor --fix does " << fixable << " of them";
  std::cout << "\n";
}

}  // namespace

void addDoctorCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("doctor", "check that this host has what holds machines in");
  auto fixes = std::make_shared<bool>(false), json = std::make_shared<bool>(false);
  command->add_flag("--fix", *fixes,
                    "do what is safe: start and enable our units, make users and directories, "
                    "render machines again");
  command->add_flag("--json", *json, "print a JSON array");
  command->footer("The exit status is 1 if there is a problem; warnings alone leave it 0.");
  command->callback([=, &status] {
    requireRoot("doctor");
    auto findings = judge(collectDoctorFacts());
    if (*fixes) {
      fix(findings);
      findings = judge(collectDoctorFacts());
    }
    if (*json)
      printJson(findings);
    else
      printForPeople(findings);
    if (std::ranges::any_of(findings, [](const auto& finding) { return finding.level == Level::problem; }))
      status = failure;
  });
}

}  // namespace agentmachine
