#include "observe/metrics.h"

#include <iostream>
#include <memory>

#include <unistd.h>

#include "cli/commands.h"
#include "cli/common.h"
#include "observe/scrape.h"
#include "system/host.h"
#include "util/file.h"

namespace agentmachine {

namespace {

std::string metricsText() {
  Systemd systemd;
  return renderMetrics(readMetrics(readSettings(), systemd));
}

/// Who asks learns that it failed; why is for the journal.
void answerScrape() {
  constexpr std::chrono::seconds patience{5};
  const auto answer = [](std::string_view status, std::string_view text) {
    std::cout << scrapeAnswer(status, text) << std::flush;
  };
  const auto status = scrapeStatus(readScrape(STDIN_FILENO, patience));
  if (!status.starts_with("200")) return answer(status, "Metrics are at /metrics, for GET.\n");
  try {
    answer(status, metricsText());
  } catch (...) {
    answer("500 Internal Server Error", "The journal of agentmachine-metrics@.service says why.\n");
    throw;
  }
}

}  // namespace

void addMetricsCommand(CLI::App& app) {
  auto* command = app.add_subcommand("metrics", "machines, requests and guards in Prometheus' text format");
  auto output = std::make_shared<std::string>();
  auto http = std::make_shared<bool>(false);
  auto* file =
      command->add_option("--output", *output, "write them to this file, whose directory must exist");
  command->add_flag("--http", *http, "answer one HTTP request, read from standard input")->excludes(file);
  command->callback([output, http] {
    requireRoot("metrics");
    if (*http)
      answerScrape();
    else if (output->empty())
      std::cout << metricsText();
    else
      // For node_exporter, which is another user.
      writeFileAtomically(*output, metricsText(), 0644);
  });
}

}  // namespace agentmachine
