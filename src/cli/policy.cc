// allow, deny and why: what the proxy lets a machine reach.
#include "plan/policy.h"

#include <format>
#include <functional>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "apply/lifecycle.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "proxy/decide.h"
#include "system/host.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::size_t maxPolicyBytes = 4 * 1024 * 1024;

/// All are read before one counts: a typing error in the second changes nothing.
std::vector<HostPattern> parseHosts(const std::vector<std::string>& texts) {
  std::vector<HostPattern> hosts;
  for (const auto& text : texts) {
    auto host = HostPattern::parse(text);
    if (!host) throw Error(inQuotes(text) + " " + host.error());
    hosts.push_back(*std::move(host));
  }
  return hosts;
}

using ChangeHosts =
    std::function<std::vector<HostPattern>(std::vector<HostPattern>, const std::vector<HostPattern>&)>;

void addHostsCommand(CLI::App& app, const std::string& name, const std::string& help,
                     const ChangeHosts& change) {
  auto* command = app.add_subcommand(name, help);
  auto id = std::make_shared<std::string>();
  auto texts = std::make_shared<std::vector<std::string>>();
  command->add_option("ID", *id, "agent id")->required();
  command->add_option("HOST", *texts, "hosts as in a card, like example.org or .example.org:8443")
      ->required();
  command->callback([=] {
    requireRoot(name);
    const auto hosts = parseHosts(*texts);
    const Settings settings = readSettings();
    const Machine machine = findMachine(settings, *id);
    Systemd systemd;
    const auto left = inContext(name + " " + machine.card.id.str(), [&] {
      return changeHosts(settings, machine.card.id, systemd,
                         [&](std::vector<HostPattern> now) { return change(std::move(now), hosts); });
    });
    std::vector<std::string> changed;
    for (const auto& host : hosts) changed.push_back(host.str());
    tellOfCommand(machine, name, join(changed, " "));
    for (const auto& host : left) std::cout << host.str() << "\n";
  });
}

/// What the proxy goes by now; for a card without a machine, what it would.
Policy policyOf(const Settings& settings, const std::string& idOrName) {
  const auto found = findMachineOrCard(settings, idOrName);
  if (!found.machine) return policyFor(*found.card, settings);
  const auto& machine = *found.machine;
  return parsePolicy(
      readFile(machinePaths(settings, machine.card.id, machine.allocation.address).policy, maxPolicyBytes));
}

/// What is judged only when the request is made.
std::vector<std::string> unknowns(const Policy& policy, const WebRequest& request) {
  std::vector<std::string> list = {
      "the name must not resolve to an address of the host or of a private network"};
  if (request.toBroker) list.emplace_back("the provider may refuse the path or the key");
  if (!request.toBroker && request.method == "CONNECT")
    list.emplace_back("the tunnel must carry TLS with the server name of the host");
  if (policy.parent) list.push_back("the proxy " + policy.parent->str() + " may refuse it");
  list.push_back(
      std::format("{} requests a second pass; more wait, or are refused", policy.requestsPerSecond));
  return list;
}

void printJson(const Decision& decision, const WebRequest& request, const std::string& text,
               const std::vector<std::string>& later) {
  const nlohmann::ordered_json json = {{"allowed", decision.allowed}, {"reason", decision.reason},
                                       {"rule", decision.rule},       {"method", request.method},
                                       {"host", request.host},        {"port", request.port},
                                       {"broker", request.toBroker},  {"advice", text},
                                       {"checked_later", later}};
  std::cout << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

void printText(const Decision& decision, const std::string& text, const std::vector<std::string>& later) {
  std::cout << (decision.allowed ? "allowed" : "refused") << ": " << decision.reason;
  if (!decision.rule.empty()) std::cout << ", by \"" << decision.rule << "\"";
  std::cout << "\n";
  if (!text.empty()) std::cout << text << "\n";
  if (!later.empty()) std::cout << "To be seen when it is asked for:\n";
  for (const auto& line : later) std::cout << "  " << line << "\n";
}

}  // namespace

void addAllowCommand(CLI::App& app) {
  addHostsCommand(app, "allow", "let a machine reach hosts, from its next request on", withHosts);
}

void addDenyCommand(CLI::App& app) {
  addHostsCommand(app, "deny", "take hosts away from a machine, and cut what is open", withoutHosts);
}

void addWhyCommand(CLI::App& app, int& status) {
  auto* command = app.add_subcommand("why", "say whether a machine may ask for a URL, and by which rule");
  auto id = std::make_shared<std::string>();
  auto url = std::make_shared<std::string>();
  auto method = std::make_shared<std::string>("GET");
  auto json = std::make_shared<bool>(false);
  command->add_option("ID", *id, "agent id")->required();
  command->add_option("URL", *url, "http:// or https://")->required();
  command->add_option("--method", *method, "of a plain request; nobody can see it in https (default: GET)");
  command->add_flag("--json", *json, "as JSON");
  command->callback([=, &status] {
    requireRoot("why");
    const Settings settings = readSettings();
    const auto request = requestFor(*url, *method, settings);
    if (!request) throw Error(inQuotes(*url) + " is no URL: write one that begins with http:// or https://");
    const Policy policy = policyOf(settings, *id);
    const Decision decision = decide(policy, *request);
    const auto text = advice(decision, policy, request->method, request->host, request->port);
    const auto later = decision.allowed ? unknowns(policy, *request) : std::vector<std::string>{};
    if (*json)
      printJson(decision, *request, text, later);
    else
      printText(decision, text, later);
    status = decision.allowed ? success : wouldRefuse;
  });
}

}  // namespace agentmachine
