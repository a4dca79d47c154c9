// The command line of agentmachine-init. Pure: no I/O.
#pragma once
#include <chrono>
#include <string>
#include <vector>

namespace agentmachine {

/// An environment variable of the payload alone, whose value is in a file that only root can read.
struct SecretVariable {
  std::string name;
  std::string path;
};

struct Options {
  std::string waitInterface;  ///< The payload starts once this one is up, connected and has an address;
                              ///< empty: at once
  std::string user = "agent";
  std::string directory = "/workspace";
  std::vector<SecretVariable> secrets;
  std::chrono::seconds stopTimeout{10};
  std::vector<std::string> command;
};

/// Throws Error, which says what is wrong and where.
Options parseOptions(std::vector<std::string> arguments);

}  // namespace agentmachine
