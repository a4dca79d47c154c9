#include "export/proxy.h"

#include <algorithm>
#include <format>
#include <vector>

#include "plan/audit.h"
#include "plan/host.h"
#include "plan/squid.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

std::string numbers(const std::vector<std::uint16_t>& ports) {
  std::vector<std::string> texts;
  for (const auto port : ports) texts.push_back(std::to_string(port));
  return join(texts, " ");
}

/// Networks that an exported proxy refuses to connect to: a provider there could never be reached.
bool isPrivate(Ipv4 address) {
  struct Network {
    std::uint32_t base;
    unsigned bits;
  };
  constexpr Network networks[] = {{0x00000000, 8},  {0x0a000000, 8},  {0x64400000, 10}, {0x7f000000, 8},
                                  {0xa9fe0000, 16}, {0xac100000, 12}, {0xc0000000, 24}, {0xc0a80000, 16},
                                  {0xc6120000, 15}, {0xe0000000, 3}};
  return std::ranges::any_of(networks, [&](const Network& network) {
    return (address.value ^ network.base) >> (32 - network.bits) == 0;
  });
}

void checkProvider(const Card& card, const Url& url) {
  const auto address = Ipv4::parse(url.host);
  if (isOwnOllama(url))
    throw Error(
        "api_provider ollama: the Ollama of this host is nowhere else; give an api_base_url that can be "
        "reached from there");
  if (address ? isPrivate(*address) : !url.host.contains('.'))
    throw Error(
        std::format("api_base_url {}: the exported proxy connects to no private address; give a host name "
                    "with its domain that resolves to a public one",
                    url.str()));
  if (card.apiKeyFile && !url.tls)
    throw Error(std::format(
        "api_base_url {}: a key is sent by https:// alone; write that, or leave `api_key_file` out",
        url.str()));
  if (card.apiKeyDelivery == KeyDelivery::broker) return;
  if (const auto host = HostPattern::parse(std::format("{}:{}", url.host, url.port)); !host)
    throw Error(
        std::format("api_key_delivery credential: the agent itself has to reach the provider by the proxy, "
                    "and \"{}\" {}",
                    url.host, host.error()));
}

/// One line of the policy, as ACLs: rule_N lets requests and tunnels out, name_N a tunnel whose server name
/// is right.
std::string ruleOf(const HostPattern& host, std::size_t number, const std::string& pointer) {
  const std::string name = (host.subdomains ? "." : "") + host.name.str();
  std::string text = std::format("# {}\nacl host_{} dstdomain -n {}\nacl port_{} port {}\n", host.str(),
                                 number, name, number, numbers(host.ports));
  std::string conditions = std::format("host_{0} port_{0}", number);
  if (!host.methods.empty()) {
    text += std::format("acl method_{} method {}\n", number, join(host.methods, " "));
    conditions += std::format(" method_{}", number);
  }
  return text +
         std::format(
             "acl noted_{0} annotate_transaction decision=allow reason=listed rule={2}\n"
             "acl listed any-of rule_{0}\n"
             "acl server_{0} ssl::server_name {1}\n"
             "acl name_{0} all-of host_{0} server_{0}\n"
             "acl same_host any-of name_{0}\n",
             number, name, pointer) +
         std::format("acl rule_{} all-of {} noted_{}\n", number, conditions, number);
}

std::string rules(const Card& card, const Policy& policy) {
  std::string definitions, uses;
  // An ACL must be there before it is named: the rules first, then what any of them makes true.
  for (std::size_t number = 0; number < policy.hosts.size(); ++number) {
    // The provider comes after the card's own hosts.
    const std::string pointer =
        number < card.allowedHosts.size() ? std::format("/allowed_hosts/{}", number) : "/api_base_url";
    for (const auto& line : split(trim(ruleOf(policy.hosts[number], number, pointer)), '\n'))
      (line.contains(" any-of ") ? uses : definitions) += line + "\n";
  }
  if (policy.hosts.empty()) uses = "acl listed any-of !all\nacl same_host any-of !all\n";
  return definitions + uses;
}

