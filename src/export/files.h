// Exports that are several files, and what their renderers share. Pure: no I/O.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "export/names.h"

namespace agentmachine {

struct ExportedFiles {
  std::map<std::string, std::string> files{};  ///< content by path, relative to where they are put
  std::vector<std::string> warnings{};         ///< one sentence each, without line breaks
};

/// All in one text: each file after a line "# FILE path".
std::string inOne(const ExportedFiles& exported);

/// One word of a command line in a unit (systemd.service(5), "COMMAND LINES"), or of Environment= in one:
/// nothing in it is a specifier, a variable or the end of the word.
std::string unitWord(std::string_view word);

/// A number that is always the same for an id and seldom that of another: below `count`.
std::uint32_t slotOf(const AgentId& id, std::uint32_t count);

}  // namespace agentmachine
