// The configuration of the egress proxy, as text for squid(8). Pure: no I/O. It names no machine and no key:
// those are the policy helper's, so that squid never reloads for them.
#pragma once
#include <map>
#include <string>

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

/// What a refused machine reads, by file name: templates in squid's notation, of plain text.
std::map<std::string, std::string> squidErrorPages();

}  // namespace agentmachine
