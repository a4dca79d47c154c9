// Golden tests of plans: CASE/card.json on a host that is always the same gives CASE's plan or its refusal.
#include "plan/plan.h"

#include <format>
#include <set>
#include <tuple>

#include <gtest/gtest.h>

#include "golden.h"
#include "util/error.h"
#include "util/file.h"

namespace agentmachine {

namespace {

Card cardFrom(const std::filesystem::path& path) {
  auto card = parseCard(readFile(path, maxCardBytes), CardFormat::json);
  if (!card) throw Error(describe(path.string(), card.error()));
  return *std::move(card);
}

/// Fits a file, but not the unit of an image.
std::string longName() {
  std::string name;
  for (int i = 0; i < 40; ++i) name += "long-";
  return name + "path";
}

/// A host with one machine and one image, and a workspace of each kind.
Host host() {
  Host host{.settings = {},
            .program = "/usr/bin/agentmachine",
            .init = "/usr/libexec/agentmachine/agentmachine-init",
            .images = {{.digest = "sha256-" + std::string(64, '1'), .packages = {}},
                       {.digest = "sha256-" + std::string(64, '2'), .packages = {"jq", "nodejs"}}},
            .requester = {1000, 1000},
            .proxyGroup = 989};
  for (const char* package : {"jq", "nodejs", "gcc"})
    host.settings.packages.push_back(PackageName::parse(package).value());
  host.settings.parentProxies = {Url::parse("http://10.100.1.1:3128").value()};
  const Card neighbour{.id = AgentId::parse("neighbour").value(),
                       .workspace = AbsolutePath::parse("/mnt/agents/neighbour").value()};
  host.machines.emplace("neighbour", Machine{neighbour,
                                             {.image = "sha256-" + std::string(64, '0'),
                                              .address = Ipv4::parse("10.213.0.2").value(),
                                              .uidBase = host.settings.uidBase}});
  const WorkspaceFacts absent{.idmappable = true, .fileSystem = "ext2/ext3"};
  host.workspaces = {
      {"/mnt/agents/new", absent},
      {"/mnt/agents/neighbour", absent},
      {"/mnt/agents/neighbour/inner", absent},
      {"/mnt/agents/link", {.throughLink = true, .idmappable = true}},
      {"/mnt/agents/file", {.exists = true, .owner = {1000, 1000}, .idmappable = true}},
      {"/mnt/agents/.#try/a", {.idmappable = true}},
      {"/mnt/agents/of-root", {.exists = true, .directory = true, .idmappable = true}},
      {"/mnt/agents/overlay", {.idmappable = false, .fileSystem = "overlayfs"}},
      {"/mnt/agents/" + longName(), absent},
      {"/mnt/agents/full",
       {.exists = true, .directory = true, .owner = {1500, 100}, .idmappable = true, .fileSystem = "btrfs"}},
      {"/mnt/agents/empty",
       {.exists = true, .directory = true, .owner = {1500, 100}, .fileSystem = "overlayfs", .empty = true}},
      {"/mnt/agents/quota",
       {.exists = true,
        .directory = true,
        .owner = {1500, 100},
        .idmappable = true,
        .projectQuotas = true,
        .projects = {7, 0x60010000}}},
      {"/mnt/agents/somebodys-project",
       {.exists = true,
        .directory = true,
        .owner = {1500, 100},
        .idmappable = true,
        .projectQuotas = true,
        .project = 7,
        .projects = {7}}},
      {"/mnt/agents/image",
       {.exists = true, .directory = true, .owner = {1500, 100}, .idmappable = true, .imageBytes = 64 << 20}},
      {"/mnt/agents/there", {.exists = true, .directory = true, .owner = {1500, 100}, .idmappable = true}},
  };
  return host;
}

std::string planOrRefusal(const Card& card, const Host& host) {
  try {
    return describe(planCreate(card, host));
  } catch (const Error& refusal) {
    return std::string("refused: ") + refusal.what() + "\n";
  }
}

}  // namespace

void registerPlanGoldens(const std::filesystem::path& root) {
  forEachCase("Plan", root / "plan", [root](const std::filesystem::path& entry) {
    const Card card = cardFrom(entry);
    expectGolden(root / "plan/expected" / entry.stem().concat(".txt"), planOrRefusal(card, host()));
  });
}

namespace {

TEST(PlanOnHost, SaysWhatIsMissingOrFull) {
  const Card card{.id = AgentId::parse("new").value(),
                  .workspace = AbsolutePath::parse("/mnt/agents/new").value()};
  Host without = host();
  without.images.clear();
  EXPECT_EQ(planOrRefusal(card, without),
            "refused: there is no image yet: `agentmachine image build` makes one, `agentmachine image "
            "import TARBALL` "
            "takes one made elsewhere\n");
  Host small = host();
  small.settings.prefixLength = 30;  // the gateway's address, the neighbour's, and none beside them
  EXPECT_EQ(planOrRefusal(card, small),
            "refused: all 1 addresses of the bridge's network 10.213.0.0/30 are taken: remove machines, or "
            "give `address` "
            "in agentmachine.conf a shorter prefix\n");
  Host few = host();
  few.settings.uidRanges = 1;
  EXPECT_EQ(planOrRefusal(card, few),
            "refused: all 1 ranges of user ids are taken: remove machines, or raise `uid_ranges` in "
            "agentmachine.conf\n");
}

TEST(PlanOnHost, AMachineKeepsWhatItWasGiven) {
  Host host = agentmachine::host();
  const Card card = host.machines.at("neighbour").card;
  EXPECT_NE(describe(planCreate(card, host)).find("sha256-" + std::string(64, '0')), std::string::npos);
}

/// The files that a plan writes, each as it is described.
std::set<std::string> written(const Plan& plan) {
  std::set<std::string> files;
  for (const auto& action : plan)
    if (std::holds_alternative<WriteFile>(action)) files.insert(describe(Plan{action}));
  return files;
}

TEST(PlanOnHost, HostsThatChangeLeaveNothingElseToRender) {
  const Host host = agentmachine::host();
  Machine machine = host.machines.at("neighbour");
  machine.card.allowedHosts.clear();
  const auto before = written(planRender(machine, host));
  machine.card.allowedHosts.push_back(HostPattern::parse("example.org").value());
  const auto done = written(planHosts(machine, host));
  int differ = 0;
  for (const auto& file : written(planRender(machine, host))) {
    if (before.contains(file)) continue;
    ++differ;
    EXPECT_TRUE(done.contains(file)) << file;
  }
  EXPECT_EQ(differ, 2) << "the policy, and what opencode offers";
}

TEST(PlanOnHost, OfAnotherNetworkAMachineGetsAnotherAddress) {
  Host host = agentmachine::host();
  const Card card = host.machines.at("neighbour").card;
  const auto plan = [&](const char* gateway, unsigned prefixLength) {
    host.settings.gateway = Ipv4::parse(gateway).value();
    host.settings.prefixLength = prefixLength;
    return describe(planCreate(card, host));
  };
  for (const auto& [gateway, prefixLength, address] : {std::tuple{"10.99.0.1", 16U, "10.99.0.2"},
                                                       {"10.213.0.2", 16U, "10.213.0.1"},
                                                       {"10.213.0.9", 29U, "10.213.0.10"}}) {
    const auto text = plan(gateway, prefixLength);
    EXPECT_NE(text.find(std::format("\"address\": \"{}\"", address)), std::string::npos) << text;
    EXPECT_TRUE(text.starts_with("remove /run/agentmachine/policy/10.213.0.2\n")) << text;
  }
  const auto text = plan("10.213.0.1", 24);
  EXPECT_NE(text.find("\"address\": \"10.213.0.2\""), std::string::npos) << text;
  EXPECT_EQ(text.find("remove "), std::string::npos) << text;
}

TEST(PlanOnHost, NoTwoAddressesHaveOnePort) {
  Settings settings;
  const auto port = [&](const char* address) {
    return hostInterface(settings, Ipv4::parse(address).value());
  };
  EXPECT_EQ(port("10.213.1.5"), "am-261");
  settings.prefixLength = 24;
  EXPECT_EQ(port("10.213.0.5"), "am-5");
  EXPECT_EQ(port("10.213.1.5"), "am-181731589");
  EXPECT_LE(port("255.255.255.255").size(), 15U);
}

TEST(PlanOnHost, ALimitOfTheWorkspaceIsKeptMovedAndTakenBack) {
  Host host = agentmachine::host();
  Card card{.id = AgentId::parse("new").value(),
            .workspace = AbsolutePath::parse("/mnt/agents/quota").value()};
  card.limits.diskMb = 100;
  Machine machine{card, host.machines.at("neighbour").allocation};
  machine.allocation.project = 4711;
  host.machines.emplace("new", machine);
  // The project that it has, though another would be free.
  EXPECT_NE(describe(planCreate(card, host)).find("as project 4711\n"), std::string::npos);
  const auto removed = describe(planRemove(machine, host.settings, true));
  EXPECT_LT(removed.find("unlimit /mnt/agents/quota, no longer project 4711\n"),
            removed.find("remove workspace /mnt/agents/quota\n"));
  // Without disk_mb it is taken back, and not kept in the state.
  card.limits.diskMb.reset();
  const auto unlimited = describe(planCreate(card, host));
  EXPECT_NE(unlimited.find("unlimit /mnt/agents/quota, no longer project 4711\n"), std::string::npos);
  EXPECT_EQ(unlimited.find("\"project\""), std::string::npos);
  // Another workspace would leave the old one limited.
  card.workspace = AbsolutePath::parse("/mnt/agents/there").value();
  EXPECT_THROW(planCreate(card, host), Error);
}

TEST(PlanOnHost, AnImageGoesWithItsWorkspaceOnly) {
  const Host host = agentmachine::host();
  Machine machine = host.machines.at("neighbour");
  machine.allocation.workspaceImage = true;
  EXPECT_EQ(describe(planRemove(machine, host.settings, false)).find(".img"), std::string::npos);
  EXPECT_NE(describe(planRemove(machine, host.settings, true))
                .find("unmount /mnt/agents/neighbour and remove its image "
                      "/var/lib/agentmachine/workspaces/mnt/agents/neighbour.img\n"),
            std::string::npos);
}

TEST(PlanOnHost, RemovingEndsWithTheState) {
  const Host host = agentmachine::host();
  const auto plan = planRemove(host.machines.at("neighbour"), host.settings, false);
  const auto text = describe(plan);
  EXPECT_TRUE(text.starts_with(
      "stop systemd-nspawn@agent-neighbour.service\nremove /run/machines/agent-neighbour\n"));
  EXPECT_TRUE(text.ends_with("remove /var/lib/agentmachine/machines/neighbour\n"));
  EXPECT_EQ(text.find("/mnt/agents"), std::string::npos);
  EXPECT_NE(describe(planRemove(host.machines.at("neighbour"), host.settings, true))
                .find("remove workspace /mnt/agents/neighbour\n"),
            std::string::npos);
}

}  // namespace

}  // namespace agentmachine
