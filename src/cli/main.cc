// The command line: sets up diagnostics, adds the commands, turns an Error into a message and an exit status.
#include <csignal>
#include <iostream>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "build_config.h"
#include "cli/commands.h"
#include "util/error.h"
#include "util/text.h"

namespace {

/// Messages hold what agents named, wrote to the journal or answered: nothing of it reaches the terminal as
/// more than text.
void tell(const std::string& message) {
  std::cerr << "agentmachine: " << agentmachine::printable(message) << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  using namespace agentmachine;
  // A reader that goes away is seen as EPIPE where we write.
  std::signal(SIGPIPE, SIG_IGN);
  auto log = spdlog::stderr_logger_st("agentmachine");
  log->set_pattern("agentmachine: %v");
  log->set_level(spdlog::level::warn);
  spdlog::set_default_logger(log);

  CLI::App app{"Machines for AI coding agents, on systemd-nspawn and systemd-machined", "agentmachine"};
  app.set_version_flag("--version", "agentmachine " AGENTMACHINE_VERSION);
  app.add_flag_callback(
      "-v,--verbose", [] { spdlog::set_level(spdlog::level::debug); }, "say what is being done");
  app.require_subcommand(1);
  app.footer("agentmachine(1) explains each command, agentmachine-card(5) the card.");
  app.set_help_all_flag("--help-all", "help of every command");

  int status = success;
  addCreateCommand(app);
  addStartCommand(app);
  addStopCommand(app);
  addRestartCommand(app);
  addTtlCommand(app);
  addUpgradeCommand(app);
  addRemoveCommand(app);
  addListCommand(app);
  addShowCommand(app);
  addRunCommand(app, status);
  addExecCommand(app, status);
  addShellCommand(app, status);
  addAttachCommand(app, status);
  addLogsCommand(app, status);
  addAuditCommand(app);
  addMetricsCommand(app);
  addAllowCommand(app);
  addDenyCommand(app);
  addWhyCommand(app, status);
  addCheckCommand(app, status);
  addPlanCommand(app);
  addSchemaCommand(app);
  addImageCommand(app);
  addExportCommand(app);
  addDoctorCommand(app, status);
  addRepairCommand(app);
  addHookCommand(app);

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForAllHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForVersion& version) {
    return app.exit(version);
  } catch (const CLI::ParseError& error) {
    const CLI::App* command = &app;
    std::string name = "agentmachine";
    while (!command->get_subcommands().empty()) {
      command = command->get_subcommands().front();
      name += " " + command->get_name();
    }
    std::string message = error.what();
    // CLI11 says only that a command is missing, whatever was typed in its place.
    if (dynamic_cast<const CLI::RequiredError*>(&error) && !command->get_subcommands({}).empty()) {
      const auto rest = command->remaining();
      message = rest.empty() ? "which command of \"" + name + "\"?"
                             : "there is no command \"" + name + " " + rest.front() + "\"";
    }
    std::cerr << "agentmachine: " << printable(message) << "\nTry: " << name << " --help\n";
    return usage;
  } catch (const Error& error) {
    tell(error.what());
    const bool runsACommand = app.got_subcommand("exec") || app.got_subcommand("run");
    return runsACommand ? ownFailure : failure;
  } catch (const std::exception& error) {
    tell(error.what());
    return failure;
  }
  return status;
}
