"""Files that can be made to hang: a file system in user space that speaks the kernel's FUSE
protocol itself (include/uapi/linux/fuse.h), so that nothing needs to be installed.

  hangfs.py MOUNTPOINT BACKING...    shows each backing file as MOUNTPOINT/0, /1, ...

Stopped (SIGSTOP), it answers nothing, and everything that uses its files hangs; continued, it
answers all that was asked meanwhile. When it is killed, all of it fails.
"""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 18, 20, 25, 26, 27, 28, 29
INTERRUPT, BATCH_FORGET = 36, 42

ASYNC_READ, BIG_WRITES, ASYNC_DIO = 1 << 0, 1 << 5, 1 << 15
MAX_WRITE = 128 << 10
# Requests the kernel lets wait before it blocks who asks, io_uring_enter included. A drive's queue
# does not block so: a full one is answered EAGAIN, and io_uring hands the request to a thread.
BACKGROUND = 0xffff
SETATTR_SIZE = 1 << 3
MNT_DETACH = 2

libc = ctypes.CDLL(None, use_errno=True)


class HangFs:
    def __init__(self, mountpoint, backing):
        self.files = [os.open(path, os.O_RDWR) for path in backing]
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0"
        if libc.mount(b"hangfs", mountpoint.encode(), b"fuse", 0, options.encode()) < 0:
            raise OSError(ctypes.get_errno(), "mount")

    def file(self, node):
        if node < 2 or node - 2 >= len(self.files):
            raise OSError(errno.ENOENT, "node")
        return self.files[node - 2]

    def attr(self, node):
        if node == 1:
            size, mode = 0, stat.S_IFDIR | 0o700
        else:
            size, mode = os.fstat(self.file(node)).st_size, stat.S_IFREG | 0o600
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0,
                           4096, 0)

    def answer(self, op, node, body):
        """The answer's bytes; an OSError is the error to give."""
        if op == INIT:
            return struct.pack("<4I2H2I2HI28x", 7, 31, 1 << 20,
                               ASYNC_READ | BIG_WRITES | ASYNC_DIO,
                               BACKGROUND, BACKGROUND, MAX_WRITE, 1, 0, 0, 0)
        if op == LOOKUP:
            name = body.rstrip(b"\0").decode()
            child = 2 + int(name) if name.isdigit() else 0
            self.file(child)
            return struct.pack("<4Q2I", child, 0, 1, 1, 0, 0) + self.attr(child)
        if op == SETATTR and struct.unpack_from("<I", body)[0] & SETATTR_SIZE:
            os.ftruncate(self.file(node), struct.unpack_from("<Q", body, 16)[0])
        if op in (GETATTR, SETATTR):
            return struct.pack("<Q2I", 1, 0, 0) + self.attr(node)
        if op in (OPEN, OPENDIR):
            return struct.pack("<Q2I", node, 0, 0)
        if op == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(self.file(node), size, offset)
        if op == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<2I", os.pwrite(self.file(node), body[40:40 + size], offset), 0)
        if op == STATFS:
            return bytes(80)
        if op == FSYNC:
            os.fdatasync(self.file(node))
            return b""
        if op in (RELEASE, FLUSH, RELEASEDIR, READDIR):
            return b""
        raise OSError(errno.ENOSYS, "operation")

    def serve(self):
        while True:
            try:
                request = os.read(self.device, MAX_WRITE + 4096)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                if e.errno == errno.ENODEV:  # unmounted
                    return
                raise
            _, op, unique, node = struct.unpack_from("<IIQQ", request)
            if op in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            error, body = 0, b""
            try:
                body = self.answer(op, node, request[40:])
            except OSError as e:
                error = -e.errno
            try:
                os.write(self.device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
            except OSError as e:
                if e.errno != errno.ENOENT:  # nobody wants to know any more
                    raise


class Mounted:
    """The file system in a process of its own; a context manager that gives the files' paths."""

    def __init__(self, mountpoint, backing):
        self.mountpoint, self.backing = mountpoint, backing
        self.process = None

    def __enter__(self):
        os.makedirs(self.mountpoint, exist_ok=True)
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__),
                                         self.mountpoint, *self.backing])
        end = time.monotonic() + 10
        while not os.path.ismount(self.mountpoint):
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__(None, None, None)
                raise OSError("hangfs cannot be mounted")
            time.sleep(0.02)
        self.paths = [os.path.join(self.mountpoint, str(i)) for i in range(len(self.backing))]
        return self

    def __exit__(self, kind, value, trace):
        self.process.kill()  # whatever hangs on it fails now
        self.process.wait()
        libc.umount2(self.mountpoint.encode(), MNT_DETACH)


def possible():
    return os.geteuid() == 0 and os.path.exists("/dev/fuse")


if __name__ == "__main__":
    HangFs(sys.argv[1], sys.argv[2:]).serve()
