#include "guest/options.h"

#include <charconv>

#include <getopt.h>

#include "guest/environment.h"
#include "util/error.h"

namespace agentmachine {

namespace {

std::chrono::seconds parseTimeout(const std::string& text) {
  int seconds = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, seconds);
  if (error != std::errc() || stop != end || seconds < 1 || seconds > 3600)
    throw Error("--stop-timeout=" + text + ": not a number of seconds from 1 to 3600");
  return std::chrono::seconds(seconds);
}

SecretVariable parseSecret(const std::string& text) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || !isVariableName(text.substr(0, equals)) || text[equals + 1] != '/')
    throw Error("--secret-env=" + text + ": not NAME=/PATH");
  return {text.substr(0, equals), text.substr(equals + 1)};
}

}  // namespace

Options parseOptions(std::vector<std::string> arguments) {
  enum { waitInterface = 1, user, directory, secret, stopTimeout };
  static const option known[] = {
      {"wait-interface", required_argument, nullptr, waitInterface},
      {"user", required_argument, nullptr, user},
      {"directory", required_argument, nullptr, directory},
      {"secret-env", required_argument, nullptr, secret},
      {"stop-timeout", required_argument, nullptr, stopTimeout},
      {},
  };
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const int argc = static_cast<int>(arguments.size());

  Options options;
  optind = 0;  // glibc: start anew
  opterr = 0;
  for (;;) {
    // '+': the first word that is no option begins the command.
    switch (getopt_long(argc, argv.data(), "+", known, nullptr)) {
      case waitInterface:
        options.waitInterface = optarg;
        continue;
      case user:
        options.user = optarg;
        continue;
      case directory:
        options.directory = optarg;
        continue;
      case secret:
        options.secrets.push_back(parseSecret(optarg));
        continue;
      case stopTimeout:
        options.stopTimeout = parseTimeout(optarg);
        continue;
      case -1:
        break;
      default:
        throw Error("bad option " + arguments.at(static_cast<std::size_t>(optind) - 1));
    }
    break;
  }
  options.command.assign(arguments.begin() + optind, arguments.end());
  if (options.command.empty())
    throw Error("no command given: agentmachine-init [OPTIONS] -- COMMAND [ARGUMENT...]");
  if (!options.directory.starts_with('/'))
    throw Error("--directory=" + options.directory + ": not an absolute path");
  return options;
}

}  // namespace agentmachine
