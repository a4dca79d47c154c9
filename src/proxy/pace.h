// How fast each machine's requests are answered. Pure: no I/O, the time is an argument.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "card/card.h"

namespace agentmachine {

using PaceTime = std::chrono::steady_clock::time_point;

/// One token bucket for each source address (as a virtual clock: the generic cell rate algorithm). A bucket
/// holds the tokens of one second.
class Pace {
 public:
  /// Nobody waits longer for a token. A refusal for want of one comes as late: it costs the one who asks too
  /// fast what asking costs others.
  static constexpr std::chrono::milliseconds longestWait{1000};

  struct Turn {
    PaceTime at;           ///< when to answer, not before
    bool refused = false;  ///< no token came in time, and none was taken
  };
  Turn next(const std::string& source, PaceTime now);

  /// What holds from the next turn of `source` on. Sources begin with the card's default.
  void setRate(const std::string& source, std::uint64_t perSecond);

  /// Forgets the sources whose buckets are full.
  void forgetIdle(PaceTime now);
  [[nodiscard]] std::size_t sources() const { return buckets_.size(); }

 private:
  struct Bucket {
    std::uint64_t perSecond = ResourceLimits{}.requestsPerSecond;
    PaceTime nextToken{};
  };
  std::map<std::string, Bucket> buckets_;
};

}  // namespace agentmachine
