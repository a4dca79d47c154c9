// Golden tests of what the command line says: cli/CASE.txt has commands, one a line, and expected/CASE.txt
// what each prints and its exit status. None of them runs as root.
#include <format>

#include <gtest/gtest.h>
#include <unistd.h>

#include "golden.h"
#include "util/file.h"
#include "util/process.h"
#include "util/text.h"

namespace agentmachine {

namespace {

std::string transcript(const std::string& line) {
  auto words = split(line, ' ');
  words[0] = AGENTMACHINE_PROGRAM;
  if (geteuid() == 0)
    words.insert(words.begin(), {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"});
  const auto result = runProcess(words);
  return std::format("$ {}\n{}{}[{}]\n", line, result.output, result.errors, result.status);
}

}  // namespace

void registerCliGoldens(const std::filesystem::path& root) {
  forEachCase("Cli", root / "cli", [root](const std::filesystem::path& entry) {
    std::filesystem::current_path(root);
    std::string text;
    for (const auto& line : split(trim(readFile(entry, maxGoldenBytes)), '\n'))
      text += (text.empty() ? "" : "\n") + transcript(line);
    expectGolden(root / "cli/expected" / entry.filename(), text);
  });
}

}  // namespace agentmachine
