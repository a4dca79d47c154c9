// What the egress proxy decided, from the journal. Reads only.
#pragma once
#include <functional>
#include <optional>

#include "card/types.h"
#include "plan/audit.h"
#include "system/journal.h"

namespace agentmachine {

struct AuditQuery {
  std::optional<AgentId> id;  ///< absent: all agents, and sources that are no agent's
  bool denied = false;        ///< only what was refused
  std::optional<JournalTime> since;
  std::optional<std::string> afterCursor;  ///< that readAudit returned
  std::optional<std::size_t> last;
  bool follow = false;
};

/// Calls `entry` with each record, oldest first, until it returns false. Only what the proxy's own unit wrote
/// counts: anybody on the host may send the journal such fields. Returns the cursor of the last one; "" if
/// there was none.
std::string readAudit(const AuditQuery& query, const std::function<bool(const AuditRecord&)>& entry);

}  // namespace agentmachine
