#include "plan/ini.h"

#include <algorithm>

#include "util/error.h"

namespace agentmachine {

IniFile& IniFile::comment(std::string_view text) {
  text_.append("# ").append(text).append("\n");
  return *this;
}

IniFile& IniFile::section(std::string_view name) {
  if (!text_.empty()) text_ += "\n";
  text_.append("[").append(name).append("]\n");
  return *this;
}

IniFile& IniFile::set(std::string_view key, std::string_view value) {
  if (std::ranges::any_of(value, [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    throw Error("render " + std::string(key) + ": the value has a control character");
  // A backslash at the end would join the next line to this one.
  if (value.ends_with('\\')) throw Error("render " + std::string(key) + ": the value ends with a backslash");
  text_.append(key).append("=").append(value).append("\n");
  return *this;
}

std::string escapeSpecifiers(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    escaped += c;
    if (c == '%') escaped += '%';
  }
  return escaped;
}

std::string quoteWord(std::string_view word) {
  std::string quoted = "'";
  for (const char c : word) {
    if (c == '\'')
      quoted += R"('"'"')";
    else
      quoted += c;
  }
  return quoted + "'";
}

}  // namespace agentmachine
