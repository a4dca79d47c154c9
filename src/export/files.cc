#include "export/files.h"

namespace agentmachine {

std::string inOne(const ExportedFiles& exported) {
  std::string text;
  for (const auto& [path, content] : exported.files) {
    if (!text.empty()) text += "\n";
    text += "# FILE " + path + "\n" + content;
  }
  return text;
}

std::string unitWord(std::string_view word) {
  std::string quoted = "\"";
  for (const char c : word) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
    if (c == '%' || c == '$') quoted += c;
  }
  return quoted + "\"";
}

std::uint32_t slotOf(const AgentId& id, std::uint32_t count) {
  std::uint32_t hash = 2166136261U;  // FNV-1a
  for (const char c : id.str()) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return hash % count;
}

}  // namespace agentmachine
