// For tests: prints what the renderers make of a settings file.
#include <iostream>
#include <set>
#include <vector>

#include "card/card.h"
#include "plan/nftables.h"
#include "plan/plan.h"
#include "plan/squid.h"
#include "util/error.h"
#include "util/file.h"

namespace agentmachine {
namespace {

/// What `agentmachine plan` prints, on a host that is always the same and has what the card asks for.
std::string plan(const Settings& settings, const std::string& path) {
  const auto card = parseCard(readFile(path, maxCardBytes), CardFormat::json);
  if (!card) throw Error(describe(path, card.error()));
  std::set<std::string> packages;
  for (const auto& package : card->packages) packages.insert(package.str());
  const Host host{.settings = settings,
                  .program = settings.program.value_or("/usr/bin/agentmachine"),
                  .init = settings.init.value_or("/usr/libexec/agentmachine/agentmachine-init"),
                  .images = {{.digest = "sha256-" + std::string(64, '1'), .packages = packages}},
                  .workspaces = {{card->workspace.str(),
                                  {.exists = true,
                                   .directory = true,
                                   .owner = {1000, 100},
                                   .idmappable = true,
                                   .fileSystem = "ext2/ext3"}}},
                  .requester = {1000, 100},
                  .proxyGroup = 989};
  return describe(planCreate(*card, host));
}

std::string render(const std::vector<std::string>& arguments) {
  Settings settings = parseSettings(readFile(arguments.at(0), 65536), arguments.at(0));
  const auto& what = arguments.at(1);
  if (what == "nft") return renderNftRuleset(settings);
  if (what == "plan") return plan(settings, arguments.at(2));
  if (what == "teardown") return renderNftTeardown();
  if (what == "page") return squidErrorPages().at(arguments.at(2));
  if (what == "squid") {
    settings.runtimeDirectory = arguments.at(2);
    return renderSquidConf(settings, {.helper = arguments.at(3),
                                      .auditor = arguments.at(4),
                                      .certificate = arguments.at(5),
                                      .errorPages = arguments.at(6),
                                      .accessLog = arguments.at(7)});
  }
  const auto address = Ipv4::parse(arguments.at(4)).value();
  if (what == "add")
    return renderNftElementAdd(arguments.at(2), arguments.at(3), address, std::stoul(arguments.at(5)));
  return renderNftElementDelete(arguments.at(2), arguments.at(3), address);
}

}  // namespace
}  // namespace agentmachine

int main(int argc, char** argv) {
  try {
    std::cout << agentmachine::render({argv + 1, argv + argc});
    return 0;
  } catch (const std::exception& cause) {
    std::cerr << argv[0] << ": " << cause.what() << '\n';
    return 1;
  }
}
