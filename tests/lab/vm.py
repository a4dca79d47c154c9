#!/usr/bin/env python3
"""The test host from outside, inside the build root.

  vm.py boot KERNEL ROOT-DISK IMAGES-DISK   start the virtual machine unless it runs from just these files
  vm.py run CMD…                            run a command in it; waits until it is up
  vm.py shell [CMD…]                        the same on a terminal
  vm.py down                                end it

A daemon per checkout owns the machine, its file server and the one connection to it; the other verbs speak to
the daemon's socket in $LAB_STATE. The machine's disks are snapshots: nothing in it outlives it.
"""
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import tty

import mux

STATE = os.environ['LAB_STATE']
SOCKET = f'{STATE}/vm.sock'
BOOTED = f'{STATE}/vm.files'
INSTALLED = f'{STATE}/vm.installed'
LOG = f'{STATE}/vm.log'
CONSOLE = f'{STATE}/console.log'
NO_KVM = '/cache/no-kvm'
BOOT_SECONDS = {'kvm': 60, 'tcg': 180}
FAILED = 125


# The daemon ---------------------------------------------------------------------------------------------------

def kvm_works():
    """Runs five bytes of guest code: a /dev/kvm that opens may still not run any. Some run these and no kernel: then
    the first boot's failure is remembered."""
    if os.environ.get('LAB_ACCEL') == 'tcg' or os.path.exists(NO_KVM) or not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return False
    rom = bytearray(b'\xf4' * 65536)  # hlt
    rom[0xfff0:0xfff4] = b'\xb0\x10\xe6\xf4'  # mov al, 16; out 0xf4, al
    with tempfile.NamedTemporaryFile(dir=STATE) as file:
        file.write(rom)
        file.flush()
        try:
            return subprocess.run(
                ['qemu-system-x86_64', '-M', 'q35,accel=kvm', '-cpu', 'host', '-nodefaults', '-display', 'none', '-bios', file.name,
                 '-device', 'isa-debug-exit,iobase=0xf4,iosize=1'], timeout=5, check=False,
                stderr=subprocess.DEVNULL).returncode == 33
        except subprocess.TimeoutExpired:
            return False


def bound_to_us(*command, **options):
    """A child that dies with the daemon."""
    return subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', *command], stdin=subprocess.DEVNULL, **options)


def share(directory):
    """Serves directory read-only; returns the server and the connected socket that QEMU gets. Caches nothing, so
    an edit outside is seen inside at once."""
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as place:
        listener.bind(f'{place}/s')
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(f'{place}/s')
        server = bound_to_us('/usr/libexec/virtiofsd', f'--fd={listener.fileno()}', '--shared-dir', directory,
                             '--readonly', '--cache=never', '--allow-mmap', '--sandbox=none', '--log-level=error',
                             pass_fds=[listener.fileno()])
    return server, client


class Machine:
    """One QEMU with its file server; ctl and qmp are our ends of its serial port and its monitor."""

    def __init__(self, files, accel):
        kernel, root, images = files
        self.server, checkout = share('/src')
        self.ctl, ctl = socket.socketpair()
        self.qmp, qmp = socket.socketpair()
        fds = [checkout.fileno(), ctl.fileno(), qmp.fileno()]
        disk = 'format=raw,snapshot=on,cache=unsafe,discard=unmap,detect-zeroes=unmap'
        self.qemu = bound_to_us(
            'qemu-system-x86_64', '-nodefaults', '-no-user-config', '-display', 'none',
            '-M', 'q35,usb=off,smbus=off,sata=off,vmport=off,graphics=off,memory-backend=mem',
            *(['-accel', 'kvm', '-cpu', 'host'] if accel == 'kvm' else
              ['-accel', 'tcg,thread=multi,tb-size=512', '-cpu', 'max']),
            '-smp', '2', '-m', '4G', '-object', 'memory-backend-memfd,id=mem,size=4G,share=on',
            '-kernel', kernel, '-append',
            'console=ttyS0 quiet loglevel=4 root=/dev/nvme0n1 rw rootfstype=ext4 systemd.show_status=0 '
            'mitigations=off nokaslr random.trust_cpu=on tsc=reliable no_timer_check panic=-1',
            '-action', 'reboot=shutdown',  # until it is up: a kernel that panics ends at once
            '-drive', f'if=none,id=root,file={root},{disk}', '-device', 'nvme,drive=root,serial=root',
            '-drive', f'if=none,id=images,file={images},{disk}', '-device', 'virtio-blk-pci,drive=images',
            '-chardev', f'socket,id=src,fd={fds[0]}', '-device', 'vhost-user-fs-pci,chardev=src,tag=src',
            '-device', 'virtio-serial-pci',
            '-chardev', f'socket,id=ctl,fd={fds[1]}', '-device', 'virtserialport,chardev=ctl,name=lab',
            '-chardev', f'socket,id=qmp,fd={fds[2]}', '-mon', 'chardev=qmp,mode=control',
            '-chardev', f'file,id=console,path={CONSOLE}', '-serial', 'chardev:console',
            '-device', 'virtio-rng-pci', pass_fds=fds, env={**os.environ, 'TMPDIR': STATE})
        for end in (checkout, ctl, qmp):
            end.close()
        self.qmp.sendall(b'{"execute": "qmp_capabilities"}\n')

    def kill(self):
        for process in (self.qemu, self.server):
            process.kill()
            process.wait()


