// Small operations on strings. Pure: no I/O.
#pragma once
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace agentmachine {

/// Without white space at both ends.
std::string trim(std::string_view text);

/// Moves the elements of `tail` to the end of `list`.
template <class Element>
void append(std::vector<Element>& list, std::vector<Element> tail) {
  list.insert(list.end(), std::make_move_iterator(tail.begin()), std::make_move_iterator(tail.end()));
}

std::string join(const std::vector<std::string>& parts, std::string_view separator);

/// Splits at every separator; "a::b" at ':' gives three parts, "" gives one empty part.
std::vector<std::string> split(std::string_view text, char separator);

}  // namespace agentmachine
