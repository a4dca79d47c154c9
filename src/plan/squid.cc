#include "plan/squid.h"

#include <algorithm>
#include <format>
#include <vector>

#include "card/card.h"
#include "plan/audit.h"
#include "plan/policy.h"
#include "util/error.h"
#include "util/text.h"

namespace agentmachine {

namespace {

/// squid.conf has no quoting that can be relied on, so what would need it is refused.
std::string plain(const std::string& path) {
  const bool good = !path.empty() && std::ranges::all_of(path, [](unsigned char c) {
    return std::isalnum(c) || std::string_view("/._-+@:=,").contains(static_cast<char>(c));
  });
  if (!good) throw Error("render squid.conf: \"" + path + "\" has a character that squid.conf can't hold");
  return path;
}

constexpr std::string_view base = R"(
# Nothing is kept: no cache, no management interface, no other protocol, no trace of the host in requests.
cache deny all
cache_mem 8 MB
cache_store_log none
memory_pools off
coredump_dir none
pid_filename none
pinger_enable off
icp_port 0
htcp_port 0
snmp_port 0
global_internal_static off
digest_generation off
via off
forwarded_for delete
httpd_suppress_version_string on
visible_hostname agentmachine-proxy
unique_hostname agentmachine-proxy
email_err_data off
# Section 84 would quote a helper's reply, and with it a key, when it can't make sense of it.
cache_log /dev/null
debug_options ALL,1 84,0

# A machine can waste its own share of these, not the others': the packet filter counts its connections.
max_filedescriptors 16384
request_body_max_size 64 MB
request_start_timeout 30 seconds
request_timeout 30 seconds
client_idle_pconn_timeout 1 minute
connect_timeout 20 seconds
forward_timeout 30 seconds
# Models think for minutes before the first byte.
read_timeout 15 minutes
shutdown_lifetime 2 seconds
positive_dns_ttl 1 minute
negative_dns_ttl 5 seconds
)";

constexpr std::string_view privateAddresses =
    R"(acl private dst 0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.168.0.0/16 198.18.0.0/15 224.0.0.0/3
# What carries IPv4 addresses is in the list because it could carry one of the above. ::ffff:0:0/96 isn't: squid takes
# mapped addresses for the IPv4 addresses that they are, and here for all of them.
acl private dst ::/128 ::1/128 64:ff9b::/96 64:ff9b:1::/48 2002::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
)";

constexpr std::string_view rules = R"(
acl first_step at_step SslBump1
acl second_step at_step SslBump2

# These match always and note, for the log, why.
acl because_private annotate_transaction decision=deny reason=private-address
acl because_no_route annotate_transaction decision=deny reason=broker-failed
acl because_management annotate_transaction decision=deny reason=proxy-management

acl now_peeked annotate_client peeked=yes
acl peeked note peeked yes
acl proven note clt_conn_tag same-host
acl because_unproven annotate_transaction decision=deny reason=no-answer
acl unproven all-of peeked !proven because_unproven

acl inside all-of private !may_be_private because_private
acl broker_inside all-of private !may_be_private !own_ollama because_private
# Squid's own pages (squid-internal-mgr), which it answers without a connection that anything else would judge.
acl management all-of manager because_management

# The machine's own policy first: nothing is resolved for a host that isn't on it.
acl tunnel_or_request all-of !broker_port listed !unproven !management !inside
acl to_provider all-of broker_port brokered
http_access allow to_provider
http_access allow tunnel_or_request
# Each refusal says why. 407, because any other refusal of a CONNECT is sent inside a TLS session with a certificate
# nobody trusts.
acl inside_tunnel note reason private-address
acl inside_request note reason private-address
deny_info 407:ERR_AGENTMACHINE_PRIVATE inside_tunnel
deny_info 403:ERR_AGENTMACHINE_PRIVATE inside_request broker_inside because_private
deny_info 407:ERR_AGENTMACHINE CONNECT
deny_info 403:ERR_AGENTMACHINE all not_provider because_no_route unaddable because_header
http_access deny CONNECT inside_tunnel
http_access deny inside_request
http_access deny CONNECT
http_access deny all
# curl shows no body of a refused CONNECT, but headers with -v.
acl refused note decision deny
reply_header_add X-Agentmachine-Refusal "private-address: the name resolves to an address of the host or of a private network" inside_request
reply_header_add X-Agentmachine-Refusal "%'note{reason}: %'note{advice}" refused !inside_request

