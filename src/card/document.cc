#include "card/document.h"

#include <algorithm>
#include <format>
#include <optional>
#include <set>
#include <span>

#include <toml++/toml.hpp>

#include "util/text.h"

namespace agentmachine {

namespace {

std::unexpected<Problem> unreadable(std::string message, std::string pointer = {}) {
  return std::unexpected(Problem{std::move(pointer), std::move(message)});
}

/// "line 3, column 7" of the byte at `offset`; columns count characters.
std::string place(std::string_view text, std::size_t offset) {
  const auto before = text.substr(0, offset);
  const auto line = before.substr(before.rfind('\n') + 1);  // npos + 1 is 0
  const auto column = std::ranges::count_if(line, [](char c) { return (c & 0xc0) != 0x80; });
  return std::format("line {}, column {}", std::ranges::count(before, '\n') + 1, column + 1);
}

/// Thrown through the JSON parser, which has no other way to stop.
struct TooLarge {
  Problem problem;
};
TooLarge tooDeep() {
  return {{"", std::format("the card is nested deeper than {} levels: it needs two", maxDepth)}};
}
TooLarge tooManyMembers() {
  return {{"", std::format("the card has more than {} fields in one object", maxMembers)}};
}

/// Follows the events of nlohmann's parser to know where it is: it keeps the last of two equal members
/// silently and has no limits of its own.
class Watcher {
 public:
  explicit Watcher(std::vector<Problem>& duplicates) : duplicates_(duplicates) {}

  void operator()(Json::parse_event_t event, const Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (open_.size() == maxDepth) throw tooDeep();
        open_.emplace_back();
        break;
      case Json::parse_event_t::key: {
        Open& object = open_.back();
        object.key = parsed.get<std::string>();
        if (!object.keys.insert(object.key).second)
          duplicates_.emplace_back(pointer(open_.size()), "is given twice: keep one of them");
        if (object.keys.size() > maxMembers) throw tooManyMembers();
        break;
      }
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        open_.pop_back();
        [[fallthrough]];
      case Json::parse_event_t::value:
        if (!open_.empty()) ++open_.back().index;
        break;
    }
  }

 private:
  struct Open {
    std::set<std::string> keys;  // empty for arrays
    std::string key;
    std::size_t index = 0;
  };

  [[nodiscard]] std::string pointer(std::size_t depth) const {
    std::string path;
    for (const Open& open : std::span(open_).first(depth))
      path = pointerTo(path, open.keys.empty() ? std::to_string(open.index) : open.key);
    return path;
  }

