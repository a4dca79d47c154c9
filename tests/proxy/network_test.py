#!/usr/bin/env python3
"""What the proxy, the broker and the packet filter let machines do, asked of the real squid and the real nft.

Everything happens in namespaces of its own. With --without, one guard is taken out of the rendered files first; the
run then must fail, and says where.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import queue
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time

import world as w

failures = 0


def check(what, good, saw=""):
    """A line for one check; `saw` explains a failure."""
    global failures
    failures += not good
    print(f"ok {what}" if good else f"not ok {what} - saw {saw!r}", flush=True)


def equal(what, saw, wanted):
    check(what, saw == wanted, saw)


def log_line(world, **wanted):
    """The next decision in the log with these values; it comes when its transaction ends."""
    seen = []
    while True:
        try:
            line = json.loads(world.log.get(timeout=10))
        except queue.Empty:
            raise AssertionError(f"no record with {wanted}, but {seen[-3:]}") from None
        if all(line.get(key) == value for key, value in wanted.items()):
            return line
        seen.append(line)


def test_hosts(world):
    tunnel = lambda host, port=443, machine="alpha", **how: world.tunnel(machine, host, port, **how)
    equal("a listed host is reached", tunnel("api.fake.test"), "from api")
    equal("upper case changes nothing", tunnel("API.fake.test"), "from api")
    equal("a wildcard covers what is below", tunnel("a.wild.test"), "from api")
    equal("a wildcard covers the name itself", tunnel("wild.test"), "from api")
    equal("a listed port is reached", tunnel("odd.fake.test", 8443), "from odd")
    equal("each machine has its own list", tunnel("a.wild.test", machine="beta"), "from api")
    equal("another machine's host is refused", tunnel("api.fake.test", machine="beta"), "407")
    equal("an unlisted host is refused", tunnel("unlisted.fake.test"), "407")
    equal("an unlisted port is refused", tunnel("api.fake.test", 8443), "407")
    equal("port 22 is refused", tunnel("api.fake.test", 22), "407")
    equal("without hosts nothing is reached", tunnel("api.fake.test", machine="gamma"), "407")
    equal("the provider is not reached but by the broker", tunnel("llm.fake.test"), "407")
    equal("a machine without policy reaches nothing", tunnel("api.fake.test", machine="nopolicy"), "407")
    check("a host that isn't listed is not resolved", "unlisted.fake.test" not in world.resolver.asked)
    for spelling in ("198.51.100.10", "127.0.0.1", "0x7f000001", "2130706433", "127.1", "0177.0.0.1", "[::1]",
                     "[::ffff:127.0.0.1]", "localhost"):
        status, connection = world.open_tunnel("alpha", spelling)
        connection.close()
        check(f"an address is refused: {spelling}", status in (400, 407), status)
    check("a trailing dot opens nothing new", tunnel("unlisted.fake.test.") in ("400", "407"))


def test_private_addresses(world):
    for name in ("loopback", "metadata", "mixed", "six", "mapped", "nat64", "unique", "gateway"):
        equal(f"a name that resolves inside is refused: {name}", world.tunnel("alpha", name + ".fake.test"), "407")
    equal("metadata by plain HTTP is refused", world.get("alpha", "http://metadata.fake.test/").status, 403)
    equal("a name that the host's settings list may be private", world.tunnel("alpha", "lan.fake.test", 8443), "from lan")
    equal("and on no other port", world.tunnel("alpha", "lan.fake.test", 443), "407")
    check("nothing inside was connected to", not any(secret.connections for secret in world.secrets),
          [secret.name for secret in world.secrets if secret.connections])


def test_rebinding(world):
    status, connection = world.open_tunnel("alpha", "rebind.fake.test")
    equal("a name that resolves outside opens a tunnel", status, 200)
    # Squid keeps an answer for negative_dns_ttl at least; let it go stale between its check and its connection.
    asked = world.resolver.asked.count("rebind.fake.test")
    deadline = time.monotonic() + 10
    while world.resolver.asked.count("rebind.fake.test") == asked and time.monotonic() < deadline:
        world.tunnel("alpha", "rebind.fake.test")
    context = ssl.create_default_context(cafile=world.ca)
    with connection:
        try:
            with context.wrap_socket(connection, server_hostname="rebind.fake.test") as inner:
                inner.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                saw = inner.recv(4096)
        except OSError as cause:
            saw = type(cause).__name__
    check("the name was asked for again", world.resolver.asked.count("rebind.fake.test") > asked)
    check("a tunnel that was open before isn't led inside", isinstance(saw, str), saw)
    check("and squid itself saw that", log_line(world, host="rebind.fake.test", sni="rebind.fake.test", decision="deny")["reason"] == "private-address")
    check("the host's loopback saw no connection", world.secrets[0].connections == 0)


def test_filter_of_the_proxys_own(world):
    """What squid might do if it were fooled: its user may not connect to private addresses."""

    def reaches(address, port):
        program = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
        return subprocess.run([sys.executable, "-c", program], user=world.user.pw_uid, group=world.user.pw_gid,
                              extra_groups=[], stderr=subprocess.DEVNULL).returncode == 0

    def reaches_as_root(address, port):
        with contextlib.suppress(OSError), socket.create_connection((address, port), 2):
            return True

    for address, port in (("127.0.0.1", 443), ("::1", 443), (w.METADATA, 80), (w.GATEWAY, 2222)):
        check(f"the proxy's user is kept from {address}", not reaches(address, port))
    check("but reaches what the settings list", reaches(w.LAN, 8443))
    check("and the host's own Ollama", reaches("127.0.0.1", 11434))
    check("and the internet", reaches(w.API, 443))
    check("while others of the host are left alone", reaches_as_root(w.METADATA, 80))


def test_tls(world):
    equal("another server name is cut off", world.tunnel("alpha", "api.fake.test", server_name="evil.test", verify=False), "SSLEOFError")
    check("no server name is cut off",
          world.tunnel("alpha", "api.fake.test", server_name=None, verify=False) in ("SSLEOFError", "ConnectionResetError"))
    line = log_line(world, sni="evil.test")
    equal("the log says so", (line["decision"], line["reason"], line["id"]), ("deny", "other-server-name", "alpha"))
    before = world.api.connections
    status, connection = world.open_tunnel("alpha", "api.fake.test")
    with connection:
        connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n")
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
    check("what isn't TLS doesn't pass", b"from api" not in answer and b"SSH" not in answer, answer)
    equal("and is not connected", world.api.connections, before)


def test_plain_http(world):
    answer = world.get("alpha", "http://plain.fake.test/x", headers=[("Host", "evil.test")] )
    equal("plain HTTP to a host listed with port 80", (answer.status, answer.body), (200, b"from plain"))
    request = world.plain.last()
    equal("goes with the Host of the URL", request.all("host"), ["plain.fake.test"])
    check("and tells nothing of the host", not request.all("via") and not request.all("x-forwarded-for"), request.headers)
    equal("plain HTTP to a host listed for 443 alone is refused", world.get("alpha", "http://api.fake.test/").status, 403)
    equal("plain HTTP to port 443 is refused by scheme", world.get("alpha", "https://api.fake.test/").status, 403)
    equal("FTP is refused", world.get("alpha", "ftp://plain.fake.test:80/").status, 403)
    for url in ("http://agentmachine-proxy/squid-internal-mgr/info", "http://10.213.0.1:3128/squid-internal-mgr/menu",
                "cache_object://agentmachine-proxy/info", "http://plain.fake.test/squid-internal-mgr/info"):
        answer = world.get("alpha", url)
        check(f"no management: {url}", answer is None or answer.status in (400, 403, 404) or answer.body == b"from plain",
              answer and answer.start)


def test_broker(world):
    broker = lambda target, machine="alpha", **how: world.get(machine, target, port=w.BROKER, **how)
    answer = broker("/messages?beta=true", method="POST", body=b'{"x":1}')
    equal("the broker reaches the provider", (answer.status, answer.body), (200, b"from llm"))
    request = world.llm.last()
    equal("below the provider's path", request.start, "POST /v1/messages?beta=true HTTP/1.1")
    equal("with the body", request.body, b'{"x":1}')
    equal("with the key", request.all("x-api-key"), ["key-of-alpha"])
    equal("with the provider's name", request.all("host"), ["llm.fake.test"])
    check("and no trace of the machine", not request.all("x-forwarded-for") and not request.all("via"), request.headers)
    check("no key comes back", "key-of" not in str(answer.headers))

    broker("/models", headers=[("x-api-key", "mine"), ("X-API-KEY", "mine too"), ("Authorization", "Bearer mine"), ("Cookie", "a=b")])
    request = world.llm.last()
    equal("the machine's own key is replaced", request.all("x-api-key"), ["key-of-alpha"])
    check("and every other credential taken out", not request.all("authorization") and not request.all("cookie"), request.headers)
    broker("/models", headers=[("Connection", "x-api-key"), ("Connection", "authorization, host")])
    equal("Connection: can't take the key out", world.llm.last().all("x-api-key"), ["key-of-alpha"])

    equal("another machine, another provider", broker("/v9/chat", machine="beta").body, b"from other-llm")
    request = world.other_llm.last()
    equal("with its own key in the other header", (request.all("authorization"), request.all("x-api-key")), (["Bearer key-of-beta"], []))
    broker("/v9/chat", machine="beta", headers=[("Authorization", "Bearer mine"), ("authorization", "Basic bWluZQ==")])
    equal("which can't be overridden either", world.other_llm.last().all("authorization"), ["Bearer key-of-beta"])

    for target in ("/../admin", "/a/../../admin", "/%2e%2e/admin", "/..%2fadmin", "/a/%2E./x", "//evil.test/x", "/a//b",
                   "/a\\..\\b", "/./x", "/x/..", "/caf\u00e9"):
        answer = broker(target)
        check(f"a path that means two things is refused: {target}", answer is None or answer.status in (400, 403), answer and answer.start)
    for url in ("http://evil.test/x", "https://other-llm.fake.test/x", "http://other-llm.fake.test:443/v9/chat"):
        answer = broker(url)
        check(f"the machine can't choose the provider: {url}", answer is None or answer.status >= 400 or answer.body == b"from llm",
              answer and (answer.start, answer.body))
    world.send("alpha", b"GET /models HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", w.BROKER)
    equal("nor by Host", world.llm.last().all("host"), ["llm.fake.test"])
    for method in ("PUT", "DELETE", "TRACE", "OPTIONS", "PATCH", "HEAD"):
        check(f"{method} is refused", world.get("alpha", "/models", w.BROKER, method).status in (403, 405, 501))
    connect = world.send("alpha", b"CONNECT llm.fake.test:443 HTTP/1.1\r\nHost: llm.fake.test:443\r\n\r\n", w.BROKER)
    check("CONNECT is refused", connect is None or connect.status in (400, 403, 405, 407), connect and connect.start)
    check("nothing of this reached a provider", world.llm.last() is None and world.other_llm.last() is None)
    equal("a redirect is passed on, not followed", broker("/redirect").status, 302)

    equal("a machine without policy has no provider", broker("/models", machine="nopolicy").status, 403)
    equal("a policy without provider has none", broker("/models", machine="gamma").status, 403)


def test_smuggling(world):
    """Two requests in what looks like one: the second must be judged, and get the key, like any other."""
    world.llm.last()
    second = b"GET /../admin HTTP/1.1\r\nHost: x\r\n\r\n"
    for what, data in {
            "both lengths": b"POST /messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(second)) + second,
            "two lengths": b"POST /messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(second) + second,
            "a bare line feed": b"POST /messages HTTP/1.1\nHost: x\nx-api-key: mine\nContent-Length: 0\n\n" + second,
            "a space before the colon": b"POST /messages HTTP/1.1\r\nHost: x\r\nx-api-key : mine\r\nContent-Length: 0\r\n\r\n",
            "a folded header": b"POST /messages HTTP/1.1\r\nHost: x\r\nx-fold: a\r\n x-api-key: mine\r\nContent-Length: 0\r\n\r\n",
            "a carriage return": b"POST /messages HTTP/1.1\r\nHost: x\r\nx-cr: a\rx-api-key: mine\r\nContent-Length: 0\r\n\r\n",
            "a null": b"POST /messages HTTP/1.1\r\nHost: x\r\nx-nul: a\0b\r\nContent-Length: 0\r\n\r\n",
    }.items():
        with world.connect("alpha", port=w.BROKER) as connection:
            # The last request ends the connection, unless squid does so before.
            connection.sendall(data + b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        seen = []
        while not world.llm.requests.empty():
            seen.append(world.llm.requests.get())
        check(f"smuggling by {what}", all(request.start.split()[1] in ("/v1/messages", "/v1/last") and request.all("x-api-key") == ["key-of-alpha"]
                                          for request in seen), [(r.start, r.headers) for r in seen])


def test_streaming(world):
    world.llm.more.clear()
    with world.connect("alpha", port=w.BROKER) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = w.read_message(stream, head_only=True)
        equal("a streaming answer begins", head.status, 200)
        first = stream.readline() + stream.readline()
        check("the first part comes before the second is sent", b"first" in first and not world.llm.more.is_set(), first)
        world.llm.more.set()
        check("and the second after it", b"second" in stream.read())


def test_upstream_tls(world):
    def upstream(url):
        world.policy("gamma", [], {"upstream": url, "key_header": "authorization"}, "key-of-gamma")
        return world.get("gamma", "/models", port=w.BROKER).status

    equal("a new provider needs no reload", upstream("https://llm.fake.test/v2"), 200)
    equal("and gets the new key", world.llm.last().all("authorization"), ["Bearer key-of-gamma"])
    equal("a certificate of a stranger's authority is refused", upstream("https://forged.fake.test"), 503)
    equal("a certificate for another name is refused", upstream("https://misnamed.fake.test"), 503)
    check("neither was sent a request", world.forged_llm.last() is None and world.llm.last() is None)
    equal("a key doesn't travel without TLS", upstream("http://plain.fake.test"), 403)
    for name in ("loopback", "metadata", "six", "gateway"):
        equal(f"a provider inside is refused: {name}", upstream(f"https://{name}.fake.test"), 403)
    equal("by address as well", upstream("https://127.0.0.1"), 403)
    equal("a provider that the host's settings list may be", upstream("https://lan.fake.test:8443"), 200)
    world.policy("gamma", [], {"upstream": "http://127.0.0.1:11434/v1"})
    equal("the host's own Ollama is reached", world.get("gamma", "/models", w.BROKER).body, b"from ollama")
    check("without a key", not world.ollama.last().all("authorization"))
    world.policy("gamma", ["plain.fake.test:80"], {"upstream": "https://llm.fake.test", "key_header": "authorization"})
    equal("a key that was delivered for another provider goes to no other", world.get("gamma", "/models", w.BROKER).status, 403)
    check("which is not asked", world.llm.last() is None)
    (world.directory / "keys" / w.MACHINES["gamma"]).unlink()
    equal("without its key the provider is not asked", world.get("gamma", "/models", w.BROKER).status, 403)
    equal("which hinders nothing else", world.get("gamma", "http://plain.fake.test/").status, 200)
    world.policy("gamma", [])


def test_policy_changes(world):
    policy = world.directory / "policy" / w.MACHINES["beta"]
    text = policy.read_text()
    for what, broken in {"no policy": None, "half a policy": text[:-5], "a policy of nonsense": "[]"}.items():
        policy.unlink(missing_ok=True)
        if broken is not None:
            world.write("policy", w.MACHINES["beta"], broken)
        equal(f"{what}: refused at once", world.tunnel("beta", "a.wild.test"), "407")
        equal(f"{what}: by the broker too", world.get("beta", "/x", w.BROKER).status, 403)
    world.write("policy", w.MACHINES["beta"], text)
    equal("a policy counts at once", world.tunnel("beta", "a.wild.test"), "from api")


def test_log(world):
    while not world.log.empty():
        world.log.get()
    world.tunnel("alpha", "api.fake.test")
    line = log_line(world, host="api.fake.test", sni="api.fake.test")
    equal("an allowed tunnel", [line[k] for k in ("id", "machine", "source", "method", "port", "decision", "reason", "rule", "address", "via")],
          ["alpha", "agent-alpha", w.MACHINES["alpha"], "CONNECT", 443, "allow", "listed", "api.fake.test:443", w.API, "proxy"])
    check("with bytes and time", line["bytes_up"] > 500 and line["bytes_down"] > 500 and line["ms"] >= 0, line)
    world.tunnel("alpha", "loopback.fake.test")
    line = log_line(world, host="loopback.fake.test")
    equal("a refused one says why", (line["decision"], line["reason"], line["status"]), ("deny", "private-address", 407))
    world.tunnel("nopolicy", "api.fake.test")
    line = log_line(world, source=w.MACHINES["nopolicy"])
    equal("an unknown machine", (line["reason"], line["id"], line["machine"]), ("unknown-source", "", ""))
    world.get("alpha", "/models?q", w.BROKER)
    line = log_line(world, via="broker")
    equal("a brokered one", [line[k] for k in ("id", "method", "host", "port", "url", "decision", "rule", "status")],
          ["alpha", "GET", "llm.fake.test", 443, "https://llm.fake.test/v1/models?", "allow", "https://llm.fake.test/v1", 200])

    forged = b'"},{"agent":"beta","decision":"allow'
    before = len(world.log_lines)
    for target in (b'http://plain.fake.test/"},{"agent":"beta', b"http://plain.fake.test/\\\"\\u0022", "http://plain.fake.test/\u00fc\u2028".encode(),
                   b"http://plain.fake.test/\x01\x7f\xff", b"http://plain.fake.test/a\tb", b"http://plain.fake.test/?" + forged,
                   b"http://\"},{\"agent\":\"beta/", b"http://a\xffb/"):
        world.send("alpha", b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for method in (b"G\"ET", b"GE\\T", b"G\xffT", forged):
        world.send("alpha", method + b" http://plain.fake.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    world.send("alpha", b"GET http://plain.fake.test/ HTTP/1.1\r\nHost: \"},{\r\nUser-Agent: \"},{\r\nConnection: close\r\n\r\n")
    world.tunnel("alpha", "api.fake.test", server_name='a"}{"x":"', verify=False)
    world.send("alpha", b"\n\n\"},{\"agent\":\"beta\"}\n\n")
    world.get("alpha", "http://plain.fake.test/last")
    while b"plain.fake.test/last" not in world.log.get(timeout=10):
        pass
    lines = world.log_lines[before:]
    check("each hostile request left a line", len(lines) >= 15, len(lines))
    for line in lines:
        try:
            entry = json.loads(line)
            good = entry["source"] == w.MACHINES["alpha"] and entry["id"] in ("alpha", "") and entry["decision"] in ("allow", "deny") and len(entry) == len(json.loads(world.log_lines[0]))
        except ValueError:
            good = False
        check("a hostile request can't forge or break a line", good, line)


def test_limits(world):
    big = "x" * 70000
    check("headers have a limit", world.get("alpha", "/models", w.BROKER, headers=[("X-Big", big)]).status in (400, 413, 431, 494))
    world.llm.last()
    # Refused by the kernel: nothing of it reaches squid or the log.
    world.limit("alpha", 10)
    with contextlib.ExitStack() as held:
        def open_until_refused(most):
            for count in range(most):
                try:
                    held.enter_context(world.connect("alpha", timeout=2))
                except OSError as cause:
                    return count, type(cause).__name__
            return most, "none"

        # The kernel forgets what counts nothing after a second, if it may.
        time.sleep(2)
        equal("a machine has only so many connections", open_until_refused(20), (10, "ConnectionRefusedError"))
        lines = len(world.log_lines)
        check("to the broker's port, too", not reaches(world, "alpha", w.GATEWAY, w.BROKER))
        equal("which takes none of another's", world.tunnel("beta", "a.wild.test"), "from api")
        world.limit("alpha", 20)
        more, how = open_until_refused(30)
        # A new limit counts what is new, and what is held may have ended meanwhile.
        check("a limit can be changed", 10 <= more <= 20 and how == "ConnectionRefusedError", (more, how))
        check("without the filter's words in the log", not any(b"too-many" in line for line in world.log_lines[lines:]))
    time.sleep(1)
    equal("those that ended don't count", world.tunnel("alpha", "api.fake.test"), "from api")
    # As many new ones a second.
    world.limit("alpha", 1)
    before = world.refused_by("new_connections")
    reached = sum(reaches(world, "alpha", w.GATEWAY, w.PROXY) for _ in range(20))
    check("new connections have a pace", reached > 0 and world.refused_by("new_connections") > before, reached)
    world.limit("alpha")


def test_pace(world):
    """A machine that asks too fast waits, alone, and fills no log."""
    hosts, get = ["plain.fake.test:80", "api.fake.test:443"], lambda: world.get("gamma", "http://plain.fake.test/").status
    rate = 2
    world.policy("gamma", hosts, rate=rate)
    get()  # from here on the helper knows the rate
    time.sleep(1.2)
    started, lines = time.monotonic(), len(world.log_lines)
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(get) for _ in range(40)]
        equal("another machine isn't held up", world.tunnel("beta", "a.wild.test"), "from api")
        statuses = [answer.result() for answer in asked]
    took = time.monotonic() - started
    check("a burst passes, the rest has to wait", rate <= statuses.count(200) <= rate * (took + 2), (statuses, took))
    equal("and is refused if it would wait too long", set(statuses), {200, 403})
    line = log_line(world, id="gamma", decision="deny")
    equal("the log says so", (line["reason"], line["rule"]), ("too-many-requests", "requests_per_second"))
    world.get("gamma", "http://plain.fake.test/last")
    check("with a line for each and no more", len(world.log_lines) - lines <= 44, len(world.log_lines) - lines)
    world.policy("gamma", hosts, rate=5)
    get()
    time.sleep(1.2)
    equal("a tunnel counts once", [world.tunnel("gamma", "api.fake.test") for _ in range(5)], ["from api"] * 5)
    answer = world.get("gamma", "http://elsewhere.fake.test/")
    world.policy("gamma", hosts, rate=1000)
    get()
    started = time.monotonic()
    equal("without the limit all pass", {get() for _ in range(40)}, {200})
    world.policy("gamma", [])


def test_refusals_explain_themselves(world):
    def words(what, answer, status, *wanted):
        equal(f"{what}: the status", answer.status, status)
        body = answer.body.decode()
        for text in wanted + ("without the proxy will not help",):
            check(f"{what}: says {text!r}", text in body, body)
        check(f"{what}: in plain text", "<" not in body and "&" not in body, body)
        header = answer.all("x-agentmachine-refusal")
        check(f"{what}: in a header, too", len(header) == 1 and len(header[0]) > 20, answer.headers)

    connect = lambda target: world.send("alpha", f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    words("an unlisted host", world.get("alpha", "http://evil.test/x"), 403, "host-not-listed", "allowed_hosts would need evil.test:80")
    words("a tunnel to one", connect("evil.test:443"), 407, "host-not-listed", "allowed_hosts would need evil.test:443")
    words("an unlisted port", connect("api.fake.test:22"), 407, "port-not-listed", "Rule: api.fake.test:443", "would need api.fake.test:22")
    words("an address", connect("127.0.0.1:443"), 407, "not-a-host-name", "addresses are never reached")
    words("a private address", world.get("alpha", "http://metadata.fake.test/"), 403, "private-address", "Rule: metadata.fake.test:80")
    words("a tunnel to one", connect("loopback.fake.test:443"), 407, "private-address", "Rule: loopback.fake.test:443")
    words("the broker", world.get("alpha", "/../x", w.BROKER), 403, "path-not-allowed", "https://llm.fake.test/v1")
    words("the broker without a provider", world.get("gamma", "/x", w.BROKER), 403, "no-provider", "api_base_url")
    words("an unknown machine", world.get("nopolicy", "http://evil.test/"), 403, "unknown-source")
    allowed = world.get("alpha", "http://plain.fake.test/")
    check("what is allowed says nothing of it", not allowed.all("x-agentmachine-refusal"), allowed.headers)


def test_packet_filter(world):
    alpha, beta = w.MACHINES["alpha"], w.MACHINES["beta"]

    check("the proxy's port is open", reaches(world, "alpha", w.GATEWAY, w.PROXY))
    check("the broker's port is open", reaches(world, "alpha", w.GATEWAY, w.BROKER))
    check("another port of the host is closed", not reaches(world, "alpha", w.GATEWAY, 2222))
    w.ip(f"route add 203.0.113.0/24 via {w.GATEWAY}\nroute add 198.51.100.0/24 via {w.GATEWAY}\n", "alpha")
    check("the host's other addresses are closed", not reaches(world, "alpha", "203.0.113.1", w.PROXY))
    check("nothing is forwarded", not reaches(world, "alpha", w.PLAIN, 80))
    neighbour = w.Server("beta", beta, 8000, None, "neighbour")
    check("no machine reaches another", not reaches(world, "alpha", beta, 8000))
    check("nor does one answer the host", not reaches(world, None, beta, 8000))
    with w.inside("alpha"):
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    datagram.settimeout(0.4)
    datagram.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1", (w.GATEWAY, 53))
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((w.GATEWAY, 5353))
    listener.settimeout(0.4)
    datagram.sendto(b"x", (w.GATEWAY, 5353))
    for what, where in {"no datagram arrives": listener, "no name is resolved": datagram}.items():
        check(what, not receives(where))
    ping.settimeout(0.4)
    ping.sendto(struct.pack(">BBHHH", 8, 0, 0xf7fd, 1, 1), (w.GATEWAY, 0))
    check("no ping is answered", not receives(ping))
    check("the services are closed to other networks", not reaches(world, "internet", w.GATEWAY, w.PROXY))
    check("and so is the broker", not reaches(world, "internet", w.GATEWAY, w.BROKER))
    check("the host itself gets an answer, and is refused as unknown", world.get(None, "http://plain.fake.test/").status == 403)
    w.ip(f"address add {w.MACHINES['nopolicy'].rsplit('.', 1)[0]}.99/16 dev host0\n", "alpha")
    check("an address that isn't the machine's", not reaches(world, "alpha", w.GATEWAY, w.PROXY, "10.213.0.99"))
    # Answers to a stolen address go to its owner, so what counts is what gets past the filter.
    passed = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    passed.bind(("agents0", 3))
    passed.settimeout(0.4)
    w.ip(f"address add {beta}/16 dev host0\n", "alpha")
    reaches(world, "alpha", w.GATEWAY, w.PROXY, beta)
    check("another machine's address", not passes(passed, lambda frame: frame[26:30] == socket.inet_aton(beta)))
    w.ip(f"address del {beta}/16 dev host0\naddress del 10.213.0.99/16 dev host0\n"
         f"neigh replace {w.GATEWAY} lladdr {json.loads(w.run('ip', '-json', 'link', 'show', 'agents0'))[0]['address']} dev host0\n"
         f"link set host0 address {w.mac(beta)}\n", "alpha")
    reaches(world, "alpha", w.GATEWAY, w.PROXY)
    send_arp("alpha", w.mac(beta), w.mac(alpha), alpha)
    frames_of_beta = lambda kind: lambda frame: frame[6:14] == bytes.fromhex(w.mac(beta).replace(":", "")) + kind
    check("another machine's MAC address", not passes(passed, frames_of_beta(b"\x08\x00")))
    send_arp("alpha", w.mac(beta), w.mac(alpha), alpha)
    check("nor with ARP", not passes(passed, frames_of_beta(b"\x08\x06")))
    equal("the other machine goes on meanwhile", world.tunnel("beta", "a.wild.test"), "from api")
    w.ip(f"link set host0 address {w.mac(alpha)}\nneigh flush dev host0\n", "alpha")
    equal("and the first, once it is itself again", world.tunnel("alpha", "api.fake.test"), "from api")
    with w.inside("beta"):
        overheard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    overheard.settimeout(0.4)
    send_arp("alpha", w.mac(alpha), w.mac(alpha), alpha)
    check("a machine hears no neighbour", not receives(overheard))
    send_arp("alpha", w.mac(alpha), w.mac(alpha), beta)
    equal("ARP claims nothing of a neighbour's", w.mac(alpha) in w.run("ip", "neigh", "show", "to", beta), False)
    send_arp("alpha", w.mac(alpha), w.mac(beta), alpha)
    equal("and gives nothing to one", w.mac(beta) in w.run("ip", "neigh", "show", "to", alpha), False)
    neighbour.socket.close()


def test_bridge_of_strangers(world):
    """The second wall, for what is on the bridge without being a machine, and for what would enter it."""
    check("a stranger on the bridge reaches no service of the host", not reaches(world, "stranger", w.GATEWAY, 2222))
    equal("the proxy refuses it as unknown", world.get("stranger", "http://plain.fake.test/").status, 403)
    w.ip(f"route add 198.51.100.0/24 via {w.GATEWAY}\n", "stranger")
    w.ip("route add 10.213.0.0/16 via 203.0.113.1\n", "internet")
    check("nor is anything forwarded for it", not datagram_arrives("stranger", "internet", w.PLAIN))
    check("nothing is forwarded to a machine", not datagram_arrives("internet", "alpha", w.MACHINES["alpha"]))


def datagram_arrives(sender, receiver, address):
    with w.inside(receiver):
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((address, 9999))
    listener.settimeout(0.4)
    with w.inside(sender):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (address, 9999))
    with listener:
        return receives(listener)


def reaches(world, machine, address, port, source=None, timeout=0.4):
    try:
        world.connect(machine, address, port, timeout, source).close()
        return True
    except OSError:
        return False


def receives(listener):
    try:
        return listener.recv(2000)
    except TimeoutError:
        return None


def passes(sniffer, wanted):
    """Whether a frame that is `wanted` is among those that came, or comes soon."""
    while frame := receives(sniffer):
        if wanted(frame):
            return True
    return False


def send_arp(machine, frame_mac, claimed_mac, address):
    """Tells the gateway that `address` is at `claimed_mac`, in a frame from `frame_mac`."""
    sender, claimed = (bytes.fromhex(text.replace(":", "")) for text in (frame_mac, claimed_mac))
    packet = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + claimed + socket.inet_aton(address) + claimed + socket.inet_aton(w.GATEWAY)
    with w.inside(machine):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind(("host0", 0x0806))
        raw.send(b"\xff" * 6 + sender + b"\x08\x06" + packet)


def test_nft_reload(world):
    with world.connect("alpha") as connection, connection.makefile("rb") as stream:
        before = w.run("nft", "list", "set", "bridge", "agentmachine", "agents")
        world.nft("nft")
        equal("loading the rules again keeps the elements", w.run("nft", "list", "set", "bridge", "agentmachine", "agents"), before)
        connection.sendall(b"GET http://plain.fake.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        equal("and the connections", w.read_message(stream).status, 200)
    rules = w.run("nft", "list", "ruleset")
    world.nft("nft")
    equal("and changes nothing, however often", w.run("nft", "-s", "list", "ruleset").count("drop"), rules.count("drop"))
    element = (w.port_name("gamma"), w.mac(w.MACHINES["gamma"]), w.MACHINES["gamma"], 100)
    world.nft("delete", *element)
    check("without its element a machine reaches nothing", not reaches(world, "gamma", w.GATEWAY, w.PROXY))
    world.nft("delete", *element)
    world.nft("add", *element)
    world.nft("add", *element)
    check("deleted and added twice, it is there once", reaches(world, "gamma", w.GATEWAY, w.PROXY, timeout=2))
    w.run("nft", "add", "table", "inet", "somebody_elses")
    world.nft("teardown")
    world.nft("teardown")
    equal("tearing down leaves others' tables", w.run("nft", "list", "tables").split(), ["table", "inet", "somebody_elses"])
    world.load_nft()


def test_parent(world):
    """A card may have another proxy between ours and the internet, one that the settings list."""
    policy = {"agent": "gamma", "hosts": ["api.fake.test:443", "plain.fake.test:80", "loopback.fake.test:443"],
              "broker": {"upstream": "https://llm.fake.test/v1"}}

    def parent(url):
        world.write("policy", w.MACHINES["gamma"], json.dumps(policy | {"parent": url}))

    before = (world.api.connections, world.llm.connections, world.plain.connections)
    parent(f"http://{w.PARENT}:3130")
    world.tunnel("gamma", "api.fake.test")
    equal("a tunnel goes through the parent", world.parent.last().start.split()[:2], ["CONNECT", "api.fake.test:443"])
    equal("plain HTTP too", world.get("gamma", "http://plain.fake.test/x").body, b"from parent")
    equal("with the whole URL", world.parent.last().start, "GET http://plain.fake.test/x HTTP/1.1")
    equal("the broker doesn't: the parent would see the key", world.get("gamma", "/models", w.BROKER).status, 403)
    equal("nor is the parent asked", world.parent.last(), None)
    equal("the list counts all the same", world.tunnel("gamma", "unlisted.fake.test"), "407")
    equal("and so do private addresses", world.tunnel("gamma", "loopback.fake.test"), "407")
    parent(f"http://{w.PARENT}:3131")
    check("a parent that isn't listed any more gives no way at all", not world.tunnel("gamma", "api.fake.test").startswith("from")
          and world.get("gamma", "http://plain.fake.test/").status >= 500 and world.get("gamma", "/models", w.BROKER).status == 403)
    equal("nothing went past the parent", (world.api.connections, world.llm.connections, world.plain.connections), before)
    world.tunnel("alpha", "api.fake.test")
    check("others don't go through it", world.parent.last() is None)
    world.policy("gamma", [])


def while_it_dies(world, mode, ask):
    """What `ask` gives if the helper for `mode` has its question and dies without an answer."""
    (pid,) = world.helper_pids(mode)
    os.kill(pid, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(ask)
        while not world.has_unread_input(pid):
            assert not answer.done(), f"{mode} was not asked"
        os.kill(pid, signal.SIGKILL)
        return answer.result(20)


def test_dead_helper(world):
    """No answer is no permission, and the next request finds a new helper."""
    tunnel = lambda: world.tunnel("alpha", "api.fake.test")
    connections = world.api.connections
    saw = while_it_dies(world, "request", tunnel)
    check("request: no answer is a refusal", not saw.startswith("from") and world.api.connections == connections, saw)
    equal("request: there is a new helper", tunnel(), "from api")
    connections = world.api.connections
    saw = while_it_dies(world, "sni", lambda: world.tunnel("alpha", "api.fake.test", server_name="evil.test", verify=False))
    check("sni: no answer is a refusal", not saw.startswith("from"), saw)
    equal("sni: and no connection", world.api.connections, connections)
    equal("sni: the log says why", log_line(world, sni="evil.test", decision="deny")["reason"], "no-answer")
    equal("sni: there is a new helper", tunnel(), "from api")
    models = lambda: world.get("alpha", "/models", w.BROKER)
    equal("broker: no answer is a refusal", while_it_dies(world, "broker", models).status, 403)
    equal("broker: there is a new helper", models().body, b"from llm")
    check("rewrite: no answer is a refusal", while_it_dies(world, "rewrite", models).status >= 400)
    equal("rewrite: there is a new helper", models().body, b"from llm")
    check("squid is still there", world.squid.poll() is None, world.squid_output()[-2000:])


def test_dead_log(world):
    """A log daemon that is killed loses no record; one that can't go on takes squid with it."""
    worker = world.audit_pids()[1]
    os.kill(worker, signal.SIGSTOP)
    before = len(world.log_lines)
    for number in range(20):
        world.get("alpha", f"http://plain.fake.test/while-dying-{number}")
    os.kill(worker, signal.SIGKILL)
    wanted = {f"http://plain.fake.test/while-dying-{number}" for number in range(20)}
    while wanted:
        wanted.discard(json.loads(world.log.get(timeout=10))["url"])
    check("no record is lost with the process that writes them", not wanted)
    lines = [json.loads(line)["url"] for line in world.log_lines[before:]]
    equal("none is there twice", len(lines), len(set(lines)))
    check("another one goes on", world.audit_pids()[1] != worker)
    guard, worker = world.audit_pids()
    status, tunnel = world.open_tunnel("alpha", "api.fake.test")
    os.kill(guard, signal.SIGKILL)
    equal("without a guard squid ends", world.squid.wait(20), 0)
    tunnel.close()
    line = log_line(world, method="CONNECT", host="api.fake.test")
    check("and tells of what was open", line["source"] == w.MACHINES["alpha"], line)
    world.start_squid()
    equal("and it starts again", world.tunnel("alpha", "api.fake.test"), "from api")


