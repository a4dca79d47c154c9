// Golden tests of exports: export/ENGINE/CASE.json is a card, or several, with the options; what is rendered
// from it and what is warned of is expected/CASE.txt.
#include <format>
#include <regex>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "export/bwrap.h"
#include "export/kubernetes.h"
#include "export/podman.h"
#include "export/promises.h"
#include "golden.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

using Json = nlohmann::ordered_json;

std::vector<Card> cardsFrom(const Json& test) {
  std::vector<Card> cards;
  for (const auto& text : test.at("cards")) {
    auto card = parseCard(text.dump(), CardFormat::json);
    if (!card) throw Error(describe("card", card.error()));
    cards.push_back(*std::move(card));
  }
  return cards;
}

template <class Type>
Type checked(const Json& text) {
  auto value = Type::parse(text.get<std::string>());
  if (!value) throw Error(inQuotes(text.get<std::string>()) + " " + value.error());
  return *std::move(value);
}

KubernetesOptions kubernetesOptions(const Json& test) {
  KubernetesOptions options{.replicas = test.value("replicas", 1U),
                            // 2026-11-24T04:00:00Z
                            .now = std::chrono::sys_seconds(std::chrono::seconds(1795492800)),
                            .keys = test.value("keys", std::map<std::string, std::string>{})};
  const auto kind = test.value("kind", "");
  if (kind == "deployment") options.kind = KubernetesKind::deployment;
  if (kind == "job") options.kind = KubernetesKind::job;
  if (kind == "sandbox") options.kind = KubernetesKind::sandbox;
  if (test.contains("proxy")) options.proxy = checked<ProxyPlace>(test["proxy"]);
  if (test.contains("namespace")) options.space = checked<NamespaceName>(test["namespace"]);
  if (test.contains("image")) options.image = checked<ImageReference>(test["image"]);
  options.hostUsers = test.value("hostUsers", false);
  return options;
}

PodmanOptions podmanOptions(const Json& test) {
  PodmanOptions options{.rootful = test.value("rootful", false)};
  if (test.contains("subnet")) options.subnet = checked<Subnet>(test["subnet"]);
  return options;
}

BwrapOptions bwrapOptions() {
  return {.root = AbsolutePath::parse("/srv/agentmachine/root").value()};
}

Exported together(const ExportedFiles& exported) {
  return {.text = inOne(exported), .warnings = exported.warnings};
}

std::string outcome(const std::function<Exported()>& render) {
  try {
    const auto exported = render();
    std::string text = exported.text + "# Warnings:\n";
    for (const auto& warning : exported.warnings) text += "# " + warning + "\n";
    return text;
  } catch (const Error& refusal) {
    return std::string("refused: ") + refusal.what() + "\n";
  }
}

TEST(Export, TableIsInTheManual) {
  expectTable(AGENTMACHINE_SOURCE_ROOT "/doc/kubernetes.md", renderFidelityTable());
}

/// The first column of doc/security.md's table: what "An agent" does and can't do.
std::set<std::string> manualsPromises() {
  std::set<std::string> promises;
  const std::string manual = readFile(AGENTMACHINE_SOURCE_ROOT "/doc/security.md", maxGoldenBytes);
  for (const auto& line : split(manual, '\n')) {
    const auto cells = split(line, '|');
    if (cells.size() == 5 && !cells[1].starts_with("---")) promises.emplace(trim(cells[1]));
  }
  promises.erase("An agent");
  return promises;
}

TEST(Export, EveryPromiseOfTheManualIsInTheTable) {
  std::set<std::string> judged;
  for (const auto& promise : promises()) judged.emplace(promise.agent);
  judged.erase("");
  EXPECT_EQ(judged, manualsPromises());
}

/// What each engine makes of one card, without the digest that says only that it is another.
std::map<std::string, std::string> ofEachEngine(const Json& card) {
  const Json test = {{"cards", Json::array({card})}};
  std::map<std::string, std::string> all = {
      {"Kubernetes", outcome([&] { return exportKubernetes(cardsFrom(test), kubernetesOptions(test)); })},
      {"Podman", outcome([&] { return together(exportPodman(cardsFrom(test), podmanOptions(test))); })},
      {"bubblewrap", outcome([&] { return together(exportBwrap(cardsFrom(test), bwrapOptions())); })}};
  for (auto& [engine, text] : all) text = std::regex_replace(text, std::regex("\"sha256:[0-9a-f]*\""), "");
  return all;
}

