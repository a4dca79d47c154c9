#include "guest/user.h"

#include <cstdio>
#include <memory>

#include <pwd.h>

#include "util/error.h"

namespace agentmachine {

std::optional<User> findUser(const std::string& nameOrUid, const char* passwordFile) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(passwordFile, "re"), fclose);
  if (!file) throw errnoError(std::string("read ") + passwordFile);
  while (const passwd* entry = fgetpwent(file.get())) {
    if (nameOrUid != entry->pw_name && nameOrUid != std::to_string(entry->pw_uid)) continue;
    return User{entry->pw_name, entry->pw_uid, entry->pw_gid, *entry->pw_dir ? entry->pw_dir : "/",
                *entry->pw_shell ? entry->pw_shell : "/bin/sh"};
  }
  return std::nullopt;
}

}  // namespace agentmachine
