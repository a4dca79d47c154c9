// Golden tests of exports: export/ENGINE/CASE.json is a card, or several, with the options; what is rendered
// from it and what is warned of is expected/CASE.txt.
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
  return options;
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
    expectGolden(root / "export/podman/expected" / entry.stem().concat(".txt"), outcome([&] {
                   return together(exportPodman(cardsFrom(test), {.rootful = test.value("rootful", false)}));
                 }));
  });
  forEachCase("Bwrap", root / "export/bwrap", [root](const std::filesystem::path& entry) {
    const Json test = Json::parse(readFile(entry, maxGoldenBytes));
    expectGolden(root / "export/bwrap/expected" / entry.stem().concat(".txt"), outcome([&] {
                   return together(exportBwrap(
                       cardsFrom(test), {.root = AbsolutePath::parse("/srv/agentmachine/root").value()}));
                 }));
  });
}

}  // namespace agentmachine
