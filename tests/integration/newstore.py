#!/usr/bin/python3
"""A new store takes drives that are blank, and no others: also where the making of it was cut short
and what is under the drives' paths has changed since."""

import os
import shutil
import struct
import sys

from harness import MIB, Daemon, Suite, check, log, scratch

CONFIG = "[store]\ncapacity = 64M\njournal_size = 16M\ncache_size = 16M\n"
SIZE = 256 * MIB
COPIES = (0, 64 << 10)  # of the superblock
UNIT = 4096


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def blank(path):
    with open(path, "wb") as f:
        f.truncate(SIZE)


def superblock(path):
    with open(path, "rb") as f:
        return f.read(UNIT)


def as_made(path, *copies):
    """Gives a drive the superblock that it had before the first start, in these copies only."""
    made = bytearray(superblock(path))
    made[48:64] = struct.pack("<QQ", 1, 1)
    made[12:16] = bytes(4)
    made[12:16] = struct.pack("<I", crc32c(made))
    with open(path, "r+b") as f:
        for at in COPIES:
            f.seek(at)
            f.write(made if at in copies else bytes(UNIT))


class NewStore:
    def __init__(self, folder, name):
        self.folder = os.path.join(folder, name)
        self.data = os.path.join(self.folder, "data")
        self.drives = [os.path.join(self.folder, d) for d in ("sda", "sdb", "sdc")]
        self.marker = os.path.join(self.data, "formatting")
        os.makedirs(self.folder)
        for path in self.drives:
            blank(path)
        self.daemon = Daemon(self.data, ready_timeout=20,
                             config=CONFIG + "".join(f"drive = {d}\n" for d in self.drives))

    def make(self):
        self.daemon.start()
        check(self.daemon.status()["state"] == "ok", self.daemon.status())
        self.daemon.stop()
        check(not os.path.exists(self.marker), "the mark is still there")

    def mark(self, uuid):
        """As a start leaves it that was cut short, in the way of today or of before."""
        text = f"store {uuid.hex()}\n" if uuid else "".join(d + "\n" for d in self.drives)
        os.makedirs(self.data, exist_ok=True)
        with open(self.marker, "w", encoding="utf-8") as f:
            f.write(text)

    def refused(self, path, *words):
        """A start fails, says why and leaves all drives as they are."""
        before = [self.bytes(d) for d in self.drives]
        said = len(self.daemon.log_text()) if os.path.exists(self.daemon.log_path) else 0
        ready = self.daemon.start(expect_ready=False)
        self.daemon.kill()
        text = self.daemon.log_text()[said:]
        check([self.bytes(d) for d in self.drives] == before, "a drive was written to:", text)
        check(not ready, "the daemon started:", text)
        for word in (path, *words):
            check(word in text, f"the daemon should say '{word}':", text)
        log(text.strip().split("\n")[-1])

    @staticmethod
    def bytes(path):
        with open(path, "rb") as f:
            return f.read(2 * MIB)


UUID = bytes(range(16))


def somebody_elses(folder):
    store = NewStore(folder, "ext")
    with open(store.drives[1], "r+b") as f:
        f.seek(0x438)
        f.write(b"\x53\xef")
    for uuid in (None, UUID):
        store.mark(uuid)
        store.refused(store.drives[1], "ext file system", "not blank")
    os.unlink(store.marker)
    store.refused(store.drives[1], "ext file system", "not blank")
    blank(store.drives[1])
    store.make()


def another_stores(folder):
    other, store = NewStore(folder, "other"), NewStore(folder, "store")
    other.make()
    shutil.copyfile(other.drives[2], store.drives[2])
    for uuid in (None, UUID, superblock(other.drives[2])[16:32]):  # the last: it has been used
        store.mark(uuid)
        store.refused(store.drives[2], "of a store", "--rebuild")
    as_made(store.drives[2], *COPIES)
    for uuid in (None, UUID):
        store.mark(uuid)
        store.refused(store.drives[2], "of a store", "--rebuild")
    blank(store.drives[2])
    store.make()


def cut_short(folder):
    """Before anything is on the drives, and then with superblocks on some and under other names."""
    store = NewStore(folder, "cut")
    last = store.drives[2]
    os.unlink(last)
    os.mkdir(last)
    store.daemon.start(expect_ready=False)
    store.daemon.kill()
    os.rmdir(last)
    store.make()
    shutil.rmtree(os.path.join(store.data, "kv"))
    uuid = superblock(store.drives[0])[16:32]
    as_made(store.drives[0], *COPIES)
    as_made(store.drives[1], COPIES[1])
    blank(last)
    os.rename(store.drives[0], last + ".away")
    os.rename(last, store.drives[0])
    os.rename(last + ".away", last)
    store.mark(uuid)
    store.make()
    for path in store.drives:
        check(superblock(path)[16:32] == uuid, "another UUID than in the mark:", path)
    store.make()


def main():
    suite = Suite()
    with scratch() as folder:
        for name, case in (("a drive that is somebody else's is left alone", somebody_elses),
                           ("a drive of another store is left alone", another_stores),
                           ("what was cut short goes on", cut_short)):
            with suite.case(name):
                case(folder)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
