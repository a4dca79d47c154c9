#include "plan/opencode.h"

#include <format>

#include <nlohmann/json.hpp>

#include "plan/policy.h"

namespace agentmachine {

namespace {

/// The provider's name in opencode's configuration.
std::string providerKey(ApiProvider provider) {
  return std::string(toString(provider));
}

nlohmann::ordered_json providerOptions(const Card& card, const Egress& egress) {
  if (card.apiKeyDelivery == KeyDelivery::broker)
    // opencode wants a key; the broker strips this one and adds the real one.
    return {{"baseURL", egress.broker}, {"apiKey", "added-by-the-broker"}};
  // opencode puts the file's content in the place of "{file:…}".
  const auto key = std::format("{{file:{}}}", agentKeyFile);
  nlohmann::ordered_json options = {{"baseURL", providerUrl(card).value().str()}, {"apiKey", key}};
  if (const auto& header = card.apiKeyHeader)
    options["headers"][header->str()] = (header->str() == "authorization" ? "Bearer " : "") + key;
  return options;
}

}  // namespace

std::string opencodeModel(const Card& card) {
  if (!card.model) return "";
  const std::string prefix = providerKey(card.apiProvider) + "/";
  return card.model->str().starts_with(prefix) ? card.model->str() : prefix + card.model->str();
}

Egress egressOf(const Settings& settings) {
  const std::string gateway = settings.gateway.str();
  return {.proxy = std::format("http://{}:{}", gateway, settings.proxyPort),
          .broker = std::format("http://{}:{}", gateway, settings.brokerPort),
          .direct = "localhost,127.0.0.1," + gateway};
}

std::string renderOpencodeConfig(const Card& card, const Egress& egress) {
  const std::string provider = providerKey(card.apiProvider);
  const std::string model = opencodeModel(card);
  nlohmann::ordered_json entry = {{"options", providerOptions(card, egress)}};
  if (card.apiProvider == ApiProvider::ollama || card.apiProvider == ApiProvider::custom) {
    // opencode knows nothing of these, so it is told which of its clients to use.
    entry["npm"] = "@ai-sdk/openai-compatible";
    entry["name"] = provider;
  }
  // Without an entry opencode refuses a model that it doesn't know; with one, what it knows still holds.
  if (!model.empty()) entry["models"][model.substr(provider.size() + 1)] = nlohmann::ordered_json::object();

  // The machine is the boundary, so tools are not asked about one by one; what would only run into the
  // proxy's refusal is not offered.
  nlohmann::ordered_json permission = {{"*", "allow"}, {"websearch", "deny"}};
  if (card.allowedHosts.empty()) permission["webfetch"] = "deny";

  nlohmann::ordered_json config = {
      {"$schema", "https://opencode.ai/config.json"},
      {"autoupdate", false},
      {"share", "disabled"},
      {"lsp", false},
      {"formatter", false},
      {"enabled_providers", {provider}},
      {"permission", permission},
      {"provider", {{provider, entry}}},
  };
  // The small one writes titles. Without `model` on the card, opencode chooses both.
  if (!model.empty()) config["model"] = config["small_model"] = model;
  return config.dump(2) + "\n";
}

std::vector<std::pair<std::string, std::string>> machineEnvironment(const Card& card, const Egress& egress) {
  const std::string certificates = "/etc/ssl/certs/ca-bundle.crt";
  std::vector<std::pair<std::string, std::string>> environment = {
      {"AGENT_ID", card.id.str()},
      {"PATH", "/usr/local/bin:/usr/bin:/bin"},
      {"HTTP_PROXY", egress.proxy},
      {"HTTPS_PROXY", egress.proxy},
      {"http_proxy", egress.proxy},
      {"https_proxy", egress.proxy},
      {"NO_PROXY", egress.direct},
      {"no_proxy", egress.direct},
      {"SSL_CERT_FILE", certificates},
      {"NIX_SSL_CERT_FILE", certificates},
      {"NODE_EXTRA_CA_CERTS", certificates},
      {"HOME", "/home/agent"},
      // /etc/opencode is ours and read-only; what a session must keep is in the workspace, the rest is
      // scratch.
      {"XDG_CONFIG_HOME", "/etc"},
      {"XDG_CACHE_HOME", "/tmp/cache"},
      {"XDG_DATA_HOME", "/workspace/.agentmachine/data"},
      {"XDG_STATE_HOME", "/workspace/.agentmachine/state"},
  };
  if (card.apiKeyDelivery == KeyDelivery::credential)
    environment.emplace_back("AGENT_API_KEY_FILE", agentKeyFile);
  // Each of these stops one request that opencode would make on its own.
  for (const char* quiet : {"AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE",
                            "EXTERNAL_SKILLS", "CLAUDE_CODE", "TERMINAL_TITLE"})
    environment.emplace_back(std::format("OPENCODE_DISABLE_{}", quiet), "1");
  for (const auto& [name, value] : card.environment) environment.emplace_back(name.str(), value.str());
  return environment;
}

std::vector<std::string> payloadCommand(const Card& card) {
  if (card.command.empty())
    return {"opencode", "serve", "--hostname", "127.0.0.1", "--port", std::to_string(serverPort)};
  std::vector<std::string> command;
  for (const auto& word : card.command) command.push_back(word.str());
  return command;
}

}  // namespace agentmachine
