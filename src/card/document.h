// The text of a card as a JSON value, from JSON or TOML, with the members of objects in the order of the
// text. Knows no field. Pure: no I/O.
#pragma once
#include <cstddef>
#include <expected>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "card/card.h"

namespace agentmachine {

using Json = nlohmann::ordered_json;

/// Objects and arrays within each other; a card needs two.
constexpr std::size_t maxDepth = 16;
/// Members of one object: ordered_json looks them up one by one.
constexpr std::size_t maxMembers = 1024;

struct Document {
  Json value;
  std::vector<Problem> duplicates;  ///< JSON only: of members given twice the last one is in `value`
};

/// The document, or the one problem that kept it from being read. A date of TOML becomes a `binary` value,
/// which no schema accepts.
std::expected<Document, Problem> readDocument(std::string_view text, CardFormat format);

/// The pointer of a member or an element of what `pointer` points to (RFC 6901).
std::string pointerTo(const std::string& pointer, std::string_view key);

}  // namespace agentmachine
