#include "proxy/squid_helper.h"

#include <cctype>
#include <format>

#include "util/text.h"

namespace agentmachine {

namespace {

int hexDigit(char c) {
  constexpr std::string_view digits = "0123456789abcdef";
  const auto at = digits.find(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  return at == std::string_view::npos ? -1 : static_cast<int>(at);
}

std::string encoded(std::string_view text) {
  std::string out;
  for (const unsigned char c : text) {
    if (std::isalnum(c) || std::string_view("-._~:/").contains(static_cast<char>(c)))
      out += static_cast<char>(c);
    else
      out += std::format("%{:02X}", c);
  }
  return out;
}

}  // namespace

std::string percentDecoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const int high = hexDigit(text[i + 1]), low = hexDigit(text[i + 2]);
      if (high >= 0 && low >= 0) {
        out += static_cast<char>(high << 4 | low);
        i += 2;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

HelperQuestion parseQuestion(std::string_view line) {
  HelperQuestion question;
  auto words = split(line, ' ');
  question.channel = words.front();
  for (auto word = words.begin() + 1; word != words.end(); ++word)
    question.tokens.push_back(percentDecoded(*word));
  return question;
}

std::string renderAnswer(std::string_view channel, bool ok, const HelperNotes& notes) {
  std::string answer = std::format("{} {}", channel, ok ? "OK" : "ERR");
  for (const auto& [name, value] : notes)
    if (!value.empty()) answer += std::format(" {}={}", name, encoded(value));
  return answer + "\n";
}

}  // namespace agentmachine
