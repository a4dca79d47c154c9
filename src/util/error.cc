#include "util/error.h"

#include <cerrno>
#include <system_error>

namespace agentmachine {

Error errnoError(const std::string& what) {
  return errnoError(what, errno);
}

Error errnoError(const std::string& what, int code) {
  return Error(what + ": " + std::generic_category().message(code));
}

}  // namespace agentmachine