class Daemon:
    """Routes frames between the machine and the clients; each client is one stream."""

    def __init__(self, listener, files):
        self.files = files
        self.clients = {}
        self.numbers = 0
        self.early = []  # frames that came before the machine could hear them
        self.ready = self.was_ready = self.quit = False
        self.machine = None
        self.listener = listener
        self.arrivals = mux.Thing(listener.fileno())
        self.arrivals.read = self.accept

    def start(self, accel):
        if self.machine:
            self.machine.kill()
        self.machine = Machine(self.files, accel)
        self.accel, self.since = accel, time.monotonic()
        self.link = mux.Link(self.machine.ctl.detach(), self.from_machine)
        self.monitor = mux.Thing(self.machine.qmp.detach())
        self.monitor.read = self.event

    def accept(self):
        self.numbers += 1
        number = self.numbers
        self.clients[number] = mux.Link(self.listener.accept()[0].detach(),
                                        lambda kind, channel, _, body: self.from_client(kind, number, body, channel))

    def from_client(self, kind, *rest):
        if kind == mux.QUIT:
            self.quit = True
        elif self.ready:
            self.link.send(kind, *rest)
        else:
            self.early.append((kind, *rest))

    def from_machine(self, kind, channel, number, body):
        if kind == mux.HELLO:
            print(f'up after {time.monotonic() - self.since:.1f} s ({self.accel})', flush=True)
            if self.ready:
                self.lost()
            self.ready = self.was_ready = True
            os.write(self.monitor.fd, b'{"execute": "set-action", "arguments": {"reboot": "reset"}}\n')
            for frame in self.early:
                if frame[1] in self.clients:
                    self.link.send(*frame)
            self.early.clear()
        elif number in self.clients:
            self.clients[number].send(kind, 0, body, channel)

    def event(self):
        """The machine's end of the port closes when it reboots: what was under way is lost, the machine is not."""
        try:
            data = os.read(self.monitor.fd, mux.CHUNK)
        except ConnectionError:
            data = b''
        if not data:
            self.monitor.close()
        for line in data.splitlines():
            if b'VSERPORT_CHANGE' in line and b'"open": false' in line and self.ready:
                self.lost()

    def lost(self):
        self.ready = False
        self.since = time.monotonic()
        self.link.received.clear()
        self.link.waiting.clear()
        forget(INSTALLED)
        for client in self.clients.values():
            client.close()
        self.clients.clear()

    def run(self):
        self.start('kvm' if kvm_works() else 'tcg')
        tries = 1
        while not self.quit:
            left = BOOT_SECONDS[self.accel] - (time.monotonic() - self.since)
            if not self.link.open or (not self.ready and left <= 0):
                if self.was_ready or tries == 2:
                    print(f'the test host ended; its console is in {CONSOLE}', flush=True)
                    return
                tries += 1
                print('the test host did not come up; once more, without KVM', flush=True)
                if self.accel == 'kvm':
                    open(NO_KVM, 'w', encoding='ascii').close()
                self.start('tcg')
                continue
            mux.turn([self.arrivals, self.link, self.monitor, *self.clients.values()],
                     None if self.ready else left * 1000)
            for number in [number for number, client in self.clients.items() if not client.open]:
                del self.clients[number]
                self.from_client(mux.HANGUP, number, b'', 0)


def serve(fd, files):
    with open('/cache/lock', 'w', encoding='ascii') as lock:  # held: ./lab clean must not pull the files away
        fcntl.flock(lock, fcntl.LOCK_SH)
        daemon = Daemon(socket.socket(fileno=fd), files)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            daemon.run()
        finally:
            forget(SOCKET)
            if daemon.machine:
                daemon.machine.kill()


