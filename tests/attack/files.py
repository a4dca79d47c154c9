"""Files: out of the workspace, into it from outside, more of them than there is room for, and what a person finds there."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess

from guards import HostGuard, MachineGuard
from lab import TOOLS, WORK, quiet, run
from layers import (AGENT, GUEST_FILTER, NAMESPACES, NOT_ROOT, NSPAWN_FILTER, OWN_TREE, PRIVILEGE, SECRETS, STRICT, UNIT_FILTER, Stance, answer, asks,
                    asks_files, in_mounts, mount_options, reaches)
from suite import case

BOTH = NOT_ROOT, OWN_TREE


def secret(path, mode=0o644):
    """A file of root's whose content is its name."""
    path.write_text(f"secret of {path}\n")
    path.chmod(mode)
    return f"secret of {path}"


def machine_of(lab):
    return getattr(lab.attacker, "machine", lab.attacker)


# Reading what is outside of the workspace. The file is in the directory that the workspace is in.

OUTSIDE = WORK / "outside"
SECRETS.append((OUTSIDE, 0o600))

for way, path in (("its own path", "{path}"), ("..", "/workspace/../{name}"), ("many ..", "/workspace/../../../../../..{path}"),
                  ("/proc/self/root", "/proc/self/root{path}"), ("/proc/self/root and ..", "/proc/self/root/../../..{path}"),
                  ("/proc/1/root", "/proc/1/root{path}"), ("/proc/self/cwd", "/proc/self/cwd/../{name}"),
                  ("/proc/1/cwd", "/proc/1/cwd/..{path}"), ("/proc/thread-self/root", "/proc/thread-self/root{path}")):
    case(f"read by {way}", OWN_TREE, NOT_ROOT)(asks_files(f"read {path.format(path=OUTSIDE, name=OUTSIDE.name)}"))


@case("read by the descriptors of other processes", OWN_TREE, NOT_ROOT)
def _(lab):
    root = os.open("/", os.O_RDONLY)
    try:
        return "found" in lab.attacker.sh(f'for f in /proc/[0-9]*/fd/*; do [ ! -e "$f{WORK}/tools" ] || echo found; done')
    finally:
        os.close(root)


@case("read what a link in the workspace leads to", OWN_TREE, NOT_ROOT)
def _(lab):
    word = lab.token()
    content = secret(WORK / f"outside-{word}", 0o600)
    link = WORK / machine_of(lab).id / f"link-{word}"
    link.symlink_to(f"../outside-{word}")
    return content in lab.attacker.sh(f"cat /workspace/{link.name}")


# The host's own places

for directive, question, guards in (
        ("ProtectSystem=strict", "create /usr/attack", BOTH),
        ("ProtectSystem=strict", "create /etc/attack", BOTH),
        ("ProtectSystem=strict", "create /attack", BOTH),
        ("ProtectSystem=strict", "create /usr/bin/attack", BOTH),
        ("ProtectSystem=strict", "write /etc/passwd", BOTH),
        ("ProtectSystem=strict", "write /usr/bin/env", BOTH),
        ("ReadOnlyPaths", "create /etc/ssl/certs/attack", BOTH),
        ("ReadWritePaths=", "create /var/attack", BOTH),
        ("ReadWritePaths=", "mkdir /opt/attack", BOTH),
        ("hard link", "link /usr/bin/env /workspace/attack-env", BOTH),
        ("hard link", "link /etc/passwd /workspace/attack-passwd", BOTH)):
    case(f"{directive}: {question}", *guards)(asks_files(question))

for directive, where in (("ProtectHome", "/home"), ("ProtectHome", "/root"), ("InaccessiblePaths", "/mnt"), ("InaccessiblePaths", "/var/lib"),
                         ("TemporaryFileSystem", "/srv"), ("PrivateTmp", "/tmp"), ("PrivateTmp", "/var/tmp"), ("PrivateTmp", "/dev/shm"),
                         ("PrivateDevices", "/dev"), ("the host", "/run")):
    SECRETS.append((pathlib.Path(where) / "attack-secret", 0o644))
    case(f"{directive}: read a file of {where}", OWN_TREE, *([NOT_ROOT] if where == "/root" else []))(asks_files(f"read {where}/attack-secret"))


