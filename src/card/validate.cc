#include "card/validate.h"

#include <algorithm>
#include <cmath>
#include <format>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "card/types.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

using Wrong = std::optional<std::string>;

template <class T>
Wrong wrongOf(std::string_view text) {
  auto parsed = T::parse(text);
  return parsed ? Wrong() : Wrong(std::move(parsed.error()));
}

Wrong checkWorkspacePath(std::string_view text) {
  auto wrong = AbsolutePathRule::check(text);
  return wrong ? wrong : checkWorkspace(text);
}

Wrong checkKeyFile(std::string_view text) {
  if (!text.starts_with('/'))
    return "is no absolute path: give the file that holds the key, never the key itself";
  if (text == "/") return "is a directory: give the file that holds the key";
  return AbsolutePathRule::check(text);
}

Wrong checkProxyUrl(std::string_view text) {
  const auto url = Url::parse(text);
  if (!url) return url.error();
  if (!url->path.empty()) return "has a path, which a proxy has not: end it after the port";
  return {};
}

const std::map<std::string_view, Wrong (*)(std::string_view)> formats = {
    {"absolute-path", AbsolutePathRule::check},
    {"agent-id", AgentIdRule::check},
    {"environment-name", EnvironmentNameRule::check},
    {"header-name", wrongOf<HeaderName>},
    {"host-pattern", wrongOf<HostPattern>},
    {"key-file", checkKeyFile},
    {"package-name", PackageNameRule::check},
    {"plain-text", PlainTextRule::check},
    {"proxy-url", checkProxyUrl},
    {"url", wrongOf<Url>},
    {"workspace", checkWorkspacePath},
};

/// Levenshtein's distance.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j)
      diagonal =
          std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])}));
  }
  return row[b.size()];
}

/// The candidate that was probably meant: one that differs in a few letters or has the word as a part.
std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates) {
  if (word.size() < 2 || word.size() > 64) return {};
  std::string lower = lowered(word);
  std::ranges::replace(lower, '-', '_');
  const auto score = [&](const std::string& candidate) {
    const bool part = lower.size() >= 3 && (candidate.contains(lower) || lower.contains(candidate));
    return part ? 1 : distance(lower, candidate);
  };
  const auto best = std::ranges::min_element(candidates, {}, score);
  if (best == candidates.end() || score(*best) > std::max<std::size_t>(1, lower.size() / 3)) return {};
  return *best;
}

std::string kindOf(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "a list";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::binary:
      return "a date or time";
    default:
      return "a number";
  }
}

/// URLs hold passwords and keys before @ and after ? and #.
bool mayBeSecret(std::string_view text) {
  return text.find_first_of("@?#") != std::string_view::npos;
}

/// The value for a message; its kind if it is large or may be secret.
std::string shown(const Json& value, bool secret) {
  if (secret || value.is_structured() || value.is_binary()) return kindOf(value);
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    return mayBeSecret(text) ? kindOf(value) : inQuotes(text);
  }
  if (value.is_number_float() && !std::isfinite(value.get<double>()))
    return std::format("{}", value.get<double>());
  return value.dump();
}

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
}

std::vector<std::string> keysOf(const Json& object) {
  std::vector<std::string> keys;
  for (const auto& member : object.items()) keys.push_back(member.key());
  return keys;
}

std::string list(const std::vector<std::string>& names) {
  std::vector<std::string> quotes;
  for (const auto& name : names) quotes.push_back(inQuotes(name));
  return join(quotes, ", ");
}

class Validator {
 public:
  explicit Validator(const Json& root) : root_(root) {}

  void check(const Json& schema, const Json& value, const std::string& pointer, bool secret) {
    if (schema.is_boolean()) return;
    refuseUnknownKeywords(schema);
    secret = secret || schema.value("writeOnly", false);
    if (schema.contains("type") && !checkType(schema, value, pointer, secret)) return;
    if (schema.contains("const") && value != schema["const"])
      add(pointer, std::format("is {}, but must be {}", shown(value, secret), shown(schema["const"], false)));
    if (schema.contains("enum")) checkEnum(schema["enum"], value, pointer, secret);
    if (value.is_number_integer()) checkRange(schema, value, pointer);
    if (value.is_string()) checkString(schema, value.get_ref<const std::string&>(), pointer, secret);
    if (value.is_array()) checkArray(schema, value, pointer, secret);
    if (value.is_object()) checkObject(schema, value, pointer, secret);
    if (schema.contains("allOf"))
      for (const auto& part : schema["allOf"]) check(part, value, pointer, secret);
    if (schema.contains("if") && matches(schema["if"], value) && schema.contains("then")) {
      condition_ = &schema["if"];
      check(schema["then"], value, pointer, secret);
      condition_ = nullptr;
    }
  }

