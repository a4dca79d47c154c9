#include "system/run_record.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstring>
#include <format>

#include <nlohmann/json.hpp>

#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

constexpr std::size_t maxRecordBytes = 65536;
constexpr mode_t recordMode = 0600;
/// Of each record, which an older program must not take for its own; one without is of version 1.
constexpr int recordVersion = 1;
constexpr std::array<std::string_view, 7> causeNames = {"payload", "start", "person",  "systemd",
                                                        "ttl",     "idle",  "shutdown"};

std::int64_t seconds(std::chrono::sys_seconds time) {
  return time.time_since_epoch().count();
}
std::chrono::sys_seconds time(const nlohmann::json& seconds) {
  return std::chrono::sys_seconds(std::chrono::seconds(seconds.get<std::int64_t>()));
}
EndCause cause(const nlohmann::json& name) {
  const auto found = std::ranges::find(causeNames, name.get_ref<const std::string&>());
  if (found == causeNames.end()) throw Error("unknown cause \"" + name.get<std::string>() + "\"");
  return static_cast<EndCause>(found - causeNames.begin());
}

template <class Record>
std::optional<Record> read(const std::string& path, Record (*parse)(const nlohmann::json&)) {
  const auto text = readFileIfExists(path, maxRecordBytes);
  if (!text) return std::nullopt;
  return inContext("read " + path, [&] {
    try {
      const auto json = nlohmann::json::parse(*text);
      if (const int version = json.value("version", 1); version > recordVersion)
        throw Error(std::format("written by a newer agentmachine (version {}, this one knows {})", version,
                                recordVersion));
      return parse(json);
    } catch (const nlohmann::json::exception& problem) {
      throw Error(std::string("it is damaged; the next start that somebody asks for writes it anew: ") +
                  problem.what());
    }
  });
}

/// What PID 1 exits with: the payload's status, or 128 and the signal that killed it (guest/ending.h).
std::string describeStatus(int status, std::uint64_t oomKills) {
  constexpr int signalBase = 128;
  std::string text = status == 0 ? "ended" : std::format("exited with status {}", status);
  if (status > signalBase && status < signalBase + NSIG) {
    const char* name = sigabbrev_np(status - signalBase);
    if (status == signalBase + SIGKILL && oomKills > 0) return "killed because its memory ran out";
    text = std::format("killed by signal {}{}", status - signalBase, name ? std::format(" ({})", name) : "");
  }
  if (oomKills > 0) text += std::format("; memory ran out, {} killed", oomKills);
  return text;
}

std::string describePayload(const EndRecord& end) {
  int status = 0;
  const auto* last = end.status.data() + end.status.size();
  const auto [next, error] = std::from_chars(end.status.data(), last, status);
  if (end.code == "exited" && error == std::errc() && next == last)
    return describeStatus(status, end.oomKills);
  // nspawn itself.
  if (end.code == "killed" || end.code == "dumped") return "systemd-nspawn was killed by " + end.status;
  return end.result.empty() ? "ended" : "ended: " + end.result;
}

}  // namespace

std::string_view toString(EndCause cause) {
  return causeNames.at(static_cast<std::size_t>(cause));
}

void writeRunRecord(const std::string& state, const RunRecord& record) {
  nlohmann::ordered_json json = {
      {"version", recordVersion},       {"invocation", record.invocation}, {"boot", record.boot},
      {"since", seconds(record.since)}, {"asked", seconds(record.asked)},  {"restarts", record.restarts},
      {"leader", record.leader},        {"oom_kills", record.oomKills},    {"image", record.image}};
  if (record.ttlDeadline) json["ttl_deadline_usec"] = record.ttlDeadline->count();
  if (record.began) json["began_usec"] = record.began->count();
  writeFileAtomically(state + "/run.json", json.dump(), recordMode);
}

std::optional<RunRecord> readRunRecord(const std::string& state) {
  return read<RunRecord>(state + "/run.json", [](const nlohmann::json& json) {
    RunRecord record{.invocation = json.at("invocation"),
                     .boot = json.at("boot"),
                     .since = time(json.at("since")),
                     .asked = time(json.at("asked")),
                     .restarts = json.at("restarts"),
                     .ttlDeadline = {},
                     .leader = json.at("leader"),
                     .oomKills = json.at("oom_kills"),
                     .image = json.value("image", "")};
    if (json.contains("ttl_deadline_usec"))
      record.ttlDeadline = std::chrono::microseconds(json.at("ttl_deadline_usec").get<std::int64_t>());
    if (json.contains("began_usec"))
      record.began = std::chrono::microseconds(json.at("began_usec").get<std::int64_t>());
    return record;
  });
}

void StartTimes::add(std::chrono::microseconds took) {
  const auto seconds = std::chrono::duration<double>(took).count();
  const auto bucket = std::ranges::find_if(bounds, [&](double bound) { return seconds <= bound; });
  ++counts.at(static_cast<std::size_t>(bucket - bounds.begin()));
  sum += took;
}

