#include "system/systemd.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <csignal>
#include <format>
#include <fstream>
#include <map>
#include <mutex>

#include <sdbus-c++/sdbus-c++.h>

#include "build_config.h"
#include "system/bus_loop.h"
#include "system/clock.h"
#include "util/error.h"

namespace agentmachine {

namespace {

const sdbus::ServiceName service{"org.freedesktop.systemd1"};
const sdbus::ObjectPath managerPath{"/org/freedesktop/systemd1"};
constexpr auto managerInterface = "org.freedesktop.systemd1.Manager";

using TransientProperty = sdbus::Struct<std::string, sdbus::Variant>;
using AuxiliaryUnit = sdbus::Struct<std::string, std::vector<TransientProperty>>;
using UnitEntry = sdbus::Struct<std::string, std::string, std::string, std::string, std::string, std::string,
                                sdbus::ObjectPath, std::uint32_t, std::string, sdbus::ObjectPath>;

/// Translates what the bus says; `what` is "verb object".
template <class Call>
auto translated(const std::string& what, Call&& call) {
  try {
    return call();
  } catch (const sdbus::Error& cause) {
    throw Error(what + ": " + cause.getMessage());
  }
}

std::unique_ptr<sdbus::IProxy> manager(sdbus::IConnection& bus) {
  return sdbus::createProxy(bus, service, managerPath);
}

template <class Value>
Value managerProperty(sdbus::IConnection& bus, const std::string& name) {
  return translated("ask systemd for " + name, [&] {
    return manager(bus)->getProperty(name).onInterface(managerInterface).template get<Value>();
  });
}

/// Of a unit, which is loaded if need be.
std::unique_ptr<sdbus::IProxy> unitProxy(sdbus::IConnection& bus, const std::string& unit) {
  sdbus::ObjectPath path;
  manager(bus)->callMethod("LoadUnit").onInterface(managerInterface).withArguments(unit).storeResultsTo(path);
  return sdbus::createProxy(bus, service, path);
}

/// Whether systemd still has a job, as far as it answers.
enum class JobIs { there, gone, unknown };
JobIs lookAtJob(sdbus::IConnection& bus, const sdbus::ObjectPath& job) {
  try {
    (void)sdbus::createProxy(bus, service, job)
        ->getProperty("State")
        .onInterface("org.freedesktop.systemd1.Job")
        .get<std::string>();
    return JobIs::there;
  } catch (const sdbus::Error& cause) {
    return cause.getName() == "org.freedesktop.DBus.Error.UnknownObject" ? JobIs::gone : JobIs::unknown;
  }
}

void startTransient(sdbus::IConnection& bus, const std::string& unit,
                    const std::vector<TransientProperty>& properties) {
  sdbus::ObjectPath job;
  manager(bus)
      ->callMethod("StartTransientUnit")
      .onInterface(managerInterface)
      .withArguments(unit, "fail", properties, std::vector<AuxiliaryUnit>{})
      .storeResultsTo(job);
}

}  // namespace

SystemdVersion SystemdVersion::parse(std::string_view text) {
  SystemdVersion version;
  const auto* const begin = text.data();
  const auto* const end = begin + text.size();
  const auto [next, error] = std::from_chars(begin, end, version.major);
  if (error == std::errc() && next != end && *next == '.') std::from_chars(next + 1, end, version.minor);
  return version;
}

void checkSystemdVersion(const std::string& version) {
  if (SystemdVersion::parse(version).major < AGENTMACHINE_SYSTEMD_MIN)
    throw Error(std::format(
        "this host runs systemd {}, and agentmachine needs {} or newer, as Debian 13 has: upgrade the host",
        version, AGENTMACHINE_SYSTEMD_MIN));
}

Systemd::Systemd()
    : bus_(translated("connect to the system bus", [] { return sdbus::createSystemBusConnection(); })) {
  // systemd answers nothing while it reads its units again, which may take longer than the bus's own 25 s.
  if (!secure_getenv("SYSTEMD_BUS_TIMEOUT")) bus_->setMethodCallTimeout(std::chrono::minutes(2));
  checkSystemdVersion(managerProperty<std::string>(*bus_, "Version"));
  // Once a connection; without it systemd sends no JobRemoved.
  translated("subscribe to systemd",
             [&] { manager(*bus_)->callMethod("Subscribe").onInterface(managerInterface); });
  loop_ = std::make_unique<BusLoop>(*bus_);
}

Systemd::~Systemd() = default;

void Systemd::runJob(const std::string& method, const std::string& unit, const std::string& mode,
                     std::optional<std::chrono::seconds> killAfter,
                     std::optional<std::chrono::seconds> longest) {
  // The job may end before its number is known here, so results are collected by job until ours is among
  // them. The proxy comes after what its handler uses, and goes before it.
  std::mutex mutex;
  std::condition_variable ended;
  std::map<std::string, std::string> results;
  const auto proxy = manager(*bus_);
  proxy->uponSignal("JobRemoved")
      .onInterface(managerInterface)
      .call([&](std::uint32_t, const sdbus::ObjectPath& job, const std::string&, const std::string& result) {
        const std::scoped_lock lock(mutex);
        results[job] = result;
        ended.notify_all();
      });
  sdbus::ObjectPath job;
  proxy->callMethod(method).onInterface(managerInterface).withArguments(unit, mode).storeResultsTo(job);
  std::unique_lock lock(mutex);
  const auto isEnded = [&] { return results.contains(job); };
  using Clock = std::chrono::steady_clock;
  auto killAt = killAfter ? std::optional(Clock::now() + *killAfter) : std::nullopt;
  // So often it is looked whether the bus is there, and asked for the job: one whose end nobody tells,
  // because systemd was executed anew just then, would be awaited for ever.
  constexpr std::chrono::seconds look{1}, ask{5}, patience{180};
  const std::string whatBecame = "; what became of it: systemctl status " + unit;
  auto asked = Clock::now(), answered = asked;
  const auto end = longest ? asked + *longest : Clock::time_point::max();
  while (!ended.wait_until(lock, std::min({Clock::now() + look, killAt.value_or(end), end}), isEnded)) {
    if (Clock::now() >= end) throw Error(std::format("{}: not done after {}; it goes on", unit, *longest));
    if (loop_->isBroken()) throw Error(unit + ": the system bus went away" + whatBecame);
    lock.unlock();
    if (killAt && Clock::now() >= *killAt) {
      killAt.reset();
      kill(unit);
    }
    const auto state = Clock::now() - asked < ask ? std::nullopt : std::optional(lookAtJob(*bus_, job));
    lock.lock();
    if (!state) continue;
    asked = Clock::now();
    if (*state != JobIs::unknown) answered = asked;
    if (asked - answered > patience) throw Error(unit + ": systemd does not answer" + whatBecame);
    if (*state != JobIs::gone) continue;
    // What it sent before that answer may be on its way to the handler.
    if (ended.wait_for(lock, look, isEnded)) break;
    lock.unlock();
    const auto active = activeState(unit);
    const bool down = active == "inactive" || active == "failed";
    if (method == "StopUnit" ? down : active == "active") return;
    throw Error(unit + ": systemd lost the job when it was executed anew" + whatBecame);
  }
  const std::string result = results.at(job);
  lock.unlock();
  if (result != "done") throw Error(unit + ": the job ended with \"" + result + "\"");
}

void Systemd::kill(const std::string& unit) {
  // Not all of the unit at once: its hook that cleans up may be at work by now.
  const auto group = controlGroup(unit);
  if (!group.empty()) std::ofstream("/sys/fs/cgroup" + group + "/payload/cgroup.kill") << "1";
  try {
    manager(*bus_)
        ->callMethod("KillUnit")
        .onInterface(managerInterface)
        .withArguments(unit, "main", std::int32_t{SIGKILL});
  } catch (const sdbus::Error& cause) {
    // It has just ended.
    if (cause.getName() != "org.freedesktop.systemd1.NoSuchProcess" &&
        cause.getName() != "org.freedesktop.systemd1.NoSuchUnit")
      throw;
  }
}

void Systemd::start(const std::string& unit, std::optional<std::chrono::seconds> longest) {
  translated("start " + unit, [&] { runJob("StartUnit", unit, "replace", std::nullopt, longest); });
}

void Systemd::enqueueStart(const std::string& unit) {
  translated("start " + unit, [&] {
    sdbus::ObjectPath job;
    manager(*bus_)
        ->callMethod("StartUnit")
        .onInterface(managerInterface)
        .withArguments(unit, "replace")
        .storeResultsTo(job);
  });
}

void Systemd::stop(const std::string& unit, std::optional<std::chrono::seconds> timeout) {
  try {
    runJob("StopUnit", unit, "replace", timeout);
  } catch (const sdbus::Error& cause) {
    if (cause.getName() == "org.freedesktop.systemd1.NoSuchUnit") return;
    throw Error("stop " + unit + ": " + cause.getMessage());
  }
}

void Systemd::stopForSure(const std::string& unit) {
  translated("stop " + unit, [&] { runJob("StopUnit", unit, "replace-irreversibly"); });
}

void Systemd::signal(const std::string& unit, int number) {
  if (activeState(unit) != "active") return;
  translated("signal " + unit, [&] {
    manager(*bus_)
        ->callMethod("KillUnit")
        .onInterface(managerInterface)
        .withArguments(unit, "main", std::int32_t{number});
  });
}

void Systemd::resetFailed(const std::string& unit) {
  try {
    manager(*bus_)->callMethod("ResetFailedUnit").onInterface(managerInterface).withArguments(unit);
  } catch (const sdbus::Error& cause) {
    if (cause.getName() == "org.freedesktop.systemd1.NoSuchUnit") return;
    throw Error("reset " + unit + ": " + cause.getMessage());
  }
}

bool Systemd::needsReload(const std::string& unit, const std::string& dropIn) {
  if (listUnits(unit).empty()) return false;
  return translated("look at " + unit, [&] {
    constexpr auto interface = "org.freedesktop.systemd1.Unit";
    const auto loaded = unitProxy(*bus_, unit);
    const auto dropIns =
        loaded->getProperty("DropInPaths").onInterface(interface).get<std::vector<std::string>>();
    // A directory that is new since it read the units is none to NeedDaemonReload.
    return !std::ranges::contains(dropIns, dropIn) ||
           loaded->getProperty("NeedDaemonReload").onInterface(interface).get<bool>();
  });
}

void Systemd::reloadUnit(const std::string& unit, const std::string& dropIn) {
  if (!needsReload(unit, dropIn)) return;
  translated("reload " + unit, [&] { manager(*bus_)->callMethod("Reload").onInterface(managerInterface); });
}

std::vector<UnitState> Systemd::listUnits(const std::string& pattern) {
  return translated("list units", [&] {
    std::vector<UnitEntry> entries;
    manager(*bus_)
        ->callMethod("ListUnitsByPatterns")
        .onInterface(managerInterface)
        .withArguments(std::vector<std::string>{}, std::vector<std::string>{pattern})
        .storeResultsTo(entries);
    std::vector<UnitState> units;
    for (const auto& entry : entries) units.push_back({entry.get<0>(), entry.get<3>(), entry.get<4>()});
    return units;
  });
}

std::string Systemd::activeState(const std::string& unit) {
  const auto units = listUnits(unit);
  return units.empty() ? "inactive" : units.front().active;
}

std::uint32_t Systemd::restarts(const std::string& unit) {
  return translated("ask systemd for the restarts of " + unit, [&] {
    return unitProxy(*bus_, unit)
        ->getProperty("NRestarts")
        .onInterface("org.freedesktop.systemd1.Service")
        .get<std::uint32_t>();
  });
}

std::string Systemd::controlGroup(const std::string& unit) {
  return translated("ask systemd for the control group of " + unit, [&] {
    return unitProxy(*bus_, unit)
        ->getProperty("ControlGroup")
        .onInterface("org.freedesktop.systemd1.Service")
        .get<std::string>();
  });
}

std::string Systemd::job(const std::string& unit) {
  return translated("ask systemd for the job of " + unit, [&] {
    const auto job = unitProxy(*bus_, unit)
                         ->getProperty("Job")
                         .onInterface("org.freedesktop.systemd1.Unit")
                         .get<sdbus::Struct<std::uint32_t, sdbus::ObjectPath>>();
    if (job.get<0>() == 0) return std::string();
    return sdbus::createProxy(*bus_, service, job.get<1>())
        ->getProperty("JobType")
        .onInterface("org.freedesktop.systemd1.Job")
        .get<std::string>();
  });
}

bool Systemd::isStopping() {
  return managerProperty<std::string>(*bus_, "SystemState") == "stopping";
}

void Systemd::startTimer(const std::string& timer, const std::string& description,
                         const std::vector<std::chrono::microseconds>& times) {
  stop(timer);
  // OnStartupSec= counts from when systemd came up, so it is an absolute time.
  const std::chrono::microseconds startup(
      managerProperty<std::uint64_t>(*bus_, "UserspaceTimestampMonotonic"));
  using Timer = sdbus::Struct<std::string, std::uint64_t>;
  std::vector<Timer> timers;
  // Whole milliseconds: that is what systemd keeps of it over a daemon-reload.
  for (const auto time : times) {
    const auto fromStartup = std::max((time - startup).count(), std::int64_t{1000});
    timers.push_back({"OnStartupSec", static_cast<std::uint64_t>(fromStartup) / 1000 * 1000});
  }
  translated("start " + timer, [&] {
    startTransient(*bus_, timer,
                   {{"Description", sdbus::Variant(description)},
                    {"TimersMonotonic", sdbus::Variant(timers)},
                    {"AccuracyUSec", sdbus::Variant(std::uint64_t{100'000})},
                    {"RemainAfterElapse", sdbus::Variant(false)}});
  });
}

void Systemd::startRepeatingTimer(const std::string& timer, const std::string& description,
                                  std::chrono::microseconds interval) {
  stop(timer);
  using Timer = sdbus::Struct<std::string, std::uint64_t>;
  const auto count = static_cast<std::uint64_t>(interval.count());
  translated("start " + timer, [&] {
    startTransient(*bus_, timer,
                   {{"Description", sdbus::Variant(description)},
                    {"TimersMonotonic", sdbus::Variant(std::vector<Timer>{{"OnActiveSec", count},
                                                                          {"OnUnitInactiveSec", count}})},
                    {"AccuracyUSec", sdbus::Variant(std::uint64_t{1'000'000})}});
  });
}

void Systemd::startWatch(const std::string& path, const std::string& description, const std::string& file) {
  // One that was left by a run whose end was cut short may watch another file. Once stopped it is forgotten:
  // nothing refers to it.
  stop(path);
  using Watch = sdbus::Struct<std::string, std::string>;
  translated("start " + path, [&] {
    startTransient(*bus_, path,
                   {{"Description", sdbus::Variant(description)},
                    {"Paths", sdbus::Variant(std::vector<Watch>{{"PathChanged", file}})}});
  });
}

}  // namespace agentmachine
