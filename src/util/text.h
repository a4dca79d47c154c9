// Small operations on strings. Pure: no I/O.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace agentmachine {

/// Without white space at both ends.
std::string trim(std::string_view text);

std::string join(const std::vector<std::string>& parts, std::string_view separator);

/// Splits at every separator; "a::b" at ':' gives three parts, "" gives one empty part.
std::vector<std::string> split(std::string_view text, char separator);

}  // namespace agentmachine