void noteStart(const std::string& state, std::chrono::microseconds took) {
  StartTimes times;
  try {
    times = readStartTimes(state).value_or(StartTimes{});
  } catch (const Error&) {
    // To Prometheus a restart of the counter.
  }
  times.add(took);
  const nlohmann::ordered_json json = {
      {"version", recordVersion}, {"counts", times.counts}, {"sum_usec", times.sum.count()}};
  writeFileAtomically(state + "/starts.json", json.dump(), recordMode);
}

std::optional<StartTimes> readStartTimes(const std::string& state) {
  return read<StartTimes>(state + "/starts.json", [](const nlohmann::json& json) {
    StartTimes times;
    // Other bounds may have been another version's.
    if (json.at("counts").size() != times.counts.size()) throw Error("it has other buckets");
    times.counts = json.at("counts").get<decltype(times.counts)>();
    times.sum = std::chrono::microseconds(json.at("sum_usec").get<std::int64_t>());
    return times;
  });
}

void writeEndRecord(const std::string& state, const EndRecord& record) {
  const nlohmann::ordered_json json = {{"version", recordVersion},
                                       {"invocation", record.invocation},
                                       {"at", seconds(record.at)},
                                       {"cause", toString(record.cause)},
                                       {"by", record.by},
                                       {"result", record.result},
                                       {"code", record.code},
                                       {"status", record.status},
                                       {"oom_kills", record.oomKills}};
  writeFileAtomically(state + "/end.json", json.dump(), recordMode);
}

std::optional<EndRecord> readEndRecord(const std::string& state) {
  return read<EndRecord>(state + "/end.json", [](const nlohmann::json& json) {
    return EndRecord{.invocation = json.at("invocation"),
                     .at = time(json.at("at")),
                     .cause = cause(json.at("cause")),
                     .by = json.at("by"),
                     .result = json.at("result"),
                     .code = json.at("code"),
                     .status = json.at("status"),
                     .oomKills = json.at("oom_kills")};
  });
}

void noteOomKills(const std::string& state, const EndRecord& end) {
  if (end.oomKills == 0) return;
  OomKills kills;
  try {
    kills = readOomKills(state).value_or(OomKills{});
  } catch (const Error&) {
    // To Prometheus a restart of the counter.
  }
  // A hook that was killed and is run again.
  if (kills.lastRun == end.invocation) return;
  const nlohmann::ordered_json json = {
      {"version", recordVersion}, {"sum", kills.sum + end.oomKills}, {"last_run", end.invocation}};
  writeFileAtomically(state + "/oom-kills.json", json.dump(), recordMode);
}

std::optional<OomKills> readOomKills(const std::string& state) {
  return read<OomKills>(state + "/oom-kills.json", [](const nlohmann::json& json) {
    return OomKills{.sum = json.at("sum"), .lastRun = json.at("last_run")};
  });
}

bool endsAfter(const EndRecord& end, const RunRecord& run) {
  return end.invocation == run.invocation || end.at > run.since;
}

void forgetOlderEnd(const std::string& state) {
  const auto run = readRunRecord(state);
  const auto end = readEndRecord(state);
  if (run && end && !endsAfter(*end, *run)) removeFile(state + "/end.json");
}

void noteStopReason(const std::string& state, const StopReason& reason) {
  const nlohmann::ordered_json json = {
      {"version", recordVersion}, {"cause", toString(reason.cause)}, {"by", reason.by}};
  writeFileAtomically(state + "/stop.json", json.dump(), recordMode);
}

std::optional<StopReason> takeStopReason(const std::string& state) {
  const std::string path = state + "/stop.json";
  try {
    auto reason = read<StopReason>(path, [](const nlohmann::json& json) {
      return StopReason{.cause = cause(json.at("cause")), .by = json.at("by")};
    });
    removeFile(path);
    return reason;
  } catch (const Error&) {
    // One that a fault of the disk spoilt says nothing, and must keep no machine from its next start or stop.
    removeFile(path);
    return std::nullopt;
  }
}

std::string describe(const EndRecord& end) {
  const std::string killed = end.result == "timeout" ? ", killed when it did not end in time" : "";
  switch (end.cause) {
    case EndCause::payload:
      return describePayload(end);
    case EndCause::start:
      return "did not start";
    case EndCause::person:
      return "stopped by " + end.by + killed;
    case EndCause::systemd:
      return "stopped by systemctl or machinectl" + killed;
    case EndCause::ttl:
      return "its time was up" + killed;
    case EndCause::idle:
      return "nothing happened in it" + killed;
    case EndCause::shutdown:
      return "the host was shut down";
  }
  return "";
}

std::string bootId() {
  return trim(readFile("/proc/sys/kernel/random/boot_id", 64));
}

}  // namespace agentmachine
