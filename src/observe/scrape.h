// One request of Prometheus over HTTP/1.0, from the connection that a unit with Accept=yes is given.
#pragma once
#include <chrono>
#include <string>
#include <string_view>

namespace agentmachine {

/// Reads a request from `fd` as far as its first empty line. Throws Error if it hasn't come whole in `time`,
/// or is too long.
std::string readScrape(int fd, std::chrono::milliseconds time);

/// The status with which a request is answered: "200 OK" to GET /metrics alone. Pure.
std::string_view scrapeStatus(std::string_view request);

/// The whole answer. `text` is what is told with that status: metrics, or for people what is wrong. Pure.
std::string scrapeAnswer(std::string_view status, std::string_view text);

}  // namespace agentmachine
