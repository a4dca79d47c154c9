"""Spoofing: frames and packets that claim to be another's. Success is that one gets past the machine's port."""

import json
import socket
import struct

from guards import CALL_FILTER, FAMILIES, ISOLATION, PORT_FILTER, UNPRIVILEGED
from lab import GATEWAY, PROXY, TOOLS, run, world
from suite import case

# Whoever can make frames needs a packet socket, and for that a family and a capability; the filter judges the frames.
FORGED = FAMILIES, CALL_FILTER, UNPRIVILEGED, PORT_FILTER
BROADCAST = "ff:ff:ff:ff:ff:ff"
STRANGER = "10.213.77.7"


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def bridge_mac():
    return json.loads(run("ip", "-json", "link", "show", "agents0"))[0]["address"]


def ethernet(source, to, kind, payload):
    return (octets(to) + octets(source) + struct.pack(">H", kind) + payload).ljust(60, b"\0")


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def ipv4(source, to, protocol, payload, options=b"", fragment=0):
    words = 5 + len(options) // 4
    head = lambda total: struct.pack(">BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), 1, fragment, 64, protocol, total,
                                     socket.inet_aton(source), socket.inet_aton(to)) + options
    return head(checksum(head(0))) + payload


def udp(port, payload):
    return struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload


def syn(port, payload=b""):
    return struct.pack(">HHIIBBHHH", 4000, port, 1, 0, 0x50, 2, 1024, 0, 0) + payload


def arp(operation, mac, address, target_mac, target):
    return struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + octets(mac) + socket.inet_aton(address) + octets(target_mac) + socket.inet_aton(target)


class Frames:
    """What a forger knows: who it is, who its neighbour is, where the host is; and a word to recognise its frame by."""

    def __init__(self, lab):
        self.token = lab.token().encode()
        self.address, self.neighbour = lab.attacker.address, lab.neighbour.address
        self.mac, self.neighbour_mac, self.host_mac = world.mac(self.address), world.mac(self.neighbour), bridge_mac()

    def tcp(self, source, mac, to=GATEWAY, **how):
        """The beginning of a connection to the proxy: what its own filter would let pass."""
        return ethernet(mac, self.host_mac, 0x0800, ipv4(source, to, 6, syn(PROXY, self.token), **how))

    def tagged(self, frame, tail=False):
        """ARP has no room for a word but behind its end, in the padding."""
        return frame[:42] + self.token if tail else frame


def forged(name, make, tail=False):
    def attack(lab):
        frames = Frames(lab)
        frame = frames.tagged(make(frames), tail)
        lab.attacker.wire("frame", "host0", frame.hex())
        return lab.bridge.saw(frames.token)
    case(name, *FORGED)(attack)


# Addresses of others
forged("MAC: a neighbour's, with its address", lambda f: f.tcp(f.neighbour, f.neighbour_mac))
forged("MAC: a neighbour's, with one's own address", lambda f: f.tcp(f.address, f.neighbour_mac))
forged("MAC: the gateway's", lambda f: f.tcp(f.address, f.host_mac))
forged("MAC: nobody's", lambda f: f.tcp(f.address, "02:00:00:00:00:01"))
forged("IP: a neighbour's, with one's own MAC", lambda f: f.tcp(f.neighbour, f.mac))
forged("IP: the gateway's", lambda f: f.tcp(GATEWAY, f.mac))
forged("IP: nobody's", lambda f: f.tcp(STRANGER, f.mac))
forged("IP: the host's loopback", lambda f: f.tcp("127.0.0.1", f.mac))
forged("IP: none", lambda f: f.tcp("0.0.0.0", f.mac))
forged("IP: broadcast to all machines", lambda f: ethernet(f.mac, BROADCAST, 0x0800, ipv4(f.address, "255.255.255.255", 17, udp(67, f.token))))
forged("IP: multicast", lambda f: ethernet(f.mac, "01:00:5e:00:00:fb", 0x0800, ipv4(f.address, "224.0.0.251", 17, udp(5353, f.token))))
forged("IP: a route through the gateway in the options", lambda f: f.tcp(f.neighbour, f.mac, options=b"\x83\x07\x04" + socket.inet_aton(STRANGER) + b"\0"))
forged("IP: a fragment without ports", lambda f: ethernet(f.mac, f.host_mac, 0x0800, ipv4(f.neighbour, GATEWAY, 6, f.token, fragment=10)))

forged("IP: a fragment without ports, of one's own", lambda f: ethernet(f.mac, f.host_mac, 0x0800, ipv4(f.address, GATEWAY, 6, f.token, fragment=10)))

