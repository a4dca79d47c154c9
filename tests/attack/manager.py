"""The manager: agentmachine itself, attacked by what it reads: images, cards, names of files, lines of logs; by settings that
are smuggled past it; and by agents that want to outlive their time."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tarfile
import time

from guards import HostGuard, MachineGuard
from lab import CONF, SPEAKER, WORK, quiet, run
from suite import case

# Where the guard is how our program does it, the control does the same with a program that is often used for it.
UNPACKER = HostGuard("checked import", lambda lab: contextlib.nullcontext())
ESCAPED = HostGuard("escaped output", lambda lab: contextlib.nullcontext())
TYPES = HostGuard("checked types", lambda lab: contextlib.nullcontext())
RECORDS = HostGuard("the proxy's records alone", lambda lab: contextlib.nullcontext())


def ran(*argv, **options):
    """Its status, and all that it said."""
    done = subprocess.run(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    return done.returncode, done.stdout


# Images

class Tarball:
    """A tarball to be, and beside it a directory of the host that it aims at."""

    def __init__(self, lab):
        self.place = WORK / f"tar-{lab.token()}"
        self.out, self.root, self.path = self.place / "out", self.place / "root", self.place / "image.tar"
        self.out.mkdir(parents=True)
        self.root.mkdir()
        self.entries = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.entries, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind=tarfile.REGTYPE, data=b"", **more):
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.mode = kind, len(data), 0o755
        for key, value in more.items():
            setattr(entry, key, value)
        self.tar.addfile(entry, io.BytesIO(data))

    def write(self, cut=0):
        self.tar.close()
        self.path.write_bytes(self.entries.getvalue()[:-cut or None])

    @property
    def planted(self):
        return (self.out / "planted").exists()


# As root, and as images are unpacked by hand.
TAR = ["tar", "--extract", "--absolute-names", "--preserve-permissions", "--same-owner", "--xattrs", "--xattrs-include=*"]


def image(name, why, fill, took, cut=0):
    """`fill` makes the tarball; `why` is what our refusal says; `took` whether the attack had its effect."""
    def made(lab):
        tarball = Tarball(lab)
        fill(tarball)
        tarball.write(cut)
        return tarball

    def attack(lab):
        tarball = made(lab)
        status, said = ran("agentmachine", "image", "import", "--max-size", 64, tarball.path)
        # Refused for another reason, it would show nothing.
        return status == 0 or took(tarball) or not re.search(why, said.decode())

    def control(lab):
        tarball = made(lab)
        ran(*TAR, "-f", tarball.path, "-C", tarball.root)
        return took(tarball)

    case(f"image: {name}", UNPACKER, control=control)(attack)


def mode(tarball, name):
    with contextlib.suppress(OSError):
        return (tarball.root / name).lstat().st_mode
    return 0


def has_capability(tarball):
    with contextlib.suppress(OSError):
        return bool(os.getxattr(tarball.root / "ping", "security.capability"))
    return False


def linked_out(tarball):
    (tarball.out / "secret").write_text("secret\n")
    tarball.add("stolen", tarfile.LNKTYPE, linkname=str(tarball.out / "secret"))


def twice(tarball):
    tarball.add("file", data=b"looked at\n")
    tarball.add("file", data=b"used\n")


def through_link(tarball, target):
    tarball.add("way", tarfile.SYMTYPE, linkname=target(tarball))
    tarball.add("way/planted", data=b"x")


def replaced_directory(tarball):
    tarball.add("way", tarfile.DIRTYPE)
    tarball.add("way/first", data=b"x")
    tarball.add("./way//", tarfile.SYMTYPE, linkname=str(tarball.out))
    tarball.add("elsewhere", tarfile.SYMTYPE, linkname=str(tarball.out))
    tarball.add("elsewhere/planted", data=b"x")


def sparse(tarball):
    tarball.add("hole", data=b"1\n1099511627776\n0\n".ljust(512, b"\0"),
                pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole", "GNU.sparse.realsize": "1099511627776"})


image("an absolute path", "its path is absolute", lambda t: t.add(f"{t.out}/planted", data=b"x"), lambda t: t.planted)
image("a path with ..", 'has a "\\.\\."', lambda t: t.add("../out/planted", data=b"x"), lambda t: t.planted)
image("a path with .. in the middle", 'has a "\\.\\."', lambda t: t.add("usr/../../out/planted", data=b"x"), lambda t: t.planted)
image("through a link that leaves the root", "leaves the root", lambda t: through_link(t, lambda t: "../out"), lambda t: t.planted)
image("through an absolute link", "leads through way", lambda t: through_link(t, lambda t: str(t.out)), lambda t: t.planted)
image("a directory that a link takes the place of", "this path twice", replaced_directory, lambda t: t.planted)
image("a hard link to a file of the host", "its path is absolute", linked_out, lambda t: (t.root / "stolen").exists())
image("the same file twice", "this path twice", twice, lambda t: (t.root / "file").exists() and (t.root / "file").read_text() == "used\n")
image("a character device", "device node", lambda t: t.add("mem", tarfile.CHRTYPE, devmajor=1, devminor=1), lambda t: stat.S_ISCHR(mode(t, "mem")))
image("a block device", "device node", lambda t: t.add("disk", tarfile.BLKTYPE, devmajor=259, devminor=0), lambda t: stat.S_ISBLK(mode(t, "disk")))
image("a FIFO", "FIFO", lambda t: t.add("pipe", tarfile.FIFOTYPE), lambda t: stat.S_ISFIFO(mode(t, "pipe")))
image("a setuid file", "setuid or setgid", lambda t: t.add("su", data=b"x", mode=0o4755), lambda t: bool(mode(t, "su") & stat.S_ISUID))
image("a setgid file", "setuid or setgid", lambda t: t.add("wall", data=b"x", mode=0o2755), lambda t: bool(mode(t, "wall") & stat.S_ISGID))
image("a file with capabilities", "extended attributes",
      lambda t: t.add("ping", data=b"x", pax_headers={"SCHILY.xattr.security.capability": "\x01\0\0\x02\0\x20\0\0" + "\0" * 12}), has_capability)
image("an owner beyond a machine's users", "its owner", lambda t: t.add("file", data=b"x", uid=3000000000), lambda t: (t.root / "file").exists() and (t.root / "file").stat().st_uid == 3000000000)
image("settings for nspawn", "settings file of systemd-nspawn", lambda t: t.add("evil.nspawn", data=b"[Exec]\nPrivateUsers=no\n"), lambda t: (t.root / "evil.nspawn").exists())
image("settings for nspawn beside the root", 'has a "\\.\\."', lambda t: t.add("../root.nspawn", data=b"[Exec]\nPrivateUsers=no\n"), lambda t: (t.place / "root.nspawn").exists())
image("larger than allowed", "larger than", lambda t: t.add("big", data=bytes(80 << 20)), lambda t: (t.root / "big").exists() and (t.root / "big").stat().st_size == 80 << 20)
image("a hole of a TiB", "larger than", sparse, lambda t: (t.root / "hole").exists() and (t.root / "hole").stat().st_size == 1 << 40)
image("cut off", "damaged|[Tt]runcated", lambda t: (t.add("first", data=b"x"), t.add("second", data=bytes(20000))), lambda t: (t.root / "first").exists(), cut=16000)

ESCAPES = {"a title for the terminal": "\x1b]0;owned\x07", "colours": "\x1b[31;7m", "C1 controls": "\x9b31m", "the other direction of writing": "\u202etxt.exe"}


def obeyed(said):
    """Whether a terminal would do, or show, something that isn't text from left to right."""
    return bool(re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]", said))


