#include "guest/environment.h"

#include <algorithm>

namespace agentmachine {

namespace {

constexpr const char* defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

bool forPid1Alone(std::string_view name) {
  return name == "NOTIFY_SOCKET" || name.starts_with("LISTEN_") || name.starts_with("WATCHDOG_") ||
         name.starts_with("container") || name == "CREDENTIALS_DIRECTORY";
}

void set(Environment& environment, std::string_view assignment) {
  const auto equals = assignment.find('=');
  if (equals == 0 || equals == std::string_view::npos) return;
  environment.insert_or_assign(std::string(assignment.substr(0, equals)),
                               std::string(assignment.substr(equals + 1)));
}

}  // namespace

bool isVariableName(std::string_view name) {
  const auto letter = [](char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_'; };
  return !name.empty() && letter(name[0]) &&
         std::ranges::all_of(name, [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

Environment payloadEnvironment(const char* const* environ) {
  Environment environment;
  for (; *environ; ++environ) set(environment, *environ);
  std::erase_if(environment, [](const auto& variable) { return forPid1Alone(variable.first); });
  // systemd-nspawn sets these for root, which no payload is; another HOME was put there by the card.
  environment.erase("USER");
  environment.erase("LOGNAME");
  if (auto home = environment.find("HOME"); home != environment.end() && home->second == "/root")
    environment.erase(home);
  return environment;
}

Environment commandEnvironment(Environment base, const User& user, bool ownHome,
                               const std::vector<std::string>& given) {
  // A home that the agent can write must not configure the programs that another user runs.
  if (!ownHome) base.erase("HOME");
  base.insert({{"HOME", user.home}, {"SHELL", user.shell}, {"PATH", defaultPath}});
  base["USER"] = base["LOGNAME"] = user.name;
  for (const auto& assignment : given) set(base, assignment);
  return base;
}

}  // namespace agentmachine