# A tunnel is for the host it was opened for. Squid asks http_access once more before it connects, so a name that
# resolves to another address by then is judged again. It also splices when it gets no answer at all: then "unproven"
# refuses in http_access.
ssl_bump peek first_step now_peeked
ssl_bump splice second_step same_host
ssl_bump terminate all

# The broker: the policy helper named the provider's URL in a note, the rewriter puts it in place of the machine's.
acl unrewritten dstdomain -n broker.invalid
acl not_provider all-of unrewritten because_no_route
url_rewrite_access allow broker_port
url_rewrite_access deny all
url_rewrite_extras "%note{upstream}"
adapted_http_access deny broker_port not_provider
adapted_http_access deny broker_port broker_inside
adapted_http_access deny broker_port unaddable
adapted_http_access allow all

request_header_access Cookie deny broker_port
request_header_access Cache-Control deny broker_port
request_header_access Surrogate-Capability deny broker_port
reply_header_access X-Cache deny all
reply_header_access X-Cache-Lookup deny all
reply_header_access Cache-Status deny all
)";

std::string logs(const Settings& settings, const SquidPaths& paths) {
  return proxyLogFormat("decisions", settings.brokerPort) + R"(
# A tunnel is logged when it ends; squid would also tell that it began. A connection without a request says nothing.
acl allowed note decision allow
acl connected http_status 200
acl nowhere_yet hier_code HIER_NONE
acl asked has request
acl answered has response
acl only_begun all-of proven allowed answered connected nowhere_yet
acl worth_a_line any-of asked answered
)" +
         std::format(
             "logfile_daemon {}\n"
             "access_log daemon:{}:{} logformat=decisions worth_a_line !only_begun\n",
             plain(paths.auditor), plain(settings.runtimeDirectory) + "/policy", plain(paths.accessLog));
}

std::string helpers(const Settings& settings, const SquidPaths& paths) {
  const std::string helper = plain(paths.helper);
  const std::string policies = plain(settings.runtimeDirectory) + "/policy";
  // Never cached: a policy that changes counts for the next request. As many at once as there can be
  // connections: those of one machine may have to wait, and squid ends itself when a queue is full for three
  // minutes.
  const auto question = [&](std::string_view name, std::string_view tokens, std::string_view arguments) {
    return std::format(
        "external_acl_type {0} ttl=0 negative_ttl=0 cache=0 children-max=1 children-startup=1 "
        "concurrency=16384 "
        "ipv4 {1} {2} {0} {3}\n",
        name, tokens, helper, arguments);
  };
  return question("request", "%>a %>rm %>rs %>rd %>rP %ssl::>sni", policies) +
         question("sni", "%>a %>rd %ssl::>sni", policies) +
         question("broker", "%>a %>rm %>rp", policies + " " + settings.runtimeDirectory + "/keys") +
         "acl listed external request\nacl same_host external sni\nacl brokered external broker\n" +
         std::format("url_rewrite_program {} rewrite\n", helper) +
         "url_rewrite_children 1 startup=1 idle=1 concurrency=16384 queue-size=16384 "
         "on-persistent-overload=ERR\n";
}

/// Whatever key the machine sent is taken out; the card's goes in.
std::string keys(const Settings& settings) {
  const auto headers = keyHeaders(settings);
  std::vector<std::string> names;
  for (const auto& header : headers) names.push_back(header.str());
  std::string text =
      "# Set up by a card that knows more headers than this configuration: refused, for its key can't go "
      "in.\n"
      "acl has_key note key_header\n"
      "acl because_header annotate_transaction decision=deny reason=header-not-in-proxy\n"
      "acl addable note key_header " +
      join(names, " ") + "\nacl unaddable all-of has_key !addable because_header\n";
  int number = 0;
  for (const auto& name : names) {
    ++number;
    for (const auto& spelling : headerSpellings(name))
      text += std::format("request_header_access {} deny broker_port\n", spelling);
    text += std::format(
        "acl key_header_{0} note key_header {1}\nrequest_header_add {1} \"{2}%note{{api_key}}\" "
        "key_header_{0}\n",
        number, name, name == "authorization" ? "Bearer " : "");
  }
  return text;
}

std::string portsOf(const HostPattern& host) {
  std::vector<std::string> numbers;
  for (const auto port : host.ports) numbers.push_back(std::to_string(port));
  return join(numbers, " ");
}

