"""What a volume may hold after a crash, worked out from what was sent and acknowledged.

For each sector of 512 bytes the model knows the write that is surely there and the writes since
that may be there instead: sent and not acknowledged, or acknowledged but not yet flushed on a
volume with a volatile cache. After a crash a sector must hold exactly one of those. Every sector
written says which write it belongs to, so that a mix-up is told from a loss.
"""

import random
import struct
import threading

import nbd

SECTOR = 512
ZERO = 0  # the write that wrote zeroes, or none at all

POOL = random.Random(512).randbytes(1 << 20)
HEAD = struct.Struct("<QQI12s")
MAGIC = b"filmroomtest"


def sector_data(write, sector):
    """The content of one sector of one write."""
    if write == ZERO:
        return bytes(SECTOR)
    # A third of the writes repeat one text, so that they compress and look like each other.
    body = SECTOR - HEAD.size
    at = (write * 7919 + sector * 104729) % (len(POOL) - body) if write % 3 else 0
    return HEAD.pack(write, sector, write % 3, MAGIC) + POOL[at:at + body]


def data_of(write, offset, length):
    first = offset // SECTOR
    return b"".join(sector_data(write, s) for s in range(first, first + length // SECTOR))


def describe(data):
    if data == bytes(SECTOR):
        return "zeroes"
    write, sector, _, magic = HEAD.unpack_from(data)
    if magic != MAGIC:
        return "noise"
    whole = "" if data == sector_data(write, sector) else " (damaged)"
    return f"write {write} of sector {sector}{whole}"


class BlockModel:
    def __init__(self, first, count, every_write=True, tag=0):
        """Sectors [first, first + count) of a volume; models with other tags write other bytes."""
        self.first, self.count = first, count
        self.every_write = every_write
        self.sure = {}     # sector -> write
        self.maybe = {}    # sector -> writes after it that may be there
        self.acked = set()  # writes acknowledged but not surely durable
        self.next_id = tag * 10**9 + 1

    def begin(self, sector, count, zero=False):
        """A write of the sectors is about to be sent; returns its id (ids of zero writes are
        negative, their content is zeroes)."""
        write = self.next_id
        self.next_id += 1
        if zero:
            write = -write
        for s in range(sector, sector + count):
            self.maybe.setdefault(s, []).append(write)
        return write

    def ack(self, write, sector, count, fua=False):
        if self.every_write or fua:
            for s in range(sector, sector + count):
                later = self.maybe.get(s, [])
                if write in later:
                    self.sure[s] = write
                    self.maybe[s] = later[later.index(write) + 1:]
        else:
            self.acked.add(write)

    def flush_begin(self):
        """Returns what a flush sent now makes sure once it is acknowledged."""
        return set(self.acked)

    def flush_ack(self, covered):
        for s, later in self.maybe.items():
            keep = [i for i, w in enumerate(later) if w in covered]
            if keep:
                self.sure[s] = later[keep[-1]]
                self.maybe[s] = later[keep[-1] + 1:]
        self.acked -= covered

    def verify(self, client, chunk=1 << 20):
        """Reads all sectors that were ever written, and their neighbours; takes what it found for
        sure from then on. Returns the number of sectors checked."""
        end = (self.first + self.count) * SECTOR
        checked = 0
        for offset in range(self.first * SECTOR, end, chunk):
            data = client.read(offset, min(chunk, end - offset))
            for i in range(len(data) // SECTOR):
                self.verify_sector(offset // SECTOR + i, data[i * SECTOR:(i + 1) * SECTOR])
                checked += 1
        self.acked.clear()
        return checked

    def verify_sector(self, sector, data):
        sure = self.sure.get(sector, ZERO)
        for write in [sure] + self.maybe.get(sector, []):
            if data == sector_data(max(write, ZERO), sector):
                self.sure[sector] = write
                self.maybe.pop(sector, None)
                return
        raise AssertionError(
            f"sector {sector} holds {describe(data)}; it must hold write {sure} or one of "
            f"{self.maybe.get(sector, [])}")


class BlockWriter(threading.Thread):
    """Writes over one connection, several requests at once and never two to one place, until the
    connection breaks or stop is set."""

    DEPTH = 8

    def __init__(self, addr, export, model, seed, stop):
        super().__init__(daemon=True)
        self.addr, self.export, self.model, self.stop_event = addr, export, model, stop
        self.random = random.Random(seed)
        self.error = None
        self.acks = 0
        self.flying = {}  # cookie -> (command, write, sector, count, flags or covered writes)

    def run(self):
        try:
            with nbd.Nbd(self.addr, self.export) as client:
                while not self.stop_event.is_set():
                    while len(self.flying) < self.DEPTH:
                        self.issue(client)
                    self.collect(client)
                while self.flying:
                    self.collect(client)
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def place(self):
        """A free range: mostly 4 KiB blocks, sometimes longer or off the grid."""
        model, r = self.model, self.random
        while True:
            if r.random() < 0.7:
                count, grid = 8, 8
            elif r.random() < 0.7:
                count, grid = 8 * r.randint(2, 64), 8
            else:
                count, grid = r.randint(1, 40), 1
            sector = model.first + r.randrange(0, model.count - count, grid)
            if not any(s < sector + count and sector < s + n
                       for _, _, s, n, _ in self.flying.values()):
                return sector, count

    def issue(self, client):
        draw = self.random.random()
        if draw < 0.05 and not any(f[0] == nbd.CMD_FLUSH for f in self.flying.values()):
            covered = self.model.flush_begin()
            self.flying[client.send(nbd.CMD_FLUSH, 0, 0)] = (nbd.CMD_FLUSH, 0, 0, 0, covered)
            return
        sector, count = self.place()
        if draw < 0.1:
            sector, count = sector // 8 * 8, max(count // 8 * 8, 8)
            if any(s < sector + count and sector < s + n for _, _, s, n, _ in self.flying.values()):
                return
            command = nbd.CMD_ZEROES if draw < 0.08 else nbd.CMD_TRIM
            write = self.model.begin(sector, count, zero=True)
            cookie = client.send(command, sector * SECTOR, count * SECTOR)
            self.flying[cookie] = (command, write, sector, count, 0)
            return
        flags = nbd.FLAG_FUA if draw < 0.2 else 0
        write = self.model.begin(sector, count)
        data = data_of(write, sector * SECTOR, count * SECTOR)
        cookie = client.send(nbd.CMD_WRITE, sector * SECTOR, len(data), data, flags)
        self.flying[cookie] = (nbd.CMD_WRITE, write, sector, count, flags)

    def collect(self, client):
        cookie, error, _ = client.reply()
        command, write, sector, count, extra = self.flying.pop(cookie)
        if error:
            raise nbd.NbdError(error, f"command {command} at sector {sector} failed")
        self.acks += 1
        if command == nbd.CMD_FLUSH:
            self.model.flush_ack(extra)
        else:
            self.model.ack(write, sector, count, bool(extra))