def told(said, escape):
    """Whether this is there to be seen. What says nothing of it has escaped nothing."""
    return json.dumps(escape)[1:-1].encode() in said


def deceived(said, escape):
    return obeyed(said) or not told(said, escape)


for what, escape in ESCAPES.items():
    def listing(lab, argv, escape=escape):
        tarball = Tarball(lab)
        tarball.add(f"usr/{escape}", tarfile.CHRTYPE, devmajor=1, devminor=1)
        tarball.write()
        return ran(*argv, tarball.path)[1]
    case(f"terminal: {what} in a name in an image", ESCAPED, control=lambda lab, listing=listing: obeyed(listing(lab, ["tar", "--list", "--quoting-style=literal", "-f"])))(
        lambda lab, listing=listing, escape=escape: deceived(listing(lab, ["agentmachine", "image", "import"]), escape))


# Names of files in a workspace

@contextlib.contextmanager
def littered(lab, name):
    """A machine, and in its workspace a file that nobody can remove."""
    identity = f"attack-{lab.token().rstrip('x')}"
    workspace, path = WORK / identity, WORK / f"{identity}.json"
    path.write_text(json.dumps({"agent_id": identity, "workspace": str(workspace), "command": ["true"]}))
    run("agentmachine", "create", str(path))
    (workspace / "a").mkdir()
    target = workspace / "a" / name
    target.write_text("x")
    run("chattr", "+i", target)
    try:
        yield identity, workspace
    finally:
        # By then it may have another name.
        for left in [workspace, *WORK.glob(f".#*{identity}")]:
            quiet("chattr", "-R", "-i", left)
            shutil.rmtree(left, ignore_errors=True)
        quiet("agentmachine", "rm", "--workspace", identity)


