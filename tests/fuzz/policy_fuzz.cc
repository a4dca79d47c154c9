// libFuzzer: the policy helper. Any policy file is read or refused, and a read one is written as the same;
// any question of squid's is answered on one line; nothing that isn't listed is allowed. An input is a policy
// file, then, after a NUL, lines of squid's.
#include <algorithm>
#include <cstdint>

#include "proxy/decide.h"
#include "proxy/squid_helper.h"
#include "require.h"
#include "util/error.h"
#include "util/text.h"

using namespace agentmachine;

namespace {

void ask(const Policy& policy, const std::string& line) {
  const auto [channel, tokens] = parseQuestion(line);
  std::vector<std::string> words = tokens;
  words.resize(std::max<std::size_t>(words.size(), 5));
  const Decision decisions[] = {decideRequest(policy, words[0], words[1], words[2], words[3]),
                                decideServerName(words[0], words[1]),
                                decideBroker(policy, words[0], words[1])};
  for (const auto& decision : decisions) {
    require(!decision.reason.empty());
    const auto answer = renderAnswer("1", decision.allowed,
                                     {{"agent", policy.agent.str()},
                                      {"reason", std::string(decision.reason)},
                                      {"rule", decision.rule},
                                      {"echo", words[0]}});
    require(std::ranges::count(answer, '\n') == 1 && answer.ends_with('\n'));
    require(std::ranges::all_of(answer.substr(0, answer.size() - 1),
                                [](unsigned char c) { return c >= 0x20 && c < 0x7f; }));
    // What squid reads of it is what was meant.
    for (const auto& word : parseQuestion(answer.substr(0, answer.size() - 1)).tokens)
      if (word.starts_with("echo=")) require(word.substr(5) == words[0]);
  }
  if (policy.hosts.empty()) require(!decisions[0].allowed);
  if (!policy.broker) require(!decisions[2].allowed);
  if (decisions[0].allowed) require(HostName::parse(words[2]).has_value() || words[2] != "");
  if (decisions[2].allowed)
    require(!words[1].contains("..") || words[1].contains('?') || !words[1].contains("/../"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto end = std::min(input.find('\0'), input.size());
  Policy policy{.agent = AgentId::parse("ada").value(), .hosts = {}, .broker = {}, .parent = {}};
  try {
    policy = parsePolicy(input.substr(0, end));
    require(parsePolicy(renderPolicy(policy)) == policy);
  } catch (const Error&) {
    policy.hosts.push_back(HostPattern::parse(".example.org:443,80").value());
    policy.broker = Broker{.upstream = Url::parse("https://api.example.org/v1").value()};
  }
  if (end < input.size())
    for (const auto& line : split(input.substr(end + 1), '\n')) ask(policy, line);
  return 0;
}
