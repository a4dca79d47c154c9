// What a machine promises (doc/security.md) or does for a field of the card, and what becomes of that on
// another engine. The warnings of an export and the table of the manual are both made from it. Pure: no I/O.
#pragma once
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "card/card.h"

namespace agentmachine {

enum class Engine { kubernetes, podman, bwrap };
constexpr std::array engines = {Engine::kubernetes, Engine::podman, Engine::bwrap};
std::string_view toString(Engine engine);

enum class Kept { yes, weaker, no };

struct Fidelity {
  Kept kept;
  std::string_view how;  ///< by what it is kept, or what is missing; no line break, no "|"
};

struct Promise {
  /// The row of doc/security.md, "An agent …", that it is part of; "" if it is a field of the card alone.
  std::string_view agent;
  std::string_view what;
  std::array<Fidelity, engines.size()> on;  ///< in the order of `engines`
  bool (*matters)(const Card& card);        ///< whether the card asks for it
};

/// All of them, in the order of doc/security.md; then the fields that are none of its promises.
std::span<const Promise> promises();

/// What the engine keeps less of for this card than a machine would: one sentence each, in the table's order.
std::vector<std::string> warningsFor(Engine engine, const Card& card);

/// The table, in Markdown.
std::string renderFidelityTable();

}  // namespace agentmachine