  std::vector<Problem> problems;

 private:
  void add(const std::string& pointer, std::string message) {
    problems.emplace_back(pointer, std::move(message));
  }

  [[nodiscard]] bool matches(const Json& schema, const Json& value) const {
    Validator attempt(root_);
    attempt.check(schema, value, "", true);
    return attempt.problems.empty();
  }

  static void refuseUnknownKeywords(const Json& schema) {
    static const std::set<std::string_view> known = {"$schema",
                                                     "title",
                                                     "description",
                                                     "default",
                                                     "examples",
                                                     "type",
                                                     "const",
                                                     "enum",
                                                     "minimum",
                                                     "maximum",
                                                     "minLength",
                                                     "maxLength",
                                                     "pattern",
                                                     "format",
                                                     "items",
                                                     "additionalItems",
                                                     "minItems",
                                                     "maxItems",
                                                     "required",
                                                     "properties",
                                                     "additionalProperties",
                                                     "propertyNames",
                                                     "maxProperties",
                                                     "if",
                                                     "then",
                                                     "allOf",
                                                     "writeOnly"};
    for (const auto& keyword : schema.items())
      if (!known.contains(keyword.key())) throw Error("card schema: unknown keyword " + keyword.key());
    if (schema.contains("format") && !formats.contains(schema["format"].get_ref<const std::string&>()))
      throw Error("card schema: unknown format " + schema["format"].dump());
  }

  bool checkType(const Json& schema, const Json& value, const std::string& pointer, bool secret) {
    const auto& type = schema["type"].get_ref<const std::string&>();
    const bool good = type == "object"    ? value.is_object()
                      : type == "array"   ? value.is_array()
                      : type == "string"  ? value.is_string()
                      : type == "integer" ? value.is_number_integer()
                      : type == "boolean" ? value.is_boolean()
                                          : throw Error("card schema: unknown type " + type);
    if (good) return true;
    if (value.is_null() && !pointer.empty())
      add(pointer, "is null: leave it out");
    else
      add(pointer, std::format("{}is {}, but must be {}", pointer.empty() ? "the card " : "",
                               shown(value, secret), wanted(type, schema, value)));
    return false;
  }

  static std::string wanted(const std::string& type, const Json& schema, const Json& value) {
    if (type == "object") return "an object";
    if (type == "array") return "a list, in [ ]";
    if (type == "string") return value.is_primitive() ? "a string: write it in quotes" : "a string";
    if (type == "boolean") return value.is_string() ? "true or false, without quotes" : "true or false";
    return integerRange(schema) + (value.is_string()   ? ", without quotes"
                                   : value.is_number() ? ", without point or exponent"
                                                       : "");
  }

  static std::string integerRange(const Json& schema) {
    return std::format("a whole number from {} to {}", schema.at("minimum").dump(),
                       schema.at("maximum").dump());
  }

  void checkEnum(const Json& values, const Json& value, const std::string& pointer, bool secret) {
    if (std::ranges::find(values, value) != values.end()) return;
    const auto names = values.get<std::vector<std::string>>();
    const auto meant = value.is_string() ? nearest(value.get_ref<const std::string&>(), names) : std::nullopt;
    add(pointer, std::format("is {}, but must be one of {}{}", shown(value, secret), list(names),
                             meant ? std::format(": did you mean {}?", inQuotes(*meant)) : ""));
  }

  void checkRange(const Json& schema, const Json& value, const std::string& pointer) {
    if (!schema.contains("minimum")) return;
    if (value < schema.at("minimum") || value > schema.at("maximum"))
      add(pointer, std::format("is {}, but must be {}", value.dump(), integerRange(schema)));
  }