@case("BindPaths: write anywhere but the workspace, /tmp, /dev/shm, the home and message queues", OWN_TREE)
def _(lab):
    wrote = lab.attacker.sh('while read -r _ at _; do (: >"$at/attack-x") 2>/dev/null && rm "$at/attack-x" && echo "$at"; done </proc/mounts')
    return bool({line for line in wrote.out.decode().split() if line not in ("/workspace", "/tmp", "/dev/shm", "/home/agent", "/dev/mqueue")})


@case("PrivateUsers: a file of the host's user with the same number", OWN_TREE)
def _(lab):
    directory = WORK / machine_of(lab).id / f"theirs-{lab.token()}"
    inside, outside = directory / "file", WORK / f"{directory.name}-file"
    directory.mkdir()
    directory.chmod(0o755)
    for path in (inside, outside):
        content = secret(path, 0o600)
        os.chown(path, AGENT, AGENT)
    path = outside if getattr(lab.attacker, "outside", False) else f"/workspace/{directory.name}/file"
    return "secret of" in lab.attacker.sh(f"cat {path}") and bool(content)


@case("NoNewPrivileges: a setuid program of root's in the workspace", OWN_TREE)
def _(lab):
    word = lab.token()
    outside = getattr(lab.attacker, "outside", False)
    directory = WORK if outside else WORK / machine_of(lab).id
    program, precious = directory / f"su-{word}", directory / f"precious-{word}"
    shutil.copy(WORK / "tools" / "agentmachine-probe", program)
    program.chmod(0o4755)
    secret(precious, 0o600)
    shown = (lambda path: path) if outside else (lambda path: f"/workspace/{path.name}")
    try:
        return lab.attacker.run(shown(program), "read", shown(precious)).status == 0
    finally:
        program.unlink()


@case("PrivateMounts: what the host mounts below the workspace later", HostGuard("own mounts", OWN_TREE.away), serial=True)
def _(lab):
    directory = WORK / machine_of(lab).id / f"below-{lab.token()}"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "attack", str(directory))
    try:
        content = secret(directory / "file")
        place = Stance(lab.attacker.machine, root=True, outside=True) if getattr(lab.attacker, "outside", False) else lab.attacker
        return content in place.sh(f"cat /workspace/{directory.name}/file")
    finally:
        run("umount", str(directory))


# Devices, setuid files

case("PrivateDevices: mknod of a device", PRIVILEGE)(reaches("device /tmp/attack-device"))


@case("PrivateDevices: the host's disk as a node in the workspace", *BOTH)
def _(lab):
    node = WORK / machine_of(lab).id / f"disk-{lab.token()}"
    os.mknod(node, 0o60666, os.stat("/dev/nvme0n1").st_rdev)
    node.chmod(0o666)
    try:
        return lab.attacker.run("head", "-c", "1", f"/workspace/{node.name}").status == 0
    finally:
        node.unlink()


DEVICES = MachineGuard("DeviceAllow", dropin="DeviceAllow=/dev/net/tun rw\n")
case("PrivateDevices: /dev/net/tun", DEVICES)(reaches("read /dev/net/tun"))

for way in ("open", "openat", "openat2", "creat", "tmpfile", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "fchmodat2"):
    # systemd's RestrictSUIDSGID= leaves out O_TMPFILE.
    guards = (GUEST_FILTER,) if way == "tmpfile" else (GUEST_FILTER, UNIT_FILTER)
    case(f"RestrictSUIDSGID: by {way}", *guards)(reaches(f"setid-by {way} /tmp/attack-setid"))
case("CapabilityBoundingSet=: a file that gives capabilities", PRIVILEGE)(reaches("setcap /tmp/attack-capability"))


@contextlib.contextmanager
def opened(lab):
    path = WORK / machine_of(lab).id
    before = path.stat().st_mode & 0o777
    path.chmod(0o755)
    try:
        yield
    finally:
        path.chmod(before)


WORKSPACE_MODE = HostGuard("the workspace is its owner's", opened)


@case("RestrictSUIDSGID: a setuid file of the agent's, run by another user of the host", GUEST_FILTER, UNIT_FILTER, WORKSPACE_MODE)
def _(lab):
    name = f"su-{lab.token()}"
    lab.attacker.sh(f"cp {TOOLS}agentmachine-probe {name} && echo mine >{name}.own && chmod 600 {name}.own; chmod 4755 {name}")
    path = WORK / lab.attacker.id / name
    try:
        return quiet("setpriv", "--reuid=1500", "--regid=1500", "--clear-groups", str(path), "read", f"{path}.own")
    finally:
        path.unlink()


