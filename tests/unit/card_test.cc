#include "card/card.h"

#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>

#include "card/validate.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {
namespace {

const std::filesystem::path sourceRoot = AGENTMACHINE_SOURCE_ROOT;
constexpr std::string_view minimal = R"({"agent_id": "a", "workspace": "/mnt/agents/a"})";

Card parsed(std::string_view text) {
  auto card = parseCard(text, CardFormat::json);
  if (!card) throw Error(describe("card", card.error()));
  return *card;
}

std::string onlyProblem(std::string_view text, CardFormat format) {
  const auto card = parseCard(text, format);
  if (card || card.error().size() != 1) return "";
  return card.error()[0].message;
}

TEST(Card, DefaultsAreTheEarlierOnes) {
  const Card card = parsed(minimal);
  EXPECT_EQ(card.id.str(), "a");
  EXPECT_EQ(card.apiProvider, ApiProvider::anthropic);
  EXPECT_EQ(card.limits.memoryMb, 4096u);
  EXPECT_EQ(card.limits.cpuShares, 1024u);
  EXPECT_EQ(card.limits.maxProcesses, 50u);
  EXPECT_EQ(card.limits.maxOpenFiles, 1024u);
  EXPECT_EQ(card.ttl, std::chrono::seconds(0));
  EXPECT_TRUE(card.allowedHosts.empty() && card.environment.empty() && card.command.empty());
  EXPECT_FALSE(card.proxy || card.apiKeyFile || card.apiBaseUrl || card.model || card.limits.cpuQuotaPercent);
}

TEST(Card, ValuesArriveInTheirFields) {
  const Card card = parsed(readFile(sourceRoot / "tests/golden/card/good/every-field.json", maxCardBytes));
  EXPECT_EQ(card.workspace.str(), "/home/anna/projects/alpha");
  EXPECT_EQ(card.apiProvider, ApiProvider::custom);
  EXPECT_EQ(card.apiBaseUrl->str(), "https://llm.example.org:8443/openai/v1");
  EXPECT_EQ(card.apiKeyFile->str(), "/run/secrets/llm-key");
  EXPECT_EQ(card.apiKeyHeader->str(), "x-llm-key");
  EXPECT_EQ(card.apiKeyDelivery, KeyDelivery::credential);
  EXPECT_EQ(card.model->str(), "scripted-1");
  EXPECT_EQ(card.command.size(), 4u);
  EXPECT_EQ(card.proxy->str(), "http://proxy:3128");
  EXPECT_EQ(card.limits, (ResourceLimits{2048, 2, 250, 32, 4096, 10, 10240, 64, 100, 4, 20}));
  EXPECT_EQ(card.allowedHosts[3].str(), ".example.net:80");
  EXPECT_EQ(card.ttl, std::chrono::hours(24 * 365));
  EXPECT_EQ(card.environment.at(EnvironmentName::parse("_x1").value()).str(), "=");
}

TEST(Card, TooLargeTextIsRefused) {
  const std::string padding(maxCardBytes - minimal.size(), ' ');
  EXPECT_TRUE(parseCard(std::string(minimal) + padding, CardFormat::json));
  EXPECT_EQ(onlyProblem(std::string(minimal) + padding + " ", CardFormat::json),
            "the card is larger than the 1 MiB that it may be");
}

std::string repeated(std::string_view part, std::size_t times) {
  std::string text;
  for (std::size_t i = 0; i < times; ++i) text += part;
  return text;
}

TEST(Card, TooManyOrTooLongIsRefused) {
  const auto field = [](const std::string& name, const Json& value) {
    Json card = Json::parse(minimal);
    card[name] = value;
    const auto parsed = parseCard(card.dump(), CardFormat::json);
    return parsed ? "" : describe("x", parsed.error());
  };
  const auto list = [](std::size_t size) { return Json(std::vector<std::string>(size, "x.example")); };
  const auto variables = [](std::size_t size) {
    Json object = Json::object();
    for (std::size_t i = 0; i < size; ++i) object["V" + std::to_string(i)] = "x";
    return object;
  };
  const auto text = [](std::size_t size) { return std::string(size, 'x'); };
  EXPECT_EQ(field("allowed_hosts", list(1024)), "");
  EXPECT_EQ(field("allowed_hosts", list(1025)),
            "x: 1 problem\n  /allowed_hosts: has 1025 entries, but may have 1024\n");
  EXPECT_EQ(field("command", list(256)), "");
  EXPECT_NE(field("command", list(257)), "");
  EXPECT_EQ(field("command", {text(4095), text(32768)}), "");
  EXPECT_NE(field("command", {text(4096)}), "");
  EXPECT_NE(field("command", {"x", text(32769)}), "");
  EXPECT_EQ(field("environment", variables(256)), "");
  EXPECT_EQ(field("environment", variables(257)),
            "x: 1 problem\n  /environment: has 257 entries, but may have 256\n");
  EXPECT_EQ(field("environment", {{text(256), text(32768)}}), "");
  EXPECT_NE(field("environment", {{text(257), ""}}), "");
  EXPECT_EQ(field("environment", {{"A", text(32769)}}),
            "x: 1 problem\n  /environment/A: has 32769 characters, but may have 32768\n");
  EXPECT_EQ(field("model", text(256)), "");
  EXPECT_NE(field("model", text(257)), "");
}

TEST(Card, NestingDoesNotOverflowTheStack) {
  const std::string deeper = "the card is nested deeper than 16 levels: it needs two";
  EXPECT_EQ(onlyProblem(repeated("[", maxCardBytes), CardFormat::json), deeper);
  EXPECT_EQ(onlyProblem(repeated("{\"a\":", 200'000), CardFormat::json), deeper);
  EXPECT_EQ(onlyProblem("a = " + repeated("[", 100) + repeated("]", 100), CardFormat::toml), deeper);
  EXPECT_NE(onlyProblem("a = " + repeated("[", maxCardBytes - 4), CardFormat::toml), "");
  const std::string parts = ": a key of more than 16 parts: a card needs two";
  const std::string deepKey = repeated("a.", 500'000) + "a";
  EXPECT_EQ(onlyProblem(deepKey + " = 1", CardFormat::toml), "line 1, column 34" + parts);
  EXPECT_EQ(onlyProblem("[" + deepKey + "]", CardFormat::toml), "line 1, column 35" + parts);
  EXPECT_EQ(onlyProblem("x = {a = 1, " + deepKey + " = 1}", CardFormat::toml), "line 1, column 46" + parts);
  // Texts whose end must be found as TOML finds it, else the key after them is taken for a part of them.
  for (std::string_view text : {R"("\"")", R"('\')", R"("""""a"""")", R"("""a"""")", R"("""\"""a""")",
                                R"('''a'''')", R"("""a""""")", R"('''a''''')", R"("")", R"("#")"})
    EXPECT_TRUE(onlyProblem("x = {a = " + std::string(text) + ", " + deepKey + " = 1}", CardFormat::toml)
                    .ends_with(parts))
        << text;
}

TEST(Card, DotsInTomlTextsAndCommentsAreNoKeys) {
  EXPECT_TRUE(
      parseCard("# ...................\nagent_id = 'a' # ................... \"\"\"\n"
                "workspace = \"/mnt/agents/a\"\n"
                "environment.A = '''...................'''\nenvironment.B = \"\\\"...................\"\n",
                CardFormat::toml));
}

TEST(Card, ManyMembersAreRefusedFast) {
  std::string json = "{", toml;
  for (int i = 0; i < 90'000; ++i) {
    json += "\"" + std::to_string(i) + "\":1,";
    toml += std::to_string(i) + "=1\n";
  }
  EXPECT_EQ(onlyProblem(json + "\"a\":1}", CardFormat::json),
            "the card has more than 1024 fields in one object");
  EXPECT_EQ(onlyProblem(toml, CardFormat::toml), "the card has more than 1024 fields in one object");
}

TEST(Card, ProblemsAreInTheOrderOfTheText) {
  const auto card = parseCard(
      "{\"ttl_seconds\": -1, \"zz\": 1, \"agent_id\": 1, \"agent_id\": 1, \"environment\": {\"PATH\": 1}}",
      CardFormat::json);
  ASSERT_FALSE(card);
  std::vector<std::string> pointers;
  for (const auto& problem : card.error()) pointers.push_back(problem.pointer);
  // A field given twice first; then what is missing in an object, then its members.
  EXPECT_EQ(pointers, (std::vector<std::string>{"/agent_id", "", "/ttl_seconds", "/zz", "/agent_id",
                                                "/environment/PATH", "/environment/PATH"}));
}

TEST(Card, DescriptionHasNoControlCharacter) {
  EXPECT_EQ(describe("a\x1b[31m.json", {{"/a\nb", "is bad"}, {"", "the card is bad"}}),
            "a\\u001b[31m.json: 2 problems\n  /a\\nb: is bad\n  the card is bad\n");
}

TEST(Card, OnlyCustomHasNoApiOfItsOwn) {
  EXPECT_EQ(defaultApiBaseUrl(ApiProvider::anthropic)->str(), "https://api.anthropic.com/v1");
  EXPECT_EQ(defaultApiBaseUrl(ApiProvider::openai)->str(), "https://api.openai.com/v1");
  EXPECT_EQ(defaultApiBaseUrl(ApiProvider::ollama)->str(), "http://127.0.0.1:11434/v1");
  EXPECT_EQ(defaultApiBaseUrl(ApiProvider::custom), std::nullopt);
}

// ---- types

TEST(Types, Workspaces) {
  for (std::string_view path : {"/",
                                "/bin",
                                "/boot/efi",
                                "/dev/shm",
                                "/etc",
                                "/etc/x",
                                "/home",
                                "/home/anna",
                                "/lib",
                                "/lib64/x",
                                "/media",
                                "/mnt",
                                "/nix/store",
                                "/opt",
                                "/proc/1/root",
                                "/root",
                                "/root/x",
                                "/run/x",
                                "/sbin",
                                "/srv",
                                "/sys",
                                "/tmp",
                                "/usr/local",
                                "/var",
                                "/var/lib",
                                "/var/lib/agentmachine",
                                "/var/lib/agentmachine/machines/a",
                                "/var/lib/machines/a",
                                "/var/lib/systemd",
                                "/var/log/x",
                                "/var/spool/cron",
                                "/var/tmp",
                                "/var/run/x",
                                "/var/cache"})
    EXPECT_TRUE(checkWorkspace(path)) << path;
  for (std::string_view path :
       {"/home/anna/x", "/mnt/x", "/srv/x", "/opt/x", "/media/x", "/tmp/x", "/data", "/data/x", "/var/lib/x",
        "/var/tmp/x", "/var/www/x", "/etcetera", "/binary/x", "/mnt/etc"})
    EXPECT_FALSE(checkWorkspace(path)) << path << *checkWorkspace(path);
}

TEST(Types, EnvironmentNames) {
  for (std::string_view name : {"LANG", "_", "a", "A1", "PROXY", "PATHS", "LDFLAGS", "ANTHROPIC_API_KEY",
                                "GIT_AUTHOR_NAME", "ld_preload", "path"})
    EXPECT_TRUE(EnvironmentName::parse(name)) << name;
  for (std::string_view name : {"LD_", "x_PrOxY", "_PROXY", "OPENCODE_", "XDG_X", "SSL_CERT_X", "1", "A\n"})
    EXPECT_FALSE(EnvironmentName::parse(name)) << name;
}

TEST(Types, MachineNames) {
  const auto unit = [](std::string_view id) { return MachineName(AgentId::parse(id).value()).unit(); };
  EXPECT_EQ(unit("a"), "systemd-nspawn@agent-a.service");
  EXPECT_EQ(unit("agent-a"), "systemd-nspawn@agent-a.service");
  EXPECT_EQ(MachineName(AgentId::parse(std::string(57, 'a')).value()).str().size(), 63u);
}

TEST(Types, HostPatterns) {
  const auto same = [](std::string_view text) { return HostPattern::parse(text).value().str(); };
  EXPECT_EQ(same("Example.ORG"), "example.org:443");
  EXPECT_EQ(same("*.example.org:80"), ".example.org:80");
  EXPECT_EQ(same(same(".example.org")), ".example.org:443");
  EXPECT_EQ(same("example.org:8080,80"), "example.org:80,8080");
  EXPECT_EQ(same("HEAD,GET *.example.org:80"), "GET,HEAD .example.org:80");
  EXPECT_EQ(same(same("POST example.org:80,8080")), "POST example.org:80,8080");
  EXPECT_FALSE(HostName::parse("Example.org"));
  EXPECT_TRUE(HostName::parse("localhost"));
}

TEST(Types, HeaderNames) {
  EXPECT_EQ(HeaderName::parse("X-Api-Key").value().str(), "x-api-key");
  for (std::string_view text :
       {"", "-x", "1x", "x_y", "x y", "x:", "Host", "content-length", "Proxy-Authorization"})
    EXPECT_FALSE(HeaderName::parse(text)) << text;
}

TEST(Types, Urls) {
  const auto same = [](std::string_view text) {
    const auto url = Url::parse(text);
    return url ? url->str() : url.error();
  };
  EXPECT_EQ(same("HTTP://Proxy:80/"), "http://proxy");
  EXPECT_EQ(same("https://x.org:443/v1/"), "https://x.org/v1");
  EXPECT_EQ(same("http://x.org:443/A~b"), "http://x.org:443/A~b");
  for (std::string_view text :
       {"", "http", "http:", "http://", "://x", "http:///v1", "http://1.2.3", "http://1.2.3.4.5",
        "http://01.2.3.4", "http://1.2.3.256", "http://x:", "http://x//", "http://x/a//b", "http://x/%2e",
        "http://x/..", "http://x/a b", "http://x\t", "http://x:1:2"})
    EXPECT_FALSE(Url::parse(text)) << text;
}

TEST(Types, PlainTextIsAnyUtf8InOneLine) {
  for (std::string_view text : {"", " ", "grüß \xf0\x9f\x98\x80", "%i $x \"\\"})
    EXPECT_TRUE(PlainText::parse(text)) << text;
  for (std::string_view text : {"\n", "\x7f", "\xc2\x85", "\xe2\x80\xa8", "\xff", "\xc0\x80", "\xed\xa0\x80",
                                "\xf4\x90\x80\x80", "\xe2\x82", "\xe0\x80\x80"})
    EXPECT_FALSE(PlainText::parse(text)) << inQuotes(text);
}

// ---- the schema and the program

const Json& schema() {
  static const Json value = Json::parse(cardSchema());
  return value;
}

void forEachObject(Json& value, const std::function<void(Json&)>& visit) {
  if (value.is_object()) visit(value);
  if (value.is_structured())
    for (auto& item : value) forEachObject(item, visit);
}

/// The judge: an implementation of draft-07 that is not ours.
class Valijson {
 public:
  explicit Valijson(const Json& schema) : document_(nlohmann::json::parse(schema.dump())) {
    valijson::SchemaParser(valijson::SchemaParser::kDraft7)
        .populateSchema(valijson::adapters::NlohmannJsonAdapter(document_), schema_);
  }
  bool accepts(const Json& value) {
    const auto plain = nlohmann::json::parse(value.dump());
    return valijson::Validator(valijson::Validator::kStrongTypes)
        .validate(schema_, valijson::adapters::NlohmannJsonAdapter(plain), nullptr);
  }

 private:
  nlohmann::json document_;
  valijson::Schema schema_;
};

/// The golden cards that are JSON, and the complete one with each value replaced or removed in turn.
std::vector<Json> specimens() {
  std::vector<Json> cards;
  for (const char* folder : {"good", "bad"})
    for (const auto& entry : std::filesystem::directory_iterator(sourceRoot / "tests/golden/card" / folder))
      if (entry.path().extension() == ".json")
        if (auto card = Json::parse(readFile(entry.path(), maxCardBytes), nullptr, false);
            !card.is_discarded())
          cards.push_back(std::move(card));
  const Json whole =
      Json::parse(readFile(sourceRoot / "tests/golden/card/good/every-field.json", maxCardBytes));
  const auto others =
      Json::parse(R"([null, true, -1, 0, 1, 33, 1.5, 1e300, 18446744073709551615, "", "x", "/", "/x/y",
    "custom", "ollama", "x.org", "https://x.org", "a\nb", [], ["x"], [""], [1], {}, {"A": "x"}, {"A": 1}, {"a b": "x"}])");
  const Json flat = whole.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    for (Json::json_pointer at(pointer); !at.empty(); at.pop_back()) {
      for (const auto& other : others) {
        Json card = whole;
        card[at] = other;
        cards.push_back(std::move(card));
      }
      Json card = whole;
      auto& parent = card[at.parent_pointer()];
      if (parent.is_object())
        parent.erase(at.back());
      else
        parent.erase(std::stoul(at.back()));
      cards.push_back(std::move(card));
    }
  }
  return cards;
}

TEST(Schema, NeverRefusesWhatTheProgramAccepts) {
  Valijson judge(schema());
  std::size_t accepted = 0;
  for (const auto& card : specimens()) {
    if (!parseCard(card.dump(), CardFormat::json)) continue;
    ++accepted;
    EXPECT_TRUE(judge.accepts(card)) << card;
  }
  EXPECT_GT(accepted, 50u);
}

TEST(Schema, WithoutItsTextRulesSaysTheSameAsAnotherValidator) {
  Json structure = schema();
  forEachObject(structure, [](Json& node) {
    for (const char* keyword : {"format", "pattern"})
      if (node.contains(keyword) && node[keyword].is_string()) node.erase(keyword);
  });
  Valijson judge(structure);
  std::size_t refused = 0;
  for (const auto& card : specimens()) {
    // To draft-07 1.0 is an integer; to us, and to whoever wrote it by mistake, it is not.
    if (card.dump().contains(".0")) continue;
    const bool accepted = validate(structure, card).empty();
    EXPECT_EQ(accepted, judge.accepts(card)) << card;
    refused += !accepted;
  }
  EXPECT_GT(refused, 500u);
}

TEST(Schema, DefaultsAreWhatAbsentFieldsMean) {
  const Card plain = parsed(minimal);
  Json spelled = Json::parse(minimal);
  std::size_t defaults = 0;
  const std::function<void(const Json&, Json&)> fill = [&](const Json& node, Json& into) {
    for (const auto& [name, field] : node["properties"].items()) {
      if (field.contains("properties")) fill(field, into[name]);
      if (!field.contains("default")) continue;
      into[name] = field["default"];
      ++defaults;
    }
  };
  fill(schema(), spelled);
  EXPECT_EQ(parsed(spelled.dump()), plain);
  EXPECT_EQ(toJson(plain), toJson(parsed(spelled.dump())));
  EXPECT_GE(defaults, 8u);
}

TEST(Schema, EveryFieldHasAnExampleThatIsAccepted) {
  std::size_t examples = 0;
  const std::function<void(const Json&, const Json::json_pointer&)> look = [&](const Json& node,
                                                                               const Json::json_pointer& at) {
    for (const auto& [name, field] : node["properties"].items()) {
      if (name == "$schema") continue;
      if (field.contains("properties")) {
        look(field, at / name);
        continue;
      }
      ASSERT_TRUE(field.contains("examples")) << name;
      for (const auto& example : field["examples"]) {
        Json card = Json::parse(minimal);
        card["api_key_file"] = "/run/secrets/key";  // some fields want it
        card[at / name] = example;
        EXPECT_TRUE(parseCard(card.dump(), CardFormat::json).has_value()) << card;
        ++examples;
      }
    }
  };
  look(schema(), Json::json_pointer());
  EXPECT_GE(examples, 25u);
}

TEST(Schema, EveryTextHasARule) {
  Json copy = schema();
  forEachObject(copy, [](Json& node) {
    const Json type = node.value("type", Json());
    EXPECT_TRUE(type != "string" || node.contains("format") || node.contains("enum")) << node;
    EXPECT_TRUE(type != "integer" || (node.contains("minimum") && node.contains("maximum"))) << node;
  });
}

TEST(Schema, WhatTheValidatorDoesNotKnowIsAnError) {
  EXPECT_THROW(validate(Json{{"multipleOf", 2}}, 3), Error);
  EXPECT_THROW(validate(Json{{"type", "number"}}, 3), Error);
  EXPECT_THROW(validate(Json{{"format", "uri"}}, "x"), Error);
}

TEST(Schema, EveryFieldIsInTheManual) {
  const auto manual = readFile(sourceRoot / "man/agentmachine-card.5.rst", maxCardBytes);
  const std::function<void(const Json&)> look = [&](const Json& node) {
    for (const auto& [name, field] : node["properties"].items()) {
      EXPECT_TRUE(manual.contains("``" + name + "``")) << name << " is not in agentmachine-card(5)";
      if (field.contains("properties")) look(field);
      for (const char* number : {"minimum", "maximum"})
        EXPECT_TRUE(!field.contains(number) || manual.contains(field[number].dump()))
            << name << "'s " << number;
    }
  };
  look(schema());
}

}  // namespace
}  // namespace agentmachine
