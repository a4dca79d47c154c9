// Every command: each function adds one to the command line, with what it does as its callback. Only this
// folder prints and exits.
#pragma once
#include <CLI/CLI.hpp>

namespace agentmachine {

/// Exit statuses, as agentmachine(1) lists them.
enum ExitStatus : int {
  success = 0,
  failure = 1,       ///< what was asked for couldn't be done, or a card has problems
  usage = 2,         ///< the command line is wrong
  wouldRefuse = 3,   ///< of why: the request would be refused
  ownFailure = 125,  ///< of exec and run, whose other statuses are those of the command inside
};

void addAllowCommand(CLI::App& app);
void addAttachCommand(CLI::App& app, int& status);
void addAuditCommand(CLI::App& app);
void addCheckCommand(CLI::App& app, int& status);
void addCreateCommand(CLI::App& app);
void addDenyCommand(CLI::App& app);
void addDoctorCommand(CLI::App& app, int& status);
void addExecCommand(CLI::App& app, int& status);
void addExportCommand(CLI::App& app);
void addHookCommand(CLI::App& app);
void addImageCommand(CLI::App& app);
void addListCommand(CLI::App& app);
void addLogsCommand(CLI::App& app, int& status);
void addMetricsCommand(CLI::App& app);
void addPlanCommand(CLI::App& app);
void addRemoveCommand(CLI::App& app);
void addRepairCommand(CLI::App& app);
void addRestartCommand(CLI::App& app);
void addRunCommand(CLI::App& app, int& status);
void addSchemaCommand(CLI::App& app);
void addShellCommand(CLI::App& app, int& status);
void addShowCommand(CLI::App& app);
void addStartCommand(CLI::App& app);
void addStopCommand(CLI::App& app);
void addTtlCommand(CLI::App& app);
void addUpgradeCommand(CLI::App& app);
void addWhyCommand(CLI::App& app, int& status);

}  // namespace agentmachine
