#include "plan/policy.h"

#include <gtest/gtest.h>

#include "proxy/decide.h"
#include "proxy/pace.h"
#include "proxy/squid_helper.h"
#include "util/error.h"

namespace agentmachine {
namespace {

HostPattern pattern(const std::string& text) {
  return HostPattern::parse(text).value();
}
Url url(const std::string& text) {
  return Url::parse(text).value();
}

HeaderName header(const std::string& name) {
  return HeaderName::parse(name).value();
}

Policy policyWith(const std::vector<std::string>& hosts) {
  Policy policy{.agent = AgentId::parse("alpha").value(), .hosts = {}, .broker = {}, .parent = {}};
  for (const auto& host : hosts) policy.hosts.push_back(pattern(host));
  policy.broker = Broker{url("https://llm.example.org/v1"), header("x-api-key")};
  return policy;
}

Card cardOf(ApiProvider provider) {
  return {.id = AgentId::parse("alpha").value(),
          .workspace = AbsolutePath::parse("/mnt/agents/alpha").value(),
          .apiProvider = provider};
}

TEST(Policy, ReadsWhatItWrote) {
  Policy policy = policyWith({"a.example.org", "*.b.example.org:8443"});
  EXPECT_EQ(parsePolicy(renderPolicy(policy)), policy);
  policy.broker->keyHeader = header("api-key");
  policy.parent = url("http://parent.example.org:8080");
  policy.requestsPerSecond = 7;
  EXPECT_EQ(parsePolicy(renderPolicy(policy)), policy);
  policy.broker.reset();
  policy.hosts.clear();
  EXPECT_EQ(parsePolicy(renderPolicy(policy)), policy);
}

TEST(Policy, RefusesWhatItDoesNotKnow) {
  for (const auto* text :
       {"", "{", "[]", "{}", R"({"agent":"a"})", R"({"agent":"a","hosts":["10.0.0.1"]})",
        R"({"agent":"A B","hosts":[]})", R"({"agent":"a","hosts":[1]})",
        R"({"agent":"a","hosts":[],"broker":{"upstream":"https://x.org","key_header":"host"}})",
        R"({"agent":"a","hosts":[],"broker":{"upstream":"x"}})",
        R"({"agent":"a","hosts":[],"requests_per_second":0})",
        R"({"agent":"a","hosts":[],"requests_per_second":"1"})"})
    EXPECT_THROW(parsePolicy(text), Error) << text;
}

TEST(Policy, WithoutHostsThereIsOnlyTheBroker) {
  Card card = cardOf(ApiProvider::anthropic);
  card.apiKeyFile = AbsolutePath::parse("/etc/keys/alpha").value();
  const Policy policy = policyFor(card, {});
  EXPECT_TRUE(policy.hosts.empty());
  ASSERT_TRUE(policy.broker);
  EXPECT_EQ(policy.broker->upstream, defaultApiBaseUrl(ApiProvider::anthropic));
  EXPECT_EQ(policy.broker->keyHeader, header("x-api-key"));
  EXPECT_FALSE(decideRequest(policy, "CONNECT", "", policy.broker->upstream.host, "443").allowed);
}

TEST(Policy, TheCardElseTheProviderDecidesTheHeader) {
  const auto headerOf = [](ApiProvider provider, bool key, const std::string& own = "") {
    Card card = cardOf(provider);
    card.apiBaseUrl = url("https://llm.example.org");
    if (key) card.apiKeyFile = AbsolutePath::parse("/etc/keys/alpha").value();
    if (!own.empty()) card.apiKeyHeader = header(own);
    return policyFor(card, {}).broker.value().keyHeader.value_or(HeaderName{""}).str();
  };
  EXPECT_EQ(headerOf(ApiProvider::anthropic, true), "x-api-key");
  for (const auto provider : {ApiProvider::openai, ApiProvider::custom, ApiProvider::ollama})
    EXPECT_EQ(headerOf(provider, true), "authorization");
  EXPECT_EQ(headerOf(ApiProvider::anthropic, true, "authorization"), "authorization");
  EXPECT_EQ(headerOf(ApiProvider::custom, true, "Api-Key"), "api-key");
  EXPECT_EQ(headerOf(ApiProvider::openai, false), "");
  EXPECT_EQ(headerOf(ApiProvider::openai, false, "api-key"), "");
}

TEST(Policy, WithTheKeyInsideTheProviderIsAHostAndNotBrokered) {
  Card card = cardOf(ApiProvider::custom);
  card.apiKeyFile = AbsolutePath::parse("/etc/keys/alpha").value();
  card.apiKeyDelivery = KeyDelivery::credential;
  card.apiBaseUrl = url("https://llm.example.org:8443/v1");
  const Policy policy = policyFor(card, {});
  EXPECT_FALSE(policy.broker);
  EXPECT_EQ(policy.hosts, std::vector{pattern("llm.example.org:8443")});
}

TEST(Policy, KeyHeadersAreTheUsualOnesAndTheHosts) {
  Settings settings;
  settings.apiKeyHeaders = {header("x-llm-key"), header("api-key")};
  EXPECT_EQ(keyHeaders(settings),
            (std::vector{header("x-api-key"), header("authorization"), header("api-key"),
                         header("x-goog-api-key"), header("x-llm-key")}));
}

TEST(Key, IsDeliveredForOneProviderAndHeader) {
  const Broker one{.upstream = url("https://one.example.org/v1"), .keyHeader = header("x-api-key")};
  const auto content = renderDeliveredKey(one, "sk-1");
  EXPECT_EQ(deliveredKey(content, one), "sk-1");
  for (const char* other : {"https://two.example.org/v1", "https://one.example.org/v",
                            "https://one.example.org", "https://one.example.org:444/v1"})
    EXPECT_THROW(deliveredKey(content, {.upstream = url(other), .keyHeader = one.keyHeader}), Error) << other;
  EXPECT_THROW(deliveredKey(content, {.upstream = one.upstream, .keyHeader = header("api-key")}), Error);
  for (const char* damaged : {"", "sk-1", "https://one.example.org/v1 x-api-key\n"})
    EXPECT_THROW(deliveredKey(damaged, one), Error) << damaged;
}

TEST(Key, IsOneLineThatAHeaderCanCarry) {
  EXPECT_EQ(parseKey("sk-1"), "sk-1");
  EXPECT_EQ(parseKey(" sk-1\r\n\n"), "sk-1");
  EXPECT_EQ(parseKey(std::string(maxKeyBytes, 'k')).size(), maxKeyBytes);
  const auto wrong = [](const std::string& content) {
    try {
      (void)parseKey(content);
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find("sk-1"), std::string::npos);
      return std::string(error.what()).substr(0, 15);
    }
    return std::string("nothing");
  };
  for (const auto* empty : {"", "\n", " \t\r\n"}) EXPECT_EQ(wrong(empty), "is empty");
  for (const auto* lines : {"sk-1\nsk-2", "sk-1\r\n\r\nsk-2\n"}) EXPECT_EQ(wrong(lines), "holds more than");
  for (const auto* odd : {"sk-1 x", "sk-1\tx", "sk-1\x01", "sk-1\x7f", "sk-1\xc3\xa9", "sk-1\rx"})
    EXPECT_EQ(wrong(odd), "must hold one k") << odd;
  EXPECT_EQ(wrong(std::string("sk-1\0x", 6)), "must hold one k");
  EXPECT_EQ(wrong(std::string(maxKeyBytes + 1, 'k')), "holds more than");
}

TEST(Policy, OwnProxyIsNoParent) {
  Card card = cardOf(ApiProvider::ollama);
  for (const auto* own : {"http://127.0.0.1:3128", "http://10.213.0.1:3128", "http://10.213.0.1:3128/"}) {
    card.proxy = url(own);
    EXPECT_FALSE(policyFor(card, {}).parent) << own;
  }
  for (const auto* other :
       {"http://127.0.0.1:3129", "https://127.0.0.1:3128", "http://proxy.example.org:3128"}) {
    card.proxy = url(other);
    EXPECT_EQ(policyFor(card, {}).parent, url(other));
  }
  Settings settings;
  settings.proxyPort = 4128;
  for (const auto* own : {"http://127.0.0.1:3128", "http://127.0.0.1:4128", "http://10.213.0.1:4128"})
    EXPECT_TRUE(isOwnProxy(url(own), settings)) << own;
  EXPECT_FALSE(isOwnProxy(url("http://10.213.0.1:3128"), settings));
}

TEST(Policy, HasTheCardsRate) {
  Card card = cardOf(ApiProvider::ollama);
  EXPECT_EQ(policyFor(card, {}).requestsPerSecond, 100u);
  card.limits.requestsPerSecond = 3;
  EXPECT_EQ(policyFor(card, {}).requestsPerSecond, 3u);
}

std::vector<std::string> texts(const std::vector<HostPattern>& hosts) {
  std::vector<std::string> list;
  for (const auto& host : hosts) list.push_back(host.str());
  return list;
}

TEST(Hosts, ARuleCoversWhatIsNarrower) {
  const auto check = [](const std::string& outer, const std::string& inner) {
    return covers(pattern(outer), pattern(inner));
  };
  EXPECT_TRUE(check("x.org", "x.org"));
  EXPECT_TRUE(check(".x.org:443,80", "a.x.org:80"));
  EXPECT_TRUE(check(".x.org", ".a.x.org"));
  EXPECT_TRUE(check("x.org:80", "GET x.org:80"));
  EXPECT_TRUE(check("GET,HEAD x.org:80", "GET x.org:80"));
  EXPECT_FALSE(check("x.org", ".x.org"));
  EXPECT_FALSE(check("x.org:443", "x.org:80,443"));
  EXPECT_FALSE(check("x.org", "a.x.org"));
  EXPECT_FALSE(check(".x.org", "ax.org"));
  EXPECT_FALSE(check("GET x.org:80", "x.org:80"));
  EXPECT_FALSE(check("GET x.org:80", "GET,HEAD x.org:80"));
}

TEST(Hosts, AllowAddsWhatIsNotCovered) {
  const auto hosts = policyWith({".x.org", "y.org"}).hosts;
  EXPECT_EQ(withHosts(hosts, {pattern("a.x.org")}), hosts);
  EXPECT_EQ(texts(withHosts(hosts, {pattern("y.org:80")})),
            (std::vector<std::string>{".x.org:443", "y.org:443", "y.org:80"}));
}

TEST(Hosts, DenyOfSeveralLooksAtWhatIsLeftOfAll) {
  const auto hosts = policyWith({".x.org", "a.x.org"}).hosts;
  EXPECT_EQ(withoutHosts(hosts, {pattern(".x.org"), pattern("a.x.org")}), std::vector<HostPattern>{});
}

TEST(Hosts, DenyTakesAwayAndSaysWhatStillAllows) {
  const auto left = [](const std::vector<std::string>& hosts, const std::string& denied) {
    return texts(withoutHosts(policyWith(hosts).hosts, {pattern(denied)}));
  };
  const auto refusal = [&](const std::vector<std::string>& hosts, const std::string& denied) -> std::string {
    try {
      left(hosts, denied);
      return "none";
    } catch (const Error& error) {
      return error.what();
    }
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(left({"x.org", "y.org"}, "x.org"), Texts{"y.org:443"});
  EXPECT_EQ(left({"x.org:80,443"}, "x.org"), Texts{"x.org:80"});
  EXPECT_EQ(left({"GET x.org:80", "x.org:80,443"}, "x.org:80"), Texts{"x.org:443"});
  EXPECT_EQ(left({"GET x.org:80", "PUT x.org:80"}, "GET x.org:80"), Texts{"PUT x.org:80"});
  EXPECT_EQ(left({"y.org"}, "x.org"), Texts{"y.org:443"});
  EXPECT_EQ(left({".x.org:443", "x.org:80"}, "x.org:80"), Texts{".x.org:443"});
  EXPECT_EQ(refusal({"a.x.org", ".x.org"}, "a.x.org"),
            "\".x.org:443\" still allows some of \"a.x.org:443\": deny that rule, and allow again what of it "
            "should stay");
  EXPECT_NE(refusal({".x.org"}, "x.org"), "none");
  EXPECT_NE(refusal({".x.org", "a.x.org"}, ".x.org"), "none");
  EXPECT_NE(refusal({"x.org:80"}, "GET x.org:80"), "none");
}

TEST(Policy, IsTighterIfSomethingIsGone) {
  const auto tighter = [](const std::vector<std::string>& before, const std::vector<std::string>& now) {
    return isTighter(policyWith(now), policyWith(before));
  };
  EXPECT_FALSE(tighter({"x.org", ".y.org"}, {"x.org", ".y.org"}));
  EXPECT_FALSE(tighter({"x.org"}, {".x.org", "z.org"}));
  EXPECT_FALSE(tighter({"x.org:80,443"}, {"x.org:80", "x.org:443"}));
  EXPECT_TRUE(tighter({"x.org", "y.org"}, {"x.org"}));
  EXPECT_TRUE(tighter({".x.org"}, {"x.org"}));
  EXPECT_TRUE(tighter({"x.org:80"}, {"GET x.org:80"}));
  EXPECT_TRUE(tighter({"x.org:80,443"}, {"x.org"}));
  Policy policy = policyWith({"x.org"}), through = policy;
  through.parent = url("http://parent.example.org:8080");
  EXPECT_TRUE(isTighter(through, policy));
}

TEST(Why, JudgesAUrlAsTheProxyDoes) {
  const Policy policy = policyWith({"a.example.org", "GET b.example.org:80"});
  const auto reason = [&](const std::string& text, const std::string& method = "GET") -> std::string {
    const auto request = requestFor(text, method, {});
    return request ? std::string(decide(policy, *request).reason) : "no URL";
  };
  EXPECT_EQ(reason("https://a.example.org/x?y#z"), "listed");
  EXPECT_EQ(reason("HTTPS://user:pw@A.example.org:443"), "listed");
  EXPECT_EQ(reason("https://a.example.org:8443/"), "port-not-listed");
  EXPECT_EQ(reason("http://a.example.org/"), "port-not-listed");
  EXPECT_EQ(reason("http://b.example.org"), "listed");
  EXPECT_EQ(reason("http://b.example.org?x"), "listed");
  EXPECT_EQ(reason("http://b.example.org", "POST"), "method-not-listed");
  EXPECT_EQ(reason("https://c.example.org"), "host-not-listed");
  for (const auto* address :
       {"https://[::1]/", "https://[::1]:443/", "https://127.0.0.1", "https://a.example.org./", "https://"})
    EXPECT_EQ(reason(address), "not-a-host-name") << address;
  EXPECT_EQ(reason("http://10.213.0.1:8081/messages", "POST"), "provider");
  EXPECT_EQ(reason("http://10.213.0.1:8081/../x", "POST"), "path-not-allowed");
  for (const auto* text : {"", "a.example.org", "ftp://a.example.org", "://"})
    EXPECT_EQ(reason(text), "no URL") << text;
}

TEST(Advice, SaysWhatTheCardWouldNeed) {
  const Policy policy = policyWith({"GET a.example.org:80"});
  const auto say = [&](std::string_view method, std::string_view host, std::string_view port) {
    return advice(decideRequest(policy, method, "http", host, port), policy, method, host, port);
  };
  EXPECT_EQ(say("GET", "a.example.org", "80"), "");
  EXPECT_EQ(say("GET", "b.example.org", "80"),
            "The card of alpha does not list b.example.org: its allowed_hosts would need b.example.org:80.");
  EXPECT_EQ(say("GET", "a.example.org", "81"),
            "The card of alpha lists GET a.example.org:80, but not port 81: its allowed_hosts would need "
            "a.example.org:81.");
  EXPECT_EQ(say("PUT", "a.example.org", "80"),
            "The card of alpha lists GET a.example.org:80, but not the method PUT: its allowed_hosts would "
            "need PUT "
            "a.example.org:80.");
  EXPECT_EQ(say("GET", "<script>\"\r\n\xff", "80").find_first_of("<>\"\r\n\xff"), std::string::npos);
  // Every reason that a refusal can have has words.
  for (const auto* reason :
       {"scheme-not-allowed", "too-many-requests", "no-server-name", "other-server-name", "no-provider",
        "provider-behind-parent", "method-not-allowed", "key-without-tls", "path-not-allowed"})
    EXPECT_NE(advice({.reason = reason}, policy, "", "", ""), "") << reason;
}

using std::chrono::milliseconds;

TEST(Pace, ASecondsWorthAtOnceAndThenOneByOne) {
  Pace pace;
  const PaceTime start{std::chrono::hours(1)};
  pace.setRate("a", 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(pace.next("a", start).at, start);
  for (int i = 1; i <= 4; ++i) {
    const auto turn = pace.next("a", start);
    EXPECT_FALSE(turn.refused);
    EXPECT_EQ(turn.at, start + i * milliseconds(250));
  }
  const auto late = pace.next("a", start);
  EXPECT_TRUE(late.refused);
  EXPECT_EQ(late.at, start + Pace::longestWait);
  // A refused one took no token.
  EXPECT_EQ(pace.next("a", start + milliseconds(250)).at, start + milliseconds(1250));
  EXPECT_EQ(pace.next("b", start).at, start);
}

TEST(Pace, FillsUpAndForgets) {
  Pace pace;
  const PaceTime start{std::chrono::hours(1)};
  pace.setRate("a", 1);
  EXPECT_EQ(pace.next("a", start).at, start);
  EXPECT_EQ(pace.next("a", start).at, start + milliseconds(1000));
  EXPECT_TRUE(pace.next("a", start).refused);
  pace.forgetIdle(start + milliseconds(2500));
  EXPECT_EQ(pace.sources(), 1u);
  EXPECT_EQ(pace.next("a", start + milliseconds(3500)).at, start + milliseconds(3500));
  pace.forgetIdle(start + milliseconds(6000));
  EXPECT_EQ(pace.sources(), 0u);
}

TEST(Request, ListedHostsAndPortsOnly) {
  const Policy policy =
      policyWith({"a.example.org", "*.b.example.org", "c.example.org:8443", "d.example.org:80"});
  const auto reason = [&](std::string_view host, std::string_view port) {
    return decideRequest(policy, "CONNECT", "", host, port).reason;
  };
  EXPECT_EQ(reason("a.example.org", "443"), "listed");
  EXPECT_EQ(reason("A.Example.ORG", "443"), "listed");
  EXPECT_EQ(reason("b.example.org", "443"), "listed");
  EXPECT_EQ(reason("x.y.b.example.org", "443"), "listed");
  EXPECT_EQ(reason("c.example.org", "8443"), "listed");
  EXPECT_EQ(reason("xb.example.org", "443"), "host-not-listed");
  EXPECT_EQ(reason("x.a.example.org", "443"), "host-not-listed");
  EXPECT_EQ(reason("example.org", "443"), "host-not-listed");
  EXPECT_EQ(reason("llm.example.org", "443"), "host-not-listed");
  EXPECT_EQ(reason("a.example.org.evil.test", "443"), "host-not-listed");
  EXPECT_EQ(reason("c.example.org", "443"), "port-not-listed");
  EXPECT_EQ(reason("a.example.org", "0443"), "port-not-listed");
  EXPECT_EQ(reason("a.example.org", ""), "port-not-listed");
  EXPECT_EQ(reason("a.example.org.", "443"), "not-a-host-name");
  EXPECT_EQ(decideRequest(policy, "GET", "http", "d.example.org", "80").reason, "listed");
  EXPECT_EQ(decideRequest(policy, "GET", "ftp", "d.example.org", "80").reason, "scheme-not-allowed");
  EXPECT_EQ(decideRequest(policy, "GET", "https", "a.example.org", "443").reason, "scheme-not-allowed");
  EXPECT_EQ(decideRequest(policy, "CONNECT", "", "x.b.example.org", "443").rule, ".b.example.org:443");
}

TEST(Request, ListedMethodsArePlainHttpsAlone) {
  const Policy policy =
      policyWith({"GET,HEAD a.example.org:80,8080", "PUT a.example.org:80", "*.example.org:8080"});
  const auto decide = [&](std::string_view method, std::string_view port) {
    return decideRequest(policy, method, "http", "a.example.org", port);
  };
  EXPECT_EQ(decide("GET", "80").reason, "listed");
  EXPECT_EQ(decide("PUT", "80").rule, "PUT a.example.org:80");
  EXPECT_EQ(decide("POST", "80").reason, "method-not-listed");
  EXPECT_EQ(decide("CONNECT", "80").reason, "method-not-listed");
  EXPECT_EQ(decide("get", "80").reason, "method-not-listed");
  // Another rule has no methods.
  EXPECT_EQ(decide("POST", "8080").reason, "listed");
  EXPECT_EQ(decide("GET", "81").reason, "port-not-listed");
}

TEST(Request, NoSpellingOfAnAddressIsAName) {
  const Policy policy = policyWith({"*.example.org"});
  for (const auto* host : {"127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "[::1]",
                           "::1", "[::ffff:127.0.0.1]", "", "-", "a b", "127.0.0.1.", "1.2.3.4.5"})
    EXPECT_EQ(decideRequest(policy, "CONNECT", "", host, "443").reason, "not-a-host-name") << host;
}

TEST(ServerName, IsTheHostOfTheTunnel) {
  EXPECT_TRUE(decideServerName("a.example.org", "A.example.org").allowed);
  EXPECT_EQ(decideServerName("a.example.org", "b.example.org").reason, "other-server-name");
  EXPECT_EQ(decideServerName("a.example.org", "a.example.org.").reason, "other-server-name");
  EXPECT_EQ(decideServerName("a.example.org", "-").reason, "no-server-name");
  EXPECT_EQ(decideServerName("a.example.org", "").reason, "no-server-name");
  EXPECT_EQ(decideServerName("-", "-").reason, "no-server-name");
}

TEST(BrokerPort, StaysBelowTheProvidersUrl) {
  const Policy policy = policyWith({});
  const auto reason = [&](std::string_view target) { return decideBroker(policy, "POST", target).reason; };
  for (const auto* good : {"/messages", "/", "/messages?beta=true&x=%2F..", "/models/a:b", "/a/", "/a..b"})
    EXPECT_EQ(reason(good), "provider") << good;
  for (const auto* bad : {"",
                          "messages",
                          "/../admin",
                          "/a/../../b",
                          "/a/..",
                          "/./a",
                          "/a/.",
                          "//evil.test/a",
                          "/a//b",
                          "/%2e%2e/admin",
                          "/a%2f..%2fb",
                          "/a\\..\\b",
                          "/a b",
                          "/a\nb",
                          "/\xc3\xa9",
                          "/a#b",
                          "/a?b#c",
                          "/a?b c",
                          "/a?b\r\nX: y",
                          "@evil.test/",
                          "http://evil.test/"})
    EXPECT_EQ(reason(bad), "path-not-allowed") << bad;
  for (const auto* method : {"PUT", "DELETE", "CONNECT", "TRACE", "get", "HEAD", ""})
    EXPECT_EQ(decideBroker(policy, method, "/messages").reason, "method-not-allowed") << method;
}

TEST(BrokerPort, NeedsAProviderAndTlsForAKey) {
  Policy policy = policyWith({});
  policy.broker->upstream = url("http://llm.example.org");
  EXPECT_EQ(decideBroker(policy, "GET", "/").reason, "key-without-tls");
  policy.broker->keyHeader.reset();
  EXPECT_TRUE(decideBroker(policy, "GET", "/").allowed);
  policy.parent = url("http://parent.example.org:3128");
  EXPECT_EQ(decideBroker(policy, "GET", "/").reason, "provider-behind-parent");
  policy.broker.reset();
  EXPECT_EQ(decideBroker(policy, "GET", "/").reason, "no-provider");
}

TEST(BrokerPort, NeedsNoTlsToTheHostsOwnOllama) {
  Policy policy = policyWith({});
  policy.broker->upstream = url("http://127.0.0.1:11434/v1");
  EXPECT_TRUE(decideBroker(policy, "GET", "/").allowed);
  policy.broker->upstream = url("http://127.0.0.1:11435/v1");
  EXPECT_EQ(decideBroker(policy, "GET", "/").reason, "key-without-tls");
}

TEST(BrokerPort, TakesNoKeyInTheQuery) {
  Policy policy = policyWith({});
  const auto reason = [&](std::string_view target) { return decideBroker(policy, "POST", target).reason; };
  for (const auto* bad :
       {"/a?key=x", "/a?b=c&KEY=x", "/a?api_key", "/a?%6bey=x", "/a?b&access_token=x", "/a?&api%2Dkey=x"})
    EXPECT_EQ(reason(bad), "key-in-query") << bad;
  for (const auto* good : {"/a?keys=x", "/a?b=key", "/a?include%5B%5D=key=x", "/key"})
    EXPECT_EQ(reason(good), "provider") << good;
  policy.broker->keyHeader.reset();
  EXPECT_EQ(reason("/a?key=x"), "provider");
}

TEST(SquidHelper, QuestionsAreDecodedOnce) {
  const auto question = parseQuestion("17 10.0.0.1 a%20b %252f %0a %4 x%");
  EXPECT_EQ(question.channel, "17");
  EXPECT_EQ(question.tokens, (std::vector<std::string>{"10.0.0.1", "a b", "%2f", "\n", "%4", "x%"}));
  EXPECT_TRUE(parseQuestion("17").tokens.empty());
}

TEST(SquidHelper, AnswersHoldNothingThatSquidWouldSplit) {
  EXPECT_EQ(renderAnswer("3", true, {{"reason", "listed"}, {"rule", ""}, {"api_key", "a b\"c\\%=\n"}}),
            "3 OK reason=listed api_key=a%20b%22c%5C%25%3D%0A\n");
  EXPECT_EQ(renderAnswer("3", false, {}), "3 ERR\n");
}

}  // namespace
}  // namespace agentmachine
