#include "plan/opencode.h"

#include <algorithm>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace agentmachine {
namespace {

using Json = nlohmann::json;

Card cardOf(ApiProvider provider) {
  return {.id = AgentId::parse("alpha").value(),
          .workspace = AbsolutePath::parse("/mnt/agents/alpha").value(),
          .apiProvider = provider};
}

Json configOf(const Card& card) {
  return Json::parse(renderOpencodeConfig(card, egressOf(Settings{})));
}

TEST(Opencode, TalksToTheBrokerWithoutTheKey) {
  Card card = cardOf(ApiProvider::anthropic);
  card.apiKeyFile = AbsolutePath::parse("/etc/keys/alpha").value();
  const Json options = configOf(card)["provider"]["anthropic"]["options"];
  // opencode appends "/messages" to it, the broker puts "/v1" in front.
  EXPECT_EQ(options["baseURL"], "http://10.213.0.1:8081");
  EXPECT_EQ(options["apiKey"], "added-by-the-broker");
}

TEST(Opencode, FindsTheKeyInAFileIfTheCardSaysSo) {
  Card card = cardOf(ApiProvider::custom);
  card.apiKeyFile = AbsolutePath::parse("/etc/keys/alpha").value();
  card.apiBaseUrl = Url::parse("https://llm.example.org/v1").value();
  card.apiKeyDelivery = KeyDelivery::credential;
  Json options = configOf(card)["provider"]["custom"]["options"];
  EXPECT_EQ(options["baseURL"], "https://llm.example.org/v1");
  EXPECT_EQ(options["apiKey"], "{file:/run/agentmachine/agent/api-key}");
  EXPECT_FALSE(options.contains("headers"));
  card.apiKeyHeader = HeaderName::parse("api-key").value();
  EXPECT_EQ(configOf(card)["provider"]["custom"]["options"]["headers"],
            Json({{"api-key", "{file:/run/agentmachine/agent/api-key}"}}));
  card.apiKeyHeader = HeaderName::parse("authorization").value();
  EXPECT_EQ(configOf(card)["provider"]["custom"]["options"]["headers"],
            Json({{"authorization", "Bearer {file:/run/agentmachine/agent/api-key}"}}));
  const auto environment = machineEnvironment(card, egressOf(Settings{}));
  EXPECT_TRUE(std::ranges::contains(environment,
                                    std::pair<std::string, std::string>("AGENT_API_KEY_FILE", agentKeyFile)));
}

TEST(Opencode, KnowsNoOtherProvider) {
  for (const auto provider : {ApiProvider::anthropic, ApiProvider::openai, ApiProvider::ollama})
    EXPECT_EQ(configOf(cardOf(provider))["enabled_providers"], Json::array({toString(provider)}));
}

TEST(Opencode, ChoosesTheModelUnlessTheCardDoes) {
  const Json config = configOf(cardOf(ApiProvider::openai));
  EXPECT_FALSE(config.contains("model"));
  EXPECT_FALSE(config["provider"]["openai"].contains("models"));
}

// A model without an entry that is not in opencode's catalogue is refused: "Unexpected server error".
TEST(Opencode, IsToldOfTheCardsModel) {
  for (const auto provider : {ApiProvider::openai, ApiProvider::custom}) {
    Card card = cardOf(provider);
    card.model = PlainText::parse("vendor/model-99").value();
    const Json config = configOf(card);
    const std::string name(toString(provider));
    EXPECT_EQ(config["model"], name + "/vendor/model-99");
    EXPECT_EQ(config["small_model"], config["model"]);
    EXPECT_TRUE(config["provider"][name]["models"].contains("vendor/model-99"));
  }
}

TEST(Opencode, DoesNotPrefixAModelTwice) {
  Card card = cardOf(ApiProvider::openai);
  card.model = PlainText::parse("openai/gpt-5.2").value();
  EXPECT_EQ(opencodeModel(card), "openai/gpt-5.2");
}

TEST(Opencode, IsToldWhichClientSpeaksToProvidersItDoesNotKnow) {
  EXPECT_EQ(configOf(cardOf(ApiProvider::ollama))["provider"]["ollama"]["npm"], "@ai-sdk/openai-compatible");
  EXPECT_FALSE(configOf(cardOf(ApiProvider::openai))["provider"]["openai"].contains("npm"));
}

TEST(Opencode, AsksForNothingAndOffersTheWebOnlyWithHosts) {
  Card card = cardOf(ApiProvider::anthropic);
  Json permission = configOf(card)["permission"];
  EXPECT_EQ(permission["*"], "allow");
  EXPECT_EQ(permission["webfetch"], "deny");
  // Denied, opencode would refuse even /tmp.
  EXPECT_FALSE(permission.contains("external_directory"));
  card.allowedHosts.push_back(HostPattern::parse("example.org").value());
  EXPECT_FALSE(configOf(card)["permission"].contains("webfetch"));
}

TEST(Opencode, EnvironmentLeadsToTheProxyAndKeepsOpencodeQuiet) {
  Card card = cardOf(ApiProvider::anthropic);
  card.environment.emplace(EnvironmentName::parse("LANG").value(), PlainText::parse("C.UTF-8").value());
  std::map<std::string, std::string> environment;
  for (const auto& [name, value] : machineEnvironment(card, egressOf(Settings{})))
    EXPECT_TRUE(environment.emplace(name, value).second) << name << " twice";
  for (const char* name : {"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"})
    EXPECT_EQ(environment[name], "http://10.213.0.1:3128");
  EXPECT_EQ(environment["NO_PROXY"], "localhost,127.0.0.1,10.213.0.1");
  EXPECT_EQ(environment["AGENT_ID"], "alpha");
  EXPECT_EQ(environment["LANG"], "C.UTF-8");
  EXPECT_EQ(environment["XDG_CONFIG_HOME"], "/etc");
  for (const char* name : {"OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH",
                           "OPENCODE_DISABLE_LSP_DOWNLOAD", "OPENCODE_DISABLE_SHARE"})
    EXPECT_EQ(environment[name], "1");
}

}  // namespace
}  // namespace agentmachine
