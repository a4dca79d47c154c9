#include "system/api_key.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include <sys/prctl.h>

#include "plan/policy.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace agentmachine {

namespace {

namespace fs = std::filesystem;

/// What an encrypted credential of maxKeyBytes may be large: Base64, and what the keys of a TPM add.
constexpr std::size_t maxEncryptedBytes = 128 * 1024;

bool isEncrypted(const fs::path& path) {
  // systemd's own search path (systemd.exec(5), LoadCredentialEncrypted=).
  constexpr auto stores = std::to_array<std::string_view>(
      {"/etc/credstore.encrypted", "/run/credstore.encrypted", "/usr/lib/credstore.encrypted"});
  return std::ranges::contains(stores, path.parent_path().string());
}

/// Opening a FIFO, or a device, may have effects of its own.
void checkKind(const fs::path& path) {
  std::error_code error;
  switch (fs::status(path, error).type()) {
    case fs::file_type::regular:
      return;
    case fs::file_type::directory:
      throw Error("is a directory: name the file in it that holds the key");
    case fs::file_type::not_found:
      throw Error("does not exist");
    case fs::file_type::none:
      throw Error(error.message());
    default:
      throw Error("is no regular file");
  }
}

std::string decrypted(const fs::path& path) {
  // By its standard input and output: neither argument lists nor the environment are secret.
  const auto blob = readFile(path, maxEncryptedBytes);
  return inContext("decrypt", [&] {
    return runChecked({"systemd-creds", "decrypt", "--name=" + path.filename().string(), "-", "-"}, blob);
  });
}

}  // namespace

std::string readApiKey(const AbsolutePath& path) {
  return inContext("api_key_file " + path.str(), [&] {
    (void)prctl(PR_SET_DUMPABLE, 0);
    checkKind(path.str());
    return parseKey(isEncrypted(path.str()) ? decrypted(path.str()) : readFile(path.str(), 2 * maxKeyBytes));
  });
}

}  // namespace agentmachine