# Mounts and namespaces

TWO = GUEST_FILTER, NSPAWN_FILTER
for call, guards in (("mount", TWO), ("umount2", TWO), ("pivot_root", (*TWO, PRIVILEGE)), ("chroot", (*TWO, PRIVILEGE)),
                     ("fsopen", (*TWO, PRIVILEGE)), ("move_mount 0 /no/such 0 /no/such 0", (*TWO, PRIVILEGE)), ("open_tree", TWO),
                     ("mount_setattr", TWO), ("name_to_handle_at", TWO), ("setns", (*TWO, PRIVILEGE)),
                     ("unshare newuser", (*TWO, NAMESPACES)), ("unshare newns", (*TWO, PRIVILEGE)), ("unshare newpid", (*TWO, PRIVILEGE)),
                     ("unshare newnet", (*TWO, PRIVILEGE)), ("unshare newcgroup", (*TWO, PRIVILEGE)), ("unshare newtime", (*TWO, PRIVILEGE)),
                     ("clone newuser", (GUEST_FILTER, NAMESPACES)), ("clone newns", (GUEST_FILTER, PRIVILEGE)),
                     ("clone newnet", (GUEST_FILTER, PRIVILEGE)), ("clone3", (GUEST_FILTER,))):
    case(f"namespaces: {call}", *guards)(reaches(call))

# Full

DISK = HostGuard("disk_mb", lambda lab: contextlib.nullcontext())
SCRATCH = "/tmp", "/home/agent", "/dev/shm"


@contextlib.contextmanager
def large_scratch(lab):
    before = {where: re.search(r"size=\w+,nr_inodes=\d+", mount_options(lab.attacker, where))[0] for where in SCRATCH}
    for where in SCRATCH:
        in_mounts(lab.attacker, "mount", "-o", "remount,size=200m,nr_inodes=100000", where)
    try:
        yield
    finally:
        for where in SCRATCH:
            in_mounts(lab.attacker, "mount", "-o", f"remount,{before[where]}", where)


TMPFS = HostGuard("sizes of tmpfs", large_scratch)

for question in ("fill /workspace 48", "inodes /workspace 6000"):
    case(f"full: {question}", DISK, card=STRICT, control=lambda lab, question=question: answer(lab, question, place=lab.machine()).startswith("ok"))(
        asks(question))
for question in ("fill /tmp 80", "inodes /tmp 9000", "fill /home/agent 40", "inodes /home/agent 4000", "fill /dev/shm 40", "inodes /dev/shm 4000"):
    case(f"full: {question}", TMPFS)(asks(question))

# A workspace that is not what its card says. What refuses is how agentmachine goes there; the control goes by the path.

BY_DESCRIPTOR = HostGuard("no links in its path", lambda lab: contextlib.nullcontext())
NOT_ROOTS = HostGuard("not root's", lambda lab: contextlib.nullcontext())
PLAIN = HostGuard("plain paths", lambda lab: contextlib.nullcontext())


class Site:
    """A directory of its own for one attempt: a secret of the host's in `victim`, and what the machine will be called."""

    def __init__(self, lab):
        self.place = WORK / f"site-{lab.token()}"
        self.id = f"attack-{self.place.name}"
        self.place.mkdir()
        self.victim = self.place / "victim"
        self.victim.mkdir()
        self.content = secret(self.victim / "file")
        os.chown(self.victim, 1500, 1500)
        self.workspace = self.place / "open" / "inner"
        self.workspace.parent.mkdir()

    def agentmachine(self, *argv):
        return quiet("agentmachine", *argv)

    def create(self, workspace=None):
        card = self.place / "card.json"
        card.write_text(json.dumps({"agent_id": self.id, "workspace": str(workspace or self.workspace), "command": ["sleep", "infinity"],
                                    "resource_limits": {"memory_mb": 128}}))
        return self.agentmachine("create", str(card))

    def shown(self):
        """Whether the secret is in the machine."""
        try:
            return self.agentmachine("start", self.id) and self.content in run("agentmachine", "exec", self.id, "--", "sh", "-c", "cat /workspace/file || :")
        finally:
            self.agentmachine("rm", self.id)

    def bound(self, workspace=None):
        """The same by mounting what the path leads to."""
        return self.content in run("unshare", "--mount", "sh", "-c", 'mount --bind "$1" /mnt && cat /mnt/file || :', "sh", str(workspace or self.workspace))


