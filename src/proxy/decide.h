// The decisions of the egress proxy about one request each. Pure: no I/O, nothing is resolved; what isn't
// allowed by the policy is refused.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "plan/policy.h"

namespace agentmachine {

struct Decision {
  bool allowed = false;
  std::string_view reason{};  ///< one word with hyphens, for the log
  std::string rule{};         ///< what of the policy decided; "" if nothing of it did
};

/// A request at the proxy's port. `scheme` is the URL's; a CONNECT has none that matters.
Decision decideRequest(const Policy& policy, std::string_view method, std::string_view scheme,
                       std::string_view host, std::string_view port);

/// The TLS server name in a tunnel that was opened for `host`; "-" is none.
Decision decideServerName(std::string_view host, std::string_view serverName);

/// A request at the broker's port. `target` is its path with the query.
Decision decideBroker(const Policy& policy, std::string_view method, std::string_view target);

/// What a person or an agent asks for by URL, as the proxy would see it. For https:// that is a CONNECT;
/// `method` is the one of a plain request.
struct WebRequest {
  bool toBroker = false;  ///< the gateway's broker port, where `target` counts and host and port don't
  std::string method;
  std::string host;
  std::string port;
  std::string target;  ///< path and query
};
/// Nothing for what is no http:// or https:// URL.
std::optional<WebRequest> requestFor(std::string_view url, std::string_view method, const Settings& settings);
Decision decide(const Policy& policy, const WebRequest& request);

/// For the agent that is refused and for its person: what was wrong and what the card would need. One line of
/// plain text without quotes, < or &; "" for what is allowed.
std::string advice(const Decision& decision, const Policy& policy, std::string_view method,
                   std::string_view host, std::string_view port);

}  // namespace agentmachine