std::string broker(const Policy& policy, std::string_view runtime) {
  if (!policy.broker) return "acl provider any-of !all\n";
  const Url& url = policy.broker->upstream;
  std::string path = url.path;
  for (std::size_t at = 0; (at = path.find('.', at)) != std::string::npos; at += 2) path.insert(at, "\\");
  std::string text = std::format(
      "acl provider_host dstdomain -n {0}\n"
      "acl provider_method method GET POST\n"
      // A path that means one thing to everybody, below the provider's own, and no key of somebody else's.
      "acl provider_path urlpath_regex ^{1}(/[A-Za-z0-9._~@:-]+)+(\\?.*)?$\n"
      "acl odd_path urlpath_regex /\\.\\.?(/|\\?|$)\n"
      "acl odd_path urlpath_regex -i "
      "[?&](access_token|api-key|api_key|apikey|key|subscription-key|token|x-api-key)(=|&|$)\n"
      "acl odd_path urlpath_regex [?&][^=&]*%\n"
      "acl provider_noted annotate_transaction decision=allow reason=provider rule=/api_base_url\n"
      "acl provider all-of broker_port provider_host provider_method provider_path !odd_path provider_noted\n"
      "cache_peer {0} parent {2} 0 no-query no-digest no-netdb-exchange originserver name=provider{3}\n"
      "cache_peer_access provider allow broker_port\n"
      "cache_peer_access provider deny all\n"
      "never_direct allow broker_port\n"
      "request_header_access Cookie deny broker_port\n"
      "request_header_access Cache-Control deny broker_port\n"
      "request_header_access Surrogate-Capability deny broker_port\n",
      url.host, path, url.port,
      url.tls ? std::format(" tls tls-min-version=1.2 ssldomain={}", url.host) : std::string());
  std::vector<std::string> names;
  for (const auto& header : keyHeaders({})) names.push_back(header.str());
  if (policy.broker->keyHeader && !std::ranges::contains(names, policy.broker->keyHeader->str()))
    names.push_back(policy.broker->keyHeader->str());
  for (const auto& name : names)
    for (const auto& spelling : headerSpellings(name))
      text += std::format("request_header_access {} deny broker_port\n", spelling);
  if (policy.broker->keyHeader) text += std::format("include {}/key.conf\n", runtime);
  return text;
}

constexpr std::string_view decisions = R"(
acl named annotate_transaction agent={0}
acl web proto HTTP
acl request_or_tunnel any-of CONNECT web
acl because_many annotate_transaction decision=deny reason=too-many-connections
acl because_private annotate_transaction decision=deny reason=private-address
acl because_unlisted annotate_transaction decision=deny reason=not-listed
acl because_name annotate_transaction decision=deny reason=other-server-name
acl because_path annotate_transaction decision=deny reason=not-allowed-by-broker
acl inside all-of private because_private
acl too_many_connections maxconn {1}
acl too_many all-of too_many_connections because_many

http_access deny !named
http_access deny too_many
# The policy first: nothing is resolved for a host that isn't on it.
http_access allow provider !inside
http_access deny broker_port because_path
http_access allow !broker_port request_or_tunnel listed !inside
acl refused_private note reason private-address
http_access deny refused_private CONNECT
http_access deny refused_private
http_access deny because_unlisted CONNECT
http_access deny all
# Any other refusal of a CONNECT is sent inside a TLS session with a certificate nobody trusts.
deny_info 407:ERR_ACCESS_DENIED CONNECT

# A tunnel is for the host it was opened for.
acl first_step at_step SslBump1
acl second_step at_step SslBump2
acl now_proven annotate_client proven=yes
acl proven note proven yes
ssl_bump peek first_step
ssl_bump splice second_step same_host now_proven
ssl_bump terminate because_name

reply_header_access X-Cache deny all
reply_header_access X-Cache-Lookup deny all
reply_header_access Cache-Status deny all
)";

std::string bandwidth(const Card& card) {
  if (!card.limits.networkMbit) return "";
  const std::uint64_t bytes = *card.limits.networkMbit * 125000;  // 10^6 bits
  return std::format("delay_pools 1\ndelay_class 1 1\ndelay_access 1 allow all\ndelay_parameters 1 {0}/{0}\n",
                     bytes);
}

}  // namespace

