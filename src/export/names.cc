#include "export/names.h"

#include <algorithm>
#include <charconv>
#include <format>
#include <map>
#include <system_error>

#include "util/error.h"

namespace agentmachine {

std::optional<std::string> NamespaceNameRule::check(std::string_view text) {
  const auto good = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (text.empty() || text.size() > 63 || !good(text.front()) || !good(text.back()) ||
      !std::ranges::all_of(text, [&](char c) { return good(c) || c == '-'; }))
    return "is no name of a namespace: 1 to 63 lower case letters, digits and inner hyphens";
  return {};
}

std::optional<std::string> ImageReferenceRule::check(std::string_view text) {
  const auto good = [](unsigned char c) {
    return std::isalnum(c) || std::string_view("-._/:@").contains(static_cast<char>(c));
  };
  if (text.empty() || text.size() > 512 || !std::isalnum(static_cast<unsigned char>(text.front())) ||
      !std::ranges::all_of(text, good))
    return "is no name of an image: write NAME:TAG or NAME@sha256:DIGEST";
  constexpr std::string_view mark = "@sha256:";
  if (const auto at = text.find('@'); at != std::string_view::npos) {
    const auto digest = text.substr(at);
    if (!digest.starts_with(mark) || digest.size() != mark.size() + 64 ||
        digest.substr(mark.size()).find_first_not_of("0123456789abcdef") != std::string_view::npos)
      return "has a digest that is none: write @sha256: and 64 hexadecimal digits";
  }
  return {};
}

std::expected<ProxyPlace, std::string> ProxyPlace::parse(std::string_view text) {
  if (text == "in-cluster") return ProxyPlace{};
  const bool isUrl = text.contains("://");
  auto url = Url::parse(isUrl ? std::string(text) : "http://" + std::string(text));
  const auto afterScheme = isUrl ? text.substr(text.find("://") + 3) : text;
  if (!url || !url->path.empty() || !afterScheme.contains(':'))
    return std::unexpected("is no place of a proxy: write in-cluster, or ADDRESS:PORT");
  return ProxyPlace{.address = *std::move(url)};
}

std::expected<Subnet, std::string> Subnet::parse(std::string_view text) {
  const auto slash = text.find('/');
  const auto address = Ipv4::parse(text.substr(0, slash));
  unsigned length = 0;
  const char* const end = text.data() + text.size();
  if (slash == std::string_view::npos || !address ||
      std::from_chars(text.data() + slash + 1, end, length) != std::from_chars_result{end, std::errc{}} ||
      length < 8 || length > 29 || (address->value & (0xffffffffU >> length)) != 0)
    return std::unexpected("is no network: write ADDRESS/LENGTH, such as 10.214.0.0/16, of length 8 to 29");
  return Subnet{.base = *address, .prefixLength = length};
}

std::string proxyName(const AgentId& id) {
  return "proxy-" + id.str();
}

void checkTogether(const std::vector<Card>& cards) {
  std::map<std::string, std::string> names, workspaces;
  for (const auto& card : cards) {
    const auto& id = card.id.str();
    if (const auto [other, isNew] = names.emplace(MachineName(card.id).str(), id); !isNew)
      throw Error(std::format("the cards of \"{}\" and \"{}\" would both be {}: choose another agent_id",
                              other->second, id, other->first));
    if (const auto [other, isNew] = workspaces.emplace(card.workspace.str(), id); !isNew)
      throw Error(
          std::format("workspace {}: is that of \"{}\" and of \"{}\"; give each agent a workspace of its own",
                      other->first, other->second, id));
  }
}

}  // namespace agentmachine
