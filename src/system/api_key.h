// A card's API key, as the host keeps it: a file, or a systemd credential. Reads only.
#pragma once
#include <string>

#include "card/types.h"

namespace agentmachine {

/// The key in `path`. A path below /etc/credstore.encrypted, /run/credstore.encrypted or
/// /usr/lib/credstore.encrypted is decrypted by systemd-creds(1), its file name being the credential's. From
/// here on this process leaves no core file. Throws Error: "api_key_file PATH: what is wrong"; nothing but a
/// regular file is opened.
std::string readApiKey(const AbsolutePath& path);

}  // namespace agentmachine
