"""Flooding: one machine that takes what is everybody's. Success is more than its card gives it, or that another no longer
works meanwhile.
"""

import time

import lab as labs
from guards import BANDWIDTH, CONNECTIONS, LOG_LEVEL, LOG_RATE, NEW_CONNECTIONS, REQUESTS
from lab import GATEWAY, PROXY, PROXY_UNIT, SPEAKER, run
from suite import case


def limits(**limits):
    return {"resource_limits": {"memory_mb": 256, "max_processes": 60} | limits}


def works(lab):
    """Whether another machine gets what it asks for, in time."""
    start = time.monotonic()
    return b"from api" in lab.neighbour.get("http://api.fake.test/") and time.monotonic() - start < labs.patience(10)


FEW = limits(max_connections=8, requests_per_second=1000)
TUNNEL = "CONNECT api.fake.test:443 HTTP/1.1%nHost: api.fake.test:443%n%n"
REQUEST = "GET http://api.fake.test/ HTTP/1.1%nHost: api.fake.test%n%n"
for what, text in {"tunnels": TUNNEL, "kept connections": REQUEST, "connections without a request": " ", "half requests": "GET http://api.fake.test/ HT"}.items():
    def attack(lab, text=text):
        with lab.attacker.kept("hold", GATEWAY, PROXY, 20, text) as first_line:
            return int(first_line(30) or 0) > 12 or not works(lab)
    case(f"connections: {what}", CONNECTIONS, serial=True, card=FEW)(attack)


@case("connections: begun and given up", CONNECTIONS, NEW_CONNECTIONS, serial=True, card=FEW)
def _(lab):
    with lab.attacker.kept("hold", GATEWAY, PROXY, 100, "") as first_line:
        return int(first_line(30) or 0) > 90 or not works(lab)


def answered(lab, request, status, count=24, seconds=4):
    """How many of so many requests, all sent at once, are answered so within the time."""
    deadline, answers = time.monotonic() + labs.patience(seconds), b""
    with lab.attacker.open(timeout=1) as connection:
        connection.sendall(request * count)
        while time.monotonic() < deadline and answers.count(status) < count:
            try:
                part = connection.recv(65536)
            except TimeoutError:
                continue
            if not part:
                break
            answers += part
    return answers.count(status)


# Both are slow in their way, and neither hinders the other's test.
SLOW = limits(requests_per_second=2, network_mbit=1)


@case("requests", REQUESTS, serial=True, card=SLOW)
def _(lab):
    return answered(lab, b"GET http://api.fake.test/ HTTP/1.1\r\nHost: api.fake.test\r\n\r\n", b"HTTP/1.1 200") > 16 or not works(lab)


@case("log volume: requests that are refused, a line of the log each", REQUESTS, serial=True, card=SLOW)
def _(lab):
    return answered(lab, b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", b"HTTP/1.1 403") > 16 or not works(lab)


# More than the unit's limit lets through in twice its 30 s, where the journal has the 4 GiB that it takes at most if it isn't
# told else.
MANY = 4100


def in_journal(token, *matches):
    """How many of the newest entries that match hold this."""
    return run("journalctl", "--quiet", "--output=cat", "--lines=8000", *matches).count(token)


def is_recorded(lab):
    """Whether another machine's request leaves its record, in time."""
    token, deadline = lab.token(), time.monotonic() + labs.patience(10)
    lab.neighbour.get(f"http://api.fake.test/{token}")
    while not in_journal(token, f"_SYSTEMD_UNIT={PROXY_UNIT}"):
        if time.monotonic() > deadline:
            return False
        lab.pause(0.1)
    return True


# These two have machines of their own: for a while nothing more is taken of the first.
@case("log volume: what the payload prints", LOG_RATE, serial=True, card=SPEAKER | limits(max_open_files=1000))
def _(lab):
    token = lab.token()
    lab.attacker.prints(f"{token}\n".encode() * 5000)
    deadline = time.monotonic() + labs.patience(5)
    while (few := in_journal(token, f"_SYSTEMD_UNIT={lab.attacker.unit}") <= MANY) and time.monotonic() < deadline:
        lab.pause(0.5)
    return not few or not is_recorded(lab)


@case("log volume: lines at other levels, which journald counts apart", LOG_LEVEL, card=SPEAKER | limits())
def _(lab):
    token, deadline = lab.token(), time.monotonic() + labs.patience(10)
    lab.attacker.prints(f"<3>{token}\n".encode())
    while not in_journal(token, f"_SYSTEMD_UNIT={lab.attacker.unit}"):
        if time.monotonic() > deadline:
            raise RuntimeError("what the payload printed is not in the journal")
        lab.pause(0.1)
    return in_journal(token, f"_SYSTEMD_UNIT={lab.attacker.unit}", "PRIORITY=3") > 0


@case("bandwidth: down", BANDWIDTH, serial=True, card=SLOW)
def _(lab):
    done = lab.attacker.run("/usr/bin/curl", "-s", "-f", "-m", str(labs.patience(5)), "-o", "/dev/null", "-x", f"http://{GATEWAY}:{PROXY}", "http://big.fake.test:8081/")
    return done.status == 0 or not works(lab)


@case("bandwidth: up", BANDWIDTH, serial=True, card=SLOW)
def _(lab):
    done = lab.attacker.sh(f"head -c 1000000 /dev/zero | /usr/bin/curl -s -f -m {labs.patience(5)} -o /dev/null --data-binary @- -x http://{GATEWAY}:{PROXY} http://api.fake.test/")
    return done.status == 0 or not works(lab)
