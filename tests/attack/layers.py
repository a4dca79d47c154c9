"""The layers around the agent's processes as guards, and what is asked of agentmachine-probe under each.

An attack here is mostly one line of the probe's, such as "unshare newuser". All that are known are asked at once in each
state: a machine answers a hundred of them in the time that it takes to start one process.
"""

import contextlib
import pathlib
import re
import threading

from guards import FAMILIES, HostGuard, MachineGuard
from lab import TOOLS, WORK, Place, run

PROBE = TOOLS + "agentmachine-probe"
AGENT = 65532

# What a filter says in place of the kernel, or does; ENOSPC is the limits of namespaces,
# EIO that of TIOCSTI. The probe's calls have arguments
# for which the kernel itself says something else; that shows that a call got through to it.
REFUSALS = ("EPERM", "EACCES", "ENOSYS", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "SIG", "ENODATA", "ENOSPC", "EIO")

# Filters

INIT = "/usr/lib/agentmachine/init"
GUEST_FILTER = MachineGuard("PID 1's filter", settings=((rf"^BindReadOnly=.*:{INIT}$", f"BindReadOnly={WORK}/tools/agentmachine-init-open:{INIT}"),))
NSPAWN_FILTER = MachineGuard("nspawn's filter", settings=((r"^SystemCallFilter=.*$", "SystemCallFilter=@known"),))
UNIT_FILTER = MachineGuard("the unit's filter", dropin="SystemCallFilter=\nProtectClock=no\nProtectKernelModules=no\nLockPersonality=no\n"
                                                       "RestrictRealtime=no\nRestrictSUIDSGID=no\nSystemCallArchitectures=\n")
UNIT_FILTER_LINES = ("SystemCallFilter", "SystemCallErrorNumber", "ProtectClock", "ProtectKernelModules", "LockPersonality",
                     "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures")


def lines(path, names):
    """A unit's or settings file's lines of these names."""
    return re.findall(rf"(?m)^(?:{'|'.join(names)})=.*$", pathlib.Path(path).read_text())


def guards_away(lab, machine):
    """What a machine lives without."""
    return next(without for (_, without), known in lab.variants.items() if known is machine)


class Root(Place):
    """Root of the host in the host's namespaces, under those of the machine's filters that it has itself."""

    def __init__(self, lab, machine):
        self.machine = machine
        away = guards_away(lab, machine)
        self.filtered = GUEST_FILTER not in away
        self.properties = []
        if NSPAWN_FILTER not in away:
            self.properties += lines(f"/run/systemd/nspawn/agent-{machine.id}.nspawn", ["SystemCallFilter"]) + ["SystemCallErrorNumber=EPERM"]
        dropin = f"/run/systemd/system/{machine.unit}.d/10-agentmachine.conf"
        for guard, names in ((UNIT_FILTER, UNIT_FILTER_LINES), (FAMILIES, ["RestrictAddressFamilies"])):
            if guard not in away:
                self.properties += lines(dropin, names)

    def command(self, argv):
        argv = [arg.replace(TOOLS, f"{WORK}/tools/") for arg in argv]
        if self.filtered:
            argv[1:1] = ["--filtered"]
        if not self.properties:
            return argv
        return ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *[f"--property={line}" for line in self.properties], *argv]


@contextlib.contextmanager
def as_root(lab):
    lab.attacker = Root(lab, getattr(lab.attacker, "machine", lab.attacker))
    yield


PRIVILEGE = HostGuard("no privilege", as_root)



def user_limit(machine, name, *value):
    """A limit of the machine's user namespace (/proc/sys/user), read or written."""
    script = f"echo {value[0]} >$0" if value else "cat $0"
    return run("nsenter", f"--user=/proc/{machine.leader}/ns/user", "sh", "-c", script, f"/proc/sys/user/{name}").strip()


def user_limits_lifted(title, *names):
    @contextlib.contextmanager
    def away(lab):
        machine = getattr(lab.attacker, "machine", lab.attacker)
        before = {name: user_limit(machine, name) for name in names}
        for name in names:
            user_limit(machine, name, 100000)
        machine.__dict__.pop("answers", None)  # they are others now
        try:
            yield
        finally:
            machine.__dict__.pop("answers", None)
            for name in names:
                user_limit(machine, name, before[name])
    return HostGuard(title, away)


KINDS = "user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"
NAMESPACES = user_limits_lifted("no more namespaces", *[f"max_{kind}_namespaces" for kind in KINDS])