def test_no_key_anywhere(world):
    """Keys are in no log, argument list or environment of the proxy."""
    clear = []
    while not world.plain.requests.empty():
        clear.append(world.plain.requests.get())
    check("no key travelled in the clear", "key-of" not in str([request.headers for request in clear]))
    texts = {"the log": b"".join(world.log_lines), "squid's messages": world.squid_output().encode()}
    for pid in [world.squid.pid] + [pid for mode in ("request", "sni", "broker", "rewrite") for pid in world.helper_pids(mode)]:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                texts[f"{name} of {pid}"] = file.read()
    for where, text in texts.items():
        check(f"no key in {where}", b"key-of-" not in text)


# What to take out of the rendered text, to see that the tests notice: GUARD: [(text, old, new)…].
GUARDS = {
    "list": [("squid", "listed !unproven !inside", "!unproven !inside")],
    "list-before-resolving": [("squid", "listed !unproven !inside", "!unproven !inside listed")],
    "private": [("squid", "listed !unproven !inside", "listed !unproven")],
    "private-broker": [("squid", "adapted_http_access deny broker_port broker_inside", "")],
    "private-ports": [("squid", "all-of private_name_1 private_port_1", "all-of private_name_1")],
    "clean-refusal": [("squid", "deny_info 407:ERR_AGENTMACHINE CONNECT", "")],
    "server-name": [("squid", "second_step same_host", "second_step"), ("squid", "listed !unproven", "listed")],
    "server-name-proven": [("squid", "listed !unproven", "listed")],
    "server-name-cut": [("squid", "second_step same_host", "second_step")],
    "private-and-nft": [("squid", "listed !unproven !inside", "listed !unproven"), ("nft", "counter reject", "accept")],
    "brokered": [("squid", "broker_port brokered", "broker_port"), ("squid", "adapted_http_access deny broker_port not_provider", "")],
    "rewriter": [("squid", "url_rewrite_access allow broker_port", "")],
    "rewriter-both": [("squid", "url_rewrite_access allow broker_port", ""),
                      ("squid", "adapted_http_access deny broker_port not_provider", "")],
    "strip-x-api-key": [("squid", "request_header_access X-Api-Key deny broker_port", "")],
    "strip-authorization": [("squid", "request_header_access Authorization deny broker_port", "")],
    "strip-cookie": [("squid", "request_header_access Cookie deny broker_port", "")],
    "verify-authority": [("squid", "min-version=1.2", "min-version=1.2 flags=DONT_VERIFY_PEER")],
    "connections": [("nft", "iifname $BRIDGE ct state new ip saddr vmap @machines", "iifname $BRIDGE accept")],
    "new-connections": [("nft", "iifname $BRIDGE ct state new ip saddr @new_connections counter reject with tcp reset", "")],
    "refusal-text": [("page", "@Squid{%'note{advice}}", "")],
    "refusal-text-private": [("squid", "http_access deny CONNECT inside_tunnel", "")],
    "refusal-header": [("squid", "reply_header_add X-Agentmachine-Refusal \"%", "#")],
    "pace-once-a-tunnel": [("squid", " %ssl::>sni", "", )],
    "via": [("squid", "via off", "via on")],
    "forwarded-for": [("squid", "forwarded_for delete", "forwarded_for on")],
    "log-encoding": [("squid", "%#", "%")],
    "log-once": [("squid", "worth_a_line !only_begun", "worth_a_line")],
    "helper-replies-in-log": [("squid", "ALL,1 84,0", "ALL,1 84,9")],
    "parent-only": [("squid", "never_direct allow has_parent", "")],
    "parent-access": [("squid", "cache_peer_access parent_1 allow through_1 !broker_port", "cache_peer_access parent_1 allow all")],
    "nft-ports": [("nft", "    counter drop\n  }\n\n  # No machine", "  }\n\n  # No machine")],
    "nft-address": [("nft", "ether type ip iifname . ether saddr . ip saddr @agents", "ether type ip")],
    "nft-arp": [("nft", "iifname . ether saddr . arp saddr ip @agents", "")],
    "nft-arp-mac": [("nft", "iifname . arp saddr ether . arp saddr ip @agents", "")],
    "nft-bridge-forward": [("nft", "iifname $PORTS counter drop", "")],
    "nft-input": [("nft", "    iifname $BRIDGE counter drop\n    # The", "    # The")],
    "nft-other-networks": [("nft", 'iifname != "lo" ip daddr $GATEWAY tcp dport $SERVICES counter drop', "")],
    "nft-forward-from": [("nft", "    iifname $BRIDGE counter drop\n    oifname", "    oifname")],
    "nft-forward-to": [("nft", "oifname $BRIDGE counter drop", "")],
    "nft-proxy-user": [("nft", "meta skuid $PROXY_USER jump proxy_output", "")],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the build directory, or where a build was installed: …/libexec/agentmachine")
    parser.add_argument("--without", choices=GUARDS)
    arguments = parser.parse_args()

    def change(what, text):
        for kind, old, new in GUARDS.get(arguments.without, []):
            if kind == what:
                assert old in text, f"{old!r} is not in the rendered {kind}"
                text = text.replace(old, new)
        return text

    started = time.monotonic()
    world = w.World(arguments.programs, change)
    try:
        for test in (test_hosts, test_private_addresses, test_filter_of_the_proxys_own, test_tls, test_plain_http,
                     test_broker, test_smuggling, test_streaming, test_upstream_tls, test_policy_changes, test_log,
                     test_limits, test_pace, test_refusals_explain_themselves, test_packet_filter, test_bridge_of_strangers,
                     test_nft_reload, test_parent, test_rebinding, test_dead_helper, test_dead_log, test_no_key_anywhere):
            at = time.monotonic()
            try:
                test(world)
            except Exception as cause:
                check(f"{test.__name__} runs to its end", False, f"{type(cause).__name__}: {cause}, line {cause.__traceback__.tb_next.tb_lineno}")
            print(f"# {test.__name__}: {time.monotonic() - at:.1f} s", flush=True)
    finally:
        world.close()
    print(f"# {failures} checks failed, {time.monotonic() - started:.1f} s")
    if failures:
        print("".join(f"# {line}\n" for line in world.squid_output().splitlines()[-40:]), end="")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
