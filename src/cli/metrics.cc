#include "observe/metrics.h"

#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "util/file.h"

namespace agentmachine {

void addMetricsCommand(CLI::App& app) {
  auto* command = app.add_subcommand("metrics", "machines, requests and guards in Prometheus' text format");
  auto output = std::make_shared<std::string>();
  command->add_option("--output", *output, "write them to this file, whose directory must exist");
  command->callback([output] {
    requireRoot("metrics");
    Systemd systemd;
    const auto text = renderMetrics(readMetrics(readSettings(), systemd));
    if (output->empty())
      std::cout << text;
    else
      // For node_exporter, which is another user.
      writeFileAtomically(*output, text, 0644);
  });
}

}  // namespace agentmachine
