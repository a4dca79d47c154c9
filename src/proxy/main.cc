// agentmachine-policy: squid asks it, for every request, what the machine at that address may do. It reads
// policies and keys afresh each time, writes nothing, and never prints a key but to squid.
#include <format>
#include <iostream>

#include <sys/prctl.h>

#include "plan/policy.h"
#include "proxy/decide.h"
#include "proxy/squid_helper.h"
#include "util/error.h"
#include "util/file.h"

namespace agentmachine {
namespace {

constexpr std::size_t maxPolicyBytes = 4 * 1024 * 1024;

struct Directories {
  std::string policies;
  std::string keys;
};

/// "x" of Decision and what squid needs besides, as notes on the transaction.
struct Answer {
  bool ok = false;
  HelperNotes notes;
};

Answer answerFor(const Decision& decision, const Policy& policy) {
  Answer answer{decision.allowed,
                {{"decision", decision.allowed ? "allow" : "deny"},
                 {"agent", policy.agent.str()},
                 {"reason", std::string(decision.reason)},
                 {"rule", decision.rule}}};
  if (policy.parent) answer.notes.emplace_back("parent", policy.parent->str());
  return answer;
}

Answer refusal(std::string_view reason) {
  return {false, {{"decision", "deny"}, {"reason", std::string(reason)}}};
}

Answer askBroker(const Directories& directories, const Policy& policy, const std::string& source,
                 const std::string& method, const std::string& target) {
  Answer answer = answerFor(decideBroker(policy, method, target), policy);
  if (!answer.ok) return answer;
  answer.notes.emplace_back("upstream", policy.broker->upstream.str() + target);
  if (!policy.broker->keyHeader) return answer;
  try {
    answer.notes.emplace_back("api_key",
                              parseKey(readFile(directories.keys + "/" + source, 2 * maxKeyBytes)));
    answer.notes.emplace_back("key_header", policy.broker->keyHeader->str());
    return answer;
  } catch (const Error&) {
    // Why is in the journal of the unit that should have delivered it.
    return answerFor({.reason = "no-key", .rule = policy.broker->upstream.str()}, policy);
  }
}

/// The answer to one question of `mode`: "request", "sni" or "broker".
Answer ask(const std::string& mode, const Directories& directories, const std::vector<std::string>& tokens) {
  // An address and nothing else becomes part of a path.
  const auto source = Ipv4::parse(tokens.at(0));
  if (!source) return refusal("unknown-source");
  const auto text = readFileIfExists(directories.policies + "/" + source->str(), maxPolicyBytes);
  if (!text) return refusal("unknown-source");
  const Policy policy = parsePolicy(*text);
  if (mode == "request")
    return answerFor(decideRequest(policy, tokens.at(1), tokens.at(2), tokens.at(3), tokens.at(4)), policy);
  if (mode == "sni") {
    Answer answer = answerFor(decideServerName(tokens.at(1), tokens.at(2)), policy);
    if (answer.ok) answer.notes.emplace_back("clt_conn_tag", "same-host");
    return answer;
  }
  return askBroker(directories, policy, source->str(), tokens.at(1), tokens.at(2));
}

std::string answerLine(const std::string& mode, const Directories& directories, const std::string& line) {
  const auto [channel, tokens] = parseQuestion(line);
  Answer answer;
  try {
    // squid's rewriter: "URL EXTRAS", and the broker's answer is all it needs.
    if (mode == "rewrite")
      answer = {true, {{"rewrite-url", tokens.at(1)}}};
    else
      answer = ask(mode, directories, tokens);
  } catch (const Error& cause) {
    std::cerr << "agentmachine-policy: " << cause.what() << "\n";
    answer = refusal("policy-unreadable");
  } catch (const std::out_of_range&) {
    answer = refusal("question-incomplete");
  }
  return renderAnswer(channel, answer.ok, answer.notes);
}

}  // namespace
}  // namespace agentmachine

int main(int argc, char** argv) {
  using namespace agentmachine;
  const std::string mode = argc > 1 ? argv[1] : "";
  const Directories directories{argc > 2 ? argv[2] : "", argc > 3 ? argv[3] : ""};
  const bool complete = (mode == "rewrite" && argc == 2) ||
                        ((mode == "request" || mode == "sni") && argc == 3) ||
                        (mode == "broker" && argc == 4);
  if (!complete) {
    std::cerr << "usage: agentmachine-policy request|sni POLICIES\n"
                 "       agentmachine-policy broker POLICIES KEYS\n"
                 "       agentmachine-policy rewrite\n"
                 "squid starts it; see agentmachine(1).\n";
    return 2;
  }
  // A crash must not write keys to a core file, whoever collects those.
  (void)prctl(PR_SET_DUMPABLE, 0);
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);)
    std::cout << answerLine(mode, directories, line) << std::flush;
}
