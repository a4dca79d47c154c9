"""A proxy as it is often written, to show what a strict one is for: it looks for a listed name somewhere in what it was
given, takes texts for what C takes them for, judges a connection by its first request, and believes lengths and hosts
as they come. It stands in for the real one in the controls.
"""

import contextlib
import re
import socket
import threading
import unicodedata
import urllib.parse

LISTED = re.compile(r"(api|plain|getonly|wild)\.(fake\.)?test", re.IGNORECASE)


class Server:
    """Serves each connection in a thread of its own, by `_serve`."""

    def __init__(self, address, port, lab):
        self.lab = lab
        self.listener = socket.create_server((address, port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        # shutdown, too: a thread in accept() holds the socket open.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, (peer, _) = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection, peer), daemon=True).start()


class Proxy(Server):
    def _serve(self, client, _peer):
        judged = False
        with contextlib.suppress(OSError, ValueError, IndexError), client, client.makefile("rb") as stream:
            client.settimeout(2)
            while head := read_head(stream):
                lines = re.split(rb"\r?\n|\r", head)
                method, target = lines[0].split(b" ")[0], b" ".join(lines[0].split(b" ")[1:-1]) or lines[0].split(b" ")[1]
                headers = [line.partition(b":")[::2] for line in lines[1:] if line]
                values = lambda name: [value.strip() for key, value in headers if key.strip().lower() == name]
                # Judged by all that was said; led by the last that was.
                if not judged and not LISTED.search(unicodedata.normalize("NFKC", head.decode("utf-8", "replace"))):
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    return
                judged = True
                host, port = self._where(method, target, values(b"host"))
                with socket.create_connection((self._resolve(host), port), 3) as server:
                    if method == b"CONNECT":
                        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                        relay(client, server)
                        return
                    length = int((values(b"content-length") or [b"0"])[-1])
                    path = re.sub(rb"^\w+://[^/]*", b"", target) or b"/"
                    rest = [line for line in lines[1:] if line]
                    # The body by its length; the server may see chunks in it, and then a request behind them.
                    server.sendall(method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(rest) + b"\r\n\r\n" + stream.read(length))
                    server.settimeout(0.7)
                    with contextlib.suppress(TimeoutError):
                        while data := server.recv(65536):
                            client.sendall(data)
                            if b"\r\n\r\n" in data:
                                break

    def _where(self, method, target, hosts):
        if method == b"CONNECT":
            authority = target
        elif b"://" in target and len(hosts) < 2:
            authority = target.split(b"://")[1].split(b"/")[0]
        else:
            authority = hosts[-1]
        authority = re.split(rb"[#\\]", authority.split(b"@")[-1])[0]
        host, _, port = authority.rpartition(b":") if re.search(rb":\d+$", authority) else (authority, b"", b"80")
        # What follows what C calls the end is another's.
        host = re.split(rb"[\0\r\n\t ]+", urllib.parse.unquote_to_bytes(host))[0].split(b"@")[-1]
        return unicodedata.normalize("NFKC", host.decode("utf-8", "replace")).strip("[]"), int(port or 80)

    def _resolve(self, host):
        with contextlib.suppress(OSError):
            return socket.inet_ntoa(socket.inet_aton(host))
        if ":" in host:
            return host
        return self.lab.resolver.names.setdefault(host.lower().rstrip("."), ["192.0.2.66"])[0]


def read_head(stream):
    head = b""
    while not (head.endswith(b"\r\n\r\n") or head.endswith(b"\n\n")) and len(head) < 262144:
        line = stream.readline()
        if not line:
            return b""
        head += line
    return head


def relay(a, b):
    def carry(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
    thread = threading.Thread(target=carry, args=(a, b), daemon=True)
    thread.start()
    carry(b, a)
    thread.join(3)
