// The Agent ID Card: what a person asks for. Parsing and validation are pure: no I/O, no clock.
#pragma once
#include <chrono>
#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "card/types.h"

namespace agentmachine {

enum class ApiProvider { anthropic, openai, ollama, custom };
std::string_view toString(ApiProvider provider);

/// Who holds the API key: the broker, outside, or a file inside that the agent can read.
enum class KeyDelivery { broker, credential };
std::string_view toString(KeyDelivery delivery);

/// Whether a machine whose payload ended is started again. In systemd's words (Restart=, systemd.service(5)).
enum class RestartPolicy { onFailure, always, no };
std::string_view toString(RestartPolicy policy);

/// The card's `resource_limits`, with the defaults of the earlier `opencode-spawn`.
struct ResourceLimits {
  std::uint64_t memoryMb = 4096;
  std::uint64_t cpuShares = 1024;                  ///< cgroup v1 shares, 2 to 262144
  std::optional<std::uint64_t> cpuQuotaPercent{};  ///< of one CPU
  std::uint64_t maxProcesses = 50;
  std::uint64_t maxOpenFiles = 1024;
  std::uint64_t ioWeight = 100;                ///< 1 to 10000, relative to everyone else's 100
  std::optional<std::uint64_t> diskMb{};       ///< MiB of the workspace
  std::optional<std::uint64_t> tmpMb{};        ///< MiB of /tmp; absent: a quarter of the memory
  std::optional<std::uint64_t> networkMbit{};  ///< 10^6 bits a second, each way
  std::uint64_t maxConnections = 128;          ///< to proxy and broker together, at once
  std::uint64_t requestsPerSecond = 100;       ///< judged by the proxy; more have to wait
  bool operator==(const ResourceLimits&) const = default;
};

struct Card {
  AgentId id;
  AbsolutePath workspace;
  ApiProvider apiProvider = ApiProvider::anthropic;
  std::optional<AbsolutePath> apiKeyFile{};
  std::optional<HeaderName> apiKeyHeader{};  ///< absent: the provider's own
  KeyDelivery apiKeyDelivery = KeyDelivery::broker;
  std::optional<Url> proxy{};  ///< absent, and every spelling of our own proxy, mean ours
  ResourceLimits limits{};
  std::vector<HostPattern> allowedHosts{};  ///< empty: the provider only
  std::vector<PackageName> packages{};      ///< in the image besides what every image holds
  std::chrono::seconds ttl{0};              ///< 0: no end
  std::chrono::seconds idle{0};             ///< without CPU and network until it is stopped; 0: never
  RestartPolicy restart = RestartPolicy::onFailure;
  std::chrono::seconds stopTimeout{10};  ///< from SIGTERM to SIGKILL
  bool autostart = false;                ///< started when the host boots
  std::map<EnvironmentName, PlainText> environment{};
  std::vector<PlainText> command{};  ///< empty: `opencode serve`
  std::optional<PlainText> model{};
  bool memoryDenyWriteExecute = false;
  std::optional<Url> apiBaseUrl{};  ///< absent: the provider's own
  bool operator==(const Card&) const = default;
};

/// One thing wrong with a card.
struct Problem {
  std::string pointer{};  ///< JSON pointer (RFC 6901) of the value; "" is the whole card
  std::string message{};  ///< what is wrong, the offending value unless it may be secret, and what to do
};

enum class CardFormat { json, toml };

/// The largest card that is read.
constexpr std::size_t maxCardBytes = 1024 * 1024;

/// Parses and validates. Every problem of the card at once, fields given twice first and then in the order of
/// the text; one problem alone, with its line and column, if the text is no JSON or TOML. Never throws for
/// bad input.
std::expected<Card, std::vector<Problem>> parseCard(std::string_view text, CardFormat format);

/// The problems for people: "SOURCE: 2 problems" and a line for each, "  POINTER: message". No secret and no
/// control character is in it. Ends with a newline.
std::string describe(std::string_view source, const std::vector<Problem>& problems);

/// The card as JSON with every field that is not at its default; parseCard gives the same Card back.
std::string toJson(const Card& card);

/// The text of card.schema.json (JSON Schema draft-07), as published.
std::string_view cardSchema();

/// Where the provider's API is, with its version, when the card gives no `api_base_url`; nothing for
/// `custom`. For `ollama` it is the host's own Ollama, which a machine reaches by the broker only.
std::optional<Url> defaultApiBaseUrl(ApiProvider provider);

}  // namespace agentmachine
