"""A broker as it is often written, to show what a strict one is for: it joins texts to an address, believes what headers
say about who asks and whom, passes on what it doesn't understand, and tells all it knows when something fails. It stands in
for the real one in the controls of keys.py. And the model provider that both ask.
"""

import contextlib
import posixpath
import re
import socket
import ssl
import urllib.parse

from lab import BROKER, GATEWAY, world
from naive import Server, read_head, relay

MODEL, MODEL_HOST = "192.0.2.20", "model.fake.test"


class Provider(world.Server):
    """Remembers all that it was asked."""

    def __init__(self, *arguments):
        self.seen = []
        super().__init__(*arguments)

    def _answer(self, connection, request):
        self.seen.append(request)
        head = request.start + "\n" + "".join(f"{name}: {value}\n" for name, value in request.headers)
        if "broken" in request.start:
            raise OSError
        status, more, body = "200 OK", "", "from model"
        if "redirect" in request.start:
            token = request.start.split()[1].rsplit("/", 1)[-1]
            status, more = "302 Found", f"Location: http://evil.test/taken/{token}\r\n"
        elif request.start.startswith("TRACE"):
            body = head
        connection.sendall(f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    def saw(self, token):
        """The requests with this word in their first line."""
        return [request for request in list(self.seen) if token in request.start]


class Broker(Server):
    """`keys` says what key belongs to an address."""

    def __init__(self, lab, keys):
        self.keys = keys
        super().__init__(GATEWAY, BROKER, lab)

    def _serve(self, client, address):
        with contextlib.suppress(OSError, ValueError, IndexError), client, client.makefile("rb") as stream:
            client.settimeout(8)
            head = read_head(stream).decode("latin-1")
            if head.startswith("PROXY "):
                preface, _, head = head.partition("\r\n")
                address = preface.split()[2]
            lines = [line for line in re.split(r"\r?\n|\r", head) if line]
            method, target = lines[0].split(" ")[0], " ".join(lines[0].split(" ")[1:-1])
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
            values = {name.strip().lower(): value for name, value in headers}
            for name in ("x-forwarded-for", "x-real-ip", "forwarded"):
                address = values.get(name, address).split("for=")[-1]
            key = self.keys(address)
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                with socket.create_connection((self._resolve(host), int(port)), 3) as server:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    return relay(client, server)
            host = values.get("x-forwarded-host", values.get("host", "broker"))
            base = "https://" + (host if "." in host else MODEL_HOST)
            url = target if "://" in target else base + ("/v1" if target.startswith("/") else "") + target
            drop = [name.strip() for name in values.get("connection", "").lower().split(",")]
            # The agent's first: what a server takes of two is its own affair.
            sent = [(name, value) for name, value in headers if name.lower() not in drop]
            sent += [] if "x-api-key" in drop else [("x-api-key", key)]
            body = stream.read(int(values["content-length"])) if "content-length" in values else b""
            answer = self._ask(method, url, sent, body)
            client.sendall(answer)

    def _ask(self, method, url, headers, body):
        for _ in range(3):
            parts = urllib.parse.urlsplit(url)
            path = posixpath.normpath(urllib.parse.unquote(urllib.parse.unquote(parts.path)).replace("\\", "/") or "/")
            path += "?" + parts.query if parts.query else ""
            asked = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
            try:
                with self._connect(parts) as server, server.makefile("rb") as stream:
                    server.settimeout(5)
                    server.sendall(asked.encode("latin-1") + body)
                    answer = world.read_message(stream)
                if answer is None:
                    raise OSError("no answer")
            except OSError as error:
                text = f"{error} while asking:\n{asked}"
                return f"HTTP/1.1 500 Oh\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode("latin-1")
            if not answer.all("location"):
                break
            url = answer.all("location")[0]
        return f"{answer.start}\r\nContent-Length: {len(answer.body)}\r\n\r\n".encode("latin-1") + answer.body

    def _connect(self, parts):
        server = socket.create_connection((self._resolve(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)), 3)
        if parts.scheme != "https":
            return server
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(server, server_hostname=parts.hostname)

    def _resolve(self, host):
        return self.lab.resolver.names.setdefault(host.lower(), ["192.0.2.66"])[0]
