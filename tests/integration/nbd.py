"""A small NBD client (NBD proto.md: fixed newstyle, simple replies) that says exactly what was
acknowledged when, which no ready-made client does; also the base for sending nonsense."""

import errno
import os
import socket
import struct

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698

OPT_ABORT, OPT_LIST, OPT_GO = 2, 3, 7
REP_ACK, REP_INFO = 1, 3
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_ZEROES = 0, 1, 2, 3, 4, 6
FLAG_FUA = 1


class NbdError(OSError):
    pass


def connect(addr, timeout=60):
    if isinstance(addr, str):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(timeout)
        s.connect(addr)
        return s
    s = socket.create_connection(addr, timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


class Nbd:
    def __init__(self, addr, export, timeout=60):
        self.socket = connect(addr, timeout)
        self.cookie = 0
        self.waiting = {}
        try:
            self.handshake()
            self.go(export)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def exactly(self, n):
        out = bytearray()
        while len(out) < n:
            piece = self.socket.recv(min(n - len(out), 1 << 20))
            if not piece:
                raise ConnectionError("the server closed the connection")
            out += piece
        return bytes(out)

    def handshake(self):
        magic, option_magic, flags = struct.unpack(">QQH", self.exactly(18))
        if (magic, option_magic) != (NBDMAGIC, IHAVEOPT) or not flags & 1:
            raise NbdError(errno.EPROTO, "not a fixed newstyle server")
        self.socket.sendall(struct.pack(">I", flags & 3))

    def go(self, export):
        name = export.encode()
        payload = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">QII", IHAVEOPT, OPT_GO, len(payload)) + payload)
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self.exactly(20))
            data = self.exactly(length)
            if magic != REPLY_MAGIC:
                raise NbdError(errno.EPROTO, "bad option reply")
            if kind & 0x80000000:
                raise NbdError(errno.ENOENT, f"no export {export}: {data.decode(errors='replace')}")
            if kind == REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:12])
            if kind == REP_ACK:
                return

    def send(self, command, offset, length, data=b"", flags=0):
        """Sends a request; returns its cookie."""
        self.cookie += 1
        self.waiting[self.cookie] = length if command == CMD_READ else 0
        head = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, self.cookie, offset, length)
        self.socket.sendall(head + data)
        return self.cookie

    def reply(self):
        """Waits for a reply; returns (cookie, errno, data)."""
        magic, error, cookie = struct.unpack(">IIQ", self.exactly(16))
        if magic != SIMPLE_MAGIC or cookie not in self.waiting:
            raise NbdError(errno.EPROTO, "a reply to nothing that was asked")
        length = self.waiting.pop(cookie)
        return cookie, error, self.exactly(length) if not error else b""

    def call(self, *args, **kwargs):
        cookie = self.send(*args, **kwargs)
        got, error, data = self.reply()
        if got != cookie:
            raise NbdError(errno.EPROTO, "a reply to another request")
        if error:
            raise NbdError(error, os.strerror(error))
        return data

    def read(self, offset, length):
        return self.call(CMD_READ, offset, length)

    def write(self, offset, data, fua=False):
        self.call(CMD_WRITE, offset, len(data), data, FLAG_FUA if fua else 0)

    def flush(self):
        self.call(CMD_FLUSH, 0, 0)

    def trim(self, offset, length):
        self.call(CMD_TRIM, offset, length)

    def close(self):
        try:
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()