  void checkString(const Json& schema, const std::string& text, const std::string& pointer, bool secret) {
    const auto subject = secret || mayBeSecret(text) ? "" : inQuotes(text) + " ";
    const auto length = characters(text);
    if (length < schema.value("minLength", 0U))
      return add(pointer, "is empty: write something or leave it out");
    if (schema.contains("maxLength") && length > schema["maxLength"].get<std::size_t>())
      return add(pointer, std::format("{}has {} characters, but may have {}", subject, length,
                                      schema["maxLength"].get<std::size_t>()));
    if (schema.contains("format"))
      if (auto wrong = formats.at(schema["format"].get_ref<const std::string&>())(text))
        add(pointer, subject + *wrong);
  }

  void checkArray(const Json& schema, const Json& value, const std::string& pointer, bool secret) {
    if (value.size() < schema.value("minItems", 0U))
      add(pointer, "is an empty list: fill it or leave it out");
    if (schema.contains("maxItems") && value.size() > schema["maxItems"].get<std::size_t>())
      return add(pointer, std::format("has {} entries, but may have {}", value.size(),
                                      schema["maxItems"].get<std::size_t>()));
    if (!schema.contains("items")) return;
    const Json& items = schema["items"];
    for (std::size_t i = 0; i < value.size(); ++i) {
      const Json& item = items.is_object()  ? items
                         : i < items.size() ? items[i]
                                            : schema.at("additionalItems");
      check(item, value[i], pointerTo(pointer, std::to_string(i)), secret);
    }
  }

  void checkObject(const Json& schema, const Json& value, const std::string& pointer, bool secret) {
    for (const auto& name : schema.value("required", Json::array()))
      if (!value.contains(name.get<std::string>())) add(pointer, missing(name.get<std::string>()));
    if (schema.contains("maxProperties") && value.size() > schema["maxProperties"].get<std::size_t>())
      return add(pointer, std::format("has {} entries, but may have {}", value.size(),
                                      schema["maxProperties"].get<std::size_t>()));
    const Json none = Json::object();
    const Json& properties = schema.contains("properties") ? schema["properties"] : none;
    for (const auto& member : value.items()) {
      const auto& name = member.key();
      const auto at = pointerTo(pointer, name);
      if (schema.contains("propertyNames")) check(schema["propertyNames"], name, at, true);
      if (properties.contains(name))
        check(properties[name], member.value(), at, secret);
      else if (schema.contains("additionalProperties") && schema["additionalProperties"] == false)
        add(at, unknownField(properties, name));
      else if (schema.contains("additionalProperties"))
        check(schema["additionalProperties"], member.value(), at, secret);
    }
  }

  [[nodiscard]] std::string missing(const std::string& name) const {
    std::string why;
    if (condition_)
      for (const auto& [field, only] : (*condition_)["properties"].items())
        why = std::format(" because {} is {}", inQuotes(field), inQuotes(only["const"].get<std::string>()));
    const std::string description = root_["properties"][name]["description"];
    return std::format("{} is missing{}: add {}", inQuotes(name), why,
                       description.substr(0, description.find(';')));
  }

  [[nodiscard]] std::string unknownField(const Json& properties, const std::string& name) const {
    auto names = keysOf(properties);
    std::erase(names, "$schema");
    if (const auto meant = nearest(name, names))
      return std::format("unknown field: did you mean {}?", inQuotes(*meant));
    for (const auto& [field, inner] : root_["properties"].items())
      if (const auto meant = nearest(name, keysOf(inner.value("properties", Json::object()))))
        return std::format("unknown field: did you mean {} in {}?", inQuotes(*meant), inQuotes(field));
    if (root_["properties"].contains(name)) return "unknown field here: it belongs at the top of the card";
    return "unknown field: the fields here are " + list(names);
  }

  const Json& root_;
  /// What made the `then` that is being checked apply; it names fields that the root describes.
  const Json* condition_ = nullptr;
};

}  // namespace

std::vector<Problem> validate(const Json& schema, const Json& value) {
  Validator validator(schema);
  validator.check(schema, value, "", false);
  return std::move(validator.problems);
}

}  // namespace agentmachine