# Where and who


class Stance(Place):
    """Within a machine or outside, as the agent's number or as root."""

    def __init__(self, machine, root=False, outside=False):
        self.machine, self.root, self.outside = machine, root, outside

    def command(self, argv):
        if not self.outside:
            return ["agentmachine", "exec", *(["--user", "root"] if self.root else []), self.machine.id, "--", *argv]
        argv = [self.translated(arg.replace(TOOLS, f"{WORK}/tools/")) for arg in argv]
        if self.root:
            return ["env", f"--chdir={WORK}/{self.machine.id}", *argv]
        # Not in the workspace, which it could not enter.
        return ["setpriv", f"--reuid={AGENT}", f"--regid={AGENT}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", *argv]

    def translated(self, text):
        """With the paths of where it is."""
        return text.replace("/workspace", f"{WORK}/{self.machine.id}") if self.outside else text


@contextlib.contextmanager
def passable(machine):
    """Root of the machine has no capability to pass where the workspace is its owner's alone."""
    workspace = WORK / machine.id
    before = workspace.stat().st_mode & 0o777
    workspace.chmod(before | 0o001)
    try:
        yield
    finally:
        workspace.chmod(before)


def stance(**change):
    @contextlib.contextmanager
    def away(lab):
        now = lab.attacker
        machine = getattr(now, "machine", now)
        lab.attacker = Stance(machine, **{"root": getattr(now, "root", False), "outside": getattr(now, "outside", False)} | change)
        with passable(machine) if change.get("root") else contextlib.nullcontext():
            yield
    return away




def in_mounts(machine, *argv):
    """busybox as root of the host in a machine's mount namespace."""
    # With its processes: the machine's /proc shows mount(8) itself only there.
    run("nsenter", f"--mount=/proc/{machine.leader}/ns/mnt", f"--pid=/proc/{machine.leader}/ns/pid", TOOLS + "busybox", *argv)


def mount_options(machine, where):
    """What is mounted there in a machine was made with these."""
    lines = pathlib.Path(f"/proc/{machine.leader}/mountinfo").read_text().splitlines()
    return next(line for line in reversed(lines) if line.split()[4] == where).split()[-1].removeprefix("rw,")


# The card of a machine with every limit.
STRICT = {"memory_deny_write_execute": True,
          "resource_limits": {"memory_mb": 256, "max_processes": 60, "cpu_quota_percent": 50, "disk_mb": 32}}

NOT_ROOT = HostGuard("not root", stance(root=True))
OWN_TREE = HostGuard("own namespaces", stance(outside=True))

# Questions

LOCK = threading.Lock()


def tell(place, questions):
    """What the probe says there to each: "ok 0", an errno's name or a signal's."""
    told = [place.translated(line) if hasattr(place, "translated") else line for line in questions]
    said = place.run(PROBE, "-", input="".join(f"{line}\n" for line in told).encode(), timeout=120)
    given = said.out.decode().splitlines()
    if [line.rpartition(": ")[0] for line in given] != told:
        raise RuntimeError(f"asked {len(told)} questions: {said.out.decode()[-500:]} {said.err.decode()[-500:]}")
    return {question: line.rpartition(": ")[2] for question, line in zip(questions, given)}


def answer(lab, question, place=None):
    return tell(place or lab.attacker, [question])[question]


def answer_of(lab, question, group):
    """The same for one of a group, all of which are asked once in each state."""
    with LOCK:
        known = lab.attacker.__dict__.setdefault("answers", {})
        if question not in known:
            known.update(tell(lab.attacker, list(dict.fromkeys(group))))
        return known[question]


CALLS, FILES = [], []  # what is asked together
SECRETS = []  # files of root's on the host, there while files are asked for


def reaches(call):
    """An attack that is one system call: whether the kernel got it."""
    CALLS.append(call)
    return lambda lab: not answer_of(lab, call, CALLS).startswith(REFUSALS)


def asks(question):
    """An attack that is one question, asked alone for what it takes."""
    return lambda lab: answer(lab, question).startswith("ok")


def asks_files(question):
    """The same of many questions about files that are answered at once."""
    FILES.append(question)

    def attack(lab):
        with LOCK:
            for path, mode in SECRETS:
                if not path.exists():
                    path.write_text("secret\n")
                    path.chmod(mode)
                    lab.cleanup.callback(path.unlink)
        return answer_of(lab, question, FILES).startswith("ok")
    return attack
