// Checked strings: a value of one of these types has passed its rule, so renderers need no escaping
// decisions. Pure: no I/O.
#pragma once
#include <compare>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace agentmachine {

/// A string that passed `Rule::check`. The only way to get one is `parse`.
template <class Rule>
class Checked {
 public:
  /// The checked value, or what is wrong and what to write instead, as a phrase to put after the value or its
  /// place: "has upper case letters: …". It never repeats the value, which may be secret.
  static std::expected<Checked, std::string> parse(std::string_view text) {
    if (auto wrong = Rule::check(text)) return std::unexpected(std::move(*wrong));
    return Checked(std::string(text));
  }
  [[nodiscard]] const std::string& str() const { return text_; }
  auto operator<=>(const Checked&) const = default;

 private:
  explicit Checked(std::string text) : text_(std::move(text)) {}
  std::string text_;
};

#define AGENTMACHINE_CHECKED(Name)                             \
  struct Name##Rule {                                          \
    static std::optional<std::string> check(std::string_view); \
  };                                                           \
  using Name = Checked<Name##Rule>

/// Lower case letters, digits and inner hyphens, 1 to 57 characters, so that "agent-" + id fits a host name
/// (RFC 1123, 63 octets) whatever the prefix rule does.
AGENTMACHINE_CHECKED(AgentId);
/// Absolute, normal (no "..", ".", "//", no slash at the end), at most 4095 bytes (PATH_MAX), and free of
/// control characters, spaces and what systemd's files give a meaning: % : \ " ' $.
AGENTMACHINE_CHECKED(AbsolutePath);
/// The name of a package as nixpkgs has it ("ripgrep", "python3Packages.numpy"): letters, digits, `_`, `-`
/// and `+`, in parts between dots.
AGENTMACHINE_CHECKED(PackageName);
/// A DNS name in its ASCII form, lower case, no trailing dot; its last label begins with a letter, so that no
/// spelling of an IP address is one (RFC 1123, RFC 5890).
AGENTMACHINE_CHECKED(HostName);
/// A name of an environment variable that can't break the sandbox: not PATH, LD_*, *_PROXY, OPENCODE_* ….
AGENTMACHINE_CHECKED(EnvironmentName);
/// One line of UTF-8 without control characters (isControl).
AGENTMACHINE_CHECKED(PlainText);

#undef AGENTMACHINE_CHECKED

/// The name machined knows: "agent-" + id, or the id itself if it already begins with "agent-".
class MachineName {
 public:
  explicit MachineName(const AgentId& id)
      : name_(id.str().starts_with("agent-") ? id.str() : "agent-" + id.str()) {}
  [[nodiscard]] const std::string& str() const { return name_; }
  /// "systemd-nspawn@agent-x.service". Machine names need no escaping in unit names.
  [[nodiscard]] std::string unit() const { return "systemd-nspawn@" + name_ + ".service"; }
  auto operator<=>(const MachineName&) const = default;

 private:
  std::string name_;
};

/// A line of `allowed_hosts`: "x.org", "x.org:80,8080", ".x.org" or "*.x.org" (the last two are the same),
/// and "GET,HEAD x.org:80". Upper case is taken as lower. Names of one label are refused: a whole top-level
/// domain, or a name that only a search list of the host would complete.
struct HostPattern {
  HostName name;
  bool subdomains = false;                   ///< also every name below `name`, and `name` itself
  std::vector<std::uint16_t> ports = {443};  ///< at least one, in order, none twice
  std::vector<std::string> methods{};        ///< HTTP's (RFC 9110, 9.1), in order; empty: any, and tunnels
  auto operator<=>(const HostPattern&) const = default;
  /// As written in a policy: "[METHOD,… ][.]NAME:PORT,…".
  [[nodiscard]] std::string str() const;
  static std::expected<HostPattern, std::string> parse(std::string_view text);
};

/// A header's name (RFC 9110, 5.1), in lower case, that carries nothing but a key: not one that HTTP itself
/// gives a meaning.
struct HeaderName {
  std::string name;
  auto operator<=>(const HeaderName&) const = default;
  [[nodiscard]] const std::string& str() const { return name; }
  /// Upper case is taken as lower.
  static std::expected<HeaderName, std::string> parse(std::string_view text);
};

/// What is wrong with a path as a workspace, beyond AbsolutePath: it is, holds or is part of the system, of
/// all homes, or of one whole home. Judges the text only; symbolic links are the host's to resolve.
std::optional<std::string> checkWorkspace(std::string_view path);

/// An http or https URL without user, query or fragment.
struct Url {
  bool tls = true;
  std::string host;  ///< a HostName, of one label too, or an IPv4 address with four decimal parts
  std::uint16_t port = 443;
  std::string path;  ///< "" or "/…" of letters, digits and "-._~", no trailing slash, no "..", no empty part
  auto operator<=>(const Url&) const = default;
  [[nodiscard]] std::string str() const;
  static std::expected<Url, std::string> parse(std::string_view text);
};

}  // namespace agentmachine
