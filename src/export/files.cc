#include "export/files.h"

#include <format>
#include <set>

#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

std::uint32_t slotOf(const AgentId& id, std::uint32_t count) {
  std::uint32_t hash = 2166136261U;  // FNV-1a
  for (const char c : id.str()) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return hash % count;
}

}  // namespace

std::string inOne(const ExportedFiles& exported) {
  std::string text;
  for (const auto& [path, content] : exported.files) {
    if (!text.empty()) text += "\n";
    text += "# FILE " + path + "\n" + content;
  }
  return text;
}

std::vector<std::string> takenAddresses(const ExportedFiles& exported,
                                        const std::map<std::string, std::string>& beside) {
  std::map<std::string, std::string> owners;
  for (const auto& [path, content] : beside)
    for (auto& line : split(content, '\n')) owners.emplace(std::move(line), path);
  std::vector<std::string> warnings;
  for (const auto& [path, line] : exported.addresses)
    if (const auto owner = owners.find(line); owner != owners.end())
      warnings.push_back(
          std::format("{}: {} has the same address, \"{}\", so only one of them can run; export both cards "
                      "at once",
                      path, owner->second, line));
  return warnings;
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

std::map<std::string, std::uint32_t> slotsFor(const std::vector<Card>& cards, std::uint32_t count) {
  if (cards.size() > count)
    throw Error(
        std::format("{} cards: there are addresses for {}; export them in parts", cards.size(), count));
  std::map<std::string, std::uint32_t> slots;
  for (const auto& card : cards) slots[card.id.str()] = slotOf(card.id, count);
  // In the order of ids, so that the order of the cards doesn't matter.
  std::set<std::uint32_t> taken;
  for (auto& [id, slot] : slots)
    while (!taken.insert(slot).second) slot = (slot + 1) % count;
  return slots;
}

RestartPolicy unitRestart(const Card& card) {
  return card.ttl.count() > 0 ? RestartPolicy::no : card.restart;
}

}  // namespace agentmachine
