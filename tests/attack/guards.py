"""The guards: each is one layer of protection that can be taken away by itself and is put back afterwards.

A HostGuard is a context manager's function; ProxyRule is lines of squid.conf; MachineGuard is lines of a machine's unit or
settings, taken away in a variant machine. A MachineGuard with `standin` is taken away by running the attack as root of the
host in the machine's network (lab.StandIn), where the other machine guards are given as properties of a unit.
"""

import contextlib
import dataclasses
import json
import pathlib

import naive
from lab import GATEWAY, PROXY, PROXY_UNIT, quiet, replace, run


@dataclasses.dataclass(frozen=True)
class Guard:
    name: str

    def __str__(self):
        return self.name


@dataclasses.dataclass(frozen=True)
class HostGuard(Guard):
    away: callable  # lab -> context manager


@dataclasses.dataclass(frozen=True)
class ProxyRule(Guard):
    edits: tuple  # of (regular expression, replacement)


@dataclasses.dataclass(frozen=True)
class MachineGuard(Guard):
    dropin: str = ""  # lines of [Service] that take it away
    settings: tuple = ()  # edits of the .nspawn file that take it away
    properties: tuple = ()  # what gives a unit of its own the same guard
    standin: bool = False
    host: bool = False  # taken away by running the attack on the host itself, as root


# The host's packet filter


@contextlib.contextmanager
def table_away(family):
    saved = run("nft", "list", "table", family, "agentmachine")
    run("nft", "delete", "table", family, "agentmachine")
    try:
        yield
    finally:
        quiet("nft", "delete", "table", family, "agentmachine")
        run("nft", "-f", "-", input=saved)


@contextlib.contextmanager
def chain_away(family, chain):
    saved = run("nft", "list", "table", family, "agentmachine")
    run("nft", "flush", "chain", family, "agentmachine", chain)
    try:
        yield
    finally:
        run("nft", "-f", "-", input=f"delete table {family} agentmachine\n{saved}")


PORT_FILTER = HostGuard("nft bridge", lambda lab: table_away("bridge"))
HOST_FILTER = HostGuard("nft inet", lambda lab: table_away("inet"))
PROXY_FILTER = HostGuard("nft proxy_output", lambda lab: chain_away("inet", "proxy_output"))


@contextlib.contextmanager
def route_added(lab):
    machine = getattr(lab.attacker, "machine", lab.attacker)
    run(*machine.network("ip", "route", "replace", "default", "via", GATEWAY, "dev", "host0"))
    run(*machine.network("ip", "route", "replace", "10.213.0.0/16", "dev", "host0", "scope", "link"))
    try:
        yield
    finally:
        quiet(*machine.network("ip", "route", "delete", "default"))
        quiet(*machine.network("ip", "route", "delete", "10.213.0.0/16", "dev", "host0"))


NO_ROUTE = HostGuard("no route", route_added)


@contextlib.contextmanager
def isolation_off(lab):
    """A bridge that does what bridges do: it learns and floods, and its ports see each other."""
    ports = [lab.attacker.port, lab.neighbour.port]
    def isolate(flag, opposite):
        for port in ports:
            run("ip", "link", "set", "dev", port, "type", "bridge_slave", "isolated", flag, "learning", opposite,
                "flood", opposite, "mcast_flood", opposite)
    isolate("off", "on")
    try:
        yield
    finally:
        isolate("on", "off")


ISOLATION = HostGuard("port isolation", isolation_off)

# The machine

IP_DENY = MachineGuard("IPAddressDeny", dropin="IPAddressDeny=\n", properties=("IPAddressDeny=any", "IPAddressAllow=localhost", f"IPAddressAllow={GATEWAY}"))
FAMILIES = MachineGuard("RestrictAddressFamilies", dropin="RestrictAddressFamilies=\n", properties=("RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK",))
UNPRIVILEGED = MachineGuard("no capabilities", standin=True,
                            properties=("User=nobody", "Group=nogroup", "CapabilityBoundingSet=", "NoNewPrivileges=yes"))
# A process outside has none. What is said of it to a unit says the same of the families, and less of all else.
CALL_FILTER = MachineGuard("system call filter", standin=True, properties=("RestrictAddressFamilies=AF_UNIX AF_INET",))
# journald takes 0 for "as it does anyway".
LOG_RATE = MachineGuard("log rate limit", dropin="LogRateLimitIntervalSec=1us\nLogRateLimitBurst=1000000\n")
LOG_LEVEL = MachineGuard("one log level", dropin="SyslogLevelPrefix=yes\n")
PRIVATE_NETWORK = MachineGuard("private network", host=True)

# The proxy

POLICY = ProxyRule("policy", ((r"^(acl tunnel_or_request all-of !broker_port) listed", r"\1"),))
PRIVATE = ProxyRule("private addresses", ((r"^(acl tunnel_or_request .*) !inside", r"\1"),))
MANAGEMENT = ProxyRule("proxy management", ((r"^(acl tunnel_or_request .*) !management", r"\1"),))
SERVER_NAME = ProxyRule("server name", ((r"^ssl_bump peek first_step now_peeked", "ssl_bump splice all"),))


@contextlib.contextmanager
def set_flushed(name):
    saved = run("nft", "list", "table", "inet", "agentmachine")
    run("nft", "flush", "set", "inet", "agentmachine", name)
    try:
        yield
    finally:
        run("nft", "-f", "-", input=f"delete table inet agentmachine\n{saved}")


@contextlib.contextmanager
def uncounted(lab):
    element = f"element inet agentmachine_connections machines {{ {lab.attacker.address}"
    run("nft", f"delete {element} }}")
    try:
        yield
    finally:
        run("nft", f"add {element} : jump of_{lab.attacker.address} }}")


CONNECTIONS = HostGuard("connection limit", uncounted)
NEW_CONNECTIONS = HostGuard("limit of new connections", lambda lab: set_flushed("new_connections"))


@contextlib.contextmanager
def unpaced(lab):
    path = pathlib.Path(f"/run/agentmachine/policy/{lab.attacker.address}")
    before = path.read_text()
    replace(path, json.dumps(json.loads(before) | {"requests_per_second": 100000}))
    try:
        yield
    finally:
        replace(path, before)


REQUESTS = HostGuard("request rate", unpaced)


@contextlib.contextmanager
def uncut(lab):
    """A `deny` that counts for what comes, and leaves alone what is there."""
    lab.cuts = False
    try:
        yield
    finally:
        lab.cuts = True


CUT = HostGuard("deny cuts connections", uncut)


@contextlib.contextmanager
def unshaped(lab):
    ends = [["tc", "qdisc", "{}", "dev", lab.attacker.port, "root"], lab.attacker.network("tc", "qdisc", "{}", "dev", "host0", "root")]
    for end in ends:
        run(*[word.replace("{}", "delete") for word in end])
    try:
        yield
    finally:
        for end in ends:
            run(*[word.replace("{}", "replace") for word in end], "tbf", "rate", "1mbit", "burst", "68kb", "latency", "50ms")


BANDWIDTH = HostGuard("bandwidth", unshaped)


@contextlib.contextmanager
def instead_of_proxy(server_class, *arguments):
    """In place of the proxy a server of naive.py or broker.py."""
    run("systemctl", "stop", PROXY_UNIT)
    server = server_class(*arguments)
    try:
        yield
    finally:
        server.close()
        run("systemctl", "start", PROXY_UNIT)


STRICT_PROXY = HostGuard("strict proxy", lambda lab: instead_of_proxy(naive.Proxy, GATEWAY, PROXY, lab))
