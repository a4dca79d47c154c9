"""What attacks happen in: real machines of agentmachine, and around their host an internet, a LAN and a name server.

Runs as root in the test host. Everything made here is named "attack", and is taken back by close().
"""

import collections
import contextlib
import glob
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "proxy"))
import world  # noqa: E402  servers, name server and TLS of the proxy's own test

GATEWAY, PROXY, BROKER = "10.213.0.1", 3128, 8081
NAMESERVER = "192.0.2.53"
# Of the pretended internet (TEST-NET-1): what cards list, and what they don't.
LISTED, EVIL = "192.0.2.10", "192.0.2.66"
LAN_HOST, LAN_DEVICE, METADATA = "10.9.0.1", "10.9.0.2", "169.254.169.254"
SQUID_CONF = pathlib.Path("/run/agentmachine/proxy/squid.conf")
PROXY_UNIT, FILTER_UNIT = "agentmachine-proxy.service", "agentmachine-filter.service"
CONF = pathlib.Path("/etc/agentmachine/agentmachine.conf")
WORK = pathlib.Path("/var/tmp/agentmachine-attack")
TOOLS = "/workspace/.tools/"
# A payload that prints what Machine.prints() gives it.
SPEAKER = {"command": ["sh", "-c", "mkfifo /workspace/.say; while :; do cat /workspace/.say; done"]}
PARTS = []  # what a class adds to the lab: functions of it, called before its first machine is made

run, inside, ip = world.run, world.inside, world.ip


def quiet(*argv, **options):
    """Whether it worked."""
    return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options).returncode == 0


waiting = threading.local()


def patience(seconds):
    """So long, and longer in a control: there what is awaited comes, and a busy host must not make it fail."""
    return seconds * getattr(waiting, "factor", 1)


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    def __contains__(self, text):
        return text.encode() in self.out


