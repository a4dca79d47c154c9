"""Frames over one byte stream: how both ends of the test host's serial port carry many commands at once.

Every channel has a window: a sender is never more than WINDOW bytes ahead of what its peer has written out, so
a slow reader holds up its own command and no other. Knows nothing of commands or of virtual machines.
"""
import os
import select
import struct

HEAD = struct.Struct('!BBII')  # kind, channel, stream, length of the body
# OPEN, SIGNAL, RESIZE, HANGUP go to the test host; HELLO, STARTED, EXIT come from it; DATA, EOF, STOP and CREDIT go
# both ways. QUIT ends the daemon between.
OPEN, DATA, EOF, STOP, CREDIT, SIGNAL, RESIZE, HANGUP, HELLO, STARTED, EXIT, QUIT = range(12)
WINDOW = 1 << 19
CHUNK = 1 << 16


class Thing:
    """A descriptor in the loop; wants() says what to wait for, 0 for nothing."""

    def __init__(self, fd):
        self.fd = fd
        self.open = True

    def close(self):
        if self.open:
            self.open = False
            os.close(self.fd)

    def wants(self):
        return select.POLLIN

    def read(self):
        pass

    def write(self):
        pass


def turn(things, timeout_ms=None):
    """Waits for any of the things once and lets those that are ready work."""
    poll = select.poll()
    by_fd = {}
    for thing in things:
        events = thing.open and thing.wants()
        if events:
            poll.register(thing.fd, events)
            by_fd[thing.fd] = thing
    for fd, events in poll.poll(timeout_ms):
        thing = by_fd[fd]
        if thing.open and events & (select.POLLOUT | select.POLLERR) and thing.wants() & select.POLLOUT:
            thing.write()
        if thing.open and events & ~select.POLLOUT and thing.wants() & select.POLLIN:
            thing.read()


class Link(Thing):
    """Frames over one non-blocking descriptor. Calls on_frame(kind, channel, stream, body) for each."""

    def __init__(self, fd, on_frame):
        super().__init__(fd)
        os.set_blocking(fd, False)
        self.on_frame = on_frame
        self.received = bytearray()
        self.waiting = bytearray()

    def send(self, kind, stream=0, body=b'', channel=0):
        self.waiting += HEAD.pack(kind, channel, stream, len(body)) + body

    def wants(self):
        return select.POLLIN | (select.POLLOUT if self.waiting else 0)

    def write(self):
        try:
            del self.waiting[:os.write(self.fd, bytes(self.waiting[:CHUNK]))]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def read(self):
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        if not data:
            self.close()
            return
        self.received += data
        at = 0
        while len(self.received) - at >= HEAD.size:
            kind, channel, stream, length = HEAD.unpack_from(self.received, at)
            end = at + HEAD.size + length
            if end > len(self.received):
                break
            self.on_frame(kind, channel, stream, bytes(self.received[at + HEAD.size:end]))
            at = end
        del self.received[:at]


class Source(Thing):
    """A local descriptor whose bytes become DATA frames."""

    def __init__(self, fd, link, stream, channel):
        super().__init__(fd)
        self.link, self.stream, self.channel = link, stream, channel
        self.credit = WINDOW
        self.last = False  # nobody who matters writes any more: no data now means the end

    def wants(self):
        return select.POLLIN if self.credit > 0 else 0

    def read(self):
        try:
            data = os.read(self.fd, min(self.credit, CHUNK))
        except BlockingIOError:
            if not self.last:
                return
            data = b''
        except OSError:  # EIO: the other side of a pty is gone
            data = b''
        if data:
            self.credit -= len(data)
            self.link.send(DATA, self.stream, data, self.channel)
        else:
            self.link.send(EOF, self.stream, b'', self.channel)
            self.close()

    def drain(self):
        """Once last: sends what is there, as far as the window allows. The rest follows with more credit."""
        while self.last and self.open and self.credit > 0:
            self.read()

    def add_credit(self, body):
        self.credit += int.from_bytes(body, 'big')
        self.drain()


class Sink(Thing):
    """DATA frames written to a local descriptor. Tells the peer of progress, and when nobody reads any more."""

    def __init__(self, fd, link, stream, channel, chunk=CHUNK, at_end=b''):
        super().__init__(fd)
        self.link, self.stream, self.channel = link, stream, channel
        self.chunk, self.at_end = chunk, at_end
        self.buffer = bytearray()
        self.owed = 0
        self.ended = False

    def wants(self):
        return select.POLLOUT if self.buffer else 0

    def feed(self, data):
        if self.open and not self.ended:
            self.buffer += data

    def end(self):
        self.feed(self.at_end)
        self.ended = True
        if not self.buffer:
            self.close()

    def write(self):
        try:
            done = os.write(self.fd, bytes(self.buffer[:self.chunk]))
        except BlockingIOError:
            return
        except OSError:
            self.link.send(STOP, self.stream, b'', self.channel)
            self.buffer.clear()
            self.close()
            return
        del self.buffer[:done]
        self.owed += done
        if self.owed >= WINDOW // 4:
            self.link.send(CREDIT, self.stream, self.owed.to_bytes(4, 'big'), self.channel)
            self.owed = 0
        if self.ended and not self.buffer:
            self.close()
