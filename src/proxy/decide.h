// The decisions of the egress proxy about one request each. Pure: no I/O, nothing is resolved; what isn't
// allowed by the policy is refused.
#pragma once
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

}  // namespace agentmachine
