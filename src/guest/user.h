// Users, from the machine's own password file. Never asks NSS, which would load code of the image into PID 1.
#pragma once
#include <optional>
#include <string>

#include <sys/types.h>

namespace agentmachine {

struct User {
  std::string name;
  uid_t uid;
  gid_t gid;
  std::string home;
  std::string shell;
};

/// Looks up a name or a decimal uid. Throws Error if the file can't be read.
std::optional<User> findUser(const std::string& nameOrUid, const char* passwordFile = "/etc/passwd");

}  // namespace agentmachine
