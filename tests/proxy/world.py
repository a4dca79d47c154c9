"""A small world in network namespaces of its own: a host with the real squid and nft, machines, an internet.

Nothing outside this process's namespaces is touched. Needs root, python 3.12, squid with OpenSSL, nft, iproute2,
openssl and the user agentmachine-proxy (units/sysusers).
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import pwd
import queue
import re
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import termios
import threading

GATEWAY = "10.213.0.1"
PROXY, BROKER = 3128, 8081
CONNECTIONS = 500  # what a machine may have, unless a test says otherwise
SQUID_USER = "agentmachine-proxy"
MACHINES = {"alpha": "10.213.0.11", "beta": "10.213.0.12", "gamma": "10.213.0.13", "nopolicy": "10.213.0.14"}
STRANGER = "10.213.0.99"
# Addresses of the pretended internet (TEST-NET-2), and of things in the host that no machine may reach.
INTERNET = API, LLM, OTHER_LLM, FORGED_LLM, PLAIN, PARENT = [f"198.51.100.{n}" for n in range(10, 16)]
LAN, METADATA = "10.9.0.1", "169.254.169.254"


def mac(address):
    return "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def port_name(machine):
    return ("am-" if machine in MACHINES else "") + machine


def run(*argv, **options):
    """Its output; an error that says what it complained of."""
    done = subprocess.run(argv, text=True, capture_output=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def enter_own_namespaces():
    """Leaves the caller's network and mounts for good."""
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
    # Fails in a chroot, whose root is no mount point; its parent made the namespace private already.
    subprocess.run(["mount", "--make-rprivate", "/"], stderr=subprocess.DEVNULL)
    pathlib.Path("/run/netns").mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")


@contextlib.contextmanager
def inside(namespace):
    """Sockets made by this thread belong to `namespace`; None is the host."""
    if namespace is None:
        yield
        return
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as away:
        os.setns(away.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)


def ip(commands, namespace=None):
    # Not `ip -n`: it remounts /sys, which a chroot can't.
    run(*(["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []), "ip", "-batch", "-", input=commands)


class Authority:
    """A certificate authority made on the spot."""

    def __init__(self, directory, name):
        self.directory, self.name = directory, name
        self.path = directory / f"{name}.pem"
        self._openssl("req", "-x509", "-days", "2", "-subj", f"/CN={name}", "-addext",
                      "keyUsage=critical,keyCertSign", "-keyout", self._key(name), "-out", self.path)

    def _key(self, name):
        return self.directory / f"{name}.key"

    def _openssl(self, command, *arguments):
        fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        run("openssl", command, *(fresh if command == "req" else []), *map(str, arguments))

    def context(self, *names):
        """A server's TLS context with a certificate for these names."""
        request, certificate = (self.directory / f"{names[0]}.{self.name}.{end}" for end in ("csr", "crt"))
        alternatives = ",".join("DNS:" + name for name in names)
        self._openssl("req", "-x509", "-days", "2", "-subj", "/CN=" + names[0], "-CA", self.path, "-CAkey",
                      self._key(self.name), "-addext", "subjectAltName=" + alternatives,
                      "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", request, "-out", certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, request)
        return context


class Server:
    """An HTTP server that remembers what it was sent and answers as the test says."""

    def __init__(self, namespace, address, port, context=None, name=""):
        self.name, self.context, self.requests = name or address, context, queue.Queue()
        self.connections = 0
        self.more = threading.Event()  # lets a streaming answer go on
        with inside(namespace):
            self.socket = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            connection, _ = self.socket.accept()
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while request := read_message(stream):
                    self.requests.put(request)
                    self._answer(connection, request)
                    if "close" in request.all("connection"):
                        break

    def _answer(self, connection, request):
        if request.start.startswith("CONNECT"):
            connection.sendall(b"HTTP/1.1 502 no such luck\r\nContent-Length: 0\r\n\r\n")
            return
        if "stream" in request.start:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            self.more.wait(10)
            connection.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
            return
        location = b"Location: https://evil.test/\r\n" if "redirect" in request.start else b""
        status = b"302 Found" if location else b"200 OK"
        body = b"from " + self.name.encode()
        connection.sendall(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, location, len(body), body))

    def last(self):
        """The request that came last; None if there was none since the last call."""
        request = None
        with contextlib.suppress(queue.Empty):
            while True:
                request = self.requests.get_nowait()
        return request


class Message:
    def __init__(self, start, headers, body):
        self.start, self.headers, self.body = start, headers, body

    @property
    def status(self):
        return int(self.start.split()[1])

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]


def read_message(stream, head_only=False):
    """An HTTP/1.1 message, or None at the end of the stream."""
    start = stream.readline().decode("latin-1").strip()
    if not start:
        return None
    headers = []
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers.append((name.strip(), value.strip()))
    message = Message(start, headers, b"")
    if head_only:
        return message
    if "chunked" in message.all("transfer-encoding"):
        while size := int(stream.readline(), 16):
            message.body += stream.read(size)
            stream.readline()
        stream.readline()
    elif length := message.all("content-length"):
        message.body = stream.read(int(length[0]))
    elif start.startswith("HTTP/"):
        message.body = stream.read()
    return message


class Resolver:
    """The host's DNS server: NAME -> addresses, or a list of such for one answer each, the last repeated."""

    def __init__(self, names):
        self.names, self.asked = names, []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            query, sender = self.socket.recvfrom(4096)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1").lower())
                at += 1 + query[at]
            kind = struct.unpack(">H", query[at + 1:at + 3])[0]
            self.socket.sendto(self._answer(query, at + 5, ".".join(labels), kind), sender)

    def _answer(self, query, end, name, kind):
        self.asked.append(name)
        addresses = self.names.get(name, [])
        if addresses and isinstance(addresses[0], list):
            # The A query is what moves it on.
            addresses = addresses.pop(0) if kind == 1 and len(addresses) > 1 else addresses[0]
        family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        packed = [socket.inet_pton(family, a) for a in addresses if (":" in a) == (kind == 28)] if family else []
        records = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(data)) + data for data in packed)
        code = 0 if name in self.names else 3
        return query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(packed), 0, 0) + query[12:end] + records