/// Names that may resolve to private addresses, each with its ports: dstdomain knows none.
std::string privateHosts(const Settings& settings) {
  std::string text = "# The host's settings let these resolve to private addresses.\n";
  int number = 0;
  for (const auto& host : settings.privateHosts) {
    ++number;
    text += std::format("acl private_name_{} dstdomain -n {}{}\n", number, host.subdomains ? "." : "",
                        host.name.str()) +
            std::format("acl private_port_{} port {}\n", number, portsOf(host)) +
            std::format("acl may_be_private all-of private_name_{0} private_port_{0}\n", number);
  }
  if (number == 0) text += "acl may_be_private any-of !all\n";
  const auto ollama = defaultApiBaseUrl(ApiProvider::ollama).value();
  return text + std::format("acl own_ollama_host dstdomain -n {}\n", ollama.host) +
         std::format("acl own_ollama_port port {}\n", ollama.port) +
         "acl own_ollama all-of own_ollama_host own_ollama_port\n";
}

/// Machines whose policy names a parent go through it and no other way, even if it is no longer listed. The
/// broker never does: squid would send the parent what is meant for the provider, key and all, instead of a
/// CONNECT.
std::string parents(const Settings& settings) {
  std::string text = "\nacl has_parent note parent\nnever_direct allow has_parent\n";
  int number = 0;
  for (const auto& parent : settings.parentProxies) {
    ++number;
    text += std::format("acl through_{} note parent {}\n", number, parent.str()) +
            std::format("cache_peer {} parent {} 0 no-query no-digest no-netdb-exchange name=parent_{}{}\n",
                        parent.host, parent.port, number, parent.tls ? " tls" : "") +
            std::format("cache_peer_access parent_{0} allow through_{0} !broker_port\n", number) +
            std::format("cache_peer_access parent_{} deny all\n", number);
  }
  return text;
}

}  // namespace

std::string_view squidBase() {
  return base;
}

std::string_view squidPrivateAddresses() {
  return privateAddresses;
}

std::vector<std::string> headerSpellings(const std::string& name) {
  std::vector<std::size_t> hyphens;
  for (std::size_t at = 0; at < name.size() && hyphens.size() < 4; ++at)
    if (name[at] == '-') hyphens.push_back(at);
  std::vector<std::string> all;
  for (unsigned chosen = 0; chosen < 1U << hyphens.size(); ++chosen) {
    all.push_back(name);
    for (std::size_t n = 0; n < hyphens.size(); ++n)
      if (chosen >> n & 1) all.back()[hyphens[n]] = '_';
  }
  return all;
}

std::map<std::string, std::string> squidErrorPages() {
  constexpr std::string_view end =
      "Trying again without the proxy will not help: this machine has no other way out. If the work needs "
      "it, ask the "
      "person whose agent you are to change the card.\n";
  // ': as it is. The policy helper lets nothing into its advice that would mean something in a page.
  return {{"ERR_AGENTMACHINE", std::format("agentmachine refused this request: @Squid{{%'note{{reason}}}}\n"
                                           "Rule: @Squid{{%'note{{rule}}}}\n@Squid{{%'note{{advice}}}}\n{}",
                                           end)},
          {"ERR_AGENTMACHINE_PRIVATE",
           std::format(
               "agentmachine refused this request: private-address\n"
               "Rule: @Squid{{%'note{{rule}}}}\n"
               "The card allows it, but the name resolves to an address of the host or of a private network. "
               "private_hosts in the settings of the host would need it.\n{}",
               end)}};
}

std::string renderSquidConf(const Settings& settings, const SquidPaths& paths) {
  const std::string gateway = settings.gateway.str();
  return "# Rendered by agentmachine; changes are lost when agentmachine-proxy.service starts.\n" +
         std::format("http_port {}:{} ssl-bump tls-cert={} generate-host-certificates=off\n", gateway,
                     settings.proxyPort, plain(paths.certificate)) +
         std::format("http_port {}:{} accel allow-direct defaultsite=broker.invalid no-vhost name=broker\n",
                     gateway, settings.brokerPort) +
         std::format("error_directory {}\n", plain(paths.errorPages)) +
         "tls_outgoing_options min-version=1.2" +
         (settings.proxyCaFile ? " default-ca=off cafile=" + plain(*settings.proxyCaFile) : "") + "\n" +
         std::string(base) + helpers(settings, paths) + privateHosts(settings) +
         std::string(privateAddresses) + "acl broker_port myportname broker\n" + keys(settings) +
         std::string(rules) + parents(settings) + logs(settings, paths);
}

}  // namespace agentmachine
