#include "observe/scrape.h"

#include <array>
#include <format>

#include <poll.h>
#include <unistd.h>

#include "system/clock.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

std::string readScrape(int fd, std::chrono::milliseconds time) {
  constexpr std::size_t most = 16384;
  constexpr auto what = "read the request for metrics: ";
  const auto deadline = monotonicNow() + time;
  std::string request;
  std::array<char, 4096> piece{};
  while (!request.contains("\r\n\r\n") && !request.contains("\n\n")) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - monotonicNow());
    pollfd poller{.fd = fd, .events = POLLIN, .revents = 0};
    if (left.count() <= 0 || poll(&poller, 1, static_cast<int>(left.count())) == 0)
      throw Error(std::format("{}it does not come whole in {}", what, time));
    const auto got = read(fd, piece.data(), piece.size());
    if (got < 0) throw errnoError("read the request for metrics");
    if (got == 0) throw Error(std::string(what) + "it ends early");
    request.append(piece.data(), static_cast<std::size_t>(got));
    if (request.size() > most) throw Error(std::format("{}it is longer than {} bytes", what, most));
  }
  return request;
}

std::string_view scrapeStatus(std::string_view request) {
  // RFC 9112, 3: "GET /metrics?query HTTP/1.1".
  const auto words = split(trim(request.substr(0, request.find('\n'))), ' ');
  if (words.size() != 3 || !words[2].starts_with("HTTP/1.")) return "400 Bad Request";
  if (words[0] != "GET") return "405 Method Not Allowed";
  return words[1].substr(0, words[1].find('?')) == "/metrics" ? "200 OK" : "404 Not Found";
}

std::string scrapeAnswer(std::string_view status, std::string_view text) {
  // The version is of Prometheus' text format.
  return std::format(
      "HTTP/1.0 {}\r\n"
      "{}"
      "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
      "Content-Length: {}\r\n"
      "Connection: close\r\n"
      "\r\n"
      "{}",
      status, status.starts_with("405") ? "Allow: GET\r\n" : "", text.size(), text);
}

}  // namespace agentmachine