def replaced(name, before, after, *guards):
    """`before` is done before create, `after` between create and start."""
    def prepared(lab, create):
        site = Site(lab)
        before(site)
        if create and not site.create():
            return site, False
        after(site)
        return site, True

    def attack(lab):
        site, created = prepared(lab, True)
        return created and site.shown()

    case(name, *guards, control=lambda lab: prepared(lab, False)[0].bound())(attack)


def nothing(_):
    pass


def take_away(path):
    if path.exists():
        path.rename(path.with_name(f"{path.name}-was"))


def linked(site):
    take_away(site.workspace)
    site.workspace.symlink_to("../victim")


def linked_above(site):
    (site.victim / "inner").mkdir()
    os.chown(site.victim / "inner", 1500, 1500)
    secret(site.victim / "inner" / "file")
    site.content = f"secret of {site.victim}/inner/file"
    take_away(site.workspace.parent)
    site.workspace.parent.symlink_to("victim")


def root_owned(site):
    take_away(site.workspace)
    os.chown(site.victim, 0, 0)
    site.victim.rename(site.workspace)


replaced("a workspace that is a link, at create", linked, nothing, BY_DESCRIPTOR)
replaced("a workspace below a link, at create", linked_above, nothing, BY_DESCRIPTOR)
replaced("a workspace that becomes a link before the start", nothing, linked, BY_DESCRIPTOR)
replaced("a workspace above which one becomes a link before the start", nothing, linked_above, BY_DESCRIPTOR)
replaced("a workspace of root's, at create", root_owned, nothing, NOT_ROOTS)
replaced("a workspace in whose place is one of root's at the start", nothing, root_owned, NOT_ROOTS)

for name, spell in (("..", lambda site: f"{site.place}/open/../victim"), ("/proc/PID/root", lambda site: f"/proc/{os.getpid()}/root{site.victim}"),
                    ("/proc/PID/fd", lambda site: f"/proc/{os.getpid()}/fd/{os.open(site.victim, os.O_PATH)}"),
                    ("//", lambda site: f"//{site.victim}/."), ("a place of the system's", lambda site: "/run")):
    def attack(lab, spell=spell):
        site = Site(lab)
        return site.create(spell(site)) and site.shown()

    def control(lab, spell=spell):
        site = Site(lab)
        if spell(site) == "/run":
            return b"" != run("unshare", "--mount", "sh", "-c", "mount --bind /run /mnt && ls /mnt/agentmachine").encode()
        return site.bound(spell(site))

    case(f"a workspace spelled by {name}", PLAIN, control=control)(attack)


@case("a workspace that becomes a link while the machine runs", HostGuard("mounted once", lambda lab: contextlib.nullcontext()), serial=True,
      control=lambda lab: swapped(lab, Stance(lab.attacker, root=True, outside=True)))
def _(lab):
    return swapped(lab, lab.attacker)


def swapped(lab, place):
    site, workspace = Site(lab), WORK / lab.attacker.id
    was = workspace.with_name(f"{workspace.name}-was")
    workspace.rename(was)
    try:
        workspace.symlink_to(site.victim)
        return site.content in place.sh("cat /workspace/file")
    finally:
        workspace.unlink()
        was.rename(workspace)


def removed(name, plant, naive):
    """`plant` is what the agent or a user of the host leaves; success is that a file elsewhere goes with the workspace."""
    def attack(lab):
        site = Site(lab)
        if not site.create():
            raise RuntimeError("the machine was not created")
        plant(site)
        if not site.agentmachine("rm", "--workspace", site.id):
            site.agentmachine("rm", site.id)
        return not (site.victim / "file").exists()

    def control(lab):
        site = Site(lab)
        site.workspace.mkdir()
        plant(site)
        naive(site)
        return not (site.victim / "file").exists()

    case(name, BY_DESCRIPTOR, control=control)(attack)


