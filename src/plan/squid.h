// The configuration of the egress proxy, as text for squid(8). Pure: no I/O. It names no machine and no key:
// those are the policy helper's, so that squid never reloads for them.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/host.h"

namespace agentmachine {

/// Where squid finds what it works with.
struct SquidPaths {
  std::string helper;                 ///< the program agentmachine-policy
  std::string auditor;                ///< the program agentmachine-audit
  std::string certificate;            ///< PEM with key; squid wants one to look into TLS, never shows it
  std::string errorPages;             ///< directory of squidErrorPages
  std::string accessLog = "journal";  ///< where agentmachine-audit writes: the journal or a file
};

/// squid.conf for squid 6 built with OpenSSL, run as `squid -N -n agentmachine -f FILE`. Policies are read
/// from `policy/ADDRESS` and keys from `keys/ADDRESS` below Settings::runtimeDirectory. Throws Error for a
/// path that can't be written in squid.conf.
std::string renderSquidConf(const Settings& settings, const SquidPaths& paths);

/// What every squid.conf of ours begins with after its ports: nothing kept, nothing told, limits and
/// timeouts.
std::string_view squidBase();

/// The ACL "private": addresses that are nobody's on the internet.
std::string_view squidPrivateAddresses();

/// A header's name as it is, and with underscores for hyphens in every combination: many servers take one for
/// the other, and some let the later of two such headers win. Only the first four hyphens of a name vary.
std::vector<std::string> headerSpellings(const std::string& name);

/// What a refused machine reads, by file name: templates in squid's notation, of plain text.
std::map<std::string, std::string> squidErrorPages();

}  // namespace agentmachine