class Place:
    """Where probes run. `command` turns an argv into one of the host's that does the same there."""

    address = GATEWAY

    def command(self, argv):
        return list(argv)

    def run(self, *argv, input=b"", timeout=30):
        """What became of it; "TOOLS" in an argument is where the tools are. Runs on the host's clock: a probe that
        takes longer than `timeout` seconds is ended, with status 124."""
        process = subprocess.Popen(self.command(map(str, argv)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(input, timeout)
            return Result(process.returncode, out, err)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Result(124, out, err)

    def sh(self, script, **options):
        return self.run("/bin/sh", "-c", script, **options)

    # Probes of wire.c are started by one that stays there: a session of the machine takes a second, a request to it none.

    server, server_lock = None, threading.Lock()

    def socket_paths(self):
        """Where that one listens: as it calls the place, and as the host does."""
        path = f"{WORK}/sockets/{id(self):x}"
        return path, path

    def start(self, argv, stdin, stdout):
        """Starts a probe. The descriptors become its own."""
        there, here = self.socket_paths()
        with self.server_lock:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(here)
            except OSError:
                self.stop_server()
                with contextlib.suppress(FileNotFoundError):  # of a place that is gone, whose id is this one's
                    os.unlink(here)
                self.server = subprocess.Popen(self.command([TOOLS + "wire", "serve", there]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self.server.stdout.readline()
                connection.connect(here)
        words = ["-w", patience(1), *argv]
        with open(os.devnull, "w") as null:
            socket.send_fds(connection, [b"".join(str(word).encode() + b"\0" for word in words)], [stdin, stdout, null.fileno()])
        return connection

    def stop_server(self):
        if self.server:
            self.server.stdin.close()
            self.server.wait()
            self.server.stdout.close()
            self.server = None

    def wire(self, *argv, timeout=30):
        """See probes/wire.c."""
        with tempfile.TemporaryFile() as out, open(os.devnull) as null, self.start(argv, null.fileno(), out.fileno()) as probe:
            probe.settimeout(timeout)
            try:
                status = (probe.recv(1) or b"\x80")[0]
            except TimeoutError:
                status = 124
            out.seek(0)
            return Result(status, out.read(), b"")

    @contextlib.contextmanager
    def open(self, address=GATEWAY, port=PROXY, timeout=8):
        """A socket whose other end is, through a probe there, a TCP connection to `address`; at its end if there is none."""
        ours, theirs = socket.socketpair()
        with self.start(["tcp", address, port], theirs.fileno(), theirs.fileno()), ours:
            theirs.close()
            ours.settimeout(patience(timeout))
            yield ours

    @contextlib.contextmanager
    def kept(self, *argv):
        """A probe that goes on until the end. Yields a function that waits, at most so many seconds, for its first line."""
        ours, theirs = socket.socketpair()
        with self.start(argv, theirs.fileno(), theirs.fileno()), ours, ours.makefile() as lines:
            theirs.close()

            def first_line(seconds):
                ours.settimeout(patience(seconds))
                with contextlib.suppress(TimeoutError):
                    return lines.readline().strip()
                return ""

            yield first_line

    @contextlib.contextmanager
    def listening(self, interface, data):
        """While frames are watched. Yields a function that says whether one held `data`."""
        ours, theirs = socket.socketpair()
        with self.start(["listen", interface, "1500", data.hex()], theirs.fileno(), theirs.fileno()) as probe, ours:
            theirs.close()
            ours.recv(100)  # "ready", or the end
            probe.settimeout(60)
            yield lambda: probe.recv(1) == b"\0"

    def send(self, data, port=PROXY, address=GATEWAY, timeout=8):
        """All that comes back for these bytes."""
        with self.open(address, port, timeout) as connection:
            return exchange(connection, data)

    def get(self, url, port=PROXY, method="GET", headers=(), body=b""):
        host = url.split("/")[2] if "://" in url else "broker"
        lines = [f"{method} {url} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.send("\r\n".join(lines + ["", ""]).encode("utf-8") + body, port)

    def tunnel(self, authority, server_name=None, hello=None, path="/"):
        """What comes back through a CONNECT and, inside it, TLS with `server_name` (None: without) and a GET."""
        with self.open() as connection:
            if isinstance(authority, str):
                authority = authority.encode()
            head = exchange(connection, b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority.split(b"\0")[0] + b"\r\n\r\n", b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                return head
            return tls_get(connection, server_name, path)


def tls_inside(connection, server_name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    inner = context.wrap_socket(connection.dup(), server_hostname=server_name)
    inner.settimeout(patience(8))
    return inner


def tls_get(connection, server_name, path="/"):
    try:
        with tls_inside(connection, server_name) as inner:
            return exchange(inner, f"GET {path} HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n".encode())
    except (OSError, ValueError):
        return b""


def exchange(connection, data, until=None):
    """Sends, then reads to the end, or to `until`; what had come when it broke off is the answer, too."""
    answer = b""
    with contextlib.suppress(OSError):
        connection.sendall(data)
        while not (until and until in answer) and len(answer) < 1 << 20:
            part = connection.recv(1 if until else 65536)
            if not part:
                break
            answer += part
    return answer


class Machine(Place):
    """A machine of agentmachine, started. `without` are guards that its unit or settings give it otherwise."""

    def __init__(self, lab, name, card, without=()):
        self.lab, self.id = lab, name
        self.unit = f"systemd-nspawn@agent-{name}.service"
        card = {"agent_id": name, "workspace": f"{WORK}/{name}", "command": ["sleep", "infinity"],
                "resource_limits": {"memory_mb": 256, "max_processes": 60}, "allowed_hosts": lab.hosts} | card
        path = WORK / f"{name}.json"
        path.write_text(json.dumps(card))
        run("agentmachine", "create", str(path))
        tools = WORK / name / ".tools"
        tools.mkdir()
        for tool in lab.tools:
            shutil.copy(tool, tools)
        dropin = "".join(guard.dropin for guard in without)
        if dropin:
            directory = pathlib.Path(f"/etc/systemd/system/{self.unit}.d")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "20-attack.conf").write_text("[Service]\n" + dropin)
        edits = [edit for guard in without for edit in guard.settings]
        if edits:
            text = pathlib.Path(f"/run/systemd/nspawn/agent-{name}.nspawn").read_text()
            pathlib.Path("/etc/systemd/nspawn").mkdir(exist_ok=True)
            pathlib.Path(f"/etc/systemd/nspawn/agent-{name}.nspawn").write_text(edited(text, edits, "settings"))
        if dropin or edits:
            run("systemctl", "daemon-reload")
        run("agentmachine", "start", name)
        self._describe()
        # Nothing to be refused by but the guards.
        quiet(*self.network("ip", "address", "add", f"fe80::{self.address.split('.')[-1]}/64", "dev", "host0", "nodad"))

    def _describe(self):
        name = self.id
        self.leader = run("machinectl", "show", f"agent-{name}", "-P", "Leader").strip()
        self.address = json.loads(pathlib.Path(f"/var/lib/agentmachine/machines/{name}/machine.json").read_text())["address"]

    def command(self, argv):
        return ["agentmachine", "exec", self.id, "--", *argv]

    def prints(self, data):
        """Has its payload, a SPEAKER, write this to its standard output."""
        for _ in range(50):
            if self.sh("test -p /workspace/.say && cat >/workspace/.say", input=data).status == 0:
                return
        raise RuntimeError("the payload reads nothing")

    def socket_paths(self):
        return "/workspace/.socket", f"{WORK}/{self.id}/.socket"

    def network(self, *argv):
        """A command of the host's in the machine's network namespace: for what a guard has to take away or a control needs."""
        return ["nsenter", f"--net=/proc/{self.leader}/ns/net", *argv]

    @property
    def port(self):
        a, b, c, d = map(int, self.address.split("."))
        return f"am-{c * 256 + d}"

    def remove(self):
        quiet("agentmachine", "rm", "--workspace", self.id)
        shutil.rmtree(f"/etc/systemd/system/{self.unit}.d", ignore_errors=True)
        pathlib.Path(f"/etc/systemd/nspawn/agent-{self.id}.nspawn").unlink(missing_ok=True)


class StandIn(Place):
    """A process of the host's, root's, in a machine's network: the machine with its confinement taken away, but for
    the `kept` guards that a unit can give."""

    def __init__(self, machine, kept):
        self.machine, self.address, self.port = machine, machine.address, machine.port
        self.properties = [line for guard in kept for line in guard.properties]

    def command(self, argv):
        # Not the machine's own: another user could not get at them.
        argv = [arg.replace(TOOLS, f"{WORK}/tools/") for arg in argv]
        if not self.properties:
            return self.machine.network(*argv)
        # Keeps root's supplementary groups and so on: what is kept is what is listed.
        return ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--property=NetworkNamespacePath=/proc/{self.machine.leader}/ns/net",
                *[f"--property={line}" for line in self.properties], *argv]


class HostPlace(Place):
    """The host itself, as root."""

    def command(self, argv):
        return [arg.replace(TOOLS, f"{WORK}/tools/") for arg in argv]


def edited(text, edits, what):
    """`text` with regular expressions replaced; one that is found nowhere is an error, for then nothing was taken away."""
    for pattern, replacement in edits:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if not count:
            raise RuntimeError(f"{what} has nothing like {pattern!r}: has the guard changed?")
    return text


class Resolver(world.Resolver):
    """An authoritative server for the whole world: unknown names are the attacker's."""

    def __init__(self, names):
        self.names, self.asked = names, []
        with inside("attack-net"):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((NAMESERVER, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            with contextlib.suppress(OSError, IndexError, struct.error, UnicodeError):
                query, sender = self.socket.recvfrom(4096)
                labels, at = [], 12
                while query[at]:
                    labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1").lower())
                    at += 1 + query[at]
                name = ".".join(labels)
                self.names.setdefault(name, [EVIL])
                self.socket.sendto(self._answer(query, at + 5, name, struct.unpack(">H", query[at + 1:at + 3])[0]), sender)

    def saw(self, token):
        return any(token in name for name in self.asked)


class Datagrams:
    """Remembers what arrives by UDP, and answers it."""

    def __init__(self, places):
        self.seen = []
        for namespace, address, port in places:
            with inside(namespace):
                received = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            received.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            received.bind((address, port))
            threading.Thread(target=self._receive, args=(received,), daemon=True).start()

    def _receive(self, received):
        while True:
            with contextlib.suppress(OSError):
                data, sender = received.recvfrom(4096)
                self.seen.append(data)
                received.sendto(b"heard", sender)

    def saw(self, token):
        return any(token.encode() in data for data in self.seen)


class Sniffer:
    """Remembers the frames that pass an interface."""

    def __init__(self, namespace, interface):
        self.frames = collections.deque(maxlen=20000)
        with inside(namespace):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((interface, 3))
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        with contextlib.suppress(OSError):
            while True:
                self.frames.append(self.socket.recv(65536))

    def saw(self, data):
        """Whether a frame held this, or does soon."""
        deadline = time.monotonic() + patience(0.6)
        while not any(data in frame for frame in list(self.frames)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


class Greeter:
    """Says at once who it is: a connection that reached it has something to show."""

    def __init__(self, listener, text, reads=False):
        self.listener, self.text, self.reads = listener, text, reads
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            with contextlib.suppress(OSError):
                connection, _ = self.listener.accept()
                threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection):
        with contextlib.suppress(OSError), connection:
            if self.reads:
                connection.recv(65536)
            connection.sendall(self.text)
            connection.shutdown(socket.SHUT_WR)
            while self.reads and connection.recv(65536):
                pass


class Lab:
    """All of it. `attacker` is where the attacks of the moment come from."""

    def __init__(self):
        self.cleanup = contextlib.ExitStack()
        self.variants, self.tokens, self.lock, self.squid_edits = {}, 0, threading.RLock(), None
        self.host, self.work, self.cuts = HostPlace(), WORK, True
        self.hosts = [f"{name}.fake.test:80,443" for name in
                      ("api", "loopback", "metadata", "mixed", "six", "mapped", "nat64", "unique", "gateway", "lan", "neighbour",
                       "any", "six-to-four", "cgnat", "rebind", "zero")] + [".wild.test:80,443", "GET,HEAD getonly.fake.test:80", "narrow.fake.test:443", "raw.fake.test:8443", "big.fake.test:8081"]

    def token(self):
        """A word that nothing else of this run holds."""
        with self.lock:
            self.tokens += 1
            return f"t{os.getpid()}x{self.tokens}x"

    # Making it

    def open(self):
        clean()
        self.cleanup.callback(clean)
        WORK.mkdir(mode=0o711)
        run("systemctl", "mask", "--quiet", "--runtime", "--now", FILTER_UNIT)  # it would put back what is taken away
        # LIBDIR is one of lib, lib64 and lib/x86_64-linux-gnu.
        self.tools = [*glob.glob("/usr/lib*/agentmachine/tests/*"), *glob.glob("/usr/lib/*/agentmachine/tests/*"), "/usr/bin/busybox"]
        if not any(path.endswith("/wire") for path in self.tools):
            raise SystemExit("the probes are not installed: meson setup -Dinstall-tests=true")
        (WORK / "tools").mkdir()
        for tool in self.tools:
            shutil.copy(tool, WORK / "tools")
        (WORK / "sockets").mkdir()
        (WORK / "sockets").chmod(0o1777)
        self._make_networks()
        self._make_servers()
        self._allow_override()
        for part in PARTS:
            part(self)
        self.attacker = self.machine()
        self._make_neighbour()
        self.edit_squid([])

    def _make_networks(self):
        run("ip", "netns", "add", "attack-net")
        run("ip", "netns", "add", "attack-lan")
        run("ip", "netns", "exec", "attack-net", "ip", "link", "set", "lo", "up")
        ip("link add atk-up type veth peer name down0 netns attack-net\naddress add 203.0.113.1/24 dev atk-up\nlink set atk-up up\n"
           "route add 192.0.2.0/24 via 203.0.113.2\n"
           "link add atk-lan type veth peer name lan0 netns attack-lan\n"
           f"address add {LAN_HOST}/24 dev atk-lan\naddress add {METADATA}/32 dev atk-lan\nlink set atk-lan up\n"
           "address add 64:ff9b::7f00:1/128 dev lo nodad\naddress add fd00::9/128 dev lo nodad\naddress add 2002:7f00:1::1/128 dev lo nodad\n"
           "address add 100.64.0.9/32 dev lo\naddress add fe80::a/64 dev agents0 nodad\n")
        ip("address add 203.0.113.2/24 dev down0\nlink set down0 up\n"
           f"route add {GATEWAY}/16 via 203.0.113.1\n".replace(GATEWAY, "10.213.0.0") +
           "".join(f"address add {address}/32 dev lo\n" for address in (LISTED, EVIL, NAMESERVER)), "attack-net")
        ip(f"address add {LAN_DEVICE}/24 dev lan0\nlink set lan0 up\nroute add default via {LAN_HOST}\n", "attack-lan")
        # A host that forwards for other reasons: else that would be what refuses.
        forward = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
        self.cleanup.callback(forward.write_text, forward.read_text())
        forward.write_text("1")

    def _make_servers(self):
        self.certificates = pathlib.Path(tempfile.mkdtemp(dir=WORK))
        tls = world.Authority(self.certificates, "authority").context("fake.test")
        server = lambda namespace, address, port, name: world.Server(namespace, address, port, tls if port == 443 else None, name)
        self.api = [server("attack-net", LISTED, port, "api") for port in (80, 443, 8443, 22)]
        self.evil = [server("attack-net", EVIL, port, "evil") for port in (80, 443, 53, 22, 853, 8080)]
        self.secrets = [server(None, address, port, "secret") for port in (80, 443) for address in
                        ("127.0.0.1", "::1", METADATA, "64:ff9b::7f00:1", "fd00::9", "100.64.0.9", "2002:7f00:1::1")]
        self.secrets += [server(None, "127.0.0.1", 8888, "secret"), server(None, GATEWAY, 8888, "secret"), server(None, GATEWAY, 80, "secret"),
                         server(None, GATEWAY, 443, "secret"), server(None, LAN_HOST, 80, "secret"), server(None, "203.0.113.1", 8888, "secret")]
        self.secrets += [server("attack-lan", LAN_DEVICE, port, "secret") for port in (80, 443)]
        self.datagrams = Datagrams([("attack-net", EVIL, port) for port in (443, 53, 123, 9999)] +
                                   [("attack-net", "203.0.113.2", 9999)] +
                                   [(None, GATEWAY, port) for port in (53, 5353, 9999)] + [(None, LAN_HOST, 9999), (None, METADATA, 53), (None, "::", 9998)] +
                                   [("attack-lan", LAN_DEVICE, 9999)])
        with inside("attack-net"):
            big = socket.create_server((LISTED, 8081))
        Greeter(big, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n" + bytes(1000000), reads=True)
        quiet("modprobe", "vsock_loopback")
        with contextlib.suppress(OSError):
            vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            vsock.bind((socket.VMADDR_CID_ANY, 9997))
            vsock.listen()
            Greeter(vsock, b"from secret")
        abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        abstract.bind("\0attack-secret")
        abstract.listen()
        Greeter(abstract, b"from secret")
        self.wire_out, self.bridge = Sniffer("attack-net", "down0"), Sniffer(None, "agents0")
        self.resolver = Resolver(
            {f"{name}.fake.test": [LISTED] for name in ("api", "getonly", "narrow")} | {
                "loopback.fake.test": ["127.0.0.1"], "metadata.fake.test": [METADATA], "mixed.fake.test": ["127.0.0.1", LISTED],
                "six.fake.test": ["::1"], "mapped.fake.test": ["::ffff:127.0.0.1"], "nat64.fake.test": ["64:ff9b::7f00:1"],
                "unique.fake.test": ["fd00::9"], "gateway.fake.test": [GATEWAY], "lan.fake.test": [LAN_DEVICE], "cgnat.fake.test": ["100.64.0.9"],
                "six-to-four.fake.test": ["2002:7f00:1::1"], "zero.fake.test": ["0.0.0.0"],
                "wild.test": [LISTED], "a.wild.test": [LISTED], "raw.fake.test": [LISTED], "big.fake.test": [LISTED], "gone.fake.test": [LISTED]} |
            # A resolver may know what inet_aton knows.
            {name: ["127.0.0.1"] for name in ("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1",
                                              "127.0.0.1.", "0", "0.0.0.0", "127.0.0.1.evil.test")} |
            {name: [METADATA] for name in ("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.16689662")})

    def _make_neighbour(self):
        """A machine that has things to steal and doesn't guard them itself: what keeps others out is theirs."""
        from guards import IP_DENY
        self.neighbour = self.machine({"agent_id": "attack-neighbour", "allowed_hosts": [*self.hosts, "relayed.evil.test:80"]}, (IP_DENY,), "attack-neighbour")
        run(*self.neighbour.network("ip", "route", "add", "10.213.0.0/16", "dev", "host0", "scope", "link"))
        self.neighbour_port = Sniffer(None, self.neighbour.port)
        (WORK / "attack-neighbour" / "index.html").write_text("from neighbour\n")
        server = subprocess.Popen(self.neighbour.command([TOOLS + "busybox", "httpd", "-f", "-p", "8000", "-h", "/workspace"]),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.cleanup.callback(server.wait)
        self.cleanup.callback(server.terminate)

    def _allow_override(self):
        CONF.parent.mkdir(exist_ok=True)
        before = CONF.read_text() if CONF.exists() else None
        self.cleanup.callback(lambda: CONF.unlink(missing_ok=True) if before is None else CONF.write_text(before))
        CONF.write_text("allow_settings_override = true\n" + re.sub(r"(?m)^allow_settings_override.*\n", "", before or ""))

    # Machines

    def machine(self, card=(), without=(), name=None):
        """The machine with this card (what differs from the usual) and without these guards; made once, kept until the end."""
        with self.lock:
            key = json.dumps(dict(card), sort_keys=True), frozenset(without)
            if key not in self.variants:
                machine = Machine(self, name or f"attack-{len(self.variants)}", dict(card), without)
                self.variants[key] = machine
                self.cleanup.callback(machine.stop_server)
            return self.variants[key]

    # The proxy

    @staticmethod
    def pause(seconds):
        """For what only time brings, such as the end of a name server's answer."""
        time.sleep(seconds)

    @contextlib.contextmanager
    def denied(self, machine, host, cut):
        """Yields what takes a host off the machine's policy, by `agentmachine deny` or, without `cut`, in the policy alone."""
        path = pathlib.Path(f"/run/agentmachine/policy/{machine.address}")
        before = path.read_text()
        policy = json.loads(before)
        policy["hosts"].remove(host)
        try:
            yield lambda: run("agentmachine", "deny", machine.id, host) if cut else replace(path, json.dumps(policy))
        finally:
            if cut:
                run("agentmachine", "allow", machine.id, host)
            replace(path, before)

    def edit_squid(self, edits):
        """The proxy runs with its configuration changed so, and nothing else; its names come from our name server."""
        if edits == self.squid_edits:
            return
        changed = pathlib.Path("/run/agentmachine-attack.squid.conf")
        changed.write_text(edited(SQUID_CONF.read_text(), edits, "squid.conf") + f"\ndns_nameservers {NAMESERVER}\n")
        changed.chmod(0o644)
        dropin = pathlib.Path(f"/run/systemd/system/{PROXY_UNIT}.d/20-attack.conf")
        if not dropin.exists():
            dropin.parent.mkdir(parents=True, exist_ok=True)
            dropin.write_text(f"[Service]\nExecStart=\nExecStart=/usr/sbin/squid -N -n agentmachine -f {changed}\n")
            run("systemctl", "daemon-reload")
        run("systemctl", "restart", PROXY_UNIT)
        self.squid_edits = edits

    def close(self):
        self.cleanup.close()


def replace(path, text):
    """A file's text, in one step; it keeps its owner and mode."""
    owner, new = path.stat(), path.with_name(".attack")
    new.write_text(text)
    os.chown(new, owner.st_uid, owner.st_gid)
    new.chmod(owner.st_mode & 0o777)
    new.rename(path)


def clean():
    """Takes back what this run, or one that was killed, has made."""
    made = WORK.exists()
    if machines := [os.path.basename(path) for path in glob.glob("/var/lib/agentmachine/machines/attack-*")]:
        quiet("agentmachine", "rm", "--workspace", *machines)
    for path in [*glob.glob("/etc/systemd/system/systemd-nspawn@agent-attack-*.service.d"), f"/run/systemd/system/{PROXY_UNIT}.d/20-attack.conf",
                 *glob.glob("/etc/systemd/nspawn/agent-attack-*"), *glob.glob("/run/agentmachine-attack.*")]:
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else pathlib.Path(path).unlink(missing_ok=True)
    for name in ("attack-net", "attack-lan"):
        quiet("ip", "netns", "delete", name)
    for link in ("atk-up", "atk-lan"):
        quiet("ip", "link", "delete", link)
    for address, device in (("64:ff9b::7f00:1/128", "lo"), ("fd00::9/128", "lo"), ("2002:7f00:1::1/128", "lo"), ("100.64.0.9/32", "lo"), ("fe80::a/64", "agents0")):
        quiet("ip", "address", "delete", address, "dev", device)
    shutil.rmtree(WORK, ignore_errors=True)
    if made:
        run("systemctl", "daemon-reload")
        run("systemctl", "reload-or-restart", "agentmachine-network.service")
        run("systemctl", "unmask", "--quiet", "--runtime", FILTER_UNIT)
        run("systemctl", "start", FILTER_UNIT)
        run("systemctl", "restart", PROXY_UNIT)