class World:
    """Everything, set up. `programs` is a build directory, or where a build was installed (libexec/agentmachine).
    `change` may alter the rendered text of "squid" and "nft", to see that a test notices."""

    def __init__(self, programs, change=lambda what, text: text):
        programs, self.change = pathlib.Path(programs).absolute(), change
        self.helper, self.renderer = programs / "agentmachine-policy", programs / "tests/proxy-render"
        self.auditor = programs / "agentmachine-audit"
        if not self.helper.exists():
            self.helper, self.renderer = programs / "src/proxy/agentmachine-policy", programs / "tests/proxy/proxy-render"
            self.auditor = programs / "src/proxy/agentmachine-audit"
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="agentmachine-proxy-"))
        self.directory.chmod(0o755)
        self.user = pwd.getpwnam(SQUID_USER)
        self.children = []
        enter_own_namespaces()
        self._make_network()
        self._make_internet()
        self._make_policies()
        self.load_nft()
        self.start_squid()

    # The network

    def _make_network(self):
        ip("link set lo up\n"
           "link add agents0 type bridge\n"
           "link set agents0 addrgenmode none\n"
           f"address add {GATEWAY}/16 dev agents0\n"
           "link set agents0 up\n"
           "link add lan0 type bridge\n"
           f"address add {LAN}/24 dev lan0\n"
           f"address add {METADATA}/32 dev lan0\n"
           "link set lan0 up\n")
        run("ip", "netns", "add", "internet")
        ip("link add up0 type veth peer name down0 netns internet\n"
           "address add 203.0.113.1/24 dev up0\n"
           "link set up0 up\n"
           "route add default via 203.0.113.2\n")
        ip("link set lo up\naddress add 203.0.113.2/24 dev down0\nlink set down0 up\n"
           f"route add {GATEWAY}/32 via 203.0.113.1\n" +
           "".join(f"address add {address}/32 dev lo\n" for address in INTERNET), "internet")
        # The last is on the bridge, but on no machine's port.
        for name, address in (MACHINES | {"stranger": STRANGER}).items():
            run("ip", "netns", "add", name)
            ip(f"link add {port_name(name)} type veth peer name host0 netns {name}\n"
               f"link set {port_name(name)} addrgenmode none master agents0\n"
               f"link set {port_name(name)} up\n")
            ip(f"link set lo up\nlink set host0 address {mac(address)} up\naddress add {address}/16 dev host0\n", name)
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def _make_internet(self):
        authority, stranger = Authority(self.directory, "authority"), Authority(self.directory, "stranger")
        self.ca = authority.path
        public = authority.context("api.fake.test", "wild.test", "a.wild.test", "odd.fake.test", "lan.fake.test", "rebind.fake.test")
        self.api = Server("internet", API, 443, public, "api")
        self.odd = Server("internet", API, 8443, public, "odd")
        self.llm = Server("internet", LLM, 443, authority.context("llm.fake.test"), "llm")
        self.other_llm = Server("internet", OTHER_LLM, 443, authority.context("other-llm.fake.test"), "other-llm")
        self.forged_llm = Server("internet", FORGED_LLM, 443, stranger.context("forged.fake.test"), "forged")
        self.plain = Server("internet", PLAIN, 80, None, "plain")
        self.parent = Server("internet", PARENT, 3130, None, "parent")
        # What a machine must never reach, in the host.
        self.secrets = [Server(None, "127.0.0.1", 443, public, "loopback"), Server(None, "::1", 443, public, "loopback6"),
                        Server(None, "127.0.0.1", 80, None, "loopback80"), Server(None, METADATA, 80, None, "metadata"),
                        Server(None, METADATA, 443, public, "metadata"), Server(None, GATEWAY, 2222, None, "host service")]
        self.lan = Server(None, LAN, 8443, public, "lan")
        self.ollama = Server(None, "127.0.0.1", 11434, None, "ollama")
        self.resolver = Resolver({
            "api.fake.test": [API], "wild.test": [API], "a.wild.test": [API], "odd.fake.test": [API],
            "unlisted.fake.test": [API], "llm.fake.test": [LLM], "other-llm.fake.test": [OTHER_LLM],
            "forged.fake.test": [FORGED_LLM], "misnamed.fake.test": [LLM], "plain.fake.test": [PLAIN],
            "loopback.fake.test": ["127.0.0.1"], "metadata.fake.test": [METADATA], "lan.fake.test": [LAN],
            "mixed.fake.test": [API, "127.0.0.1"], "six.fake.test": ["::1"], "mapped.fake.test": ["::ffff:127.0.0.1"],
            "nat64.fake.test": ["64:ff9b::7f00:1"], "unique.fake.test": ["fd00::1"], "gateway.fake.test": [GATEWAY],
            "rebind.fake.test": [[API], ["127.0.0.1"]], "evil.test": [API],
            # A resolver that knows every name.
            "broker.invalid": [PLAIN]})
        resolv = self.directory / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.1\n")
        run("mount", "--bind", str(resolv), os.path.realpath("/etc/resolv.conf"))

    # The rules

    def settings(self):
        path = self.directory / "settings.toml"
        path.write_text(f'proxy_ca_file = "{self.ca}"\nprivate_hosts = ["lan.fake.test:8443"]\n'
                        f'parent_proxies = ["http://{PARENT}:3130"]\n')
        return path

    def render(self, what, *arguments):
        return self.change(what, run(str(self.renderer), str(self.settings()), what, *map(str, arguments)))

    def nft(self, what, *arguments):
        return run("nft", "-f", "-", input=self.render(what, *arguments))

    def load_nft(self):
        self.nft("nft")
        for name, address in MACHINES.items():
            self.limit(name)

    def limit(self, machine, connections=CONNECTIONS):
        self.nft("add", port_name(machine), mac(MACHINES[machine]), MACHINES[machine], connections)

    def refused_by(self, limit):
        """How many packets the rule with this set of limits has refused."""
        rules = run("nft", "list", "chain", "inet", "agentmachine", "input")
        return int(re.search(rf"@{limit} counter packets (\d+)", rules)[1])

    # The policies

    def _owned(self, path, mode):
        os.chown(path, 0, self.user.pw_gid)
        path.chmod(mode)
        return path

    def _make_policies(self):
        for name in ("policy", "keys"):
            (self.directory / name).mkdir()
            self._owned(self.directory / name, 0o750)
        hosts = [name + ".fake.test:443" for name in ("api", "loopback", "metadata", "mixed", "six", "mapped", "nat64",
                                                      "unique", "gateway", "rebind", "nowhere")]
        self.policy("alpha", hosts + [".wild.test:443", "plain.fake.test:80", "metadata.fake.test:80", "odd.fake.test:8443",
                                      "lan.fake.test:8443", "lan.fake.test:443"],
                    {"upstream": "https://llm.fake.test/v1", "key_header": "x-api-key"}, "key-of-alpha")
        self.policy("beta", [".wild.test:443"], {"upstream": "https://other-llm.fake.test", "key_header": "authorization"},
                    "key-of-beta")
        self.policy("gamma", [])

    def policy(self, machine, hosts, broker=None, key=None, rate=1000):
        policy = {"agent": machine, "hosts": hosts, "requests_per_second": rate} | ({"broker": broker} if broker else {})
        self.write("policy", MACHINES[machine], json.dumps(policy))
        if key:
            self.write("keys", MACHINES[machine], f"{broker['upstream']} {broker['key_header']}\n{key}\n")

    def write(self, directory, name, text):
        temporary = self.directory / "new"
        temporary.write_text(text)
        self._owned(temporary, 0o440).rename(self.directory / directory / name)

    # Squid

    def start_squid(self):
        certificate = self.directory / "squid.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=agentmachine-proxy", "-keyout", str(certificate), "-out", str(certificate))
        self._owned(certificate, 0o440)
        # A pipe for a log: its lines come as events.
        log = self.directory / "decisions"
        if not log.exists():
            os.mkfifo(log)
            os.chown(log, self.user.pw_uid, self.user.pw_gid)
            self.log, self.log_lines = queue.Queue(), []
            reader = os.open(log, os.O_RDWR | os.O_CLOEXEC)
            threading.Thread(target=self._read_log, args=(os.fdopen(reader, "rb"),), daemon=True).start()
        configuration = self.directory / "squid.conf"
        pages = self.directory / "pages"
        pages.mkdir(exist_ok=True)
        for page in ("ERR_AGENTMACHINE", "ERR_AGENTMACHINE_PRIVATE"):
            (pages / page).write_text(self.render("page", page))
        configuration.write_text(self.render("squid", self.directory, self.helper, self.auditor, certificate, pages, log))
        self.squid_errors = open(self.directory / "squid.log", "w+b")
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind("\0agentmachine-proxy-test")
        ready.settimeout(20)
        self.squid = subprocess.Popen(
            ["squid", "-N", "-n", "agentmachinetest", "-d", "1", "-f", configuration], stdin=subprocess.DEVNULL,
            stdout=self.squid_errors, stderr=self.squid_errors, cwd="/", user=self.user.pw_uid, group=self.user.pw_gid,
            extra_groups=[], env=os.environ | {"NOTIFY_SOCKET": "@agentmachine-proxy-test"})
        try:
            assert b"READY=1" in ready.recv(1024)
        except TimeoutError:
            raise SystemExit("squid did not start:\n" + self.squid_output())
        # It says so when the first port is bound, an instant before it listens on both.
        for port in (PROXY, BROKER):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    self.connect(None, port=port).close()
                    break

    def squid_output(self):
        self.squid_errors.seek(0)
        return self.squid_errors.read().decode(errors="replace")

    def _read_log(self, stream):
        for line in stream:
            self.log_lines.append(line)
            self.log.put(line)

    def helper_pids(self, mode):
        """Squid's own children that answer in this mode."""
        found = []
        for pid in pathlib.Path(f"/proc/{self.squid.pid}/task/{self.squid.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if f"\0{mode}" in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
        return found

    def audit_pids(self):
        """The processes that take squid's lines: the one that replaces the other, and the other."""
        children = lambda pid: pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for guard in children(self.squid.pid):
            if pathlib.Path(f"/proc/{guard}/cmdline").read_text().startswith("(logfile-daemon)\0"):
                return int(guard), int(children(guard)[0])
        raise AssertionError("squid has no log daemon")

    def has_unread_input(self, pid):
        """Whether squid has written to a helper what that has not read."""
        process = os.pidfd_open(pid)
        # pidfd_getfd(2), which python doesn't know: a socket can't be opened through /proc.
        stdin = ctypes.CDLL(None, use_errno=True).syscall(438, process, 0, 0)
        os.close(process)
        if stdin < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with os.fdopen(stdin) as file:
            return struct.unpack("i", fcntl.ioctl(file, termios.FIONREAD, bytes(4)))[0] > 0

    def close(self):
        self.squid.terminate()
        self.squid.wait(20)
        shutil.rmtree(self.directory)

    # What a machine does

    def connect(self, machine, address=GATEWAY, port=PROXY, timeout=5, source=None):
        with inside(machine):
            return socket.create_connection((address, port), timeout, (source, 0) if source else None)

    def send(self, machine, data, port=PROXY, **options):
        """What comes back for these bytes: a Message, or None if the connection ended without."""
        with self.connect(machine, port=port, **options) as connection, connection.makefile("rb") as stream:
            connection.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                return read_message(stream)

    def get(self, machine, url, port=PROXY, method="GET", headers=(), body=b""):
        lines = [f"{method} {url} HTTP/1.1", "Host: " + (url.split("/")[2] if "://" in url else "broker"), "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.send(machine, "\r\n".join(lines + ["", ""]).encode() + body, port)

    def open_tunnel(self, machine, host, port=443):
        """The status of a CONNECT, and the connection."""
        connection = self.connect(machine)
        connection.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(1)
            if not data:
                break
            head += data
        return (int(head.split()[1]) if head else None), connection

    def tunnel(self, machine, host, port=443, server_name="", verify=True):
        """GET / through a tunnel: the body, or how it failed ("407", "SSLError"…). The server name is the host's
        unless another, or None, is given."""
        status, connection = self.open_tunnel(machine, host, port)
        with connection:
            if status != 200:
                return str(status)
            context = ssl.create_default_context(cafile=self.ca)
            context.check_hostname = verify
            context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
            name = host if server_name == "" else server_name
            try:
                with context.wrap_socket(connection, server_hostname=name) as inner, inner.makefile("rb") as stream:
                    inner.sendall(b"GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n")
                    answer = read_message(stream)
                    return answer.body.decode() if answer else "nothing"
            except OSError as cause:
                return type(cause).__name__
