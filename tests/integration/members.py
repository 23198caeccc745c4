#!/usr/bin/python3
"""Drives are added, removed and replaced while the daemon runs; it is killed in the middle of each,
and everything stays, byte for byte.

  members.py [--kills N] [--seed S]    kills in the middle of each change (default 2)
"""

import argparse
import os
import random
import sys
import threading
import time

import nbd
from contents import Contents
from harness import MIB, SHORT, Daemon, Suite, check, fsck, log, scratch

# Slots are large: a small store, with enough data that each drive has a dozen in use.
CONFIG = "[store]\ncapacity = 512M\njournal_size = 16M\ncache_size = 16M\n"


class Members:
    def __init__(self, folder, args):
        self.folder, self.args = folder, args
        self.random = random.Random(args.seed)
        self.data = os.path.join(folder, "store")
        self.contents = [Contents(folder, seed=args.seed + n, slices=8, volume_mib=32)
                         for n in range(2)]
        self.noise = [self.random.randbytes(MIB) for _ in range(224)]
        self.daemon = Daemon(self.data, config=CONFIG)
        self.made = 0

    def new_path(self):
        self.made += 1
        return os.path.join(self.folder, f"added-{self.made}")

    def rows(self):
        return {r["index"]: r for r in self.daemon.cli_json("drive", "list")["drives"]}

    def verify(self):
        for c in self.contents:
            c.verify(self.daemon)
        with nbd.Nbd(self.daemon.nbd, "noise") as client:
            for number, data in enumerate(self.noise):
                check(client.read(number * MIB, MIB) == data, "noise: other bytes at MiB", number)

    def wait(self, text, done, seconds=180):
        """Waits, and kills the daemon a few times meanwhile."""
        end, kills = time.monotonic() + seconds, self.args.kills
        while not done():
            check(time.monotonic() < end, text, self.daemon.status(), self.rows())
            if kills and self.random.random() < 0.5:
                kills -= 1
                log("kill -9")
                self.daemon.kill()
                self.daemon.start()
            time.sleep(0.2)
        while kills:  # it was too fast
            kills -= 1
            self.daemon.kill()
            self.daemon.start()
            check(done(), text, "after a kill:", self.daemon.status(), self.rows())

    def even(self):
        fill = [r["used"] / r["size"] for r in self.rows().values()]
        return max(fill) - min(fill) < 0.12

    def no_work(self):
        work = self.daemon.status()["work"]
        return not any(work[w]["bytes"] for w in ("rebuild", "leaving", "rebalance"))

    def lost(self, paths):
        """With these drives gone as well everything is there; then they are back."""
        away = [p + ".away" for p in paths]
        self.daemon.stop()
        for path, to in zip(paths, away):
            os.rename(path, to)
        self.daemon.start()
        self.verify()
        self.daemon.stop()
        for path, to in zip(paths, away):
            os.rename(to, path)
        found = fsck(self.data, self.data + ".conf", "--deep")
        check(not found.get("findings"), "fsck found something:", found)
        self.daemon.start()

    def refused(self, words, *argv):
        done = self.daemon.cli("drive", *argv, ok=False)
        check(done.returncode == 1 and words in done.stderr, "should be refused:", argv,
              done.stdout, done.stderr)

    # ---- Cases -----------------------------------------------------------------------------------

    def fill(self):
        self.daemon.start()
        for c in self.contents:
            c.store(self.daemon)
        self.daemon.volume("noise", len(self.noise) * MIB)
        with nbd.Nbd(self.daemon.nbd, "noise") as client:
            for number, data in enumerate(self.noise):
                client.write(number * MIB, data)
        self.daemon.wait_quiet()
        check(len(self.rows()) == 6, "six drives are expected:", self.rows())

    def refusals(self):
        something = self.new_path()
        with open(something, "wb") as f:
            f.write(b"dear diary" * 1000)
            f.truncate(256 * MIB)
        self.refused("use --force", "add", something)
        with open(something, "rb") as f:
            check(f.read(10) == b"dear diary", "a refused drive was written to")
        self.refused("no such file", "add", self.new_path())
        self.refused("too small", "add", self.new_path(), "--size", "4M")
        self.refused("in use", "add", self.rows()[2]["path"])
        self.refused("needs 6", "remove", "3")
        self.refused("no such drive", "remove", "17")
        self.refused("not leaving", "keep", "0")
        self.refused("in service", "rebuild", "0")
        check(len(self.rows()) == 6, "nothing should have changed:", self.rows())

    def add(self):
        path = self.new_path()
        out = self.daemon.cli("drive", "add", path, "--size", str(self.rows()[0]["size"]),
                              "--class", "nvme").stdout
        check("added drive 6" in out, out)
        self.wait("not balanced:", lambda: self.even() and self.no_work())
        row = self.rows()[6]
        check(row["path"] == path and row["class"] == "nvme" and row["journal"], row)
        check(row["used"] > row["size"] / 10, "the new drive is hardly used:", row)
        self.verify()
        self.lost(self.random.sample([r["path"] for r in self.rows().values()], 2))

    def remove(self):
        path = self.rows()[2]["path"]
        used = self.rows()[2]["used"]
        check(used > 16 * MIB, "drive 2 should be in use:", used)
        self.daemon.cli("drive", "remove", path)
        log("leaves:", self.rows()[2]["work"], self.daemon.status()["work"])
        self.daemon.cli("drive", "keep", "2")
        check(not self.rows()[2]["leaving"], self.rows())
        self.daemon.cli("drive", "remove", "2")
        self.wait("drive 2 does not leave:", lambda: 2 not in self.rows())
        check(self.daemon.status()["drives"] == 6, self.daemon.status())
        os.unlink(path)
        self.verify()
        self.lost(self.random.sample([r["path"] for r in self.rows().values()], 2))
        check(self.daemon.status()["state"] == "ok", self.daemon.status())

    def replace(self):
        """A dead disk, replaced by an empty one under its path."""
        path = self.rows()[4]["path"]
        self.daemon.kill()
        os.unlink(path)
        self.daemon.start()
        check(self.rows()[4]["state"] == "missing", self.rows())
        out = self.daemon.cli("drive", "replace", "4", path, "--size",
                              str(self.rows()[0]["size"])).stdout
        check("added drive 2" in out, out)
        self.wait("drive 4 does not leave:", lambda: 4 not in self.rows() and self.no_work())
        check(self.rows()[2]["path"] == path and self.daemon.status()["state"] == "ok",
              self.rows(), self.daemon.status())
        self.verify()
        self.lost(self.random.sample([r["path"] for r in self.rows().values()], 2))

    def moved(self):
        """A drive is found under another path, as the list in the data directory has it."""
        old = self.rows()[6]["path"]
        self.daemon.stop()
        new, paths = old + "-moved", os.path.join(self.data, "drive-paths")
        os.rename(old, new)
        with open(paths, encoding="utf-8") as f:
            text = f.read()
        check(old in text, "the added drive should be in the list:", text)
        with open(paths, "w", encoding="utf-8") as f:
            f.write(text.replace(old, new))
        self.daemon.start()
        check(self.rows()[6]["path"] == new and self.rows()[6]["state"] == "ok", self.rows())
        self.daemon.cli("drive", "set-class", "6", "disk")
        check(self.rows()[6]["class"] == "disk", self.rows())
        self.verify()

    def list_lost(self):
        """Without the list an added drive is not found, and a line in it brings it back."""
        path, paths = self.rows()[6]["path"], os.path.join(self.data, "drive-paths")
        self.daemon.stop()
        with open(paths, "wb") as f:
            f.write(b"6\n-1 /x\n99999999999999999999 /x\n\0\xff\n")
        self.daemon.start()
        check(self.rows()[6]["state"] == "missing", self.rows())
        check(self.daemon.status()["state"] == "degraded", self.daemon.status())
        self.verify()
        self.daemon.stop()
        with open(paths, "a", encoding="utf-8") as f:
            f.write(f"6 {path}\n")
        self.daemon.start()
        check(self.rows()[6]["path"] == path and self.rows()[6]["state"] == "ok", self.rows())
        self.verify()

    def at_once(self):
        """Of several orders at once none takes another one's path out of the list."""
        added, over, gone = [self.new_path() for _ in range(6)], threading.Event(), set()
        size, paths = str(self.rows()[0]["size"]), os.path.join(self.data, "drive-paths")

        def look():
            seen = set()
            while not over.is_set():
                with open(paths, encoding="utf-8") as f:
                    text = f.read()
                now = {p for p in added if f" {p}\n" in text}
                gone.update(seen - now)
                seen |= now

        looker = threading.Thread(target=look)
        looker.start()
        orders = [threading.Thread(target=self.daemon.cli,
                                   args=("drive", "add", path, "--size", size)) for path in added]
        for order in orders:
            order.start()
        for order in orders:
            order.join()
        over.set()
        looker.join()
        check(not gone, "paths that were out of the list for a moment:", gone)
        there = {r["path"] for r in self.rows().values()}
        check(there >= set(added), "not all were added:", there)
        self.verify()

    def renamed(self):
        """A drive is away, the next one has its name meanwhile; then both have their own again."""
        rows = self.rows()
        added = [i for i in rows if os.path.dirname(rows[i]["path"]) == self.folder]
        first, second = sorted(added)[-2:]
        c, d = rows[first]["path"], rows[second]["path"]
        self.daemon.stop()
        os.rename(c, c + ".away")
        os.rename(d, c)
        self.daemon.start()
        rows = self.rows()
        check(rows[first]["state"] == "missing", rows)
        check(rows[second]["state"] == "ok" and rows[second]["path"] == c, rows)
        self.daemon.stop()
        os.rename(c, d)
        os.rename(c + ".away", c)
        self.daemon.start()
        rows = self.rows()
        check(all(r["state"] == "ok" for r in rows.values()), "not all were found again:", rows)
        check((rows[first]["path"], rows[second]["path"]) == (c, d), rows)
        self.verify()


def main():
    parser = argparse.ArgumentParser(description="drives come and go")
    parser.add_argument("--kills", type=int, default=1 if SHORT else 2)
    parser.add_argument("--seed", type=int, default=1)
    suite = Suite()
    with scratch() as folder:
        members = Members(folder, parser.parse_args())
        try:
            for name, case in (("six drives are filled", members.fill),
                               ("what cannot be done is refused", members.refusals),
                               ("a seventh drive is added and filled evenly", members.add),
                               ("a drive is removed, and two more may go", members.remove),
                               ("a dead drive is replaced under its path", members.replace),
                               ("a drive moves to another path", members.moved),
                               ("the list of paths is lost", members.list_lost),
                               ("drives are added at once", members.at_once),
                               ("drives have each other's names", members.renamed)):
                with suite.case(name):
                    case()
            with suite.case("the daemon stops cleanly"):
                members.daemon.stop()
        finally:
            members.daemon.kill()
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