# ARP
forged("ARP: one's MAC for a neighbour's address", lambda f: ethernet(f.mac, BROADCAST, 0x0806, arp(2, f.mac, f.neighbour, f.host_mac, GATEWAY)), tail=True)
forged("ARP: one's MAC for the gateway's address", lambda f: ethernet(f.mac, BROADCAST, 0x0806, arp(2, f.mac, GATEWAY, BROADCAST, GATEWAY)), tail=True)
forged("ARP: a request with a neighbour's address", lambda f: ethernet(f.mac, BROADCAST, 0x0806, arp(1, f.mac, f.neighbour, "00:00:00:00:00:00", GATEWAY)), tail=True)
forged("ARP: one's address with a neighbour's MAC", lambda f: ethernet(f.mac, BROADCAST, 0x0806, arp(2, f.neighbour_mac, f.address, f.host_mac, GATEWAY)), tail=True)
forged("ARP: a question for a neighbour", lambda f: ethernet(f.mac, BROADCAST, 0x0806, arp(1, f.mac, f.address, "00:00:00:00:00:00", f.neighbour)), tail=True)

# Other kinds of frames
forged("frame: an IPv6 router's announcement", lambda f: ethernet(f.mac, "33:33:00:00:00:01", 0x86dd, struct.pack(">IHBB", 6 << 28, 16, 58, 255)
       + socket.inet_pton(socket.AF_INET6, "fe80::66") + socket.inet_pton(socket.AF_INET6, "ff02::1") + b"\x86\0\0\0" + f.token))
forged("frame: with a VLAN's tag", lambda f: ethernet(f.mac, f.host_mac, 0x8100, struct.pack(">HH", 7, 0x0800) + ipv4(f.address, GATEWAY, 6, syn(PROXY, f.token))))
forged("frame: of a kind nobody knows", lambda f: ethernet(f.mac, BROADCAST, 0x88b5, f.token))
forged("frame: with two tags", lambda f: ethernet(f.mac, f.host_mac, 0x88a8, struct.pack(">HHHH", 7, 0x8100, 7, 0x0800) + ipv4(f.address, GATEWAY, 6, syn(PROXY, f.token))))
forged("frame: IP by length instead of kind (SNAP)", lambda f: ethernet(f.mac, f.host_mac, 8 + 40 + len(f.token), b"\xaa\xaa\x03\0\0\0\x08\0" + ipv4(f.neighbour, GATEWAY, 6, syn(PROXY, f.token))))
forged("frame: a bridge's own (spanning tree)", lambda f: ethernet(f.mac, "01:80:c2:00:00:00", 38, b"\x42\x42\x03" + bytes(35) + f.token))
forged("frame: PPPoE", lambda f: ethernet(f.mac, BROADCAST, 0x8863, f.token))


@case("frame: straight to a neighbour", *FORGED, ISOLATION)
def _(lab):
    frames = Frames(lab)
    lab.attacker.wire("frame", "host0", ethernet(frames.mac, frames.neighbour_mac, 0x0800,
                                                 ipv4(frames.address, frames.neighbour, 17, udp(9, frames.token))).hex())
    return lab.neighbour_port.saw(frames.token)


@case("listening: what a neighbour sends", FAMILIES, CALL_FILTER, UNPRIVILEGED, PORT_FILTER, ISOLATION)
def _(lab):
    # A broadcast of the neighbour's, from root in its network; the attacker listens at its own port.
    token = lab.token().encode()
    frame = ethernet(world.mac(lab.neighbour.address), BROADCAST, 0x88b5, token)
    with lab.attacker.listening("host0", token) as heard:
        run(*lab.neighbour.network(str(lab.work / "tools/wire"), "frame", "host0", frame.hex()))
        return heard()


# Without a packet socket

@case("socket: bound to a neighbour's address", UNPRIVILEGED, PORT_FILTER)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp-from", lab.neighbour.address, GATEWAY, PROXY, token)
    return lab.bridge.saw(token.encode())


@case("socket: bound to nobody's address", UNPRIVILEGED, PORT_FILTER)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp-from", STRANGER, GATEWAY, PROXY, token)
    return lab.bridge.saw(token.encode())


@case("socket: bound to the gateway's address", UNPRIVILEGED, PORT_FILTER)
def _(lab):
    token = lab.token()
    lab.attacker.wire("udp-from", GATEWAY, GATEWAY, PROXY, token)
    return lab.bridge.saw(token.encode())


MAC = "ifconfig host0 hw ether {}"
for what, do, undo in (
        ("another MAC for the interface", MAC.format("02:00:0a:d5:00:09"), MAC),
        ("another address for the interface", "ip address add 10.213.0.9/16 dev host0", "ip address del 10.213.0.9/16 dev host0"),
        ("a default route", "ip route add default via 10.213.0.1 dev host0", "ip route del default via 10.213.0.1 dev host0")):
    def attack(lab, do=do, undo=undo):
        # Taken back at once, where it worked.
        done = lab.attacker.run(TOOLS + "busybox", *do.split()).status == 0
        if done:
            lab.attacker.run(TOOLS + "busybox", *undo.format(world.mac(lab.attacker.address)).split())
        return done
    case(f"configuration: {what}", UNPRIVILEGED, serial=True)(attack)
