// Runs another program to its end. Never through a shell.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace agentmachine {

struct ProcessResult {
  int status = 0;  ///< exit status; 128 + signal if it was killed by one, as shells say it
  std::string output;
  std::string errors;
};

/// Where a program's standard error goes: into ProcessResult::errors, or where ours goes.
enum class Errors { collected, inherited };

/// Runs `argv` (argv[0] is looked up in PATH) with `input` on its standard input, and collects what it prints
/// (at most 16 MiB of each). Throws Error only if it can't be started, or its input not be written.
ProcessResult runProcess(const std::vector<std::string>& argv, std::string_view input = {},
                         Errors errors = Errors::collected);

/// As runProcess, but a status other than 0 throws Error: "PROGRAM: what it wrote to standard error".
std::string runChecked(const std::vector<std::string>& argv, std::string_view input = {});

/// Runs `argv` and calls `line` with each line of its output, without its end, as it comes, until it returns
/// false: then the program is ended by SIGTERM. Standard input and error are ours. Returns its status, as in
/// ProcessResult. Throws Error only if it can't be started, or its output not be read.
int runLines(const std::vector<std::string>& argv, const std::function<bool(const std::string& line)>& line);

}  // namespace agentmachine
