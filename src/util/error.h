// The one kind of failure, and how context is added to it on the way up. No domain words.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

namespace agentmachine {

/// A failure: "verb object: cause". Only `cli` prints it. Not for bad input that can be listed
/// (see Problem in card/): that is returned, not thrown.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  /// "context: cause", for errors that pass through a caller who knows more.
  Error(const std::string& context, const Error& cause) : Error(context + ": " + cause.what()) {}
};

/// An Error whose cause is errno (or `code`): "open /x: No such file or directory".
Error errnoError(const std::string& what);
Error errnoError(const std::string& what, int code);

/// Runs `body`; an Error that leaves it is prefixed with "context: ".
template <class Body>
auto inContext(const std::string& context, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& cause) {
    throw Error(context, cause);
  }
}

}  // namespace agentmachine
