"""Kernel and host: system calls, the kernel's files, what is the host's, and using up what others need.

Cases that begin with the name of a directive are the lines of a unit that hardens an agent without a machine around it
(doc/hardening.md): each is done here by something, which the guards name.
"""

import contextlib
import pathlib
import re
import socket
import subprocess
import time

from guards import FAMILIES, HostGuard, MachineGuard
from layers import (AGENT, GUEST_FILTER, NOT_ROOT, NSPAWN_FILTER, OWN_TREE, PRIVILEGE, PROBE, STRICT, UNIT_FILTER, Stance, answer, asks,
                    asks_files, in_mounts, mount_options, passable, reaches, user_limits_lifted)
from lab import quiet, run
from suite import case

# System calls. Which of the filters refuses which was found by loading one alone; a guard that is no cover of a call is
# not named with it. What needs no privilege has none to take away.

ALL = GUEST_FILTER, NSPAWN_FILTER, UNIT_FILTER
TWO = GUEST_FILTER, NSPAWN_FILTER

for directive, call, guards in (
        ("ProtectKernelModules", "init_module", (*ALL, PRIVILEGE)),
        ("ProtectKernelModules", "finit_module", (*ALL, PRIVILEGE)),
        ("ProtectKernelModules", "delete_module", (*ALL, PRIVILEGE)),
        ("ProtectKernelLogs", "syslog", (*TWO, PRIVILEGE)),
        ("ProtectHostname", "sethostname", (*TWO, PRIVILEGE)),
        ("ProtectHostname", "setdomainname", (*TWO, PRIVILEGE)),
        ("ProtectClock", "clock_settime", ALL),
        ("ProtectClock", "settimeofday", ALL),
        ("ProtectClock", "adjtimex", ALL),
        ("LockPersonality", "personality", ALL),
        ("RestrictRealtime", "sched-fifo", (*ALL, PRIVILEGE)),
        ("SystemCallArchitectures", "call-32bit", (GUEST_FILTER, UNIT_FILTER)),
        ("SystemCallFilter=~@module: kexec", "kexec_load", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@reboot: kexec", "kexec_file_load", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@reboot", "reboot", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@swap", "swapon", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@swap", "swapoff", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@raw-io", "iopl", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@raw-io", "ioperm", (*ALL, PRIVILEGE)),
        ("SystemCallFilter=~@resources", "nice", TWO),
        ("SystemCallFilter=~@resources", "sched-batch", TWO),
        ("SystemCallFilter=~@resources", "sched_setaffinity", TWO),
        ("SystemCallFilter=~@resources", "set_mempolicy 0 0 0", TWO),
        ("SystemCallFilter=~@privileged", "setuid", (GUEST_FILTER, PRIVILEGE)),
        ("SystemCallFilter=~@privileged", "chown /tmp", (GUEST_FILTER, PRIVILEGE)),
        ("SystemCallFilter=~@privileged", "acct", (*TWO, PRIVILEGE)),
        ("SystemCallFilter=~@privileged", "quotactl", TWO),
        ("SystemCallFilter=~@privileged", "vhangup", (*TWO, PRIVILEGE)),
        ("SystemCallFilter=~@privileged", "open_by_handle_at", (*TWO, PRIVILEGE)),
        ("SystemCallFilter=~@privileged", "fanotify_init 0 0", (*TWO, PRIVILEGE)),
        ("beyond the unit: @debug", "ptrace", ALL),
        ("beyond the unit: @debug", "process_vm_readv", TWO),
        ("beyond the unit: @debug", "pidfd_getfd", ALL),
        ("beyond the unit: @debug", "kcmp", TWO),
        ("beyond the unit: @debug", "perf_event_open", (*ALL, PRIVILEGE)),
        ("beyond the unit: @keyring", "add_key", TWO),
        ("beyond the unit: @keyring", "keyctl", TWO),
        ("beyond the unit: @keyring", "request_key", TWO),
        ("beyond the unit: @cpu-emulation", "modify_ldt", ALL),
        ("beyond the unit: asynchronous I/O", "io_uring_setup", TWO),
        ("beyond the unit: programs in the kernel", "bpf", (*TWO, PRIVILEGE)),
        ("beyond the unit: page faults of one's own", "userfaultfd", TWO),
        ("beyond the unit: every file system of the host", "sync", (GUEST_FILTER,)),
        ("beyond the unit: typing into a terminal", "tiocsti", (GUEST_FILTER, PRIVILEGE)),
        ("beyond the unit: typing, with bits that the kernel ignores", "tiocsti 1", (GUEST_FILTER, PRIVILEGE)),
        ("beyond the unit: pasting into a terminal", "tioclinux", (GUEST_FILTER,)),
        ("beyond the unit: a line discipline", "tiocsetd", (GUEST_FILTER,))):
    case(f"{directive}: {call}", *guards)(reaches(call))

