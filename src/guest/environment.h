// Which environment variables a command in the machine gets. Pure: no I/O.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "guest/user.h"

namespace agentmachine {

using Environment = std::map<std::string, std::string>;

/// As POSIX has it: letters, digits and '_', no digit first.
bool isVariableName(std::string_view name);

/// What PID 1 was started with, less what the machine's manager tells only PID 1 (NOTIFY_SOCKET, LISTEN_*,
/// container*, …) and less the identity of root that systemd-nspawn sets.
Environment payloadEnvironment(const char* const* environ);

/// The environment of one command: `base`, completed with `user`'s identity, `given` ("NAME=VALUE") winning.
/// HOME in `base` is the payload's own: with `ownHome` false the user gets the one of the password file.
Environment commandEnvironment(Environment base, const User& user, bool ownHome,
                               const std::vector<std::string>& given);

}  // namespace agentmachine
