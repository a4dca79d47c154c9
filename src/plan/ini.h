// Writes systemd's two dialects of INI so that no value can end its line or become another. Pure: no I/O.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace agentmachine {

/// Builds the text of a unit file, drop-in or .nspawn file. A value with a control character throws Error:
/// the checked types of card/ let none through, so one here is a mistake of ours.
class IniFile {
 public:
  IniFile& comment(std::string_view text);
  IniFile& section(std::string_view name);
  IniFile& set(std::string_view key, std::string_view value);
  [[nodiscard]] const std::string& str() const { return text_; }

 private:
  std::string text_;
};

/// For units: '%' begins a specifier (systemd.unit(5)), so it is doubled.
std::string escapeSpecifiers(std::string_view text);

/// One word of a list in a .nspawn file. There quotes group and a backslash means itself (config_parse_strv
/// in systemd's conf-parser), so a single quote is written as '"'"', as for a shell.
std::string quoteWord(std::string_view word);

}  // namespace agentmachine
