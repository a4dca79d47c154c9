#include "system/run_record.h"

#include <filesystem>

#include <nlohmann/json.hpp>

#include "util/error.h"
#include "util/file.h"

namespace agentmachine {

namespace {

constexpr std::size_t maxRecordBytes = 65536;
constexpr mode_t recordMode = 0600;

std::int64_t seconds(std::chrono::sys_seconds time) {
  return time.time_since_epoch().count();
}
std::chrono::sys_seconds time(std::int64_t seconds) {
  return std::chrono::sys_seconds(std::chrono::seconds(seconds));
}

template <class Record>
std::optional<Record> read(const std::string& path, Record (*parse)(const nlohmann::json&)) {
  const auto text = readFileIfExists(path, maxRecordBytes);
  if (!text) return std::nullopt;
  try {
    return parse(nlohmann::json::parse(*text));
  } catch (const nlohmann::json::exception& cause) {
    throw Error("read " + path + ": " + cause.what());
  }
}

}  // namespace

void writeRunRecord(const std::string& runtime, const RunRecord& record) {
  nlohmann::ordered_json json = {{"since", seconds(record.since)}, {"leader", record.leader}};
  if (record.ttlDeadline) json["ttl_deadline_usec"] = record.ttlDeadline->count();
  writeFileAtomically(runtime + "/run.json", json.dump(), recordMode);
}

std::optional<RunRecord> readRunRecord(const std::string& runtime) {
  return read<RunRecord>(runtime + "/run.json", [](const nlohmann::json& json) {
    RunRecord record{.since = time(json.at("since")), .ttlDeadline = {}, .leader = json.at("leader")};
    if (json.contains("ttl_deadline_usec"))
      record.ttlDeadline = std::chrono::microseconds(json.at("ttl_deadline_usec").get<std::int64_t>());
    return record;
  });
}

void writeEndRecord(const std::string& runtime, const EndRecord& record) {
  const nlohmann::ordered_json json = {{"at", seconds(record.at)},
                                       {"expired", record.expired},
                                       {"result", record.result},
                                       {"status", record.status}};
  writeFileAtomically(runtime + "/end.json", json.dump(), recordMode);
}

std::optional<EndRecord> readEndRecord(const std::string& runtime) {
  return read<EndRecord>(runtime + "/end.json", [](const nlohmann::json& json) {
    return EndRecord{.at = time(json.at("at")),
                     .expired = json.at("expired"),
                     .result = json.at("result"),
                     .status = json.at("status")};
  });
}

void removeEndRecord(const std::string& runtime) {
  removeFile(runtime + "/end.json");
}

void markExpired(const std::string& runtime) {
  writeFileAtomically(runtime + "/expired", "", recordMode);
}

bool consumeExpiredMark(const std::string& runtime) {
  const bool expired = std::filesystem::exists(runtime + "/expired");
  removeFile(runtime + "/expired");
  return expired;
}

}  // namespace agentmachine