Policy exportedPolicy(const Card& card) {
  if (const auto url = providerUrl(card)) checkProvider(card, *url);
  Policy policy = policyFor(card, Settings{});
  policy.parent = {};
  return policy;
}

std::string renderProxyConf(const Card& card, const ProxyPlaces& places) {
  const Policy policy = exportedPolicy(card);
  const std::string listen = places.address.empty() ? "" : places.address + ":";
  std::string text =
      std::format("# Rendered by agentmachine from the card of {}: what it lets its agent reach.\n",
                  card.id.str()) +
      std::format("http_port {}{} ssl-bump tls-cert={}/certificate.pem generate-host-certificates=off\n",
                  listen, exportedProxyPort, places.runtime);
  if (policy.broker) {
    const Url& url = policy.broker->upstream;
    const bool usual = url.port == (url.tls ? 443 : 80);
    text += std::format("http_port {}{} accel defaultsite={}{} no-vhost name=broker\n", listen,
                        exportedBrokerPort, url.host, usual ? "" : std::format(":{}", url.port));
  }
  text += "tls_outgoing_options min-version=1.2\n" + std::string(squidBase()) + "\n";
  text += policy.broker ? "acl broker_port myportname broker\n" : "acl broker_port any-of !all\n";
  text += broker(policy, places.runtime) + "\n" + rules(card, policy) + "\n" +
          std::string(squidPrivateAddresses());
  text += std::vformat(decisions, std::make_format_args(card.id.str(), card.limits.maxConnections)) +
          bandwidth(card);
  return text + "\n" + proxyLogFormat("decisions", exportedBrokerPort) +
         "# A tunnel is logged when it ends; squid would also tell that it began.\n"
         "acl allowed note decision allow\n"
         "acl connected http_status 200\n"
         "acl nowhere_yet hier_code HIER_NONE\n"
         "acl asked has request\n"
         "acl only_begun all-of proven allowed connected nowhere_yet CONNECT\n" +
         std::format("access_log stdio:{} logformat=decisions asked !only_begun\n",
                     places.outputIsSocket ? places.runtime + "/log" : "/dev/stdout");
}

std::string startProxyScript(const Card& card, const ProxyPlaces& places) {
  std::string script = std::format(
      "set -eu\n"
      "umask 077\n"
      "cd {}\n"
      // squid wants one to look into TLS, and never shows it.
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=proxy "
      "-keyout certificate.key -out certificate.crt 2>/dev/null\n"
      "cat certificate.crt certificate.key >certificate.pem\n",
      places.runtime);
  if (places.outputIsSocket) script += "mkfifo log\ncat log &\n";
  if (proxyHasKey(card)) {
    const auto header = keyHeader(card).value().str();
    script += std::format(
        "IFS= read -r key <{0}/{1} || [ \"$key\" ]\n"
        "case $key in\n"
        "'' | *[!A-Za-z0-9._~+/=:@-]*) echo \"{0}/{1} must hold one key and nothing else\" >&2; exit 1 ;;\n"
        "esac\n"
        "printf 'request_header_add {2} \"{3}%s\" broker_port\\n' \"$key\" >key.conf\n",
        places.secret, proxyKeyName, header, header == "authorization" ? "Bearer " : "");
  }
  return script + std::format("exec /usr/sbin/squid -N -d 1 -f {}/squid.conf\n", places.config);
}

std::set<std::uint16_t> portsBeyondProxy(const Card& card) {
  const Policy policy = exportedPolicy(card);
  std::set<std::uint16_t> ports;
  for (const auto& host : policy.hosts) ports.insert(host.ports.begin(), host.ports.end());
  if (policy.broker) ports.insert(policy.broker->upstream.port);
  return ports;
}

bool proxyHasKey(const Card& card) {
  return card.apiKeyFile && card.apiKeyDelivery == KeyDelivery::broker;
}

std::string brokerUrl(const Card& card, std::string_view host) {
  const auto url = providerUrl(card);
  return std::format("http://{}:{}{}", host, exportedBrokerPort, url ? url->path : "");
}

}  // namespace agentmachine
