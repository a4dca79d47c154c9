#!/usr/bin/env python3
"""Runs in the test host: starts the commands that arrive on the serial port. Never restarts or limits them."""
import fcntl
import glob
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

import mux


class Command:
    def __init__(self, link, stream, ask):
        self.link, self.stream = link, stream
        size = ask.get('pty')
        env = dict(PATH=os.environ['PATH'], HOME='/root', USER='root', LOGNAME='root', SHELL='/bin/bash',
                   LANG='C.UTF-8', **({'TERM': ask['term']} if size else {}))
        if size:
            master, slave = pty.openpty()
            resize(master, size)
            inside = (slave, slave, slave)
            take_tty = take_terminal
            ends = [master, os.dup(master), None]
        else:
            pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
            inside = (pipes[0][0], pipes[1][1], pipes[2][1])
            take_tty = None
            ends = [pipes[0][1], pipes[1][0], pipes[2][0]]
        for fd in ends:
            if fd is not None:
                os.set_blocking(fd, False)
        try:
            self.process = subprocess.Popen(ask['argv'], stdin=inside[0], stdout=inside[1], stderr=inside[2],
                                            cwd='/root', env=env, start_new_session=True, preexec_fn=take_tty)
        except OSError as error:
            for fd in ends:
                if fd is not None:
                    os.close(fd)
            link.send(mux.DATA, stream, f'lab: {ask["argv"][0]}: {error.strerror}\n'.encode(), 2)
            link.send(mux.EXIT, stream, bytes([126 if isinstance(error, PermissionError) else 127]))
            self.process = None
            return
        finally:
            for fd in set(inside):
                os.close(fd)
        link.send(mux.STARTED, stream)
        self.pty = bool(size)
        self.stdin = mux.Sink(ends[0], link, stream, 0, at_end=b'\x04' if size else b'')
        self.outputs = {channel: mux.Source(fd, link, stream, channel)
                        for channel, fd in ((1, ends[1]), (2, ends[2])) if fd is not None}
        self.watch = mux.Thing(os.pidfd_open(self.process.pid))
        self.watch.read = self.reap
        self.things = [self.stdin, *self.outputs.values(), self.watch]

    def reap(self):
        self.process.wait()
        self.watch.close()
        if not self.pty:  # what it left in the pipes is sent; what its background children write later is not
            for source in self.outputs.values():
                source.last = True
                source.drain()

    def frame(self, kind, channel, body):
        source = self.outputs.get(channel)
        if kind == mux.DATA:
            self.stdin.feed(body)
        elif kind == mux.EOF:
            self.stdin.end()
        elif kind == mux.CREDIT and source:
            source.add_credit(body)
        elif kind == mux.STOP and source:
            source.close()
        elif kind == mux.RESIZE and self.pty and self.stdin.open:
            resize(self.stdin.fd, json.loads(body))
        elif kind == mux.SIGNAL:
            self.kill(body[0])
        elif kind == mux.HANGUP:
            self.kill(signal.SIGHUP)
            for thing in (self.stdin, *self.outputs.values()):
                thing.close()

    def kill(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def finished(self):
        if self.process and (self.watch.open or any(source.open for source in self.outputs.values())):
            return False
        if self.process:
            self.stdin.close()
            code = self.process.returncode
            self.link.send(mux.EXIT, self.stream, bytes([code if code >= 0 else 128 - code]))
        return True


def take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def resize(fd, size):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', *size, 0, 0))


def port():
    for name in glob.glob('/sys/class/virtio-ports/*/name'):
        with open(name, encoding='ascii') as file:
            if file.read().strip() == 'lab':
                return os.open('/dev/' + name.split('/')[-2], os.O_RDWR | os.O_CLOEXEC)
    sys.exit('this machine has no serial port named "lab"')


def main():
    commands = {}

    def on_frame(kind, channel, stream, body):
        if kind == mux.OPEN:
            commands[stream] = Command(link, stream, json.loads(body))
        elif stream in commands and commands[stream].process:
            commands[stream].frame(kind, channel, body)

    link = mux.Link(port(), on_frame)
    link.send(mux.HELLO)
    while link.open:
        mux.turn([link] + [thing for command in commands.values() if command.process for thing in command.things])
        for stream in [stream for stream, command in commands.items() if command.finished()]:
            del commands[stream]


main()