def removal(lab, name):
    with littered(lab, name) as (identity, _):
        status, said = ran("agentmachine", "rm", "--workspace", identity)
        if status == 0:
            raise RuntimeError("it could be removed, so nothing was said of it")
        return said


def finding(lab, name):
    with littered(lab, name) as (_, workspace):
        return ran("find", workspace)[1]


for what, escape in ESCAPES.items():
    case(f"terminal: {what} in a file's name", ESCAPED, control=lambda lab, escape=escape: obeyed(finding(lab, escape)))(
        lambda lab, escape=escape: deceived(removal(lab, escape), escape))

FORGED = "agentmachine: all is well"
case("terminal: a line of our own in a file's name", ESCAPED, control=lambda lab: FORGED.encode() in finding(lab, f"x\n{FORGED}\n").splitlines())(
    lambda lab: FORGED.encode() in (said := removal(lab, f"x\n{FORGED}\n")).splitlines() or FORGED.encode() not in said)


# What a person may have from an agent, and gives to our commands

for what, argv in {"a URL that is asked about": ["why", "ATTACKER", "http://{}.test/"], "a host that is asked for": ["allow", "ATTACKER", "{}.test"],
                   "an id": ["show", "{}"], "a card's file": ["check", "/nowhere/{}.json"], "a command": ["{}"],
                   "a time": ["audit", "--since", "{}"], "an image": ["image", "rm", "{}"]}.items():
    def attack(lab, argv=argv):
        return any(deceived(ran("agentmachine", *[word.format(escape).replace("ATTACKER", lab.attacker.id) for word in argv])[1], escape)
                   for escape in ESCAPES.values())
    case(f"terminal: escapes in {what}", ESCAPED, control=lambda lab, argv=argv: obeyed(ran("printf", "%s: not found\n", argv[-1].format(ESCAPES["colours"]))[1]))(
        attack)


# Cards

def rendered(card):
    """A unit and settings as programs that paste texts make them: systemd's own words for what the card says."""
    return (f"[Unit]\nDescription={card.get('agent_id')}\n[Exec]\n" + "".join(f"Environment={name}={value}\n" for name, value in card.get("environment", {}).items()) +
            f"Parameters={' '.join(card.get('command', []))}\n[Files]\nBind={card.get('workspace')}:/workspace\n[Service]\n"
            f"MemoryMax={card.get('resource_limits', {}).get('memory_mb')}M\n"
            f"acl hosts dstdomain {' '.join(card.get('allowed_hosts', []))}\nheader {card.get('api_key_header')} \nurl {card.get('api_base_url')}\n")


def check(lab, text):
    path = WORK / f"card-{lab.token()}.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, said = ran("agentmachine", "check", path, timeout=60)
    return status, said


def accepted(text, why):
    """A card that should be refused, for this reason, and in order."""
    def attack(lab):
        status, said = check(lab, text)
        return status != 1 or obeyed(said) or why.encode() not in said
    return attack


def hostile(name, effect, **fields):
    """`effect` is what the pasted text holds then. The fields are one, which the refusal is about."""
    [field] = fields
    card = {"agent_id": "x", "workspace": "/srv/x"} | fields
    case(f"card: {name}", TYPES, control=lambda lab: effect in rendered(json.loads(json.dumps(card))))(accepted(json.dumps(card), f": 1 problem\n  /{field}"))


