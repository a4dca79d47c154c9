// For the network test: prints what the renderers make of a settings file.
#include <iostream>
#include <vector>

#include "plan/nftables.h"
#include "plan/squid.h"
#include "util/error.h"
#include "util/file.h"

namespace agentmachine {
namespace {

std::string render(const std::vector<std::string>& arguments) {
  Settings settings = parseSettings(readFile(arguments.at(0), 65536), arguments.at(0));
  const auto& what = arguments.at(1);
  if (what == "nft") return renderNftRuleset(settings);
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
