// exec, shell, attach and run: commands inside a machine.
#include <algorithm>
#include <csignal>
#include <functional>
#include <iostream>
#include <memory>

#include <sys/wait.h>
#include <unistd.h>

#include "apply/lifecycle.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "plan/plan.h"
#include "system/guest.h"
#include "system/host.h"
#include "system/journal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/pipe.h"
#include "util/text.h"

namespace agentmachine {

namespace {

void requireRunning(const Machine& machine, Systemd& systemd) {
  if (systemd.activeState(machine.name().unit()) != "active")
    throw Error(machine.name().str() + " is not running: agentmachine start " + machine.card.id.str() +
                lastWords(machine.name().unit()));
}

int execIn(const Machine& machine, const GuestCommand& command, bool terminal, Systemd& systemd) {
  try {
    if (!terminal) return execInMachine(machine.name().str(), command);
    Machined machined(systemd.bus());
    return execOnTerminal(machine.name().str(), command, machined);
  } catch (const MachineGone& gone) {
    throw Error(gone.what() + lastWords(machine.name().unit()));
  }
}

/// Runs `act` in a child process and returns its status, 128 + signal if one ended it. A signal that would
/// end this process ends the child instead; from then on they are blocked, so that the caller can clean up.
/// No other thread may run.
int inChild(const std::function<int()>& act) {
  sigset_t watched, before;
  sigemptyset(&watched);
  for (const int signal : {SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM}) sigaddset(&watched, signal);
  sigprocmask(SIG_BLOCK, &watched, &before);
  const pid_t child = fork();
  if (child < 0) throw errnoError("fork");
  if (child == 0) {
    sigprocmask(SIG_SETMASK, &before, nullptr);
    int status = ownFailure;
    try {
      status = act();
    } catch (const Error& error) {
      std::cerr << "agentmachine: " << printable(error.what()) << "\n";
    }
    std::cout.flush();
    _exit(status);
  }
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    const int signal = sigwaitinfo(&watched, nullptr);
    if (signal > 0 && signal != SIGCHLD) kill(child, signal);
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

Error runsAlready(const Machine& machine) {
  return Error(machine.name().str() + " is running already; in it: agentmachine exec " +
               machine.card.id.str() + " -- opencode …");
}

/// The machine of a card or an id, created if need be, which must not run.
Machine machineForRun(const Settings& settings, const std::string& cardOrId) {
  Systemd systemd;
  const bool isFile = cardOrId.contains('/') || cardOrId.contains('.');
  auto found = isFile ? MachineOrCard{.machine = {}, .card = loadCard(cardOrId)}
                      : findMachineOrCard(settings, cardOrId);
  Machine machine = found.machine ? std::move(*found.machine) : createMachine(settings, *found.card, systemd);
  const auto state = systemd.activeState(machine.name().unit());
  if (state != "inactive" && state != "failed") throw runsAlready(machine);
  return machine;
}

/// After `run`, however far it came: the machine is down, and whoever starts it next gets what its card says
/// by now. Throws Error, after both were tried.
void endRunCommand(const Settings& settings, const Machine& machine) {
  Systemd systemd;
  std::string failures;
  const auto attempt = [&](const std::function<void()>& act) {
    try {
      act();
    } catch (const Error& cause) {
      failures += (failures.empty() ? "" : "\n") + std::string(cause.what());
    }
  };
  attempt([&] { stopMachine(settings, machine, systemd, caller(), std::nullopt); });
  attempt([&] {
    if (const auto present = readMachine(settings, machine.card.id))
      renderMachine(settings, *present, systemd);
  });
  if (!failures.empty()) throw Error(failures);
}

}  // namespace

void addExecCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("exec", "run a command in a machine, as the agent");
  auto id = std::make_shared<std::string>();
  auto user = std::make_shared<std::string>();
  auto terminal = std::make_shared<bool>(false);
  command->add_option("ID", *id, "agent id")->required();
  command->add_option("-u,--user", *user, "run as this user of the machine");
  command->add_flag("-t,--tty", *terminal, "give it a terminal");
  auto words = std::make_shared<std::vector<std::string>>();
  command->add_option("COMMAND", *words, "what to run, after --, and its arguments")->required();
  command->footer("The exit status of the command becomes that of exec, as in: exec ID -- git status.");
  command->callback([=, &status] {
    requireRoot("exec");
    const Settings settings = readSettings();
    const Machine machine = findMachine(settings, *id);
    Systemd systemd;
    requireRunning(machine, systemd);
    status = execIn(machine, {.user = *user, .argv = *words, .environment = {}, .directory = ""}, *terminal,
                    systemd);
  });
}

void addShellCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("shell", "open a shell in a machine, as the agent");
  auto id = std::make_shared<std::string>();
  command->add_option("ID", *id, "agent id")->required();
  command->callback([=, &status] {
    requireRoot("shell");
    const Settings settings = readSettings();
    const Machine machine = findMachine(settings, *id);
    Systemd systemd;
    requireRunning(machine, systemd);
    status = execIn(machine, {.user = "", .argv = {"/bin/sh", "-i"}, .environment = {}, .directory = ""},
                    true, systemd);
  });
}

void addAttachCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("attach", "open opencode's terminal interface on the machine's server");
  auto id = std::make_shared<std::string>();
  command->add_option("ID", *id, "agent id")->required();
  command->footer("Leaving the interface leaves the server running.");
  command->callback([=, &status] {
    requireRoot("attach");
    const Settings settings = readSettings();
    const Machine machine = findMachine(settings, *id);
    if (!machine.card.command.empty())
      throw Error("attach " + *id +
                  ": its card runs a command of its own, not opencode's server; try: agentmachine shell " +
                  *id);
    Systemd systemd;
    requireRunning(machine, systemd);
    const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
    const auto password = readFile(paths.serverPassword, 4096);
    const GuestCommand opencode{
        .user = "",
        .argv = {"opencode", "attach", std::format("http://127.0.0.1:{}", serverPort)},
        .environment = {"OPENCODE_SERVER_PASSWORD=" + password},
        .directory = ""};
    status = execIn(machine, opencode, true, systemd);
  });
}

void addRunCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("run", "create and start a machine, run one opencode in it, stop it");
  auto path = std::make_shared<std::string>();
  auto terminal = std::make_shared<bool>(false);
  command->add_option("CARD", *path, "card file, JSON or TOML, or the id of one in the cards directory")
      ->required();
  command->add_flag("-t,--tty", *terminal, "give it a terminal");
  auto words = std::make_shared<std::vector<std::string>>();
  command->add_option("ARGUMENT", *words, "opencode's own arguments, after --");
  command->footer("What follows -- are opencode's own arguments, as in: run CARD -- run 'fix the tests'.");
  command->callback([=, &status] {
    requireRoot("run");
    const Settings settings = readSettings();
    const Machine machine = machineForRun(settings, *path);
    GuestCommand opencode{.user = "", .argv = {"opencode"}, .environment = {}, .directory = ""};
    append(opencode.argv, *words);
    Pipe foreign = makePipe();
    status = inChild([&] {
      Systemd systemd;
      if (!startMachine(settings, withIdlePayload(machine), systemd)) {
        (void)!write(foreign.write.get(), "", 1);
        throw runsAlready(machine);
      }
      tellOfCommand(machine, "run");
      return execIn(machine, opencode, *terminal, systemd);
    });
    foreign.write.reset();
    // What somebody else started meanwhile is not ours to stop.
    if (char told = 0; read(foreign.read.get(), &told, 1) != 1) endRunCommand(settings, machine);
  });
}

}  // namespace agentmachine
