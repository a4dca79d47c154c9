// How runs end in words, durations as people type them, and what `repair` finds to do.
#include <cstdlib>
#include <filesystem>
#include <format>

#include <gtest/gtest.h>
#include <unistd.h>

#include "apply/hooks.h"
#include "descriptors.h"
#include "plan/plan.h"
#include "plan/policy.h"
#include "plan/repair.h"
#include "system/host.h"
#include "system/remains.h"
#include "system/run_record.h"
#include "system/workspace.h"
#include "util/error.h"
#include "util/file.h"
#include "util/text.h"

namespace agentmachine {

namespace {

TEST(End, IsToldInWords) {
  const auto payload = [](const std::string& code, const std::string& status, std::uint64_t oomKills = 0) {
    return describe(EndRecord{.result = "exit-code", .code = code, .status = status, .oomKills = oomKills});
  };
  EXPECT_EQ(payload("exited", "0"), "ended");
  EXPECT_EQ(payload("exited", "7"), "exited with status 7");
  EXPECT_EQ(payload("exited", "139"), "killed by signal 11 (SEGV)");
  EXPECT_EQ(payload("exited", "137"), "killed by signal 9 (KILL)");
  EXPECT_EQ(payload("exited", "137", 1), "killed because its memory ran out");
  EXPECT_EQ(payload("exited", "1", 2), "exited with status 1; memory ran out, 2 killed");
  EXPECT_EQ(payload("killed", "KILL"), "systemd-nspawn was killed by KILL");
  EXPECT_EQ(payload("", ""), "ended: exit-code");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::person, .by = "anna"}), "stopped by anna");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::person, .by = "anna", .result = "timeout"}),
            "stopped by anna, killed when it did not end in time");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::systemd}), "stopped by systemctl or machinectl");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::ttl}), "its time was up");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::idle}), "nothing happened in it");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::start}), "did not start");
  EXPECT_EQ(describe(EndRecord{.cause = EndCause::shutdown}), "the host was shut down");
}

TEST(State, ThatCannotBeReadIsNotTakenForNone) {
  std::string directory = testing::TempDir() + "/state-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  Settings settings;
  settings.stateDirectory = directory;
  EXPECT_TRUE(readMachineRecords(settings).machines.empty()) << "none was made yet";
  // `repair` would remove all that there is of any machine.
  {
    const DescriptorsLeft now(0);
    EXPECT_THROW(readMachineRecords(settings), Error);
    EXPECT_THROW(remainsOnDisk(settings), Error);
    try {
      proxyGroup();
      FAIL() << "there is a user of whom nobody could know";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(),
                   std::format("look up the user \"{}\": Too many open files", proxyUser).c_str());
    }
  }
  std::filesystem::remove_all(directory);
}

TEST(Workspace, IsMadeWholeAfterOneThatWasKilled) {
  std::string directory = testing::TempDir() + "/place-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  std::filesystem::create_directory(directory + "/.#made-w");
  const Owner self{geteuid(), getegid()};
  EXPECT_TRUE(makeWorkspace(directory + "/w", 0750, self));
  EXPECT_EQ(namesIn(directory), std::vector<std::string>{"w"});
  EXPECT_EQ(std::filesystem::status(directory + "/w").permissions(), std::filesystem::perms(0750));
  EXPECT_FALSE(makeWorkspace(directory + "/w", 0700, self)) << "one that is there stays as it is";
  EXPECT_EQ(std::filesystem::status(directory + "/w").permissions(), std::filesystem::perms(0750));
  std::filesystem::remove_all(directory);
}

TEST(End, OfARunBeforeIsNotThatOfTheLast) {
  using std::chrono::sys_seconds, std::chrono::seconds;
  const RunRecord run{.invocation = "b", .since = sys_seconds(seconds(100))};
  const auto end = [](const std::string& invocation, int at) {
    return EndRecord{.invocation = invocation, .at = sys_seconds(seconds(at))};
  };
  EXPECT_TRUE(endsAfter(end("b", 200), run));
  EXPECT_TRUE(endsAfter(end("b", 90), run)) << "the clock was set back";
  EXPECT_FALSE(endsAfter(end("a", 90), run));
  EXPECT_FALSE(endsAfter(end("a", 100), run)) << "started again at once";
  EXPECT_TRUE(endsAfter(end("c", 200), run)) << "a start after it that had no record yet";
}

