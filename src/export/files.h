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
  /// By path, the line with an address that no other file in its directory may have.
  std::map<std::string, std::string> addresses{};
};

/// All in one text: each file after a line "# FILE path".
std::string inOne(const ExportedFiles& exported);

/// A warning for each address that is in a file of `beside` too, by path: of a card that was exported apart.
std::vector<std::string> takenAddresses(const ExportedFiles& exported,
                                        const std::map<std::string, std::string>& beside);

/// One word of a command line in a unit (systemd.service(5), "COMMAND LINES"), or of Environment= in one:
/// nothing in it is a specifier, a variable or the end of the word.
std::string unitWord(std::string_view word);

/// A number below `count` for each card, by its id: that of its hash, which is seldom another's, and in these
/// cards the next that is free. Throws Error if there are more cards than numbers.
std::map<std::string, std::uint32_t> slotsFor(const std::vector<Card>& cards, std::uint32_t count);

/// `restart` as it can be kept by a unit that also ends by RuntimeMaxSec=: started anew, its time would begin
/// anew.
RestartPolicy unitRestart(const Card& card);

}  // namespace agentmachine
