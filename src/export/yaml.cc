#include "export/yaml.h"

#include <algorithm>
#include <array>

#include <yaml-cpp/yaml.h>

#include "util/error.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

/// Whether every reader of YAML, 1.1 or 1.2, takes it for a string without quotes. yaml-cpp itself would
/// write "yes" and "1e3" as they are.
bool isPlainString(const std::string& text) {
  constexpr auto words =
      std::to_array<std::string_view>({"y", "n", "yes", "no", "true", "false", "on", "off", "null"});
  std::string lower = text;
  std::ranges::transform(lower, lower.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return !text.empty() && std::isalpha(static_cast<unsigned char>(text.front())) &&
         std::ranges::all_of(text,
                             [](unsigned char c) {
                               return std::isalnum(c) ||
                                      std::string_view("-./_").contains(static_cast<char>(c));
                             }) &&
         !std::ranges::contains(words, lower);
}

/// A text of lines that a literal block keeps as it is.
bool isBlock(const std::string& text) {
  return text.ends_with('\n') && !text.ends_with("\n\n") && text.front() != '\n' && text.front() != ' ' &&
         std::ranges::none_of(text, [](unsigned char c) { return (c < 0x20 && c != '\n') || c >= 0x7f; });
}

void write(YAML::Emitter& out, const Json& value) {
  if (value.is_object()) {
    if (value.empty()) out << YAML::Flow;
    out << YAML::BeginMap;
    for (const auto& [name, member] : value.items()) {
      out << YAML::Key;
      write(out, name);
      out << YAML::Value;
      write(out, member);
    }
    out << YAML::EndMap;
  } else if (value.is_array()) {
    if (value.empty()) out << YAML::Flow;
    out << YAML::BeginSeq;
    for (const auto& element : value) write(out, element);
    out << YAML::EndSeq;
  } else if (value.is_string()) {
    const auto text = value.get<std::string>();
    if (isPlainString(text))
      out << text;
    else if (!text.empty() && isBlock(text))
      out << YAML::Literal << text;
    else
      out << YAML::DoubleQuoted << text;
  } else if (value.is_boolean()) {
    out << value.get<bool>();
  } else if (value.is_number_integer()) {
    out << value.get<std::int64_t>();
  } else {
    throw Error("render YAML: neither null nor fractions are in any document of ours");
  }
}

}  // namespace

std::string renderYaml(const std::vector<Json>& documents) {
  std::string text;
  for (const auto& document : documents) {
    YAML::Emitter out;
    write(out, document);
    if (!out.good()) throw Error("render YAML: " + out.GetLastError());
    text += "---\n" + std::string(out.c_str()) + "\n";
  }
  return text;
}

}  // namespace agentmachine
