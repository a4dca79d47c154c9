// Which system calls are left to what runs in a machine: two seccomp filters, made once and loaded in each
// child. The list itself is in filter.cc.
#pragma once
#include <span>
#include <string_view>
#include <vector>

#include <linux/filter.h>

namespace agentmachine {

/// Programs for seccomp(2), of this machine's native architecture alone.
struct SystemCallFilter {
  std::vector<sock_filter> calls;      ///< which calls there are
  std::vector<sock_filter> arguments;  ///< which arguments of some of them are refused
};

/// Throws Error when libseccomp can't make them.
SystemCallFilter makeSystemCallFilter();

/// For this process and all that it starts, for good. Needs no-new-privileges. Throws Error.
void load(const SystemCallFilter& filter);

/// What one thing needs of the list.
struct CallGroup {
  const char* what;
  std::string_view calls;  ///< names with a space between any two
};
/// The list. doc/hardening.md has it as a table.
std::span<const CallGroup> allowedCallGroups();

/// The names of the calls on the list; some exist on other architectures only.
std::vector<std::string_view> allowedSystemCalls();

}  // namespace agentmachine
