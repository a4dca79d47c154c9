#include "plan/host.h"

#include <algorithm>
#include <format>
#include <functional>
#include <map>

#include <arpa/inet.h>
#include <toml++/toml.hpp>

#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

std::string Ipv4::str() const {
  return std::format("{}.{}.{}.{}", value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255);
}

std::optional<Ipv4> Ipv4::parse(std::string_view dotted) {
  in_addr address{};
  // inet_pton takes strict dotted decimal only: no hex, no octal, no short forms.
  if (inet_pton(AF_INET, std::string(dotted).c_str(), &address) != 1) return std::nullopt;
  return Ipv4{ntohl(address.s_addr)};
}

namespace {

/// Reads one TOML value into a setting; returns what is wrong, or "" if nothing is.
using Reader = std::function<std::string(const toml::node&)>;

Reader text(std::string& into, const std::function<std::string(const std::string&)>& check = {}) {
  return [&into, check](const toml::node& node) -> std::string {
    const auto value = node.value_exact<std::string>();
    if (!value) return "must be a string";
    if (check)
      if (auto wrong = check(*value); !wrong.empty()) return wrong;
    into = *value;
    return "";
  };
}

template <class Integer>
Reader number(Integer& into, std::int64_t least, std::int64_t most) {
  return [&into, least, most](const toml::node& node) -> std::string {
    const auto value = node.value_exact<std::int64_t>();
    if (!value || *value < least || *value > most)
      return std::format("must be a whole number from {} to {}", least, most);
    into = static_cast<Integer>(*value);
    return "";
  };
}

/// A list of strings, each read by Element::parse.
template <class Element>
Reader list(std::vector<Element>& into) {
  return [&into](const toml::node& node) -> std::string {
    if (!node.is_array()) return "must be a list of strings";
    std::vector<Element> elements;
    for (const auto& item : *node.as_array()) {
      const auto value = item.template value_exact<std::string>();
      if (!value) return "must be a list of strings";
      auto element = Element::parse(*value);
      if (!element) return std::format("\"{}\": {}", *value, element.error());
      elements.push_back(std::move(*element));
    }
    into = std::move(elements);
    return "";
  };
}

std::string checkPath(const std::string& value) {
  const auto path = AbsolutePath::parse(value);
  return path ? "" : path.error();
}

std::string checkInterface(const std::string& value) {
  const bool good =
      !value.empty() && value.size() <= 15 &&
      std::ranges::all_of(
          value, [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; }) &&
      value != "." && value != "..";
  return good ? "" : "must be an interface name: 1 to 15 letters, digits, '-', '_' or '.'";
}

std::string checkUser(const std::string& value) {
  const bool good =
      !value.empty() && value.size() <= 31 && !std::isdigit(static_cast<unsigned char>(value[0])) &&
      std::ranges::all_of(
          value, [](unsigned char c) { return std::islower(c) || std::isdigit(c) || c == '-' || c == '_'; });
  return good ? "" : "must be a user name";
}

std::string checkProxyUser(const std::string& value) {
  return value == proxyUser ? ""
                            : std::format("is {} by now, and no setting any more: leave it out", proxyUser);
}

/// "10.213.0.1/16": the host's own address and the length of the prefix.
Reader bridgeAddress(Settings& settings) {
  return [&settings](const toml::node& node) -> std::string {
    constexpr auto wrong =
        "must be the host's address on the bridge with the length of its network, "
        "8 to 29, as in \"10.213.0.1/16\"";
    const auto value = node.value_exact<std::string>();
    if (!value) return wrong;
    const auto parts = split(*value, '/');
    if (parts.size() != 2 || parts[1].empty() || parts[1].size() > 2 ||
        !std::ranges::all_of(parts[1], [](unsigned char c) { return std::isdigit(c); }))
      return wrong;
    const auto address = Ipv4::parse(parts[0]);
    const unsigned length = static_cast<unsigned>(std::stoul(parts[1]));
    if (!address || length < 8 || length > 29) return wrong;
    settings.gateway = *address;
    settings.prefixLength = length;
    return "";
  };
}

}  // namespace

std::uint32_t hostMask(const Settings& settings) {
  return ~(~0u << (32 - settings.prefixLength));
}

Settings parseSettings(std::string_view tomlText, std::string_view source) {
  Settings settings;
  std::string user, caFile, program, init;
  const std::map<std::string, Reader, std::less<>> readers = {
      {"bridge", text(settings.bridge, checkInterface)},
      {"address", bridgeAddress(settings)},
      {"proxy_port", number(settings.proxyPort, 1, 65535)},
      {"broker_port", number(settings.brokerPort, 1, 65535)},
      // Could be chosen in older programs; what is as it must be keeps nobody from upgrading.
      {"proxy_user", text(user, checkProxyUser)},
      {"proxy_ca_file", text(caFile, checkPath)},
      {"program", text(program, checkPath)},
      {"init", text(init, checkPath)},
      {"parent_proxies", list(settings.parentProxies)},
      {"private_hosts", list(settings.privateHosts)},
      {"api_key_headers", list(settings.apiKeyHeaders)},
      {"packages", list(settings.packages)},
      {"workspace_user", text(settings.workspaceUser, checkUser)},
      {"cards_directory", text(settings.cardsDirectory, checkPath)},
      // Below systemd's container range, 0x00080000 to 0x6FFFFFFF (systemd's UIDS-GIDS document).
      {"uid_base", number(settings.uidBase, 0x00080000, 0x6FFF0000)},
      {"uid_ranges", number(settings.uidRanges, 1, 28672)},
      {"allow_settings_override",
       [&](const toml::node& node) -> std::string {
         const auto value = node.value_exact<bool>();
         if (!value) return "must be true or false";
         settings.allowSettingsOverride = *value;
         return "";
       }},
  };
  const std::string where(source);
  toml::table table;
  try {
    table = toml::parse(tomlText, where);
  } catch (const toml::parse_error& cause) {
    throw Error(std::format("{}:{}:{}: {}", where, cause.source().begin.line, cause.source().begin.column,
                            cause.description()));
  }
  std::vector<std::string> problems;
  for (const auto& [key, node] : table) {
    const auto reader = readers.find(key.str());
    const auto wrong =
        reader == readers.end() ? "is no setting; see agentmachine(1), SETTINGS" : reader->second(node);
    if (!wrong.empty())
      problems.push_back(std::format("{}:{}: {} {}", where, key.source().begin.line, key.str(), wrong));
  }
  if (settings.proxyPort == settings.brokerPort)
    problems.push_back(std::format("{}: proxy_port and broker_port are both {}", where, settings.proxyPort));
  if (settings.uidBase % uidRangeAlignment != 0)
    problems.push_back(
        std::format("{}: uid_base {} is no multiple of {}", where, settings.uidBase, uidRangeAlignment));
  if (!problems.empty()) throw Error(join(problems, "\n"));
  if (!caFile.empty()) settings.proxyCaFile = caFile;
  if (!program.empty()) settings.program = program;
  if (!init.empty()) settings.init = init;
  return settings;
}

}  // namespace agentmachine