for family, guards in (("inet6", (GUEST_FILTER, FAMILIES)), ("netlink raw", (GUEST_FILTER,)), ("alg seqpacket", (GUEST_FILTER, FAMILIES)),
                       ("packet raw", (GUEST_FILTER, FAMILIES, PRIVILEGE)), ("vsock", (GUEST_FILTER, FAMILIES)),
                       ("inet raw udp", (GUEST_FILTER, PRIVILEGE)), ("inet stream mptcp", (GUEST_FILTER,))):
    case(f"RestrictAddressFamilies: {family}", *guards)(reaches(f"socket {family}"))


# Memory that is written, then run

WRITE_EXECUTE = MachineGuard("MemoryDenyWriteExecute", dropin="MemoryDenyWriteExecute=no\n")
for call in ("mmap-wx", "mprotect-x", "shm-exec"):
    case(f"MemoryDenyWriteExecute: {call}", WRITE_EXECUTE, card=STRICT)(asks(call))

# The kernel's files: outside of the machine's own tree some of them are refused to all but root, the others to nobody.

BOTH = NOT_ROOT, OWN_TREE
for directive, question, guards in (
        ("ProtectKernelTunables", "write /proc/sys/kernel/core_pattern", BOTH),
        ("ProtectKernelTunables", "write /proc/sys/kernel/hostname", BOTH),
        ("ProtectKernelTunables", "write /proc/sys/vm/drop_caches", BOTH),
        ("ProtectKernelTunables", "write /proc/sysrq-trigger", BOTH),
        ("ProtectKernelTunables", "write /sys/kernel/mm/ksm/run", BOTH),
        ("ProtectKernelLogs", "read /proc/kmsg", BOTH),
        ("ProtectKernelLogs", "read /dev/kmsg", BOTH),
        ("PrivateDevices", "read /dev/nvme0n1", BOTH),
        ("PrivateDevices", "read /dev/mem", BOTH),
        ("beyond the unit", "read /proc/kcore", BOTH),
        ("beyond the unit", "read /proc/timer_list", BOTH),
        ("beyond the unit", "read /proc/keys", (OWN_TREE,)),
        ("beyond the unit", "read /proc/kallsyms", (OWN_TREE,)),
        ("ProtectProc", "read /proc/1/environ", BOTH),
        ("ProtectProc", "read /proc/1/maps", BOTH),
        ("ProtectControlGroups", "mkdir /sys/fs/cgroup/attack", (NOT_ROOT,))):
    case(f"{directive}: {question}", *guards)(asks_files(question))

for path, what, guards in (("/run/systemd/private", "systemd's own socket", BOTH), ("/run/systemd/journal/stdout", "its journal", (OWN_TREE,)),
                           ("/run/systemd/userdb/io.systemd.Machine", "machined", (OWN_TREE,)),
                           ("/run/systemd/io.systemd.Import", "systemd's downloads", (OWN_TREE,))):
    case(f"the host: {what}", *guards)(asks_files(f"connect-unix {path}"))


@case("the host: the Nix daemon", OWN_TREE)
def _(lab):
    path = pathlib.Path("/nix/var/nix/daemon-socket/socket")
    with contextlib.ExitStack() as stack:
        if not path.exists():  # one that listens stands in for it
            path.parent.mkdir(parents=True, exist_ok=True)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            stack.callback(path.unlink)
            path.chmod(0o666)
            listener.listen()
        return answer(lab, f"connect-unix {path}").startswith("ok")


@case("the machine's bus: PID 1 is asked to run something", NOT_ROOT)
def _(lab):
    return answer(lab, "connect-unix /run/dbus/system_bus_socket").startswith("ok")


# Other processes


