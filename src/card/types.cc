#include "card/types.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <format>
#include <vector>

#include "util/text.h"

namespace agentmachine {

namespace {

using Wrong = std::optional<std::string>;

// Not <cctype>: that asks the locale.
bool isLower(char c) {
  return c >= 'a' && c <= 'z';
}
bool isUpper(char c) {
  return c >= 'A' && c <= 'Z';
}
bool isLetter(char c) {
  return isLower(c) || isUpper(c);
}
bool isDigit(char c) {
  return c >= '0' && c <= '9';
}
bool isAscii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

bool contains(auto&& range, const auto& value) {
  return std::ranges::find(range, value) != std::ranges::end(range);
}

Wrong checkNoControl(std::string_view text) {
  while (!text.empty()) {
    const auto c = takeCodePoint(text);
    if (!c) return "is not UTF-8: save it as UTF-8";
    if (isControl(*c)) return "has a control character, such as a line break or a tab: remove it";
  }
  return {};
}

/// One part of a host name between dots (RFC 1123, 2.1).
Wrong checkLabel(std::string_view label) {
  if (label.empty()) return "has a dot too many, at its beginning or beside another: remove it";
  if (label.size() > 63) return "has a part of more than 63 characters: no DNS name has one";
  for (char c : label) {
    if (isUpper(c)) return "has upper case letters: write it in lower case";
    if (!isAscii(c)) return "has letters outside ASCII: write its IDNA form, like \"xn--bcher-kva.example\"";
    if (!isLower(c) && !isDigit(c) && c != '-')
      return "is no host name: only letters, digits, hyphens and dots, like \"example.org\"";
  }
  if (label.starts_with('-') || label.ends_with('-'))
    return "has a part that begins or ends with a hyphen: no host name has one";
  return {};
}

/// 1 to 65535, in decimal without leading zeros.
std::expected<std::uint16_t, std::string> parsePort(std::string_view text) {
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0 || text.starts_with('0'))
    return std::unexpected("has a bad port: write a number from 1 to 65535 after the colon");
  return port;
}

/// "80,8080": in order, none twice.
std::expected<std::vector<std::uint16_t>, std::string> parsePorts(std::string_view text) {
  std::vector<std::uint16_t> ports;
  for (const auto& part : split(text, ',')) {
    const auto port = parsePort(part);
    if (!port) return std::unexpected(port.error());
    ports.push_back(*port);
  }
  std::ranges::sort(ports);
  if (std::ranges::adjacent_find(ports) != ports.end())
    return std::unexpected("has a port twice: write each once");
  return ports;
}

/// "GET,HEAD": in order, none twice.
std::expected<std::vector<std::string>, std::string> parseMethods(std::string_view text) {
  constexpr auto known =
      std::to_array<std::string_view>({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"});
  auto methods = split(text, ',');
  for (const auto& method : methods)
    if (!contains(known, method))
      return std::unexpected(
          "has a space in it, but before it no HTTP methods: write the host alone, like \"example.org\", or "
          "methods of DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, like \"GET,HEAD example.org:80\"");
  std::ranges::sort(methods);
  if (std::ranges::adjacent_find(methods) != methods.end())
    return std::unexpected("has a method twice: write each once");
  return methods;
}

bool isIpv4(std::string_view text) {
  const auto parts = split(text, '.');
  return parts.size() == 4 && std::ranges::all_of(parts, [](const std::string& part) {
           return !part.empty() && part.size() <= 3 && std::ranges::all_of(part, isDigit) &&
                  (part == "0" || !part.starts_with('0')) && std::stoi(part) <= 255;
         });
}

}  // namespace

Wrong AgentIdRule::check(std::string_view text) {
  if (text.empty()) return "is empty: give the agent a name, like \"alpha-001\"";
  if (text.size() > 57)
    return "is longer than 57 characters: shorten it (\"agent-\" and the id together are a host name)";
  if (!std::ranges::all_of(text, [](char c) { return isLetter(c) || isDigit(c) || c == '-'; }))
    return "has a character that an id can't have: only a to z, 0 to 9 and hyphens between them, like "
           "\"alpha-001\"";
  if (std::ranges::any_of(text, isUpper))
    return "has upper case letters: write it in lower case, like \"alpha-001\"";
  if (text.starts_with('-') || text.ends_with('-'))
    return "begins or ends with a hyphen: hyphens can only stand between letters and digits, like "
           "\"alpha-001\"";
  return {};
}

Wrong AbsolutePathRule::check(std::string_view text) {
  if (!text.starts_with('/')) return "is no absolute path: begin it with /";
  if (text.size() > 4095) return "is longer than 4095 bytes: no path may be";
  if (auto wrong = checkNoControl(text)) return wrong;
  constexpr std::string_view special = "%:\\\"'$ ";
  if (const auto at = text.find_first_of(special); at != std::string_view::npos)
    return std::format("has {} in it, which means something in systemd's files: rename the file or directory",
                       text[at] == ' ' ? "a space" : inQuotes(text.substr(at, 1)));
  if (text == "/") return {};
  if (text.ends_with('/')) return "ends with /: leave that out";
  const auto parts = split(text.substr(1), '/');
  if (contains(parts, "..")) return "has \"..\" in it: write the path that is meant";
  if (contains(parts, ".")) return "has \".\" as a part: leave that out";
  if (contains(parts, "")) return "has \"//\" in it: write a single /";
  if (std::ranges::any_of(parts, [](const auto& part) { return part.size() > 255; }))
    return "has a part of more than 255 bytes: no file name may be longer";
  return {};
}

Wrong checkWorkspace(std::string_view path) {
  // With all that is below them. The state of systemd and of this program is what agents must never write.
  constexpr auto trees =
      std::to_array<std::string_view>({"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32",
                                       "lost+found", "nix", "proc", "root", "run", "sbin", "sys", "usr"});
  constexpr auto states =
      std::to_array<std::string_view>({"agentmachine", "dpkg", "machines", "portables", "systemd"});
  // Directories of which many things are a part; a directory of one's own below them is fine.
  constexpr auto shared =
      std::to_array<std::string_view>({"home", "media", "mnt", "opt", "srv", "tmp", "var"});
  constexpr auto varies = std::to_array<std::string_view>({"lib", "opt", "tmp", "www"});
  const std::string instead = ": give the agent a directory of its own, like \"/mnt/agents/alpha-001\"";

  if (path == "/") return "is the whole host" + instead;
  const auto parts = split(path.substr(1), '/');
  const auto& top = parts[0];
  if (contains(trees, top)) return "belongs to the system (/" + top + ")" + instead;
  if (parts.size() == 1 && contains(shared, top)) return "is a directory that others share" + instead;
  if (top == "home" && parts.size() == 2)
    return "is a whole home, with its keys and start-up files: give the agent a directory below it";
  if (top == "var") {
    if (!contains(varies, parts[1])) return "belongs to the system (/var/" + parts[1] + ")" + instead;
    if (parts.size() == 2) return "is a directory that others share" + instead;
    if (parts[1] == "lib" && contains(states, parts[2]))
      return "belongs to the system (/var/lib/" + parts[2] + ")" + instead;
  }
  return {};
}

Wrong HostNameRule::check(std::string_view text) {
  if (text.empty()) return "is empty: write a host name, like \"example.org\"";
  // Colons were dealt with by whoever knows ports; what is left of them is IPv6.
  if (text.starts_with('[') || text.find(':') != std::string_view::npos)
    return "is an IP address: write a host name; addresses are refused in every spelling";
  if (text.ends_with('.')) return "ends with a dot: leave that out";
  if (text.size() > 253) return "is longer than 253 characters: no DNS name is";
  const auto labels = split(text, '.');
  for (const auto& label : labels)
    if (auto wrong = checkLabel(label)) return wrong;
  // WHATWG's URL standard and inet_aton(3) read 2130706433, 127.1 and 0x7f.1 as addresses; no top-level
  // domain begins with a digit.
  if (isDigit(labels.back()[0]))
    return "is an IP address, or looks like one: write a host name; addresses are refused in every spelling";
  return {};
}

Wrong EnvironmentNameRule::check(std::string_view text) {
  if (text.empty() || isDigit(text[0]) ||
      !std::ranges::all_of(text, [](char c) { return isLetter(c) || isDigit(c) || c == '_'; }))
    return "is no name of a variable: letters, digits and _, not beginning with a digit";
  if (text.size() > 256) return "is longer than 256 characters: shorten it";
  // What the machine sets itself; a card's value would cut the agent off or point it past the proxy.
  constexpr auto ours = std::to_array<std::string_view>(
      {"AGENT_API_KEY_FILE", "AGENT_ID", "HOME", "LOGNAME", "NODE_EXTRA_CA_CERTS",
       "NODE_TLS_REJECT_UNAUTHORIZED", "NOTIFY_SOCKET", "OLDPWD", "PATH", "PWD", "SHELL", "TMPDIR", "USER",
       "container", "container_uuid"});
  constexpr auto ourPrefixes = std::to_array<std::string_view>({"LISTEN_", "OPENCODE_", "SSL_CERT_", "XDG_"});
  // What makes the loader, the shell, node or git run other code than the image's.
  constexpr auto code =
      std::to_array<std::string_view>({"BASH_ENV", "ENV", "GCONV_PATH", "GIT_EXEC_PATH", "GIT_PROXY_COMMAND",
                                       "GLIBC_TUNABLES", "IFS", "LOCPATH", "NODE_OPTIONS", "NODE_PATH"});
  const auto begins = [&](std::string_view prefix) { return text.starts_with(prefix); };
  const auto lower = lowered(text);
  if (lower.ends_with("_proxy"))
    return "is set by the machine, for its only way out: remove it, or see the field \"proxy\"";
  if (contains(ours, text) || std::ranges::any_of(ourPrefixes, begins))
    return "is set by the machine itself: remove it";
  if (contains(code, text) || text.starts_with("LD_"))
    return "changes which code the machine's programs run: remove it";
  return {};
}

Wrong PlainTextRule::check(std::string_view text) {
  return checkNoControl(text);
}

std::string HostPattern::str() const {
  std::vector<std::string> numbers;
  for (const auto port : ports) numbers.push_back(std::to_string(port));
  return (methods.empty() ? "" : join(methods, ",") + " ") + (subdomains ? "." : "") + name.str() + ":" +
         join(numbers, ",");
}

std::expected<HostPattern, std::string> HostPattern::parse(std::string_view text) {
  const auto wrong = [](std::string message) { return std::unexpected(std::move(message)); };
  if (text.find("://") != std::string_view::npos)
    return wrong("is a URL: write only its host, like \"example.org\" or \"example.org:8443\"");
  std::vector<std::string> methods;
  if (const auto space = text.find(' '); space != std::string_view::npos) {
    auto parsed = parseMethods(text.substr(0, space));
    if (!parsed) return wrong(parsed.error());
    methods = *std::move(parsed);
    text.remove_prefix(space + 1);
  }
  if (text == "*" || text == "*." || text == "." || text.starts_with("*:"))
    return wrong("would allow every host: list the hosts that the agent needs");
  if (text.find('/') != std::string_view::npos)
    return wrong("has a / in it: whole hosts are allowed, not paths; write \"example.org\"");
  if (text.find('@') != std::string_view::npos)
    return wrong("has a user's name in it: write only the host, like \"example.org\"");

  std::vector<std::uint16_t> ports = {443};
  // Two colons or a bracket are IPv6, which HostName names as such.
  if (const auto colon = text.find(':'); colon != std::string_view::npos && colon == text.rfind(':')) {
    auto parsed = parsePorts(text.substr(colon + 1));
    if (!parsed) return wrong(parsed.error());
    ports = *std::move(parsed);
    text = text.substr(0, colon);
  }
  if (!methods.empty() && contains(ports, 443))
    return wrong(
        "has methods for port 443, but nobody can see methods in TLS: name the port of plain HTTP, like "
        "\"GET example.org:80\", or leave the methods out");
  bool subdomains = true;
  if (text.starts_with("*."))
    text.remove_prefix(2);
  else if (text.starts_with('.'))
    text.remove_prefix(1);
  else
    subdomains = false;
  if (text.find('*') != std::string_view::npos)
    return wrong(
        "has a * in an odd place: it can only stand for all that is below a name, as in \"*.example.org\"");
  auto name = HostName::parse(lowered(text));
  if (!name) return wrong(std::move(name.error()));
  if (name->str().find('.') == std::string::npos)
    return wrong(subdomains ? "would allow a whole top-level domain: list the hosts that the agent needs"
                            : "is not a full name: write it with its domain, like \"gitlab.example.org\"");
  return HostPattern{std::move(*name), subdomains, std::move(ports), std::move(methods)};
}

Wrong PackageNameRule::check(std::string_view text) {
  if (text.size() > 128) return "is longer than 128 characters: no package is called so";
  for (const auto& part : split(text, '.'))
    if (part.empty() || !(isLetter(part[0]) || isDigit(part[0]) || part[0] == '_') ||
        !std::ranges::all_of(
            part, [](char c) { return isLetter(c) || isDigit(c) || c == '_' || c == '-' || c == '+'; }))
      return "is no name of a package: write it as nixpkgs has it, like \"ripgrep\" or "
             "\"python3Packages.numpy\"";
  return {};
}

std::expected<HeaderName, std::string> HeaderName::parse(std::string_view text) {
  // What HTTP, or a proxy on the way, gives a meaning of its own.
  constexpr auto taken = std::to_array<std::string_view>(
      {"accept", "accept-encoding", "connection", "cookie", "expect", "forwarded", "host", "keep-alive", "te",
       "trailer", "transfer-encoding", "upgrade", "user-agent", "via"});
  constexpr auto takenPrefixes = std::to_array<std::string_view>({"content-", "if-", "proxy-", "sec-"});
  auto name = lowered(text);
  if (name.empty() || name.size() > 64 || !isLetter(name[0]) ||
      !std::ranges::all_of(name, [](char c) { return isLetter(c) || isDigit(c) || c == '-'; }))
    return std::unexpected(
        "is no name of a header for a key: letters, digits and hyphens, at most 64, like \"x-api-key\"");
  const auto begins = [&](std::string_view prefix) { return name.starts_with(prefix); };
  if (contains(taken, name) || std::ranges::any_of(takenPrefixes, begins))
    return std::unexpected(
        "is a header that HTTP itself needs: name the one in which the provider expects the key, like "
        "\"x-api-key\"");
  return HeaderName{std::move(name)};
}

std::string Url::str() const {
  return std::string(tls ? "https" : "http") + "://" + host +
         (port == (tls ? 443 : 80) ? "" : ":" + std::to_string(port)) + path;
}

std::expected<Url, std::string> Url::parse(std::string_view text) {
  const auto wrong = [](std::string message) { return std::unexpected(std::move(message)); };
  Url url;
  const auto scheme = lowered(text.substr(0, text.find("://")));
  if (scheme.size() == text.size() || (scheme != "http" && scheme != "https"))
    return wrong("is no URL: write one that begins with http:// or https://");
  url.tls = scheme == "https";
  url.port = url.tls ? 443 : 80;
  text.remove_prefix(scheme.size() + 3);
  if (text.find('@') != std::string_view::npos)
    return wrong("has a user or password in it: leave that out; keys belong in \"api_key_file\"");
  if (text.find_first_of("?#") != std::string_view::npos)
    return wrong("has a query or fragment: leave out what begins with ? or #");

  auto authority = text.substr(0, text.find('/'));
  auto path = text.substr(authority.size());
  if (const auto colon = authority.find(':');
      colon != std::string_view::npos && colon == authority.rfind(':')) {
    const auto port = parsePort(authority.substr(colon + 1));
    if (!port) return wrong(port.error());
    url.port = *port;
    authority = authority.substr(0, colon);
  }
  url.host = lowered(authority);
  if (!isIpv4(url.host) && HostNameRule::check(url.host))
    return wrong(
        "has a bad host: write a host name, or an IPv4 address in its usual form, like \"10.100.1.1\"");

  if (path.ends_with('/')) path.remove_suffix(1);
  if (path.empty()) return url;
  for (const auto& part : split(path.substr(1), '/')) {
    const bool plain = std::ranges::all_of(
        part, [](char c) { return isLetter(c) || isDigit(c) || std::string_view("-._~").contains(c); });
    if (!plain || part.empty() || part == "." || part == "..")
      return wrong(
          "has a bad path: parts of letters, digits and - . _ ~ between single slashes, like \"/v1\"");
  }
  url.path = path;
  return url;
}

}  // namespace agentmachine
