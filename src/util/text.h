// Small operations on strings. Pure: no I/O.
#pragma once
#include <chrono>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace agentmachine {

/// Without white space at both ends.
std::string trim(std::string_view text);

/// With small letters for the capital ones of ASCII.
std::string lowered(std::string_view text);

/// Moves the elements of `tail` to the end of `list`.
template <class Element>
void append(std::vector<Element>& list, std::vector<Element> tail) {
  list.insert(list.end(), std::make_move_iterator(tail.begin()), std::make_move_iterator(tail.end()));
}

std::string join(const std::vector<std::string>& parts, std::string_view separator);

/// What is before the last "/" of a path: "/" of "/a", "" of "a".
std::string directoryOf(std::string_view path);

/// Splits at every separator; "a::b" at ':' gives three parts, "" gives one empty part.
std::vector<std::string> split(std::string_view text, char separator);

/// Takes the first code point off `text`, which must not be empty; nothing if it is no UTF-8 (RFC 3629), and
/// then one byte is taken.
std::optional<char32_t> takeCodePoint(std::string_view& text);

/// True for what has no place in a line of text: C0 and C1 controls, DEL, the line and paragraph separators.
bool isControl(char32_t codePoint);

/// "90", "90s", "5min", "2h", "1d", or several one after the other ("2h30min"); a year at most. Nothing if it
/// is something else.
std::optional<std::chrono::seconds> parseDuration(std::string_view text);

/// For people: at most `maxCharacters`, and whatever is invisible, no UTF-8, a quote or a backslash escaped.
std::string escaped(std::string_view text, std::size_t maxCharacters);

/// For a terminal: `text` with what a terminal obeys, hides or reorders (but line breaks and tabs), and what
/// is no UTF-8, escaped. The rest stays as it is, so what is harmless already is not changed.
std::string printable(std::string_view text);

/// escaped, in double quotes and of 60 characters.
std::string inQuotes(std::string_view text);

}  // namespace agentmachine
