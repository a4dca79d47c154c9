// agentmachine-policy: squid asks it, for every request, what the machine at that address may do. It reads
// policies and keys afresh each time, writes nothing, and never prints a key but to squid.
#include <cerrno>
#include <csignal>
#include <format>
#include <iostream>
#include <map>

#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "plan/policy.h"
#include "proxy/decide.h"
#include "proxy/pace.h"
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

Answer answerFor(const Decision& decision, const Policy& policy, std::string_view method = {},
                 std::string_view host = {}, std::string_view port = {}) {
  Answer answer{decision.allowed,
                {{"decision", decision.allowed ? "allow" : "deny"},
                 {"agent", policy.agent.str()},
                 {"reason", std::string(decision.reason)},
                 {"rule", decision.rule},
                 {"advice", advice(decision, policy, method, host, port)}}};
  if (policy.parent) answer.notes.emplace_back("parent", policy.parent->str());
  return answer;
}

Answer refusal(std::string_view reason, const std::string& why) {
  return {false, {{"decision", "deny"}, {"reason", std::string(reason)}, {"advice", why}}};
}

Answer askBroker(const Directories& directories, const Policy& policy, const std::string& source,
                 const std::string& method, const std::string& target) {
  Answer answer = answerFor(decideBroker(policy, method, target), policy, method);
  if (!answer.ok) return answer;
  answer.notes.emplace_back("upstream", policy.broker->upstream.str() + target);
  if (!policy.broker->keyHeader) return answer;
  try {
    const auto content = readFile(directories.keys + "/" + source, 2 * maxKeyBytes);
    answer.notes.emplace_back("api_key", deliveredKey(content, *policy.broker));
    answer.notes.emplace_back("key_header", policy.broker->keyHeader->str());
    return answer;
  } catch (const Error&) {
    // Why is in the journal of the unit that should have delivered it.
    return answerFor({.reason = "no-key", .rule = policy.broker->upstream.str()}, policy);
  }
}

/// The answer to one question of `mode`: "request", "sni" or "broker"; `late` if it had no turn in time.
Answer ask(const std::string& mode, const Directories& directories, const std::vector<std::string>& tokens,
           bool late, Pace& pace) {
  // An address and nothing else becomes part of a path.
  const auto source = Ipv4::parse(tokens.at(0));
  const auto text =
      source ? readFileIfExists(directories.policies + "/" + source->str(), maxPolicyBytes) : std::nullopt;
  if (!text) return refusal("unknown-source", "No machine is known at this address.");
  const Policy policy = parsePolicy(*text);
  pace.setRate(tokens.at(0), policy.requestsPerSecond);
  if (late) return answerFor({.reason = "too-many-requests", .rule = "requests_per_second"}, policy);
  if (mode == "request")
    return answerFor(decideRequest(policy, tokens.at(1), tokens.at(2), tokens.at(3), tokens.at(4)), policy,
                     tokens.at(1), tokens.at(3), tokens.at(4));
  if (mode == "sni") {
    Answer answer = answerFor(decideServerName(tokens.at(1), tokens.at(2)), policy);
    if (answer.ok) answer.notes.emplace_back("clt_conn_tag", "same-host");
    return answer;
  }
  return askBroker(directories, policy, source->str(), tokens.at(1), tokens.at(2));
}

std::string answerLine(const std::string& mode, const Directories& directories, const std::string& line,
                       bool late, Pace& pace) {
  const auto [channel, tokens] = parseQuestion(line);
  Answer answer;
  try {
    // squid's rewriter: "URL EXTRAS", and the broker's answer is all it needs.
    if (mode == "rewrite")
      answer = {true, {{"rewrite-url", tokens.at(1)}}};
    else
      answer = ask(mode, directories, tokens, late, pace);
  } catch (const Error& cause) {
    std::cerr << "agentmachine-policy: " << cause.what() << "\n";
    answer =
        refusal("policy-unreadable", "What this machine may do could not be read: its person must look.");
  } catch (const std::out_of_range&) {
    answer = refusal("question-incomplete", "The proxy did not say what was asked for.");
  }
  return renderAnswer(channel, answer.ok, answer.notes);
}

/// Whether a question counts: requests do, and not what squid asks about one that was let through. That is
/// asked with the server name of its tunnel, the last token of "request".
bool isPaced(const std::string& mode, const HelperQuestion& question) {
  if (question.tokens.empty()) return false;
  return mode == "broker" || (mode == "request" && (question.tokens.size() < 6 || question.tokens[5] == "-"));
}

/// Answers questions until there are no more, each when its turn comes: those that wait hold up no other. How
/// many wait is bounded by squid, which asks one at a time for each connection.
void serve(const std::string& mode, const Directories& directories) {
  struct Waiting {
    std::string line;
    bool late = false;
  };
  constexpr std::size_t manySources = 4096;
  Pace pace;
  std::multimap<PaceTime, Waiting> waiting;
  std::string input;
  const auto take = [&](std::string line, PaceTime now) {
    const auto question = parseQuestion(line);
    const auto turn = isPaced(mode, question) ? pace.next(question.tokens[0], now) : Pace::Turn{.at = now};
    waiting.emplace(turn.at, Waiting{std::move(line), turn.refused});
  };
  while (true) {
    auto now = std::chrono::steady_clock::now();
    std::string answers;
    for (auto first = waiting.begin(); first != waiting.end() && first->first <= now;
         first = waiting.erase(first))
      answers += answerLine(mode, directories, first->second.line, first->second.late, pace);
    std::cout << answers << std::flush;
    if (pace.sources() > manySources) pace.forgetIdle(now);

    int timeout = -1;
    if (!waiting.empty())
      timeout = static_cast<int>(
          std::chrono::ceil<std::chrono::milliseconds>(waiting.begin()->first - now).count());
    pollfd readable{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (poll(&readable, 1, timeout) <= 0) continue;
    char bytes[65536];
    const auto size = read(STDIN_FILENO, bytes, sizeof bytes);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) return;
    input.append(bytes, static_cast<std::size_t>(size));
    now = std::chrono::steady_clock::now();
    std::size_t start = 0;
    for (auto end = input.find('\n'); end != std::string::npos;
         start = end + 1, end = input.find('\n', start))
      take(input.substr(start, end - start), now);
    input.erase(0, start);
  }
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
  // systemd tells the whole unit to end; squid still asks while it does, and takes helpers that are gone for
  // a fault.
  (void)std::signal(SIGTERM, SIG_IGN);
  std::ios::sync_with_stdio(false);
  serve(mode, directories);
}
