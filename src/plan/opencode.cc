#include "plan/opencode.h"

#include <format>
#include <nlohmann/json.hpp>

namespace agentmachine {

namespace {

/// The provider's name in opencode's configuration.
std::string providerKey(ApiProvider provider) { return std::string(toString(provider)); }

/// Providers that opencode has no catalogue of: their one model is described to it.
bool needsModelEntry(ApiProvider provider) {
  return provider == ApiProvider::ollama || provider == ApiProvider::custom;
}

}  // namespace

std::string opencodeModel(const Card& card) {
  const std::string provider = providerKey(card.apiProvider);
  if (card.model) return card.model->str().starts_with(provider + "/") ? card.model->str() : provider + "/" + card.model->str();
  switch (card.apiProvider) {
    case ApiProvider::anthropic: return "anthropic/claude-sonnet-4-5";
    case ApiProvider::openai: return "openai/gpt-5.1-codex";
    default: return "";
  }
}

std::string renderOpencodeConfig(const Card& card, const Settings& settings) {
  const std::string provider = providerKey(card.apiProvider);
  nlohmann::ordered_json options = {
      {"baseURL", std::format("http://{}:{}", settings.gateway.str(), settings.brokerPort)},
      // opencode wants a key; the broker strips this one and adds the real one.
      {"apiKey", "added-by-the-broker"}};
  nlohmann::ordered_json entry = {{"options", options}};
  const std::string model = opencodeModel(card);
  if (needsModelEntry(card.apiProvider)) {
    entry["npm"] = "@ai-sdk/openai-compatible";
    entry["name"] = provider;
    if (!model.empty()) entry["models"] = {{model.substr(provider.size() + 1), {{"tool_call", true}}}};
  }
  nlohmann::ordered_json config = {
      {"$schema", "https://opencode.ai/config.json"},
      {"autoupdate", false},
      {"share", "disabled"},
      {"lsp", false},
      {"formatter", false},
      {"enabled_providers", {provider}},
      // The machine is the boundary, so tools are not asked about one by one; what would only run into the proxy's
      // refusal is not offered.
      {"permission", {{"*", "allow"}, {"webfetch", "deny"}, {"websearch", "deny"}, {"external_directory", "deny"}}},
      {"provider", {{provider, entry}}},
  };
  if (!model.empty()) config["model"] = config["small_model"] = model;
  return config.dump(2) + "\n";
}

std::vector<std::pair<std::string, std::string>> machineEnvironment(const Card& card, const Settings& settings) {
  const std::string proxy = std::format("http://{}:{}", settings.gateway.str(), settings.proxyPort);
  const std::string direct = "localhost,127.0.0.1," + settings.gateway.str();
  const std::string certificates = "/etc/ssl/certs/ca-bundle.crt";
  std::vector<std::pair<std::string, std::string>> environment = {
      {"AGENT_ID", card.id.str()},
      {"PATH", "/usr/local/bin:/usr/bin:/bin"},
      {"HTTP_PROXY", proxy},
      {"HTTPS_PROXY", proxy},
      {"http_proxy", proxy},
      {"https_proxy", proxy},
      {"NO_PROXY", direct},
      {"no_proxy", direct},
      {"SSL_CERT_FILE", certificates},
      {"NIX_SSL_CERT_FILE", certificates},
      {"NODE_EXTRA_CA_CERTS", certificates},
      {"HOME", "/home/agent"},
      // /etc/opencode is ours and read-only; what a session must keep is in the workspace, the rest is scratch.
      {"XDG_CONFIG_HOME", "/etc"},
      {"XDG_CACHE_HOME", "/tmp/cache"},
      {"XDG_DATA_HOME", "/workspace/.agentmachine/data"},
      {"XDG_STATE_HOME", "/workspace/.agentmachine/state"},
  };
  // Each of these stops one request that opencode would make on its own.
  for (const char* quiet : {"AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE", "EXTERNAL_SKILLS",
                            "CLAUDE_CODE", "TERMINAL_TITLE"})
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