@contextlib.contextmanager
def bystander():
    """A process of the host whose user has the agent's number."""
    process = subprocess.Popen(["setpriv", f"--reuid={AGENT}", f"--regid={AGENT}", "--clear-groups", "sleep", "60"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@case("ProtectProc: the host's processes are seen", OWN_TREE)
def _(lab):
    with bystander() as pid:
        return "sleep" in lab.attacker.sh(f"cat /proc/{pid}/comm")


@case("PrivateUsers: a process of the host's user with the same number gets a signal", OWN_TREE)
def _(lab):
    with bystander() as pid:
        return lab.attacker.sh(f"kill -0 {pid}").status == 0


@case("PrivateUsers: root of the machine is root of the host", OWN_TREE, serial=True)
def _(lab):
    now = lab.attacker
    place = Stance(getattr(now, "machine", now), root=True, outside=getattr(now, "outside", False))
    seconds = f"20.{lab.token().split('x')[1]}"  # what it sleeps tells it from others
    with passable(place.machine):
        process = subprocess.Popen(place.command(["sleep", seconds]))
        try:
            found = []
            while not found:
                if process.poll() is not None:
                    raise RuntimeError("it ended before it was found")
                found = subprocess.run(["pgrep", "--full", f"^sleep {seconds}$"], stdout=subprocess.PIPE, check=False).stdout.split()
            return pathlib.Path(f"/proc/{int(found[0])}").stat().st_uid == 0
        finally:
            quiet("pkill", "--full", f"^sleep {seconds}$")
            process.wait()


@case("PrivateIPC: the host's shared memory is found", OWN_TREE)
def _(lab):
    identifier = run("ipcmk", "--shmem", "4096", "--mode", "0666").split()[-1]
    key = next(line.split()[0] for line in run("ipcs", "--shmems").splitlines() if line.split()[1:2] == [identifier])
    try:
        return answer(lab, f"shmget {key} 4096 0").startswith("ok")
    finally:
        run("ipcrm", "--shmem-id", identifier)


@case("RemoveIPC: shared memory of the agent's is left on the host", OWN_TREE)
def _(lab):
    key = f"0x{int(lab.token().split('x')[1]) + 0x42000000:08x}"
    answer(lab, f"shmget {key} 4096 0x3b6")  # IPC_CREAT, 0666
    left = [line.split() for line in run("ipcs", "--shmems").splitlines() if line.startswith(key)]
    for line in left:
        run("ipcrm", "--shmem-id", line[1])
    return bool(left)


# What a process is


def status(lab, name):
    return lab.attacker.sh("cat /proc/self/status").out.decode().split(f"{name}:")[1].split()[0]


@contextlib.contextmanager
def plain_root(lab):
    lab.attacker = Stance(lab.attacker, root=True, outside=True)
    yield


CAPABILITIES = HostGuard("no capability", plain_root)


@case("CapabilityBoundingSet=: a capability is left", CAPABILITIES)
def _(lab):
    return int(status(lab, "CapBnd"), 16) | int(status(lab, "CapPrm"), 16) | int(status(lab, "CapEff"), 16) != 0


@case("CapabilityBoundingSet=: one is left to root of the machine", CAPABILITIES, serial=True)
def _(lab):
    place = lab.attacker if isinstance(lab.attacker, Stance) else Stance(lab.attacker, root=True)
    with passable(place.machine):
        return "CapEff:\t0000000000000000" not in place.sh("cat /proc/self/status")


# A machine whose PID 1 starts its payload without giving anything up.
GIVEN_UP = MachineGuard("PID 1 gives its capabilities up", settings=(
    (r"^Parameters=.*$", "Parameters=/bin/sh -c 'trap exit TERM; sleep infinity & wait'"), (r"^NotifyReady=yes$", "NotifyReady=no")))


@case("CapabilityBoundingSet=: one is left to the payload", GIVEN_UP, serial=True)
def _(lab):
    machine = lab.attacker
    payload = cgroup(machine) / "payload"  # beside nspawn's own, "supervisor"
    pids = {pid for procs in payload.rglob("cgroup.procs") for pid in procs.read_text().split()} - {machine.leader}
    sets = [re.findall(r"(?m)^Cap\w+:\s+(\w+)$", pathlib.Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    if not sets:
        raise RuntimeError("there is no process but PID 1")
    return any(int(value, 16) for values in sets for value in values)


class Ambient(Stance):
    """Root, whose programs keep a capability when they become somebody else."""

    def command(self, argv):
        return ["setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw", *super().command(argv)]


@contextlib.contextmanager
def with_ambient(lab):
    lab.attacker = Ambient(lab.attacker, root=True, outside=True)
    yield


@case("AmbientCapabilities=: a capability that programs inherit", HostGuard("no ambient capability", with_ambient))
def _(lab):
    return int(status(lab, "CapAmb"), 16) | int(status(lab, "CapInh"), 16) != 0


@case("NoNewPrivileges: a process may gain some", CAPABILITIES)
def _(lab):
    return status(lab, "NoNewPrivs") != "1"


@case("CapabilityBoundingSet=: PID 1 could have more than the five that it needs", HostGuard("DropCapability", plain_root))
def _(lab):
    text = pathlib.Path(f"/proc/{getattr(lab.attacker, 'leader', 1)}/status").read_text()
    return int(text.split("CapBnd:")[1].split()[0], 16) & ~0x1e1 != 0


# Using up. What is lifted is lifted in the running machine.


def cgroup(machine):
    return pathlib.Path("/sys/fs/cgroup" + run("systemctl", "show", "-P", "ControlGroup", machine.unit).strip())


def lifted(name, limit):
    @contextlib.contextmanager
    def away(lab):
        path = cgroup(lab.attacker) / limit
        before = path.read_text()
        path.write_text("max")
        try:
            yield
        finally:
            path.write_text(before)
    return HostGuard(name, away)


@contextlib.contextmanager
def many_files(lab):
    # What PID 1 has, those that it starts inherit.
    before = run("prlimit", "--pid", lab.attacker.leader, "--nofile", "--raw", "--noheadings", "--output", "SOFT,HARD").split()
    run("prlimit", "--pid", lab.attacker.leader, "--nofile=100000:100000")
    try:
        yield
    finally:
        run("prlimit", "--pid", lab.attacker.leader, f"--nofile={':'.join(before)}")


@contextlib.contextmanager
def many_terminals(lab):
    before = mount_options(lab.attacker, "/dev/pts")
    in_mounts(lab.attacker, "mount", "-o", "remount," + re.sub(r"max=\d+", "max=100000", before), "/dev/pts")
    try:
        yield
    finally:
        in_mounts(lab.attacker, "mount", "-o", f"remount,{before}", "/dev/pts")


TERMINALS, INOTIFY = HostGuard("terminals of one machine", many_terminals), user_limits_lifted("inotify of one machine", "max_inotify_instances")
TASKS, MEMORY = lifted("TasksMax", "pids.max"), lifted("MemoryMax", "memory.max")
OPEN_FILES = HostGuard("LimitNOFILE", many_files)

case("LimitNPROC: a fork bomb", TASKS, serial=True)(asks("forks 150"))
case("LimitNOFILE: descriptors", OPEN_FILES)(asks("files 3000"))
case("beyond the unit: the terminals of all machines", TERMINALS)(asks("ptys 200"))
case("beyond the unit: the inotify instances of root of the host", INOTIFY, serial=True)(asks("inotify 60"))
case("MemoryMax: a memory bomb", MEMORY, serial=True)(asks("memory 300"))


@case("CPUQuota: more than its share", lifted("CPUQuota", "cpu.max"), card=STRICT, serial=True)
def _(lab):
    usage = lambda: int((cgroup(lab.attacker) / "cpu.stat").read_text().split()[1])
    before, start = usage(), time.monotonic()
    lab.attacker.sh("(while :; do :; done) & one=$!; (while :; do :; done) & sleep 2; kill $one $!")
    return (usage() - before) / 1e6 / (time.monotonic() - start) > 0.8


OOM_SCORE = HostGuard("the host's OOM score", plain_root)
case("memory: the agent's processes are dearer than PID 1 to the OOM killer", OOM_SCORE)(asks("oom -1"))


@contextlib.contextmanager
def first_to_go(lab):
    # By one without this capability: else nothing that PID 1 starts could lower its own below that (proc_pid_oom_score_adj(5)).
    run("setpriv", "--bounding-set=-sys_resource", "choom", "--pid", lab.attacker.leader, "--adjust", "1000")
    yield  # the machine is gone afterwards
    run("agentmachine", "start", lab.attacker.id)
    lab.attacker._describe()


PID_1_SCORE = HostGuard("PID 1's OOM score", first_to_go)


@case("memory: PID 1 goes when the agent's processes take it all", PID_1_SCORE, serial=True,
      card=STRICT)
def _(lab):
    # As dear as it can make itself. If PID 1 is there afterwards, the probe could say what it died of.
    return "SIGKILL" not in lab.attacker.sh(f"echo 0 >/proc/self/oom_score_adj; exec {PROBE} memory 300")