hostile("a bind in a variable", "\nBind=/:/host\n", environment={"A": "1\n[Files]\nBind=/:/host\n#"})
hostile("a bind in the workspace", "\nBind=/:/host\n", workspace="/srv/x:/workspace\nBind=/:/host\n#")
hostile("options of the bind in the workspace", "Bind=/:/workspace:", workspace="/:/workspace:norbind,/srv/x")
hostile("a specifier in the workspace", "%h", workspace="/srv/%h")
hostile("a workspace above itself", "/srv/../etc", workspace="/srv/../etc")
hostile("the host's /etc as workspace", "Bind=/etc:", workspace="/etc")
hostile("agentmachine's own state as workspace", "Bind=/var/lib/agentmachine", workspace="/var/lib/agentmachine/machines")
hostile("a path in the id", "../../etc/cron.d/x", agent_id="../../etc/cron.d/x")
hostile("a section in the id", "\n[Service]\nExecStart=", agent_id="x\n[Service]\nExecStart=/bin/sh\n")
hostile("escapes in the id", "\x1b]0;", agent_id="x\x1b]0;owned\x07")
hostile("a rule of squid in a host", "\nhttp_access allow all", allowed_hosts=["x.test\nhttp_access allow all"])
hostile("every host", "dstdomain *", allowed_hosts=["*"])
hostile("an address in octal as a host", "0251.0376", allowed_hosts=["0251.0376.0251.0376"])
hostile("two headers in one", "\nhost: evil.test", api_key_header="x-api-key: x\nhost: evil.test")
hostile("a user in the provider's address", "@evil.test", api_base_url="https://api.anthropic.com@evil.test/v1")
hostile("a variable of the dynamic linker", "Environment=LD_PRELOAD=", environment={"LD_PRELOAD": "/workspace/x.so"})
hostile("a variable of the proxy", "Environment=https_proxy=", environment={"https_proxy": "http://evil.test"})
hostile("a limit below nothing", "MemoryMax=-1M", resource_limits={"memory_mb": -1})
hostile("a limit that is no number", "MemoryMax=infinity", resource_limits={"memory_mb": "infinity\n#"})

case("card: a field twice", TYPES, control=lambda lab: json.loads('{"workspace": "/srv/x", "workspace": "/etc"}')["workspace"] == "/etc")(
    accepted('{"agent_id": "x", "workspace": "/srv/x", "workspace": "/etc"}', "/workspace: is given twice"))


def overflows(text):
    try:
        json.loads(text)
        return False
    except RecursionError:
        return True


DEEP = '{"agent_id": "x", "workspace": "/srv/x", "environment": ' + '{"A":' * 100000 + "1" + "}" * 100001
case("card: a hundred thousand levels", TYPES, control=lambda lab: overflows(DEEP))(accepted(DEEP, "nested deeper"))
case("card: a device that never ends", TYPES, control=lambda lab: ran("timeout", 2, "wc", "/dev/zero")[0] == 124)(
    lambda lab: ran("timeout", 60, "agentmachine", "check", "/dev/zero") != (1, b"read /dev/zero: not a regular file\n"))

INSIDE = "printf '\x1b[31m'"


def shown(lab, *verb):
    """What a command of ours says of a card whose command holds escapes."""
    identity = f"attack-{lab.token().rstrip('x')}"
    path = WORK / f"{identity}.json"
    path.write_text(json.dumps({"agent_id": identity, "workspace": f"{WORK}/{identity}", "command": ["sh", "-c", *ESCAPES.values()], "model": "m"}))
    try:
        created = ran("agentmachine", "create", path)[1] if verb[0] != "plan" else b""
        return created + ran("agentmachine", *verb, path if verb[0] == "plan" else identity)[1]
    finally:
        quiet("agentmachine", "rm", "--workspace", identity)


for verb in (["plan"], ["show", "--json"]):
    case(f"terminal: escapes in a card's command, by {verb[0]}", ESCAPED, control=lambda lab: obeyed(ran("jq", "-nr", "--arg", "x", ESCAPES["colours"], "$x")[1]))(
        lambda lab, verb=verb: obeyed(shown(lab, *verb)))


# Lines of logs


def say(lab, text):
    """Has the payload write this, and waits until it is in the journal. Returns a word that is in the line after it."""
    token = lab.token()
    lab.attacker.prints(text + f"\nend {token}\n".encode())
    deadline = time.monotonic() + 20
    while f"end {token}".encode() not in ran("journalctl", "--quiet", "--output=cat", "--lines=200", f"--unit={lab.attacker.unit}")[1]:
        if time.monotonic() > deadline:
            raise RuntimeError("what the payload wrote is not in the journal")
        lab.pause(0.1)
    return token


def logged(lab, text, *argv):
    """What `argv` shows of what the payload wrote."""
    token = say(lab, text)
    said = ran(*argv, f"--unit={lab.attacker.unit}" if argv[0] == "journalctl" else lab.attacker.id)[1]
    if f"end {token}".encode() not in said:
        raise RuntimeError(f"{argv} shows nothing of it: {said[-500:]}")
    return said


