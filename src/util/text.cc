#include "util/text.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <format>

namespace agentmachine {

std::string trim(std::string_view text) {
  constexpr std::string_view space = " \t\r\n";
  const auto begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(space) - begin + 1));
}

std::string lowered(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i) joined += separator;
    joined += parts[i];
  }
  return joined;
}

std::string directoryOf(std::string_view path) {
  const auto slash = path.rfind('/');
  if (slash == std::string_view::npos) return "";
  return std::string(path.substr(0, slash == 0 ? 1 : slash));
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (;;) {
    const auto end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::optional<char32_t> takeCodePoint(std::string_view& text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = byte(0) < 0x80   ? 1
                             : byte(0) < 0xc2 ? 0
                             : byte(0) < 0xe0 ? 2
                             : byte(0) < 0xf0 ? 3
                                              : 4;
  char32_t value = length == 1 ? byte(0) : byte(0) & (0x7f >> length);
  bool good = length != 0 && length <= text.size() && byte(0) < 0xf5;
  for (std::size_t i = 1; good && i < length; ++i) {
    good = (byte(i) & 0xc0) == 0x80;
    value = value << 6 | (byte(i) & 0x3f);
  }
  // Overlong forms of three and four bytes, surrogates, beyond Unicode.
  if ((length == 3 && value < 0x800) || (length == 4 && value < 0x10000) ||
      (value >= 0xd800 && value < 0xe000) || value > 0x10ffff)
    good = false;
  text.remove_prefix(good ? length : 1);
  return good ? std::optional(value) : std::nullopt;
}

bool isControl(char32_t codePoint) {
  return codePoint < 0x20 || (codePoint >= 0x7f && codePoint < 0xa0) || codePoint == 0x2028 ||
         codePoint == 0x2029;
}

namespace {

/// Controls, and what hides or reorders its neighbours: zero width, marks of direction, byte order mark.
bool isInvisible(char32_t c) {
  return isControl(c) || (c >= 0x200b && c < 0x2010) || (c >= 0x2028 && c < 0x202f) ||
         (c >= 0x2060 && c < 0x2070) || c == 0xfeff;
}

/// The code point that was taken off `before`, as an escape if it is invisible or was none.
std::string visible(std::optional<char32_t> c, std::string_view before, std::string_view after) {
  if (!c) return std::format("\\x{:02x}", static_cast<unsigned char>(before[0]));
  if (isInvisible(*c)) return std::format("\\u{:04x}", static_cast<unsigned>(*c));
  return std::string(before.substr(0, before.size() - after.size()));
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const auto before = text;
    const auto c = takeCodePoint(text);
    out += c == U'\n' || c == U'\t' ? std::string(1, before[0]) : visible(c, before, text);
  }
  return out;
}

std::string escaped(std::string_view text, std::size_t maxCharacters) {
  std::string out;
  for (std::size_t characters = 0; !text.empty(); ++characters) {
    if (characters == maxCharacters) {
      out += "…";
      break;
    }
    const auto before = text;
    const auto c = takeCodePoint(text);
    if (c == U'"' || c == U'\\')
      out += {'\\', static_cast<char>(*c)};
    else if (c == U'\n')
      out += "\\n";
    else if (c == U'\t')
      out += "\\t";
    else
      out += visible(c, before, text);
  }
  return out;
}

std::optional<std::chrono::seconds> parseDuration(std::string_view text) {
  using namespace std::chrono;
  constexpr std::pair<std::string_view, seconds> units[] = {
      {"", 1s}, {"s", 1s}, {"min", 1min}, {"h", 1h}, {"d", days(1)}};
  constexpr seconds most = days(365);
  seconds sum{0};
  if (text.empty()) return std::nullopt;
  while (!text.empty()) {
    std::uint32_t number = 0;
    const auto [next, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc()) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(next - text.data()));
    const auto unit = text.substr(0, text.find_first_of("0123456789"));
    text.remove_prefix(unit.size());
    const auto* known = std::ranges::find(units, unit, &std::pair<std::string_view, seconds>::first);
    if (known == std::end(units) || (known->second > most / std::max<std::uint32_t>(number, 1)))
      return std::nullopt;
    sum += number * known->second;
    if (sum > most) return std::nullopt;
  }
  return sum;
}

std::string inQuotes(std::string_view text) {
  return '"' + escaped(text, 60) + '"';
}

}  // namespace agentmachine