  std::vector<Open> open_;
  std::vector<Problem>& duplicates_;
};

bool isWord(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '+' ||
         c == '-' || c == '.';
}

/// The parser's message without the text that it quotes, which may be a secret, or say what messages say.
std::string ownWords(std::string_view message) {
  const auto quote = message.find("; last read: ");
  if (quote == std::string_view::npos) return std::string(message);
  std::string own(message.substr(0, quote));
  for (std::string_view wanted : {"; expected ':'", "; expected end of input"})
    if (message.ends_with(wanted)) own += wanted;
  return own;
}

/// Where the token begins that the parser refused, which it says in `what`, and only how far it had read.
std::size_t tokenStart(std::string_view text, const Json::parse_error& error, std::string_view what) {
  std::size_t at = std::min(error.byte - 1, text.size());
  if (what.contains("unexpected end of input")) return text.size();
  if (what.contains("invalid string:") || what.contains("unexpected '")) return at;
  // A quote inside the text has a backslash before it, the one that opens it has not.
  if (what.contains("unexpected string literal")) {
    do {
      --at;
    } while (at > 0 && (text[at] != '"' || text[at - 1] == '\\'));
  } else {
    while (at > 0 && isWord(text[at - 1])) --at;
  }
  return at;
}

/// What is wrong there, for which the parser has the words `what`.
std::string jsonFault(std::string_view text, std::size_t offset, std::string_view what) {
  if (const auto at = what.find("invalid string: "); at != std::string_view::npos) {
    const auto reason = what.substr(at);
    return std::string(reason.substr(0, reason.find(';')));
  }
  const auto rest = text.substr(offset);
  const auto lastBefore = text.substr(0, offset).find_last_not_of(" \t\r\n");
  const char before = lastBefore == std::string_view::npos ? '\0' : text[lastBefore];
  if (rest.empty()) return "the JSON ends too early: a quote, bracket or brace is not closed";
  if (before == ',' && (rest[0] == '}' || rest[0] == ']')) return "the comma before this bracket is too many";
  if (rest[0] == '#' || rest[0] == '/') return "JSON has no comments: remove it";
  if (rest[0] == '\'') return "JSON has double quotes only: write \" for '";
  if (before == '\0') return "a card in JSON begins with {";
  if (what.contains("expected end of input")) return "there is more after the end of the card: remove it";
  const auto word =
      rest.substr(0, static_cast<std::size_t>(std::ranges::find_if_not(rest, isWord) - rest.begin()));
  for (std::string_view number : {"NaN", "nan", "Infinity", "+Infinity", "-Infinity", "inf", "+inf", "-inf"})
    if (word == number) return std::format("{} is no number in JSON: write one", word);
  if (before == '{' || (before == ',' && what.contains("object key")))
    return "a name in double quotes must stand here";
  if (what.contains("expected ':'")) return "a colon must stand here, between the name and its value";
  if (what.contains("unexpected number literal"))
    return "a comma is missing before this, or the number begins with 0";
  if (rest[0] == '"') return "a comma is missing before this, or a quote inside a text has no \\ before it";
  return "this is not JSON: a text needs double quotes, and the only words are true, false and null";
}

std::expected<Document, Problem> readJson(std::string_view text) {
  Document document;
  Watcher watch(document.duplicates);
  try {
    document.value = Json::parse(text, [&](int, Json::parse_event_t event, Json& parsed) {
      watch(event, parsed);
      return true;
    });
    return document;
  } catch (TooLarge& large) {
    return std::unexpected(std::move(large.problem));
  } catch (const Json::parse_error& error) {
    const auto what = ownWords(error.what());
    const auto at = tokenStart(text, error, what);
    return unreadable(place(text, at) + ": " + jsonFault(text, at, what));
  } catch (const Json::out_of_range& error) {
    const auto number = split(error.what(), '\'').at(1);  // "number overflow parsing '1e999'"
    return unreadable(
        std::format("{}: the number {} is too large", place(text, text.find(number)), inQuotes(number)));
  }
}

/// A TOML value as JSON. toml++ sorts its tables; the order of the text comes back by the places it
/// remembers.
Json fromToml(const toml::node& node, std::size_t depth) {
  if (depth > maxDepth) throw tooDeep();
  if (const auto* table = node.as_table()) {
    std::vector<std::pair<const toml::key*, const toml::node*>> members;
    for (const auto& [key, value] : *table) members.emplace_back(&key, &value);
    std::ranges::sort(members, {}, [](const auto& member) {
      const auto at = member.first->source().begin;
      return std::pair(at.line, at.column);
    });
    if (members.size() > maxMembers) throw tooManyMembers();
    Json object = Json::object();
    for (const auto& [key, value] : members) object[std::string(key->str())] = fromToml(*value, depth + 1);
    return object;
  }
  if (const auto* array = node.as_array()) {
    Json list = Json::array();
    for (const auto& value : *array) list.push_back(fromToml(value, depth + 1));
    return list;
  }
  if (const auto* string = node.as_string()) return string->get();
  if (const auto* integer = node.as_integer()) return integer->get();
  if (const auto* number = node.as_floating_point()) return number->get();
  if (const auto* boolean = node.as_boolean()) return boolean->get();
  return Json::binary({});  // dates and times
}

/// Where a key of more than maxDepth parts ends: toml++ makes a table of each part and takes them apart by
/// recursion, so a card of "a.a.a…" would overflow the stack. Dots count outside strings and comments only.
std::optional<std::size_t> tooDeepKey(std::string_view text) {
  std::size_t dots = 0;
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size());
    } else if (c == '"' || c == '\'') {
      const std::string triple(3, c);
      const bool lines = text.substr(i).starts_with(triple);
      const std::string_view end = lines ? std::string_view(triple) : text.substr(i, 1);
      i += end.size();
      while (i < text.size() && !text.substr(i).starts_with(end) && (lines || text[i] != '\n'))
        i += c == '"' && text[i] == '\\' ? 2 : 1;
      i += end.size();
      // Up to two more quotes belong to the text (TOML 1.0, "Multi-line basic strings").
      for (int more = 0; lines && more < 2 && i < text.size() && text[i] == c; ++more) ++i;
    } else {
      if (c == '.' && ++dots > maxDepth) return i;
      if (std::string_view("\n=,{[").contains(c)) dots = 0;
      ++i;
    }
  }
  return {};
}

/// toml++'s own words, but for two frequent slips that they hide. They quote names and single characters
/// only.
std::string tomlFault(std::string_view description) {
  if (description.contains("could not determine value type")) return "no value in TOML: a text needs quotes";
  if (description.contains("unescaped control characters"))
    return "a line break or another control character inside a text: close its quote before this";
  constexpr std::string_view opening = "Error while parsing ";
  return "in the " + escaped(description.substr(description.starts_with(opening) ? opening.size() : 0), 200);
}

std::expected<Document, Problem> readToml(std::string_view text) {
  if (const auto at = tooDeepKey(text))
    return unreadable(place(text, *at) +
                      std::format(": a key of more than {} parts: a card needs two", maxDepth));
  try {
    const toml::table table = toml::parse(text);
    return Document{fromToml(table, 1), {}};
  } catch (TooLarge& large) {
    return std::unexpected(std::move(large.problem));
  } catch (const toml::parse_error& error) {
    const auto at = error.source().begin;
    return unreadable(
        std::format("line {}, column {}: {}", at.line, at.column, tomlFault(error.description())));
  }
}

}  // namespace

std::string pointerTo(const std::string& pointer, std::string_view key) {
  std::string out = pointer + "/";
  for (char c : key) {
    if (c == '~')
      out += "~0";
    else if (c == '/')
      out += "~1";
    else
      out += c;
  }
  return out;
}

std::expected<Document, Problem> readDocument(std::string_view text, CardFormat format) {
  if (text.size() > maxCardBytes)
    return unreadable(
        std::format("the card is larger than the {} MiB that it may be", maxCardBytes / 1024 / 1024));
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos)
    return unreadable("the card is empty: it needs at least \"agent_id\" and \"workspace\"");
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark, as some editors write it
  for (auto rest = text; !rest.empty();) {
    const auto offset = text.size() - rest.size();
    const auto c = takeCodePoint(rest);
    if (!c) return unreadable(place(text, offset) + ": no UTF-8: save the card as UTF-8");
    if (*c == 0) return unreadable(place(text, offset) + ": a NUL byte: save the card as UTF-8");
  }
  return format == CardFormat::json ? readJson(text) : readToml(text);
}

}  // namespace agentmachine
