#include <gtest/gtest.h>

#include "plan/nftables.h"
#include "plan/squid.h"
#include "util/error.h"

namespace agentmachine {
namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Settings, NameTheProgramByAnAbsolutePath) {
  const auto settings = parseSettings("program = \"/run/current-system/sw/bin/agentmachine\"", "test");
  EXPECT_EQ(settings.program, "/run/current-system/sw/bin/agentmachine");
  EXPECT_EQ(settings.init, std::nullopt);
  EXPECT_THROW(parseSettings("init = \"agentmachine-init\"", "test"), Error);
}

TEST(Nftables, TakesItsNamesFromTheSettings) {
  Settings settings;
  settings.bridge = "br-agents";
  settings.gateway = Ipv4{0xc0000201};
  settings.proxyPort = 4128;
  const auto text = renderNftRuleset(settings);
  for (const auto* part :
       {"define BRIDGE = \"br-agents\"\n", "define GATEWAY = 192.0.2.1\n",
        "define SERVICES = { 4128, 8081 }\n", "define PROXY_USER = \"agentmachine-proxy\"\n"})
    EXPECT_TRUE(has(text, part)) << part;
}

TEST(Nftables, PrivatePortsAreOnlyThoseOfTheSettings) {
  Settings settings;
  EXPECT_FALSE(has(renderNftRuleset(settings), "tcp dport { 8443"));
  settings.privateHosts = {HostPattern::parse("llm.example.org:8443").value()};
  EXPECT_TRUE(has(renderNftRuleset(settings), "allowed_private tcp dport { 8443 } accept\n"));
}

TEST(Nftables, ElementsAreCheckedAndDeletedIdempotently) {
  const Ipv4 address{0x0ad50002};
  const std::string element =
      "element bridge agentmachine agents { \"am-2\" . 02:00:0a:d5:00:02 . 10.213.0.2 }\n";
  const std::string chain =
      "add chain inet agentmachine_connections of_10.213.0.2\n"
      "flush chain inet agentmachine_connections of_10.213.0.2\n"
      "add element inet agentmachine_connections machines { 10.213.0.2 : jump of_10.213.0.2 }\n";
  const std::string forget =
      "add element inet agentmachine new_connections { 10.213.0.2 limit rate over 1/second }\n"
      "delete element inet agentmachine new_connections { 10.213.0.2 }\n";
  EXPECT_EQ(
      renderNftElementAdd("am-2", "02:00:0a:d5:00:02", address, 20),
      chain +
          "add rule inet agentmachine_connections of_10.213.0.2 ct count over 20 counter reject with tcp "
          "reset\n" +
          forget +
          "add element inet agentmachine new_connections { 10.213.0.2 limit rate over 20/second burst 20 "
          "packets }\n"
          "add " +
          element);
  EXPECT_EQ(renderNftElementDelete("am-2", "02:00:0a:d5:00:02", address),
            "add " + element + "delete " + element + forget + chain +
                "delete element inet agentmachine_connections machines { 10.213.0.2 }\n"
                "delete chain inet agentmachine_connections of_10.213.0.2\n");
  for (const auto* interface : {"eth0", "", "am-0123456789abc", "am-\"; flush", "am-*"})
    EXPECT_THROW(renderNftElementAdd(interface, "02:00:0a:d5:00:02", address, 20), Error) << interface;
  for (const auto* mac : {"", "02:00:0a:d5:00", "02:00:0a:d5:00:0g", "02:00:0a:d5:00:02 }"})
    EXPECT_THROW(renderNftElementAdd("am-2", mac, address, 20), Error) << mac;
}

TEST(SquidConf, ItsOwnPagesNeedMoreThanAPolicyThatAllowsAll) {
  const auto text = renderSquidConf(Settings{}, {.helper = "/opt/policy",
                                                 .auditor = "/opt/audit",
                                                 .certificate = "/run/c.pem",
                                                 .errorPages = "/run/pages"});
  EXPECT_TRUE(has(text, "acl management all-of manager because_management\n"));
  EXPECT_TRUE(has(text, "acl tunnel_or_request all-of !broker_port listed !unproven !management !inside\n"));
}

TEST(SquidConf, TakesItsNamesFromTheSettings) {
  Settings settings;
  settings.runtimeDirectory = "/run/x";
  settings.proxyCaFile = "/etc/ca.pem";
  settings.privateHosts = {HostPattern::parse("*.lan.example.org:8443").value()};
  settings.parentProxies = {Url::parse("https://parent.example.org:3129").value()};
  const auto text = renderSquidConf(settings, {.helper = "/opt/policy",
                                               .auditor = "/opt/audit",
                                               .certificate = "/run/c.pem",
                                               .errorPages = "/run/pages"});
  for (const auto* part :
       {"http_port 10.213.0.1:3128 ssl-bump tls-cert=/run/c.pem ", "http_port 10.213.0.1:8081 accel ",
        "tls_outgoing_options min-version=1.2 default-ca=off cafile=/etc/ca.pem\n",
        "error_directory /run/pages\n",
        "acl private_name_1 dstdomain -n .lan.example.org\nacl private_port_1 port 8443\n",
        "/opt/policy broker /run/x/policy /run/x/keys\n",
        "logfile_daemon /opt/audit\naccess_log daemon:/run/x/policy:journal ",
        "acl through_1 note parent https://parent.example.org:3129\n"
        "cache_peer parent.example.org parent 3129 0 no-query no-digest no-netdb-exchange name=parent_1 "
        "tls\n"})
    EXPECT_TRUE(has(text, part)) << part;
}

TEST(SquidConf, TakesOutEveryKeyHeaderAndAddsTheCards) {
  Settings settings;
  settings.apiKeyHeaders = {HeaderName::parse("x-llm-key").value()};
  const auto text =
      renderSquidConf(settings, {.helper = "/p", .auditor = "/a", .certificate = "/c", .errorPages = "/e"});
  for (const auto* name : {"authorization", "x-api-key", "x_api_key", "x_api-key", "x-api_key", "api-key",
                           "api_key", "x-goog-api-key", "x_goog_api_key", "x-llm-key", "x_llm_key"})
    EXPECT_TRUE(has(text, std::string("request_header_access ") + name + " deny broker_port\n")) << name;
  EXPECT_TRUE(has(text, "request_header_add x-llm-key \"%note{api_key}\" key_header_5\n"));
  EXPECT_TRUE(has(text, "request_header_add authorization \"Bearer %note{api_key}\" key_header_2\n"));
  EXPECT_TRUE(
      has(text, "acl addable note key_header x-api-key authorization api-key x-goog-api-key x-llm-key\n"));
  EXPECT_FALSE(
      has(renderSquidConf({}, {.helper = "/p", .auditor = "/a", .certificate = "/c", .errorPages = "/e"}),
          "x-llm-key"));
}

TEST(SquidConf, RefusesPathsThatItCannotHold) {
  for (const auto* path : {"", "/a b", "/a\nhttp_access allow all", "/a\"", "/a#b"})
    EXPECT_THROW(
        renderSquidConf({}, {.helper = path, .auditor = "/a", .certificate = "/c", .errorPages = "/p"}),
        Error)
        << path;
}

}  // namespace
}  // namespace agentmachine
