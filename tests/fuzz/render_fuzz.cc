// libFuzzer: whatever card is accepted, each of its values stays on one line of what is rendered, and systemd
// and opencode read it back as it was. The input is turned into a card's JSON, so that most of them are
// accepted.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include <fuzzer/FuzzedDataProvider.h>
#include <nlohmann/json.hpp>

#include "plan/nspawn.h"
#include "plan/opencode.h"
#include "plan/policy.h"
#include "plan/unit.h"
#include "require.h"
#include "util/text.h"

using namespace agentmachine;

namespace {

std::string cardText(FuzzedDataProvider& input) {
  const auto text = [&] { return input.ConsumeRandomLengthString(80); };
  nlohmann::json card = {{"agent_id", input.ConsumeBool() ? "ada" : text()},
                         {"workspace", input.ConsumeBool() ? "/mnt/agents/ada" : "/mnt/" + text()}};
  if (input.ConsumeBool())
    card["api_provider"] = input.PickValueInArray({"anthropic", "openai", "ollama", "custom"});
  if (input.ConsumeBool()) card["api_base_url"] = "https://" + text();
  if (input.ConsumeBool()) card["api_key_file"] = "/etc/" + text();
  if (input.ConsumeBool()) card["model"] = text();
  for (int n = input.ConsumeIntegralInRange(0, 3); n > 0; --n) card["command"].push_back(text());
  for (int n = input.ConsumeIntegralInRange(0, 3); n > 0; --n) card["environment"][text()] = text();
  for (int n = input.ConsumeIntegralInRange(0, 3); n > 0; --n) card["allowed_hosts"].push_back(text());
  if (input.ConsumeBool()) card["resource_limits"]["memory_mb"] = input.ConsumeIntegral<std::uint32_t>();
  if (input.ConsumeBool()) card["resource_limits"]["cpu_shares"] = input.ConsumeIntegral<std::uint32_t>();
  if (input.ConsumeBool())
    card["resource_limits"]["cpu_quota_percent"] = input.ConsumeIntegral<std::uint16_t>();
  if (input.ConsumeBool()) card["ttl_seconds"] = input.ConsumeIntegral<std::uint32_t>();
  return card.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// The value of each `key` of an INI file, which must be nothing but comments, sections and keys of systemd's
/// form.
std::vector<std::string> values(const std::string& ini, const std::string& key) {
  std::vector<std::string> found;
  for (const auto& line : split(ini, '\n')) {
    require(std::ranges::none_of(line, [](unsigned char c) { return c < 0x20 || c == 0x7f; }));
    require(!line.ends_with('\\'));
    if (line.empty() || line.starts_with("# ") || (line.starts_with('[') && line.ends_with(']'))) continue;
    const auto equals = line.find('=');
    require(equals != std::string::npos && equals > 0);
    require(std::ranges::all_of(line.substr(0, equals), [](unsigned char c) { return std::isalnum(c); }));
    if (line.substr(0, equals) == key) found.push_back(line.substr(equals + 1));
  }
  return found;
}

/// The words of a list as systemd takes them in a .nspawn file (extract_first_word with EXTRACT_UNQUOTE and
/// EXTRACT_RETAIN_ESCAPE): quotes group, a backslash is itself.
std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> list;
  std::optional<std::string> word;
  char quote = 0;
  for (const char c : text) {
    if (quote) {
      if (c == quote)
        quote = 0;
      else
        *word += c;
    } else if (c == '\'' || c == '"') {
      quote = c;
      if (!word) word.emplace();
    } else if (c == ' ' || c == '\t') {
      if (word) list.push_back(*std::exchange(word, std::nullopt));
    } else {
      if (!word) word.emplace();
      *word += c;
    }
  }
  require(!quote);
  if (word) list.push_back(*word);
  return list;
}

std::string only(const std::vector<std::string>& list) {
  require(list.size() == 1);
  return list.front();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider input(data, size);
  const auto card = parseCard(cardText(input), CardFormat::json);
  if (!card) return 0;
  const Settings settings;
  const Machine machine{
      *card, {.image = "sha256-0", .address = Ipv4::parse("10.213.0.2").value(), .uidBase = 1 << 30}};

  const auto nspawn = renderNspawnSettings(machine, settings, "/usr/libexec/agentmachine-init");
  std::vector<std::string> given, expected;
  for (const auto& value : values(nspawn, "Environment")) given.push_back(only(words(value)));
  for (const auto& [name, value] : machineEnvironment(*card, egressOf(settings)))
    expected.push_back(name + "=" + value);
  require(given == expected);
  const auto parameters = words(only(values(nspawn, "Parameters")));
  const auto payload = payloadCommand(*card);
  require(parameters.size() > payload.size() &&
          std::ranges::equal(std::span(parameters).last(payload.size()), payload));
  require(parameters[parameters.size() - payload.size() - 1] == "--");
  for (const char* once : {"Boot", "ReadOnly", "Private", "PrivateUsers", "NoNewPrivileges"})
    only(values(nspawn, once));

  const auto dropIn = renderDropIn(machine, settings, "/usr/bin/agentmachine");
  for (const char* hook : {"ExecStartPre", "ExecStartPost", "ExecStopPost"})
    for (const auto& value : values(dropIn, hook))
      require(value.starts_with("+/usr/bin/agentmachine hook ") && value.ends_with(" " + card->id.str()));
  require(!values(dropIn, "MemoryMax").empty() && values(dropIn, "ExecStart").empty());

  const auto policy = policyFor(*card, settings);
  require(parsePolicy(renderPolicy(policy)) == policy);
  require(nlohmann::json::accept(renderOpencodeConfig(*card, egressOf(settings))));
  return 0;
}
