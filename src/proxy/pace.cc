#include "proxy/pace.h"

#include <algorithm>

namespace agentmachine {

namespace {
constexpr std::chrono::seconds bucket{1};
}

Pace::Turn Pace::next(const std::string& source, PaceTime now) {
  auto& [perSecond, nextToken] = buckets_[source];
  const auto interval =
      std::chrono::duration_cast<PaceTime::duration>(bucket) / static_cast<std::int64_t>(perSecond);
  // The token of `now` itself is one of the bucket's.
  const PaceTime token = std::max(nextToken, now - bucket + interval);
  if (token > now + longestWait) return {.at = now + longestWait, .refused = true};
  nextToken = token + interval;
  return {.at = std::max(token, now), .refused = false};
}

void Pace::setRate(const std::string& source, std::uint64_t perSecond) {
  buckets_[source].perSecond = std::max<std::uint64_t>(perSecond, 1);
}

void Pace::forgetIdle(PaceTime now) {
  std::erase_if(buckets_, [&](const auto& entry) { return entry.second.nextToken + bucket < now; });
}

}  // namespace agentmachine
