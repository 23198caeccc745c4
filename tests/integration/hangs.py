#!/usr/bin/python3
"""Two of six drives stop answering under a running daemon: no client waits for more than two
seconds, everything is served exact, and all is well again after the drives answer and a restart.

  hangs.py [--seed S]
"""

import argparse
import os
import random
import signal
import sys
import threading
import time

from contents import Contents
from hangfs import Mounted, possible
from harness import MIB, Daemon, Skip, Suite, check, fsck, log, scratch
from nbd import Nbd

STALL = 2.0
SLACK = 0.5  # the machine's own pauses
DRIVE = 400 * MIB


class Client(threading.Thread):
    """Reads and writes a volume, one operation at a time, and notes how long they take."""

    def __init__(self, daemon, name, seed):
        super().__init__(daemon=True)
        daemon.volume(name, 8 * MIB)
        self.addr, self.name_, self.random = daemon.nbd, name, random.Random(seed)
        self.blocks, self.longest, self.count, self.error = {}, 0.0, 0, None
        self.ending = False

    def step(self, client):
        size = self.random.choice([4096, 4096, 4096, 256 << 10])
        offset = self.random.randrange(8 * MIB // size) * size
        data = self.random.randbytes(size)
        client.write(offset, data)
        for at in range(0, size, 4096):
            self.blocks[offset + at] = data[at:at + 4096]

    def run(self):
        try:
            with Nbd(self.addr, self.name_, timeout=30) as client:
                while not self.ending:
                    start = time.monotonic()
                    if self.random.random() < 0.5 or not self.blocks:
                        self.step(client)
                    else:
                        self.check_one(client)
                    self.longest = max(self.longest, time.monotonic() - start)
                    self.count += 1
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def check_one(self, client):
        at = self.random.choice(list(self.blocks))
        check(client.read(at, 4096) == self.blocks[at], f"{self.name_} holds other bytes at {at}")

    def finish(self):
        self.ending = True
        self.join(40)
        check(self.error is None, "a client failed:", repr(self.error))
        check(not self.is_alive(), "a client still waits")

    def verify(self, daemon):
        with Nbd(daemon.nbd, self.name_) as client:
            for at, data in self.blocks.items():
                check(client.read(at, 4096) == data, f"{self.name_} holds other bytes at {at}")


def config_of(paths):
    return ("[store]\njournal_size = 16M\ncache_size = 16M\n"
            + "".join(f"drive = {p}\n" for p in paths))


def run_hang(folder, args, victims):
    """Makes the drives `victims` hang while clients work, lets them go later."""
    data = os.path.join(folder, "data")
    backing = [os.path.join(folder, f"drive-{i}") for i in range(6)]
    for path in backing:
        with open(path, "wb") as f:
            f.truncate(DRIVE)
    with Mounted(os.path.join(folder, "fs"), [backing[v] for v in victims]) as fs:
        paths = list(backing)
        for i, v in enumerate(victims):
            paths[v] = fs.paths[i]
        config = config_of(paths)
        contents = Contents(folder, seed=args.seed, slices=4, volume_mib=8)
        with Daemon(data, config=config) as daemon:
            contents.store(daemon)
            clients = [Client(daemon, f"w{i}", args.seed + i) for i in range(3)]
            for c in clients:
                c.start()
            time.sleep(1)
            for c in clients:
                c.longest = 0.0
            before = sum(c.count for c in clients)
            fs.process.send_signal(signal.SIGSTOP)
            try:
                time.sleep(5)
                contents.verify(daemon)
                states = [d["state"] for d in daemon.cli_json("drive", "list")["drives"]]
                for c in clients:
                    c.finish()
            finally:
                fs.process.send_signal(signal.SIGCONT)
            longest = max(c.longest for c in clients)
            log(f"the longest of {sum(c.count for c in clients) - before} operations took "
                f"{longest:.3f} s")
            check(longest <= STALL + SLACK, f"an operation took {longest:.3f} s")
            check([s == "failed" for s in states] == [i in victims for i in range(6)],
                  "the drives that hang should be out:", states)
            for c in clients:
                c.verify(daemon)
            time.sleep(1)  # late writes land
            contents.verify(daemon)
            daemon.restart()
            check(daemon.status()["drives_ok"] == 6, "all drives should count again")
            contents.verify(daemon)
            for c in clients:
                c.verify(daemon)
        fsck(data, data + ".conf", "--deep")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    suite = Suite()
    for victims in ([1], [0, 4]):
        name = " and ".join(map(str, victims))
        with suite.case(f"drive {name} hangs while clients work"):
            if not possible():
                raise Skip("root and /dev/fuse are needed for drives that hang")
            with scratch() as folder:
                run_hang(folder, args, victims)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