LOGS = ["agentmachine", "logs", "--lines=50"]
CAT = ["journalctl", "--quiet", "--output=cat", "--lines=50"]

for what, escape in (ESCAPES | {"a carriage return": "harmless\rforged", "backspaces": "harmless\b\b\b\b"}).items():
    case(f"logs: {what}", ESCAPED, card=SPEAKER, serial=True, control=lambda lab, escape=escape: obeyed(logged(lab, escape.encode(), *CAT)))(
        lambda lab, escape=escape: obeyed(logged(lab, escape.encode(), *LOGS)))

LINE = b"Nov 24 10:00:00 host systemd[1]: Stopped everything."
case("logs: another program's line", ESCAPED, card=SPEAKER, serial=True, control=lambda lab: LINE in logged(lab, LINE, *CAT).splitlines())(
    lambda lab: LINE in logged(lab, LINE, *LOGS).splitlines())


def record(token):
    return json.dumps({"time": "2026-11-24T10:00:00.000Z", "id": "ada", "machine": "agent-ada", "rule": token, "decision": "allow", "reason": "listed",
                       "method": "GET", "host": f"{token}.test", "port": 80, "sni": "", "address": "", "bytes_up": 0, "bytes_down": 0, "ms": 1, "source": "",
                       "via": "proxy", "url": "", "status": 200, "error": ""})


def forged_by_agent(lab, *argv):
    token = lab.token()
    say(lab, record(token).encode())
    return token.encode() in ran(*argv)[1]


case("audit: a record in an agent's log", RECORDS, card=SPEAKER, serial=True,
     control=lambda lab: forged_by_agent(lab, "journalctl", "--quiet", "--output=cat", "--since=-5min", "--grep=\"decision\""))(
    lambda lab: forged_by_agent(lab, "agentmachine", "audit", "--json", "--since=-5min"))


def forged_by_user(lab, *argv):
    """A record with all fields of ours, written by an ordinary user of the host."""
    token = lab.token()
    fields = {"MESSAGE": record(token), "MESSAGE_ID": "b7c1f0a8e2b94c1c9d6b5a8d1f3e7c42", "AGENTMACHINE_ID": "ada", "AGENTMACHINE_DECISION": "allow",
              "SYSLOG_IDENTIFIER": "agentmachine-proxy", "_SYSTEMD_UNIT": "agentmachine-proxy.service"}
    run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "logger", "--journald", input="".join(f"{name}={value}\n" for name, value in fields.items()))
    quiet("journalctl", "--sync")
    return token.encode() in ran(*argv)[1]


case("audit: a record by an ordinary user of the host", RECORDS,
     control=lambda lab: forged_by_user(lab, "journalctl", "--quiet", "--output=cat", "AGENTMACHINE_ID=ada", "--since=-5min"))(
    lambda lab: forged_by_user(lab, "agentmachine", "audit", "--json", "--since=-5min"))