TEST(End, OfARunBeforeIsForgottenWhenTheNextBegins) {
  using std::chrono::sys_seconds, std::chrono::seconds;
  std::string state = testing::TempDir() + "/ends-XXXXXX";
  ASSERT_NE(mkdtemp(state.data()), nullptr);
  forgetOlderEnd(state);
  const auto run = [](const std::string& invocation, int since) {
    return RunRecord{.invocation = invocation, .since = sys_seconds(seconds(since))};
  };
  writeRunRecord(state, run("a", 100));
  writeEndRecord(state, {.invocation = "a", .at = sys_seconds(seconds(150))});
  forgetOlderEnd(state);
  EXPECT_EQ(readEndRecord(state).value().invocation, "a") << "of the last run";
  writeRunRecord(state, run("b", 200));
  forgetOlderEnd(state);
  EXPECT_FALSE(readEndRecord(state)) << "nobody noted the end of b";
  std::filesystem::remove_all(state);
}

TEST(Starts, AreAddedUpAndBegunAnewIfDamaged) {
  using namespace std::chrono_literals;
  std::string state = testing::TempDir() + "/starts-XXXXXX";
  ASSERT_NE(mkdtemp(state.data()), nullptr);
  EXPECT_EQ(readStartTimes(state), std::nullopt);
  noteStart(state, 200ms);
  noteStart(state, 60s);
  const auto times = readStartTimes(state).value();
  EXPECT_EQ(times.counts, (std::array<std::uint64_t, 8>{1, 0, 0, 0, 0, 0, 0, 1}));
  EXPECT_EQ(times.sum, 60'200ms);
  for (const char* damaged : {"{", R"({"counts": [1], "sum_usec": 1})"}) {
    writeFileAtomically(state + "/starts.json", damaged, 0600);
    EXPECT_THROW(readStartTimes(state), Error) << damaged;
    noteStart(state, 1s);
    EXPECT_EQ(readStartTimes(state).value().sum, 1s) << damaged;
  }
  std::filesystem::remove_all(state);
}

TEST(OomKills, AreAddedUpOnceForEachRun) {
  std::string state = testing::TempDir() + "/oom-kills-XXXXXX";
  ASSERT_NE(mkdtemp(state.data()), nullptr);
  noteOomKills(state, {.invocation = "a"});
  EXPECT_FALSE(readOomKills(state));
  noteOomKills(state, {.invocation = "b", .oomKills = 2});
  noteOomKills(state, {.invocation = "c", .oomKills = 3});
  noteOomKills(state, {.invocation = "c", .oomKills = 3});
  noteOomKills(state, {.invocation = "d"});
  EXPECT_EQ(readOomKills(state).value().sum, 5U);
  EXPECT_EQ(readOomKills(state).value().lastRun, "c");
  for (const char* damaged : {"{", R"({"sum": 1})", R"({"sum": "1", "last_run": "c"})"}) {
    writeFileAtomically(state + "/oom-kills.json", damaged, 0600);
    EXPECT_THROW(readOomKills(state), Error) << damaged;
    noteOomKills(state, {.invocation = "c", .oomKills = 1});
    EXPECT_EQ(readOomKills(state).value().sum, 1U) << damaged;
  }
  std::filesystem::remove_all(state);
}

TEST(Duration, IsReadAsPeopleTypeIt) {
  using namespace std::chrono_literals;
  EXPECT_EQ(parseDuration("90"), 90s);
  EXPECT_EQ(parseDuration("0"), 0s);
  EXPECT_EQ(parseDuration("90s"), 90s);
  EXPECT_EQ(parseDuration("5min"), 300s);
  EXPECT_EQ(parseDuration("2h30min"), 9000s);
  EXPECT_EQ(parseDuration("1d"), 86400s);
  EXPECT_EQ(parseDuration("365d"), 31536000s);
  for (const char* text : {"", "h", "+1h", "-1h", "1 h", "1m", "1H", "1.5h", "366d", "365d1s", "4294967296",
                           "4294967295d", "1h ", "off"})
    EXPECT_EQ(parseDuration(text), std::nullopt) << text;
}

TEST(Upgrade, KnowsTheImageThatWorked) {
  Machine machine = {
      .card = {.id = AgentId::parse("ada").value(), .workspace = AbsolutePath::parse("/mnt/a").value()},
      .allocation = {.image = "sha256-a", .address = Ipv4{0x0ad50002}, .uidBase = 0x60000000}};
  machine = withImage(machine, "sha256-b");
  EXPECT_EQ(machine.allocation.image, "sha256-b");
  EXPECT_EQ(machine.allocation.provenImage, "sha256-a");
  // It never ran with that one.
  machine = withImage(machine, "sha256-c");
  EXPECT_EQ(machine.allocation.provenImage, "sha256-a");
  EXPECT_EQ(parseAllocation(toJson(machine.allocation)), machine.allocation);
  machine = withImage(machine, "sha256-a");
  EXPECT_EQ(machine.allocation.image, "sha256-a");
  EXPECT_EQ(machine.allocation.provenImage, std::nullopt);
  EXPECT_EQ(
      describe(planImage(machine, Settings{})),
      "write /var/lib/agentmachine/machines/ada/machine.json 0600 0:0\n"
      "  | {\n  |   \"version\": 1,\n  |   \"image\": \"sha256-a\",\n  |   \"address\": \"10.213.0.2\",\n"
      "  |   \"uid_base\": 1610612736\n  | }\n"
      "directory /run/machines 0755 0:0\n"
      "link /run/machines/agent-ada -> /var/lib/agentmachine/images/sha256-a/root\n");
}

/// One machine, 10.213.0.2, of the id "ada".
Host hostWithAda() {
  Host host{.program = "/usr/bin/agentmachine", .init = "/usr/libexec/agentmachine/agentmachine-init"};
  const Card card{.id = AgentId::parse("ada").value(),
                  .workspace = AbsolutePath::parse("/mnt/agents/ada").value()};
  host.machines.emplace("ada", Machine{card,
                                       {.image = "sha256-" + std::string(64, '0'),
                                        .address = Ipv4::parse("10.213.0.2").value(),
                                        .uidBase = host.settings.uidBase}});
  return host;
}

/// Everything of the machine as it is rendered.
FoundAt rendered(const Host& host) {
  FoundAt found;
  for (const auto& action : planRender(host.machines.at("ada"), host)) {
    if (const auto* file = std::get_if<WriteFile>(&action))
      found[file->path] = {Found::Kind::file, file->mode, file->owner, file->content};
    if (const auto* link = std::get_if<Link>(&action))
      found[link->path] = {Found::Kind::link, 0777, {}, link->target};
    if (const auto* directory = std::get_if<MakeDirectory>(&action))
      found[directory->path] = {Found::Kind::directory, directory->mode, directory->owner, ""};
  }
  return found;
}

/// A host where the machine runs, and nothing is amiss.
Remains wellKept() {
  return {.names = {{"/run/machines", {"agent-ada"}},
                    {"/run/systemd/nspawn", {"agent-ada.nspawn"}},
                    {"/run/systemd/system", {"systemd-nspawn@agent-ada.service.d", "other.service"}},
                    {"/run/systemd/system/systemd-nspawn@agent-ada.service.d", {"10-agentmachine.conf"}},
                    {"/run/agentmachine/machines", {"agent-ada"}},
                    {"/run/agentmachine/machines/agent-ada/agent", {"api-key"}},
                    {"/run/agentmachine/machines/agent-ada/credentials", {"server-password"}},
                    {"/run/agentmachine/workspaces", {"agent-ada"}},
                    {"/run/agentmachine/policy", {"10.213.0.2"}},
                    {"/run/agentmachine/keys", {"10.213.0.2"}},
                    {"/var/lib/agentmachine/machines", {"ada"}}},
          .running = {"agent-ada"},
          .units = {"agentmachine-expire@ada.timer", "agentmachine-key@ada.path"},
          .ports = {"am-2"},
          .filterPorts = {{"am-2", Ipv4::parse("10.213.0.2").value()}}};
}

std::string repair(const Host& host, const Remains& remains, const FoundAt& found) {
  return describe(planLeftovers(host, remains, found)) +
         describe(planMissing(host.machines.at("ada"), host, remains, found));
}

TEST(Repair, HasNothingToDoOnAHostThatIsWell) {
  const Host host = hostWithAda();
  EXPECT_EQ(repair(host, wellKept(), rendered(host)), "");
}

TEST(Repair, RendersWhatIsMissingOrAltered) {
  const Host host = hostWithAda();
  const auto paths =
      machinePaths(host.settings, host.machines.at("ada").card.id, Ipv4::parse("10.213.0.2").value());
  auto found = rendered(host);
  found.erase(paths.rootLink);
  EXPECT_EQ(
      repair(host, wellKept(), found),
      "link /run/machines/agent-ada -> " + imageTree(host.settings, "sha256-" + std::string(64, '0')) + "\n");
  found = rendered(host);
  found[paths.settings].content += "ReadOnly=no\n";
  EXPECT_TRUE(
      repair(host, wellKept(), found).starts_with("write /run/systemd/nspawn/agent-ada.nspawn 0600 0:0\n"));
  found = rendered(host);
  found[paths.settings].mode = 0644;
  EXPECT_TRUE(
      repair(host, wellKept(), found).starts_with("write /run/systemd/nspawn/agent-ada.nspawn 0600 0:0\n"));
  EXPECT_EQ(describe(planMissing(host.machines.at("ada"), host, {}, {})),
            describe(planRender(host.machines.at("ada"), host)));
}

TEST(Repair, LeavesAlonePayloadsOfRun) {
  const Host host = hostWithAda();
  auto found = rendered(host);
  for (const auto& action : planRender(withIdlePayload(host.machines.at("ada")), host))
    if (const auto* file = std::get_if<WriteFile>(&action)) found[file->path].content = file->content;
  EXPECT_EQ(repair(host, wellKept(), found), "");
  auto stopped = wellKept();
  stopped.running.clear();
  EXPECT_NE(repair(host, stopped, found).find("write /run/systemd/nspawn/agent-ada.nspawn"),
            std::string::npos);
}

TEST(Repair, TakesAwayWhatAnEndedRunLeft) {
  const Host host = hostWithAda();
  auto remains = wellKept();
  remains.running.clear();
  EXPECT_EQ(repair(host, remains, rendered(host)),
            "remove /run/agentmachine/keys/10.213.0.2\n"
            "remove /run/agentmachine/machines/agent-ada/agent/api-key\n"
            "remove /run/agentmachine/machines/agent-ada/credentials/server-password\n"
            "remove port am-2 of 10.213.0.2\n"
            "stop agentmachine-expire@ada.timer\n"
            "stop agentmachine-key@ada.path\n"
            "unmount /run/agentmachine/workspaces/agent-ada\n");
}

TEST(Repair, KnowsWhoseRunHadIt) {
  const Host host = hostWithAda();
  auto remains = wellKept();
  remains.running.clear();
  for (const auto& action : planLeftovers(host, remains, rendered(host)))
    EXPECT_EQ(whoseRun(action, host), &host.machines.at("ada")) << describe(Plan{action});
  EXPECT_EQ(whoseRun(Remove{"/run/machines/agent-gone"}, host), nullptr);
  EXPECT_EQ(whoseRun(StopUnit{"agentmachine-expire@gone.timer"}, host), nullptr);
}

TEST(Repair, TakesAwayWhatNoMachineHas) {
  const Host host = hostWithAda();
  auto remains = wellKept();
  auto found = rendered(host);
  remains.names["/run/machines"].insert("agent-gone");
  remains.names["/run/systemd/nspawn"].insert("agent-gone.nspawn");
  remains.names["/run/systemd/system"].insert("systemd-nspawn@agent-gone.service.d");
  remains.names["/run/systemd/system/systemd-nspawn@agent-gone.service.d"] = {"10-agentmachine.conf"};
  remains.names["/run/agentmachine/machines"].insert("agent-gone");
  remains.names["/run/agentmachine/policy"].insert("10.213.0.9");
  remains.names["/var/lib/agentmachine/machines"].insert("half");
  remains.ports.insert({"am-9", "am-x"});
  remains.filterPorts.emplace("am-10", Ipv4::parse("10.213.0.10").value());
  remains.unfinished = {"/run/agentmachine/keys/.#10.213.0.2.77"};
  remains.running.insert("agent-gone");
  const std::string dropIn = "/run/systemd/system/systemd-nspawn@agent-gone.service.d/10-agentmachine.conf";
  found["/run/machines/agent-gone"] = {Found::Kind::link, 0777, {}, "/anywhere"};
  found["/run/systemd/nspawn/agent-gone.nspawn"] = {
      Found::Kind::file, 0600, {}, "# Rendered by agentmachine from\n"};
  found[dropIn] = {Found::Kind::file, 0644, {}, "# Rendered by agentmachine from\n"};
  EXPECT_EQ(repair(host, remains, found),
            "stop systemd-nspawn@agent-gone.service\n"
            "remove /run/agentmachine/policy/10.213.0.9\n"
            "remove port am-10 of 10.213.0.10\n"
            "remove port am-9 of 10.213.0.9\n"
            "remove /run/machines/agent-gone\n"
            "remove /run/systemd/nspawn/agent-gone.nspawn\n"
            "remove /run/systemd/system/systemd-nspawn@agent-gone.service.d\n"
            "remove /run/agentmachine/machines/agent-gone\n"
            "remove /var/lib/agentmachine/machines/half\n"
            "remove /run/agentmachine/keys/.#10.213.0.2.77\n");
  // An administrator's drop-in beside ours stays; what isn't ours isn't touched.
  remains.names["/run/systemd/system/systemd-nspawn@agent-gone.service.d"].insert("90-mine.conf");
  EXPECT_NE(repair(host, remains, found).find("remove " + dropIn + "\n"), std::string::npos);
  found["/run/machines/agent-gone"].kind = Found::Kind::directory;
  found["/run/systemd/nspawn/agent-gone.nspawn"].content = "[Exec]\n";
  found[dropIn].content = "[Service]\n";
  const auto text = repair(host, remains, found);
  for (const char* kept :
       {"stop systemd-nspawn@agent-gone", "/run/machines/agent-gone", "agent-gone.nspawn", "gone.service.d"})
    EXPECT_EQ(text.find(kept + std::string("\n")), std::string::npos) << kept;
  // Whose it all is can't be known while a record can't be read.
  Host unsure = host;
  unsure.unreadable.emplace("gone", "why");
  EXPECT_EQ(repair(unsure, remains, found), "");
}

TEST(Upgrade, TellsWhatAnOlderProgramStarted) {
  Settings settings;
  settings.runtimeDirectory = testing::TempDir() + "/run-XXXXXX";
  ASSERT_NE(mkdtemp(settings.runtimeDirectory.data()), nullptr);
  Machine machine = hostWithAda().machines.at("ada");
  machine.card.apiKeyFile = AbsolutePath::parse("/etc/key").value();
  const auto paths = machinePaths(settings, machine.card.id, machine.allocation.address);
  const auto write = [](const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    writeFileAtomically(path, content, 0600);
  };
  EXPECT_FALSE(isOfOlderProgram(settings, machine)) << "it does not run";
  write(paths.serverPassword, "word");
  EXPECT_TRUE(isOfOlderProgram(settings, machine)) << "nothing says what it was given";
  write(paths.held, "am-2 10.213.0.2\n");
  EXPECT_FALSE(isOfOlderProgram(settings, machine)) << "its key is bad: it has none";
  write(paths.key, "sk-1\n");
  EXPECT_TRUE(isOfOlderProgram(settings, machine)) << "nothing says whose key it is";
  write(paths.key, renderDeliveredKey(policyFor(machine.card, settings).broker.value(), "sk-1"));
  EXPECT_FALSE(isOfOlderProgram(settings, machine));
  std::filesystem::remove_all(settings.runtimeDirectory);
}

/// What `act` says when it fails.
std::string refusal(auto&& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Records, ThatADiskSpoiltAreNamedAndKeepNobodyFromAnythingElse) {
  std::string state = testing::TempDir() + "recordsXXXXXX";
  ASSERT_TRUE(mkdtemp(state.data()));
  for (const char* spoilt : {"", "{", "null", "[]", R"({"invocation": 7})", "\xff"}) {
    writeFileAtomically(state + "/run.json", spoilt, 0600);
    writeFileAtomically(state + "/end.json", spoilt, 0600);
    writeFileAtomically(state + "/stop.json", spoilt, 0600);
    EXPECT_TRUE(refusal([&] { readRunRecord(state); })
                    .starts_with("read " + state +
                                 "/run.json: it is damaged; the next start that somebody asks for writes it "
                                 "anew: "))
        << spoilt;
    EXPECT_TRUE(
        refusal([&] { readEndRecord(state); }).starts_with("read " + state + "/end.json: it is damaged"))
        << spoilt;
    EXPECT_EQ(takeStopReason(state), std::nullopt) << spoilt;
    EXPECT_EQ(readFileIfExists(state + "/stop.json", 1), std::nullopt) << spoilt;
  }
  // Those of a program before records had a version, and of one to come.
  writeFileAtomically(
      state + "/end.json",
      R"({"invocation": "a", "at": 7, "cause": "ttl", "by": "", "result": "", "code": "", "status": "", "oom_kills": 0})",
      0600);
  EXPECT_EQ(readEndRecord(state).value().cause, EndCause::ttl);
  writeFileAtomically(state + "/end.json", R"({"version": 2, "cause": {}})", 0600);
  EXPECT_EQ(refusal([&] { readEndRecord(state); }),
            "read " + state + "/end.json: written by a newer agentmachine (version 2, this one knows 1)");
  for (const char* base : {"0", "1610612737", "-65536", "\"\""})
    EXPECT_NE(refusal([&] {
                parseAllocation(std::format(
                    R"({{"version": 1, "image": "", "address": "10.213.0.2", "uid_base": {}}})", base));
              }),
              "")
        << base;
}

TEST(Pools, AreToldToBeEmpty) {
  const auto gives = [](unsigned prefixLength, std::uint32_t ranges, std::uint32_t machines) {
    Host host{.images = {{.digest = "sha256-" + std::string(64, '1'), .packages = {}}}};
    host.settings.prefixLength = prefixLength;
    host.settings.uidRanges = ranges;
    const auto card = [](const std::string& id) {
      return Card{.id = AgentId::parse(id).value(),
                  .workspace = AbsolutePath::parse("/mnt/agents/" + id).value()};
    };
    for (std::uint32_t n = 0; n < machines; ++n) {
      const auto id = "m" + std::to_string(n);
      host.machines.emplace(id, Machine{card(id),
                                        {.address = {host.settings.gateway.value + 1 + n},
                                         .uidBase = host.settings.uidBase + n * uidRangeSize}});
    }
    host.workspaces = {{"/mnt/agents/new", {.idmappable = true}}};
    return refusal([&] { planCreate(card("new"), host); });
  };
  EXPECT_EQ(gives(29, 9, 4), "");
  Host unsure = hostWithAda();
  unsure.unreadable.emplace("eve", "why");
  EXPECT_EQ(refusal([&] { planCreate(unsure.machines.at("ada").card, unsure); }), "why");
  EXPECT_EQ(
      gives(29, 9, 5),
      "all 5 addresses of the bridge's network 10.213.0.0/29 are taken: remove machines, or give `address` "
      "in agentmachine.conf a shorter prefix");
  EXPECT_EQ(gives(24, 3, 2), "");
  EXPECT_EQ(
      gives(24, 3, 3),
      "all 3 ranges of user ids are taken: remove machines, or raise `uid_ranges` in agentmachine.conf");
}

}  // namespace

}  // namespace agentmachine