# The verbs ----------------------------------------------------------------------------------------------------

def forget(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def connect():
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(SOCKET)
        return sock
    except OSError:
        sock.close()
        return None


def down():
    sock = connect()
    if sock:
        with sock:
            sock.sendall(mux.HEAD.pack(mux.QUIT, 0, 0, 0))
            while sock.recv(1):
                pass
    forget(SOCKET)


def boot(files):
    """Prints "booted" if it started the machine."""
    sock = connect()
    if sock:
        sock.close()
        with open(BOOTED, encoding='utf-8') as file:
            if json.load(file) == files:
                return
        down()
    forget(SOCKET)
    forget(INSTALLED)
    with open(BOOTED, 'w', encoding='utf-8') as file:
        json.dump(files, file)
    with socket.socket(socket.AF_UNIX) as listener, open(LOG, 'w', encoding='utf-8') as log:
        listener.bind(SOCKET)
        listener.listen(64)
        subprocess.Popen([sys.executable, __file__, 'serve', str(listener.fileno()), *files], cwd='/',
                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[listener.fileno()],
                         start_new_session=True)
    print('booted')


class Client:
    """One command: our descriptors 0, 1, 2 there, its exit status here."""

    def __init__(self, argv, terminal):
        sock = connect()
        if not sock:
            sys.exit(failure())
        self.code = None
        self.started = False
        self.signals = 0
        self.link = mux.Link(sock.detach(), self.frame)
        ask = {'argv': argv}
        if terminal:
            ask |= {'pty': window(), 'term': os.environ.get('TERM', 'dumb')}
        self.link.send(mux.OPEN, 0, json.dumps(ask).encode())
        # A pipe that polls writable takes 4096 bytes; more could block, and our descriptors are not ours to unblock.
        self.sinks = {fd: mux.Sink(fd, self.link, 0, fd, 4096) for fd in (1, 2)}
        self.stdin = mux.Source(0, self.link, 0, 0)
        self.wake = mux.Thing(self.catch_signals(terminal))
        self.wake.read = self.on_signal

    @staticmethod
    def catch_signals(terminal):
        near, far = os.pipe()
        os.set_blocking(far, False)
        signal.set_wakeup_fd(far)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        if terminal:
            signal.signal(signal.SIGWINCH, lambda *_: None)
        return near

    def on_signal(self):
        for number in os.read(self.wake.fd, 64):
            if number == signal.SIGWINCH:
                self.link.send(mux.RESIZE, 0, json.dumps(window()).encode())
                continue
            self.signals += 1
            self.link.send(mux.SIGNAL, 0, bytes([number]))
            if not self.started or self.signals > 2:
                self.code = 128 + number

    def frame(self, kind, channel, _, body):
        if kind == mux.STARTED:
            self.started = True
        elif kind == mux.DATA:
            self.sinks[channel].feed(body)
        elif kind == mux.EOF:
            self.sinks[channel].end()
        elif kind == mux.CREDIT:
            self.stdin.add_credit(body)
        elif kind == mux.STOP:
            self.stdin.close()
        elif kind == mux.EXIT:
            self.code = body[0]

    def run(self):
        while self.code is None:
            if not self.link.open:
                return failure()
            mux.turn([self.link, self.stdin, self.wake, *self.sinks.values()])
        while any(sink.open and sink.buffer for sink in self.sinks.values()):
            mux.turn(self.sinks.values())
        return self.code


def window():
    size = shutil.get_terminal_size()
    return [size.lines, size.columns]


def failure():
    """Says why the test host is not there any more, with the daemon's last words."""
    try:
        with open(LOG, encoding='utf-8', errors='replace') as file:
            last = file.read().splitlines()[-5:]
    except FileNotFoundError:
        last = []
    print('lab: the test host is gone, or went down under the command:', *last, sep='\n  ', file=sys.stderr)
    return FAILED


def main(verb, *rest):
    if verb == 'boot':
        boot(list(rest))
    elif verb == 'serve':
        serve(int(rest[0]), rest[1:])
    elif verb == 'down':
        down()
    elif verb == 'run':
        os._exit(Client(rest, False).run())
    elif verb == 'shell':
        client = Client(rest or ['bash', '-l'], True)
        before = termios.tcgetattr(0) if os.isatty(0) else None
        try:
            if before:
                tty.setraw(0, termios.TCSADRAIN)  # typed ahead is not lost
            code = client.run()
        finally:
            if before:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
        os._exit(code)


main(*sys.argv[1:])
