// Not for people: what our units run. Hidden from --help; HACKING.md lists which unit runs which.
#include <csignal>
#include <cstdlib>
#include <format>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>

#include "apply/hooks.h"
#include "apply/idle.h"
#include "apply/key.h"
#include "apply/lifecycle.h"
#include "apply/proxy.h"
#include "apply/ttl.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "system/network.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// A hook of one machine's unit. Where its card or the host's settings can't be read, `without` does what can
/// be done all the same.
void addMachineHook(CLI::App& hook, const std::string& name, const std::string& help,
                    const std::function<void(const Settings&, const Machine&)>& act,
                    const std::function<void(const AgentId&, const Error& why)>& without = {}) {
  auto* command = hook.add_subcommand(name, help);
  auto id = std::make_shared<std::string>();
  command->add_option("ID", *id, "agent id")->required();
  command->callback([=] {
    Settings settings;
    std::optional<Machine> machine;
    try {
      settings = readSettings();
      machine = findMachine(settings, *id);
    } catch (const Error& why) {
      const auto parsed = AgentId::parse(*id);
      if (!parsed || !without) throw;
      return without(*parsed, why);
    }
    act(settings, *machine);
  });
}

void addAttachHook(CLI::App& hook) {
  auto* command = hook.add_subcommand("attach", "ExecStartPost= of a machine");
  auto id = std::make_shared<std::string>();
  auto server = std::make_shared<bool>(false);
  command->add_option("ID", *id, "agent id")->required();
  command->add_flag("--server", *server, "its payload is opencode's server");
  command->callback([id, server] {
    const Settings settings = readSettings();
    const Machine machine = findMachine(settings, *id);
    Systemd systemd;
    connectMachine(settings, machine, systemd);
    proveImage(settings, machine, *server, systemd);
  });
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// What systemd tells ExecStopPost= of the run.
EndRecord endOfRun() {
  return {.invocation = variable("INVOCATION_ID"),
          .at = {},
          .cause = EndCause::payload,
          .by = "",
          .result = variable("SERVICE_RESULT"),
          .code = variable("EXIT_CODE"),
          .status = variable("EXIT_STATUS"),
          .oomKills = 0};
}

}  // namespace

void addHookCommand(CLI::App& app) {
  auto* hook = app.add_subcommand("hook", "what agentmachine's units run")->group("");
  hook->require_subcommand(1);
  addMachineHook(*hook, "prepare", "ExecStartPre= of a machine",
                 [](const Settings& settings, const Machine& machine) {
                   Systemd systemd;
                   prepareMachine(settings, machine, variable("INVOCATION_ID"), systemd);
                 });
  addAttachHook(*hook);
  addMachineHook(
      *hook, "release", "ExecStopPost= of a machine",
      [](const Settings& settings, const Machine& machine) { releaseMachine(settings, machine, endOfRun()); },
      [](const AgentId& id, const Error& why) {
        releaseByRecord(id, endOfRun());
        throw why;
      });
  addMachineHook(
      *hook, "expire", "of agentmachine-expire@.service",
      [](const Settings& settings, const Machine& machine) {
        Systemd systemd;
        expireMachine(settings, machine, systemd);
      },
      [](const AgentId& id, const Error& why) {
        Systemd systemd;
        // Tried again until the time is up, for the settings may be mended by then.
        if (!expireByRecord(id, systemd)) throw why;
        std::cerr << printable(why.what()) << "\n";
      });
  addMachineHook(*hook, "idle", "of agentmachine-idle@.service",
                 [](const Settings& settings, const Machine& machine) {
                   Systemd systemd;
                   stopIfIdle(settings, machine, systemd);
                 });
  addMachineHook(
      *hook, "key", "of agentmachine-key@.service",
      [](const Settings& settings, const Machine& machine) {
        Systemd systemd;
        renewKey(settings, machine, systemd);
      },
      [](const AgentId& id, const Error& why) {
        takeKeyBackByRecord(id);
        throw Error(std::format("{}\nagent {} has no key until that is mended and its key file written again",
                                why.what(), id.str()));
      });
  addMachineHook(*hook, "sync", "of agentmachine-sync@.service",
                 [](const Settings&, const Machine& machine) { syncWorkspace(machine); });
  auto workspace = std::make_shared<std::string>();
  auto* mount = hook->add_subcommand("workspace", "of agentmachine-workspace@.service");
  mount->add_option("PATH", *workspace, "the workspace")->required();
  mount->callback([workspace] {
    const auto path = AbsolutePath::parse(*workspace);
    if (!path) throw Error(*workspace + ": " + path.error());
    mountWorkspace(readSettings(), *path);
  });
  hook->add_subcommand("render", "of agentmachine-render.service, at boot")->callback([] {
    Systemd systemd;
    // For the unit's journal.
    bringMachinesBack(readSettings(), systemd,
                      [](const std::string& line) { std::cerr << printable(line) << "\n"; });
  });
  hook->add_subcommand("proxy-config", "of agentmachine-proxy.service")->callback([] {
    const Settings settings = readSettings();
    configureProxy(settings);
    adoptRuns(settings);
  });
  hook->add_subcommand("proxy-names", "of agentmachine-dns.service")->callback([] {
    Systemd systemd;
    // squid reads its configuration again, and with it /etc/resolv.conf.
    systemd.signal("agentmachine-proxy.service", SIGHUP);
  });
  hook->add_subcommand("network-up", "of agentmachine-network.service")->callback([] {
    bringNetworkUp(readSettings());
  });
  hook->add_subcommand("network-down", "of agentmachine-network.service")->callback([] {
    takeNetworkDown(readSettings());
  });
  hook->add_subcommand("filter", "of agentmachine-filter.service")->callback(keepFilter);
}

}  // namespace agentmachine
