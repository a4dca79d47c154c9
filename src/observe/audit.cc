#include "observe/audit.h"

#include "util/error.h"

namespace agentmachine {

std::string readAudit(const AuditQuery& query, const std::function<bool(const AuditRecord&)>& entry) {
  JournalQuery wanted{
      .matches = {"_SYSTEMD_UNIT=agentmachine-proxy.service", "MESSAGE_ID=" + std::string(auditMessageId)},
      .since = query.since,
      .afterCursor = query.afterCursor,
      .last = query.last,
      .follow = query.follow};
  if (query.id) wanted.matches.push_back("AGENTMACHINE_ID=" + query.id->str());
  if (query.denied) wanted.matches.emplace_back("AGENTMACHINE_DECISION=deny");
  return readJournal(wanted, [&](const std::string& message) { return entry(parseAuditRecord(message)); });
}

}  // namespace agentmachine
