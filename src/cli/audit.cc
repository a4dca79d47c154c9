#include "observe/audit.h"

#include <format>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "system/host.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::size_t linesBeforeFollowing = 10;  // journalctl's
constexpr std::size_t cellWidth = 60;

struct Options {
  std::string id;
  std::string since;
  int lines = -1;
  bool follow = false, denied = false, json = false;
};

/// By id or machine's name; of machines that were removed, too.
AgentId agentOf(const std::string& idOrName) {
  for (const auto& [id, machine] : readMachineRecords(readSettings()).machines)
    if (id == idOrName || machine.name().str() == idOrName) return machine.card.id;
  auto id = AgentId::parse(idOrName);
  if (!id) throw Error(inQuotes(idOrName) + " is no agent id: " + id.error());
  return std::move(*id);
}

std::string cell(const std::string& text) {
  return text.empty() ? "-" : escaped(text, cellWidth);
}

/// Aligned without knowing what comes, so that it can go on while it is followed.
void printRow(const std::vector<std::string>& cells) {
  std::cout << std::format("{:<24} {:<12} {:<8} {:<7} {:<36} {:>9} {:>9} {:>7}  {}\n", cells[0], cells[1],
                           cells[2], cells[3], cells[4], cells[5], cells[6], cells[7], cells[8]);
}

void printForPeople(const AuditRecord& record) {
  std::string why = cell(record.reason);
  if (!record.rule.empty()) why += " (" + cell(record.rule) + ")";
  // The name in a tunnel's TLS matters where it isn't the tunnel's.
  if (!record.sni.empty() && record.sni != record.host) why += ", server name " + cell(record.sni);
  if (record.decision == "allow" && !record.error.empty()) why += ", then " + cell(record.error);
  printRow({cell(record.time), record.id.empty() ? cell(record.source) : cell(record.id),
            cell(record.decision), cell(record.method),
            cell(record.host) + (record.port ? ":" + std::to_string(*record.port) : ""),
            humanBytes(record.bytesUp), humanBytes(record.bytesDown), std::format("{}ms", record.ms), why});
}

void printAudit(const Options& options) {
  AuditQuery query{.denied = options.denied, .follow = options.follow};
  if (!options.id.empty()) query.id = agentOf(options.id);
  if (!options.since.empty()) query.since = parseJournalTime(options.since);
  if (options.lines >= 0)
    query.last = static_cast<std::size_t>(options.lines);
  else if (options.follow && !query.since)
    query.last = linesBeforeFollowing;
  bool any = false;
  readAudit(query, [&](const AuditRecord& record) {
    if (!any && !options.json)
      printRow({"TIME", "AGENT", "DECISION", "METHOD", "HOST", "UP", "DOWN", "TOOK", "WHY"});
    any = true;
    if (options.json)
      std::cout << toJson(record) << "\n";
    else
      printForPeople(record);
    // Who follows through a pipe wants each line at once.
    if (options.follow) std::cout.flush();
    return std::cout.good();
  });
  if (!any && !options.json)
    std::cerr << "the journal has no such decision of the proxy"
              << (options.id.empty() ? "" : "; `agentmachine audit` shows those of all agents") << "\n";
}

}  // namespace

void addAuditCommand(CLI::App& app) {
  auto* command = app.add_subcommand("audit", "show what the proxy allowed and refused");
  auto options = std::make_shared<Options>();
  command->add_option("ID", options->id, "agent id; all agents without");
  command->add_flag("-f,--follow", options->follow, "go on with what is decided from now on");
  command->add_option("-n,--lines", options->lines, "only the last ones")->check(CLI::NonNegativeNumber);
  command->add_flag("--denied", options->denied, "only what was refused");
  command->add_option("--since", options->since, "only what ended since this time, as in systemd.time(7)");
  command->add_flag("--json", options->json, "print a JSON object a line");
  command->callback([options] {
    requireRoot("audit");
    printAudit(*options);
  });
}

}  // namespace agentmachine