def asked_for(lab, *argv):
    token = lab.token().encode()
    lab.attacker.send(b"GET http://api.fake.test/\x1b]0;owned\x07\xc2\x9b31m HTTP/1.1\r\nHost: api.fake.test\r\n\r\n")
    lab.attacker.send(b"G\x1b[31m http://api.fake.test/ HTTP/1.1\r\nHost: api.fake.test\r\n\r\n")
    # What was asked for there may not be shown at all; what is asked for after it is.
    lab.attacker.send(b"GET http://" + token + b".fake.test/ HTTP/1.1\r\nHost: " + token + b".fake.test\r\n\r\n")
    deadline = time.monotonic() + 20
    while token not in (said := ran(*argv)[1]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{argv} shows nothing of it: {said[-500:]}")
        lab.pause(0.1)
    return said


def access_log(lab):
    """What there is of a program that logs what it is asked for as it is."""
    name = f"attack-{lab.token()}"
    run("logger", "--tag", name, '"GET /\x1b]0;owned\x07 HTTP/1.1" 200')
    quiet("journalctl", "--sync")
    return ran("journalctl", "--quiet", "--output=cat", f"SYSLOG_IDENTIFIER={name}")[1]


for form in ([], ["--json"]):
    case(f"audit: escapes in a URL{', as JSON' if form else ''}", ESCAPED, control=lambda lab: obeyed(access_log(lab)))(
        lambda lab, form=form: obeyed(asked_for(lab, "agentmachine", "audit", "--lines=20", *form, lab.attacker.id)))


# Settings that come from somewhere else

SMUGGLED = {"agent_id": "attack-smuggled", "command": ["sleep", "infinity"]}


@contextlib.contextmanager
def overriding(lab):
    lab.overriding = True
    try:
        yield
    finally:
        lab.overriding = False


OVERRIDE = HostGuard("override of settings refused", overriding)


def started_with(machine, *start):
    """Whether a machine is there after that, with what was smuggled in."""
    run("agentmachine", "stop", machine.id)
    ran(*start)
    leader = ran("machinectl", "show", f"agent-{machine.id}", "-P", "Leader")[1].strip().decode()
    return leader.isdigit() and b"SMUGGLED=yes" in pathlib.Path(f"/proc/{leader}/environ").read_bytes()


@case("settings: a file in /etc/systemd/nspawn takes the place of ours", OVERRIDE, serial=True)
def _(lab):
    machine = lab.machine(SMUGGLED, (), "attack-smuggled")
    planted, before = pathlib.Path(f"/etc/systemd/nspawn/agent-{machine.id}.nspawn"), CONF.read_text()
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(pathlib.Path(f"/run/systemd/nspawn/agent-{machine.id}.nspawn").read_text().replace("[Exec]\n", "[Exec]\nEnvironment=SMUGGLED=yes\n"))
    if not getattr(lab, "overriding", False):
        CONF.write_text(before.replace("allow_settings_override = true", "allow_settings_override = false"))
    try:
        return started_with(machine, "agentmachine", "start", machine.id)
    finally:
        CONF.write_text(before)
        planted.unlink()
        quiet("systemctl", "reset-failed", machine.unit)


@contextlib.contextmanager
def unsettled(lab):
    machine = lab.machine(SMUGGLED, (), "attack-smuggled")
    settings = pathlib.Path(f"/run/systemd/nspawn/agent-{machine.id}.nspawn")
    saved = settings.read_text()
    settings.unlink()
    try:
        yield
    finally:
        settings.write_text(saved)


@contextlib.contextmanager
def unasserted(lab):
    machine = lab.machine(SMUGGLED, (), "attack-smuggled")
    dropin = pathlib.Path(f"/etc/systemd/system/{machine.unit}.d/20-attack.conf")
    dropin.parent.mkdir(parents=True, exist_ok=True)
    dropin.write_text("[Unit]\nAssertPathExists=\n")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        shutil.rmtree(dropin.parent)
        run("systemctl", "daemon-reload")


OWN_SETTINGS, ASSERTION = HostGuard("settings in /run", unsettled), HostGuard("AssertPathExists", unasserted)


def beside_root(lab):
    """nspawn with a root of its own and a file beside it, as a person would start it: the real image is left alone."""
    root = WORK / "naive-root"
    for name in ("bin", "usr", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/os-release").write_text("ID=naive\n")
    shutil.copy("/usr/bin/busybox", root / "bin/sh")
    (WORK / "naive-root.nspawn").write_text("[Exec]\nEnvironment=SMUGGLED=yes\n")
    return b"smuggled: yes" in ran("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", root, "/bin/sh", "-c", "echo smuggled: $SMUGGLED")[1]


@case("settings: a file beside the image", OWN_SETTINGS, ASSERTION, control=beside_root, serial=True)
def _(lab):
    machine = lab.machine(SMUGGLED, (), "attack-smuggled")
    link = pathlib.Path(f"/run/machines/agent-{machine.id}")
    planted = [pathlib.Path(f"/run/machines/agent-{machine.id}.nspawn"), pathlib.Path(f"/var/lib/machines/agent-{machine.id}.nspawn"),
               link.resolve().parent / f"agent-{machine.id}.nspawn", link.resolve().with_name(link.resolve().name + ".nspawn")]
    for path in planted:
        path.parent.mkdir(exist_ok=True)
        path.write_text("[Exec]\nEnvironment=SMUGGLED=yes\n")
    try:
        # Not by our command, which would render what was taken away again.
        return started_with(machine, "systemctl", "start", machine.unit)
    finally:
        for path in planted:
            path.unlink()
        quiet("systemctl", "reset-failed", machine.unit)


# The end of a machine's time

HOUR = {"ttl_seconds": 3600}
# As if nothing had started the timer: our hook has, so it is stopped behind it.
UNTIMED = "ExecStartPost=+/bin/sh -c 'id=%i; systemctl stop agentmachine-expire@$${id#agent-}.timer'\n"
TIMER = MachineGuard("TTL's timer", dropin=UNTIMED)
ABSOLUTE = HostGuard("absolute monotonic deadline", lambda lab: contextlib.nullcontext())
RESTARTING = MachineGuard("", dropin="Restart=always\nRestartSec=100ms\n")


def property_of(unit, interface, name):
    path = run("busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "LoadUnit", "s", unit).split('"')[1]
    return int(run("busctl", "get-property", "org.freedesktop.systemd1", path, f"org.freedesktop.systemd1.{interface}", name).split()[1])


def timer_of(machine):
    return f"agentmachine-expire@{machine.id}.timer"


def active(unit):
    return ran("systemctl", "is-active", unit)[1].strip() == b"active"


def left(lab, timer):
    """Seconds until a timer of this sort elapses."""
    if not active(timer):
        raise RuntimeError(f"{timer} does not run")
    wall = property_of(timer, "Timer", "NextElapseUSecRealtime")
    return wall / 1e6 - time.time() if wall else property_of(timer, "Timer", "NextElapseUSecMonotonic") / 1e6 - time.monotonic()


def extended(lab, timer, disturb):
    """Whether there is more time left after that than there would be."""
    before, start = left(lab, timer), time.monotonic()
    disturb(lab)
    return left(lab, timer) - (before - (time.monotonic() - start)) > 1


@contextlib.contextmanager
def naive_timer(*options):
    quiet("systemctl", "stop", "attack-ttl.timer")
    run("systemd-run", "--quiet", "--unit=attack-ttl", *options, "true")
    try:
        yield "attack-ttl.timer"
    finally:
        quiet("systemctl", "stop", "attack-ttl.timer")


def reloads(lab):
    for _ in range(3):
        lab.pause(0.7)
        run("systemctl", "daemon-reload")


@contextlib.contextmanager
def clock_moved(seconds):
    """The host's clock is wrong by that; all that is asked meanwhile sees it."""
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - seconds)


def by_naive_timer(disturb, *options):
    def control(lab):
        with naive_timer(*options) as timer:
            return extended(lab, timer, disturb)
    return control


case("TTL: daemon-reloads", ABSOLUTE, card=HOUR, serial=True, control=by_naive_timer(reloads, "--on-active=1h"))(
    lambda lab: extended(lab, timer_of(lab.attacker), reloads))


def jumped(lab, timer):
    before, start = left(lab, timer), time.monotonic()
    with clock_moved(-1800):
        return left(lab, timer) - (before - (time.monotonic() - start)) > 1


def jump_back_by_naive_timer(lab):
    with naive_timer(f"--on-calendar=@{int(time.time()) + 3600}") as timer:
        return jumped(lab, timer)


case("TTL: the clock is set back", ABSOLUTE, card=HOUR, serial=True, control=jump_back_by_naive_timer)(lambda lab: jumped(lab, timer_of(lab.attacker)))


@case("TTL: agentmachine tells more time when the clock is set back", ABSOLUTE, card=HOUR, serial=True, control=jump_back_by_naive_timer)
def _(lab):
    told = lambda: json.loads(run("agentmachine", "show", "--json", lab.attacker.id))["ttl_remaining_seconds"]
    before = told()
    with clock_moved(-1800):
        return told() > before


def storm(lab, machine):
    """What is running there is killed, thrice."""
    for _ in range(3):
        leader = property_of(machine.unit, "Service", "MainPID")
        os.kill(leader, 9)
        deadline = time.monotonic() + 120
        while property_of(machine.unit, "Service", "MainPID") in (0, leader) or not active(machine.unit):
            if time.monotonic() > deadline:
                raise RuntimeError("it did not come back")
            lab.pause(0.1)


class Unit:
    def __init__(self, unit):
        self.unit = unit


def storm_by_runtime_limit(lab):
    run("systemd-run", "--quiet", "--unit=attack-storm", "--property=Restart=always", "--property=RestartSec=100ms", "--property=RuntimeMaxSec=1h", "sleep", "infinity")
    try:
        end = lambda: property_of("attack-storm.service", "Unit", "ActiveEnterTimestampMonotonic")
        before = end()
        storm(lab, Unit("attack-storm.service"))
        return end() > before
    finally:
        quiet("systemctl", "stop", "attack-storm.service")


@case("TTL: a storm of restarts", ABSOLUTE, serial=True, control=storm_by_runtime_limit)
def _(lab):
    machine = lab.machine(HOUR, (RESTARTING,))
    try:
        return extended(lab, timer_of(machine), lambda lab: storm(lab, machine))
    finally:
        machine._describe()


for what, argv in (("systemctl start", ["systemctl", "start", "UNIT"]), ("machinectl start", ["machinectl", "start", "MACHINE"]),
                   ("systemctl restart", ["systemctl", "restart", "UNIT"])):
    def attack(lab, argv=argv):
        machine = lab.attacker
        if "restart" not in argv:
            run("agentmachine", "stop", machine.id)
        ran(*[word.replace("UNIT", machine.unit).replace("MACHINE", f"agent-{machine.id}") for word in argv])
        machine._describe()
        return active(machine.unit) and not active(timer_of(machine))
    case(f"TTL: none after {what}", TIMER, card=HOUR, serial=True)(attack)


@contextlib.contextmanager
def untimed(lab):
    lab.untimed = True
    try:
        yield
    finally:
        lab.untimed = False


# The same, for machines that don't live long enough to be the lab's.
SHORT_TIMER = HostGuard("TTL's timer", untimed)


# Long enough for a busy host to start a machine and to be asked of it.
BRIEF = 15


@contextlib.contextmanager
def brief(lab, command):
    """A machine that was started and has BRIEF seconds."""
    identity = f"attack-{lab.token().rstrip('x')}"
    machine, path = Unit(f"systemd-nspawn@agent-{identity}.service"), WORK / f"{identity}.json"
    machine.id = identity
    path.write_text(json.dumps({"agent_id": identity, "workspace": f"{WORK}/{identity}", "command": command, "ttl_seconds": BRIEF}))
    run("agentmachine", "create", str(path))
    dropin = pathlib.Path(f"/etc/systemd/system/{machine.unit}.d/20-attack.conf")
    if getattr(lab, "untimed", False):
        dropin.parent.mkdir(parents=True)
        dropin.write_text("[Service]\n" + UNTIMED)
        run("systemctl", "daemon-reload")
    try:
        run("systemctl", "start", machine.unit)
        yield machine
    finally:
        quiet("agentmachine", "stop", "--timeout", "0", identity)
        quiet("agentmachine", "rm", "--workspace", identity)
        shutil.rmtree(dropin.parent, ignore_errors=True)


def becomes(lab, unit, states, seconds):
    """Whether a unit comes into one of these states within the time."""
    deadline = time.monotonic() + seconds
    while ran("systemctl", "is-active", unit)[1].strip().decode() not in states:
        if time.monotonic() > deadline:
            return False
        lab.pause(0.05)
    return True


ENDED = "inactive", "failed"
STUBBORN = ["sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1000; done"]


@case("TTL: a payload that ignores its end", SHORT_TIMER, serial=True)
def _(lab):
    with brief(lab, STUBBORN) as machine:
        # PID 1 gives what is in the machine ten seconds.
        return not becomes(lab, machine.unit, ENDED, BRIEF + (60 if not getattr(lab, "untimed", False) else 5))


@case("TTL: a payload that has stopped itself", SHORT_TIMER, serial=True)
def _(lab):
    with brief(lab, ["sh", "-c", "kill -STOP $$"]) as machine:
        return not becomes(lab, machine.unit, ENDED, BRIEF + (60 if not getattr(lab, "untimed", False) else 5))


for what, before in (("while it ends", 0), ("just before it ends", 0.5), ("over and over", None)):
    def attack(lab, before=before):
        with brief(lab, ["sh", "-c", "trap 'sleep 1; exit' TERM; sleep 1000 & wait"]) as machine:
            end = time.monotonic() + (BRIEF if getattr(lab, "untimed", False) else left(lab, timer_of(machine)))
            if before is None:
                while time.monotonic() < end + 4:
                    quiet("systemctl", "start", machine.unit)
            elif before:
                lab.pause(max(0, end - time.monotonic() - before))
            else:
                becomes(lab, machine.unit, ("deactivating", *ENDED), BRIEF + 10)
            quiet("systemctl", "start", machine.unit)
            # A person may start it anew, but it is never without an end.
            lab.pause(1.5)
            return active(machine.unit) and not active(timer_of(machine)) and not becomes(lab, machine.unit, ("deactivating", *ENDED), 8)
    case(f"TTL: started again {what}", SHORT_TIMER, serial=True)(attack)