TEST(Export, EveryFieldOfTheCardIsRenderedOrWarnedOf) {
  const std::filesystem::path root = AGENTMACHINE_SOURCE_ROOT "/tests/golden/export";
  const Json card = Json::parse(readFile(root / "podman/every-field.json", maxGoldenBytes))["cards"][0];
  const Json others = Json::parse(readFile(root / "other-values.json", maxGoldenBytes));
  const auto usual = ofEachEngine(card);
  const auto fields = Json::parse(cardSchema())["properties"];
  const auto expectToMatter = [&](const Json::json_pointer& field) {
    ASSERT_TRUE(others.contains(field)) << field << ": other-values.json needs a value for it";
    Json changed = card;
    changed[field] = others[field];
    const std::string isWarnedOf = field.back() + ": not kept";
    for (const auto& [engine, text] : ofEachEngine(changed))
      EXPECT_TRUE(text != usual.at(engine) || text.contains(isWarnedOf))
          << engine << " neither renders nor warns of " << field;
  };
  for (const auto& [name, field] : fields.items()) {
    if (name == "$schema") continue;
    if (name != "resource_limits") expectToMatter(Json::json_pointer("/" + name));
  }
  for (const auto& [name, field] : fields["resource_limits"]["properties"].items())
    expectToMatter(Json::json_pointer("/resource_limits/" + name));
}

TEST(Export, TwoHundredCardsAtOnceHaveAddressesOfTheirOwn) {
  Json test = {{"cards", Json::array()}};
  for (int number = 0; number < 200; ++number) {
    const auto id = std::format("team-{}", number);
    test["cards"].push_back({{"agent_id", id}, {"workspace", "/mnt/agents/" + id}});
  }
  const auto cards = cardsFrom(test);
  EXPECT_NO_THROW((void)exportKubernetes(cards, kubernetesOptions(test)));
  const std::pair<ExportedFiles, std::regex> each[] = {
      {exportPodman(cards, {}), std::regex("Subnet=([^\n]*)")},
      {exportBwrap(cards, bwrapOptions()), std::regex("http_port ([^ ]*):3128")}};
  for (const auto& [exported, address] : each) {
    const std::string text = inOne(exported);
    std::set<std::string> addresses;
    for (std::sregex_iterator found(text.begin(), text.end(), address), end; found != end; ++found)
      addresses.insert((*found)[1]);
    EXPECT_EQ(addresses.size(), cards.size());
  }
}

/// Two ids whose hashes lead to one address of 8192.
TEST(Export, WhatWasExportedApartAndHasTheSameAddressIsWarnedOf) {
  const auto exported = [](const char* id) {
    const Json card = {{"agent_id", id}, {"workspace", std::string("/mnt/agents/") + id}};
    return exportPodman(cardsFrom({{"cards", Json::array({card})}}), {});
  };
  const auto one = exported("ada"), other = exported("ora293"), third = exported("bob");
  EXPECT_EQ(takenAddresses(other, third.files), std::vector<std::string>());
  EXPECT_EQ(
      takenAddresses(other, one.files),
      std::vector<std::string>{
          "agent-ora293.network: agent-ada.network has the same address, \"Subnet=10.214.109.216/29\", so "
          "only one of them can run; export both cards at once"});
  const auto cards =
      cardsFrom({{"cards", Json::array({{{"agent_id", "eve"}, {"workspace", "/mnt/agents/eve"}}})}});
  const auto units = exportBwrap(cards, bwrapOptions());
  EXPECT_EQ(takenAddresses(units, units.files).size(), 1U);
}

TEST(Export, EveryPromiseIsJudgedAndSaysHow) {
  for (const auto& promise : promises()) {
    for (const auto& [kept, how] : promise.on) {
      EXPECT_NE(how, "") << promise.what;
      EXPECT_EQ(how.find_first_of("|\n"), std::string_view::npos) << promise.what;
    }
  }
}

}  // namespace

void registerExportGoldens(const std::filesystem::path& root) {
  forEachCase("Kubernetes", root / "export/kubernetes", [root](const std::filesystem::path& entry) {
    const Json test = Json::parse(readFile(entry, maxGoldenBytes));
    expectGolden(root / "export/kubernetes/expected" / entry.stem().concat(".yaml"),
                 outcome([&] { return exportKubernetes(cardsFrom(test), kubernetesOptions(test)); }));
  });
  forEachCase("Podman", root / "export/podman", [root](const std::filesystem::path& entry) {
    const Json test = Json::parse(readFile(entry, maxGoldenBytes));
    expectGolden(root / "export/podman/expected" / entry.stem().concat(".txt"),
                 outcome([&] { return together(exportPodman(cardsFrom(test), podmanOptions(test))); }));
  });
  forEachCase("Bwrap", root / "export/bwrap", [root](const std::filesystem::path& entry) {
    const Json test = Json::parse(readFile(entry, maxGoldenBytes));
    expectGolden(root / "export/bwrap/expected" / entry.stem().concat(".txt"),
                 outcome([&] { return together(exportBwrap(cardsFrom(test), bwrapOptions())); }));
  });
}

}  // namespace agentmachine
