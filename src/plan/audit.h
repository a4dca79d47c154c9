// One decision of the egress proxy: the line in which squid tells it and the record that is kept of it. Pure:
// no I/O. What a machine can influence is percent-encoded by squid and stays so.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "card/types.h"

namespace agentmachine {

/// What isn't known is empty, and a number absent.
struct AuditRecord {
  std::string time;      ///< when it ended, in UTC: "2026-11-24T09:27:23.123Z"
  std::string id;        ///< of the agent; "" if the source is none's address
  std::string machine;   ///< "agent-x"
  std::string rule;      ///< what of the card decided
  std::string decision;  ///< "allow" or "deny"
  std::string reason;    ///< one word with hyphens
  std::string method;
  std::string host;  ///< that was asked for; behind the broker the provider's
  std::optional<std::uint64_t> port;
  std::string sni;                      ///< server name in the tunnel's TLS
  std::string address;                  ///< that was connected to
  std::uint64_t bytesUp = 0;            ///< from the machine, headers included
  std::uint64_t bytesDown = 0;          ///< to the machine
  std::uint64_t ms = 0;                 ///< from the first byte of the request to the end
  std::string source;                   ///< the machine's address
  std::string via;                      ///< "proxy" or "broker"
  std::string url;                      ///< without its query
  std::optional<std::uint64_t> status;  ///< HTTP's, as the machine saw it
  std::string error;                    ///< squid's name of what went wrong
  bool operator==(const AuditRecord&) const = default;
};

/// MESSAGE_ID of every record in the journal.
constexpr std::string_view auditMessageId = "b7c1f0a8e2b94c1c9d6b5a8d1f3e7c42";

/// The definition of squid's log format of that name, whose lines parseProxyLine reads.
std::string proxyLogFormat(std::string_view name, std::uint16_t brokerPort);

/// Throws Error if the line is none of proxyLogFormat. Its `id` is empty also if squid had nothing to ask
/// about.
AuditRecord parseProxyLine(std::string_view line);

/// Says whose the record is.
void setAgent(AuditRecord& record, const AgentId& id);

/// One line of JSON, in ASCII.
std::string toJson(const AuditRecord& record);

/// Throws Error if it is not what toJson wrote.
AuditRecord parseAuditRecord(std::string_view json);

/// The record as fields of the journal (systemd.journal-fields(7)): MESSAGE is its JSON, AGENTMACHINE_… are
/// its members, and one of an agent has the AGENT_ID and AGENT_MACHINE of all that concerns its machine.
std::vector<std::pair<std::string, std::string>> journalFields(const AuditRecord& record);

}  // namespace agentmachine