def linked_parent(site):
    site.victim.rename(site.place / "away")
    site.victim = site.place / "away" / "inner"
    (site.place / "away" / "file").unlink()
    site.victim.mkdir()
    secret(site.victim / "file")
    take_away(site.workspace.parent)
    site.workspace.parent.symlink_to("away")


removed("rm --workspace: a link in the workspace", lambda site: (site.workspace / "link").symlink_to(site.victim),
        lambda site: quiet("find", "-L", str(site.workspace), "-mindepth", "1", "-delete"))
removed("rm --workspace: a part of its path became a link", linked_parent, lambda site: shutil.rmtree(site.workspace))

# Git: a repository that the agent made, and somebody looks. The marker is a file that only the host has.

NO_GIT = HostGuard("agentmachine runs no git", lambda lab: contextlib.nullcontext())
ADVICE = HostGuard("the manual's advice", lambda lab: contextlib.nullcontext())
DUBIOUS = HostGuard("git's safe.directory", lambda lab: contextlib.nullcontext())


class Repository:
    """Hostile in one way: a script of the agent's would run, and leave a marker, at a command of git's."""

    def __init__(self, lab, way):
        word = lab.token()
        machine = machine_of(lab)
        self.path = WORK / machine.id / f"repository-{word}"
        self.marker = pathlib.Path(f"/tmp/attack-{word}")
        self.owner = (WORK / machine.id).stat().st_uid
        self.path.mkdir()
        os.chown(self.path, self.owner, self.owner)
        self.script = self.path / "evil"
        # Reads what a filter is given; git awaits the first word from a remote's side.
        self.script.write_text(f'#!/bin/sh\n: >{self.marker}\ncase $* in *git-upload-pack*) exit 1 ;; esac\ncat 2>/dev/null\nexit 0\n')
        self.script.chmod(0o755)
        os.chown(self.script, self.owner, self.owner)
        self.git("init", "--quiet")
        (self.path / "file").write_text("text\n")
        self.git("add", "file")
        self.git("-c", "user.name=x", "-c", "user.email=x@x.test", "commit", "--quiet", "--message=x")
        way(self)
        (self.path / "file").write_text("next\n")

    def git(self, *argv, user=None, directory=None):
        """As the workspace's owner, whom git trusts there, and on a terminal. How it ends is no matter."""
        user = self.owner if user is None else user
        ours, theirs = os.openpty()
        try:
            subprocess.run(["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "git", "-C", str(directory or self.path), *argv],
                           stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL, check=False, timeout=60,
                           env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_TERMINAL_PROMPT": "0", "TERM": "dumb"})
        finally:
            os.close(ours)
            os.close(theirs)

    def ran(self):
        found = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return found


def configured(*settings, attributes=""):
    def way(repository):
        for name, value in settings:
            repository.git("config", name, value.format(script=repository.script))
        if attributes:
            (repository.path / ".git" / "info").mkdir(exist_ok=True)
            (repository.path / ".git" / "info" / "attributes").write_text(attributes)
    return way


def hook(name):
    def way(repository):
        path = repository.path / ".git" / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(repository.script, path)
        path.chmod(0o755)
    return way


def submodule(repository):
    inner = repository.path / "inner"
    repository.git("init", "--quiet", "inner")
    repository.git("-c", "user.name=x", "-c", "user.email=x@x.test", "commit", "--allow-empty", "--message=x", directory=inner)
    repository.git("add", "inner")
    repository.git("config", "core.fsmonitor", str(repository.script), directory=inner)


WAYS = {
    "core.fsmonitor": (configured(("core.fsmonitor", "{script}")), ("status",)),
    "core.fsmonitor in a file that is included": (lambda repository: (repository.git("config", "--file", ".git/more", "core.fsmonitor", str(repository.script)),
                                                                      repository.git("config", "include.path", "more")), ("status",)),
    "core.fsmonitor of a submodule": (submodule, ("status",)),
    "a filter": (configured(("filter.x.clean", "{script}"), attributes="* filter=x\n"), ("status",)),
    "a filter that is a process": (configured(("filter.x.process", "{script}"), attributes="* filter=x\n"), ("status",)),
    "a diff program": (configured(("diff.external", "{script}")), ("diff",)),
    "a diff program by attribute": (configured(("diff.x.command", "{script}"), attributes="* diff=x\n"), ("diff",)),
    "a text converter": (configured(("diff.x.textconv", "{script}"), attributes="* diff=x\n"), ("diff",)),
    "a pager": (configured(("core.pager", "{script}")), ("--paginate", "log")),
    "a pager of one command": (configured(("pager.diff", "{script}")), ("diff",)),
    "an alias": (configured(("alias.st", "!{script}")), ("st",)),
    "a signature program": (configured(("gpg.program", "{script}"), ("log.showSignature", "true"), ("commit.gpgSign", "true"), ("user.name", "x"), ("user.email", "x@x.test")),
                            ("commit", "--allow-empty", "-m", "x")),
    "an editor": (configured(("core.editor", "{script}"), ("user.name", "x"), ("user.email", "x@x.test")), ("commit", "--allow-empty")),
    "a program for ssh": (configured(("core.sshCommand", "{script}"), ("remote.x.url", "ssh://x.test/x")), ("fetch", "x")),
    "core.hooksPath": (lambda repository: (hook("pre-commit")(repository), (repository.path / ".git" / "hooks").rename(repository.path / "elsewhere"),
                                           repository.git("config", "core.hooksPath", "elsewhere")), ("-c", "user.name=x", "-c", "user.email=x@x.test", "commit", "-a", "-m", "x")),
    "the hook post-checkout": (hook("post-checkout"), ("checkout", "-q", "-b", "new")),
    "the hook post-index-change": (hook("post-index-change"), ("add", "file")),
}


def naively(way, command):
    """A control: git as it is, by somebody who doesn't think of it."""
    def control(lab):
        repository = Repository(lab, way)
        repository.git(*command)
        return repository.ran()
    return control


# What looks at a workspace when somebody runs agentmachine.
LOOKS = ("ls", "--json"), ("show", "{id}"), ("create", "{card}"), ("plan", "{card}"), ("doctor",), ("logs", "{id}"), ("start", "{id}")
LOOKED = {}


def looked(lab):
    """All repositories are there, then everything of ours looks once, as root and from within them."""
    if lab.attacker not in LOOKED:
        LOOKED[lab.attacker] = {name: Repository(lab, way) for name, (way, _) in WAYS.items()}
        for number, look in enumerate(LOOKS):
            where = list(LOOKED[lab.attacker].values())[number].path
            subprocess.run(["agentmachine", *[word.format(id=lab.attacker.id, card=WORK / f"{lab.attacker.id}.json") for word in look]], cwd=where,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=60)
        lab.attacker.sh('for at in /workspace/repository-*; do git -C "$at" status; git -C "$at" --no-pager diff; done')
    return LOOKED[lab.attacker]


for name, (way, command) in WAYS.items():
    case(f"git: {name}", NO_GIT, control=naively(way, command), serial=True)(lambda lab, name=name: looked(lab)[name].ran())

DIFF = ("--no-pager", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "diff", "--no-ext-diff", "--no-textconv")
for name in ("core.fsmonitor", "core.fsmonitor in a file that is included", "core.fsmonitor of a submodule", "a diff program", "a diff program by attribute", "a text converter", "a pager", "a pager of one command"):
    way, command = WAYS[name]

    def attack(lab, way=way):
        repository = Repository(lab, way)
        repository.git(*DIFF)
        return repository.ran()
    case(f"git: {name}, for who follows the manual's diff", ADVICE, control=naively(way, command))(attack)

for name in ("core.fsmonitor", "a filter", "the hook post-checkout", "core.hooksPath"):
    way, command = WAYS[name]

    def attack(lab, way=way):
        repository = Repository(lab, way)
        copy = WORK / f"copy-{lab.token()}"
        copy.mkdir()
        os.chown(copy, repository.owner, repository.owner)
        repository.git("clone", "--no-local", "--quiet", str(repository.path), str(copy), directory="/")
        repository.git("status", directory=copy)
        if not (copy / "file").exists():
            raise RuntimeError("it was not cloned")
        return repository.ran()
    case(f"git: {name}, for who clones as the manual says", ADVICE, control=naively(way, command))(attack)


def as_root_there(lab, *options):
    repository = Repository(lab, configured(("core.fsmonitor", "{script}"), ("safe.directory", "*")))
    repository.git(*options, "status", user=0)
    return repository.ran()


case("git: safe.directory that the repository itself says, for root", DUBIOUS, control=lambda lab: as_root_there(lab, "-c", "safe.directory=*"))(as_root_there)
