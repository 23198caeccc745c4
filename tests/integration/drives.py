#!/usr/bin/python3
"""Any two of six drives may go, at any time and in any way, and everything is served exact; with a
third gone there are clear errors and never wrong bytes; a flipped byte is never served.

  drives.py [--pairs N] [--rounds N] [--seed S]    pairs of drives tried in each way (default 3; 15
                                                   are all there are), rounds of flips (default 6)
"""

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import sys
import time

from contents import Contents
from harness import DUMP, MIB, SHORT, Daemon, Suite, check, fsck, log, run, scratch

# A small journal, so that copies are cheap and most of what is damaged is data.
CONFIG = "[store]\ncapacity = 1G\njournal_size = 16M\ncache_size = 16M\n"


def data_extents(path):
    """The parts of a sparse file that hold data."""
    with open(path, "rb") as f:
        end = f.seek(0, os.SEEK_END)
        at = 0
        while at < end:
            try:
                start = f.seek(at, os.SEEK_DATA)
            except OSError:
                return
            at = f.seek(start, os.SEEK_HOLE)
            yield start, at - start


def drown(path, seed):
    """Overwrites everything in the file with noise, in place."""
    rng = random.Random(seed)
    extents = list(data_extents(path))
    with open(path, "r+b") as f:
        for start, length in extents:
            f.seek(start)
            for at in range(0, length, MIB):
                f.write(rng.randbytes(min(MIB, length - at)))


def flip(path, rng, count, front=0):
    """Changes single bytes at random places that hold data, from `front` on."""
    extents = [(max(at, front), at + n - max(at, front)) for at, n in data_extents(path)
               if at + n > front]
    with open(path, "r+b") as f:
        for _ in range(count):
            start, length = rng.choices(extents, [n for _, n in extents])[0]
            at = start + rng.randrange(length)
            f.seek(at)
            old = f.read(1)[0]
            f.seek(at)
            f.write(bytes([old ^ 1 << rng.randrange(8)]))


def spoil(path, front):
    """Changes a byte in each block of 4 KiB that holds data, from `front` on."""
    with open(path, "r+b") as f:
        for start, length in list(data_extents(path)):
            for at in range(max(start, front) // 4096 * 4096, start + length, 4096):
                f.seek(at + at // 4096 % 4096)
                old = f.read(1)
                if old and at >= front:
                    f.seek(-1, os.SEEK_CUR)
                    f.write(bytes([old[0] ^ 0x40]))


def find_number(tree, name):
    """The first number of that name in a JSON tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key == name:
            return value
        found = find_number(value, name) if isinstance(value, (dict, list)) else None
        if found is not None:
            return found
    return None


class Drives:
    def __init__(self, folder, args):
        self.folder, self.args = folder, args
        self.random = random.Random(args.seed)
        self.master = os.path.join(folder, "master")
        self.contents = Contents(folder, seed=args.seed)
        self.copies = 0

    def prepare(self):
        with Daemon(self.master, config=CONFIG) as daemon:
            self.contents.store(daemon)
            daemon.wait_quiet()
            self.contents.verify(daemon)
            self.names = [os.path.relpath(p, self.master) for p in daemon.drives()]
            check(len(self.names) == 6, "six drives are expected, not", self.names)
            status = daemon.status()
            check(status["state"] == "ok", "a new store should be in full health:", status)

    def copy(self):
        """A fresh copy of the store, stopped."""
        self.copies += 1
        path = os.path.join(self.folder, f"copy{self.copies}")
        run("cp", "-a", "--sparse=always", self.master, path)
        return path

    def paths(self, data, names):
        return [os.path.join(data, n) for n in names]

    def pairs(self):
        every = list(itertools.combinations(self.names, 2))
        return self.random.sample(every, min(self.args.pairs, len(every)))

    # ---- Cases -----------------------------------------------------------------------------------

    def lost_while_stopped(self, how):
        for pair in self.pairs():
            data = self.copy()
            for path in self.paths(data, pair):
                if how == "deleted":
                    os.unlink(path)
                else:
                    drown(path, self.random.random())
            log(how, *map(os.path.basename, pair))
            with Daemon(data, config=CONFIG) as daemon:
                self.contents.verify(daemon)
                self.check_degraded(daemon)
                more = Contents(self.folder, seed=self.args.seed + 100, slices=4, volume_mib=4)
                more.store(daemon)  # writes go on as well
                daemon.restart()
                more.verify(daemon)
                self.contents.verify(daemon)
            shutil.rmtree(data)

    def check_degraded(self, daemon):
        status = daemon.status()
        check(status["state"] == "degraded", "the state should be degraded:", status["state"])
        check(status["drives_ok"] == 4, "four drives should be fine:", status["drives_ok"])
        check(status["reasons"], "the status should say why it is degraded")
        rows = daemon.cli_json("drive", "list")["drives"]
        check(sum(r["state"] != "ok" for r in rows) == 2, "two drives should be named:", rows)

    def lost_while_running(self):
        for pair in self.pairs():
            data = self.copy()
            with Daemon(data, config=CONFIG) as daemon:
                for path in self.paths(data, pair):
                    drown(path, self.random.random())
                log("noise under the running daemon on", *map(os.path.basename, pair))
                self.contents.verify(daemon)
                daemon.kill()  # whatever it would have written at a clean stop
                daemon.start()
                self.contents.verify(daemon)
            shutil.rmtree(data)

    def third_loss(self):
        for how in ("deleted", "noise"):
            data = self.copy()
            gone = self.random.sample(self.names, 3)
            for path in self.paths(data, gone):
                if how == "deleted":
                    os.unlink(path)
                else:
                    drown(path, self.random.random())
            daemon = Daemon(data, config=CONFIG, ready_timeout=20)
            try:
                if daemon.start(expect_ready=False):
                    errors = self.contents.verify(daemon, errors_allowed=True)
                    check(errors > 0, "three drives of 4+2 are gone and nothing is missing?")
                    status = daemon.status()
                    check(status["state"] == "failed", "the state should be failed:", status)
                    log(how, f"three: {errors} pieces refused, none wrong")
                else:
                    # Refusing to start is an answer too, if it says why.
                    check(daemon.process.poll() not in (None, -6, -11), "no clean refusal:",
                          daemon.log_tail())
                    words = daemon.log_tail().lower()
                    check("drive" in words, "the refusal should name the drives:", words)
                    log(how, "three: the daemon refuses to start:", words.split("\n")[-2][:200])
            finally:
                daemon.kill()
            daemon.check_log()
            shutil.rmtree(data)

    def three_lie(self):
        """Superblocks and journals are sound, so all drives are believed; but of every stripe more
        columns than parity can make up for hold wrong bytes."""
        data = self.copy()
        dump = json.loads(run(DUMP, "--data", data, "--config", self.master + ".conf", "--json",
                              "superblock").stdout)
        front = find_number(dump, "slots_off")
        three = self.random.sample(self.names, 3)
        for path in self.paths(data, three[:2]):
            spoil(path, front)
        with Daemon(data, config=CONFIG) as daemon:
            self.contents.verify(daemon)  # two may lie
        spoil(os.path.join(data, three[2]), front)
        with Daemon(data, config=CONFIG) as daemon:
            errors = self.contents.verify(daemon, errors_allowed=True)
            check(errors > len(self.contents.steps) // 4,
                  "three of six drives lie, and hardly anything is missing:", errors)
            log(f"three lie: {errors} pieces refused, none wrong")
        told = fsck(data, data + ".conf", "--deep", code=4)
        kinds = collections.Counter(f["kind"] for f in told["findings"])
        check(kinds["chunk-lost"] and kinds["volume-data"] and kinds["instance-data"],
              "fsck should name what is lost:", kinds)
        text = " ".join(f["text"] for f in told["findings"])
        check(self.contents.volume in text, "fsck should name the volume:", text[:2000])
        bad = {self.names[i] for i, d in enumerate(told["drives"]) if d["bad_columns"]}
        # Where too much of a stripe is wrong, parity columns cannot be told right from wrong.
        check(bad and bad <= set(three), "the drives that lie are", three, "and fsck names", bad)
        log("fsck:", dict(kinds))
        shutil.rmtree(data)

    def flips(self):
        for number in range(self.args.rounds):
            data = self.copy()
            pair = self.random.sample(self.names, 2)
            running = number % 2
            daemon = Daemon(data, config=CONFIG)
            with daemon:
                if not running:
                    daemon.stop()
                for path in self.paths(data, pair):
                    flip(path, self.random, 1 if number < 2 else 400)
                if not running:
                    daemon.start()
                self.contents.verify(daemon)
                daemon.restart()
                self.contents.verify(daemon)
                log(f"round {number + 1}: repaired", daemon.status()["counters"]["repaired"])
            shutil.rmtree(data)

    def stale_return(self):
        """Two drives miss writes and come back: what they hold is old and must not be believed."""
        data, away = self.copy(), os.path.join(self.folder, "away")
        os.makedirs(away, exist_ok=True)
        pair = self.random.sample(self.paths(data, self.names), 2)
        for path in pair:
            shutil.move(path, os.path.join(away, os.path.basename(path)))
        more = Contents(self.folder, seed=self.args.seed + 200, slices=6, volume_mib=8)
        with Daemon(data, config=CONFIG) as daemon:
            more.store(daemon)
            daemon.cli("volume", "delete", self.contents.volume, "--force")
        for path in pair:
            shutil.move(os.path.join(away, os.path.basename(path)), path)
        with Daemon(data, config=CONFIG) as daemon:
            more.verify(daemon)
            self.contents.verify_instances(daemon, False)
            names = [v["name"] for v in daemon.cli_json("volume", "list")["volumes"]]
            check(self.contents.volume not in names, "a deleted volume came back")
        shutil.rmtree(data)

    def thin_made_whole(self):
        """What two drives took while one was away has no copy; when it is back, it gets one."""
        data, away = os.path.join(self.folder, "pair"), os.path.join(self.folder, "pair-away")
        config = "[store]\ndrives = 2\njournal_size = 16M\n"
        with Daemon(data, "--capacity", "512M", config=config) as daemon:
            paths = daemon.drives()
        shutil.move(paths[1], away)
        more = Contents(self.folder, seed=self.args.seed + 300, slices=6, volume_mib=8)
        with Daemon(data, config=config) as daemon:
            more.store(daemon)
        shutil.move(away, paths[1])
        with Daemon(data, config=config) as daemon:
            end = time.monotonic() + 60
            while daemon.status()["state"] != "ok" and time.monotonic() < end:
                time.sleep(0.2)
            check(daemon.status()["state"] == "ok", "not whole again:", daemon.status())
        os.unlink(paths[0])
        with Daemon(data, config=config) as daemon:
            more.verify(daemon)
        shutil.rmtree(data)

    def rebuilt(self):
        """A drive is lost and given up: its data goes to the others, and then two more may go."""
        data = self.copy()
        config = CONFIG + "rebuild_after = 1\n"
        first, *others = self.paths(data, self.names)
        os.unlink(first)
        with Daemon(data, config=config) as daemon:
            end = time.monotonic() + 120
            while self.lacking(daemon) and time.monotonic() < end:
                time.sleep(0.2)
            check(not self.lacking(daemon), "not rebuilt:", daemon.status())
        for path in self.random.sample(others, 2):
            os.unlink(path)
        with Daemon(data, config=config) as daemon:
            self.contents.verify(daemon)
        shutil.rmtree(data)

    def scrubbed(self):
        """Bytes rot on two drives; scrub repairs them, across kill -9; then two others may go."""
        data = self.copy()
        pair = self.random.sample(self.names, 2)
        for path in self.paths(data, pair):
            flip(path, self.random, 400, MIB)  # a drive without superblocks is none
        slow = CONFIG + "scrub_rate = 1M\n"
        with Daemon(data, config=slow) as daemon:
            check("is running" in daemon.cli("scrub", "start").stdout, "it should say that it runs")
            end = time.monotonic() + 60
            while daemon.cli_json("scrub", "status")["pass"]["found"] == 0:
                check(time.monotonic() < end, "nothing:", daemon.cli("scrub", "status").stdout)
                time.sleep(0.2)
            started = daemon.cli_json("scrub", "status")["pass"]["started"]
            daemon.kill()
            daemon.start()
            row = daemon.cli_json("scrub", "status")
            check(row["state"] == "running" and row["pass"]["started"] == started, "goes on:", row)
            stopped = daemon.cli_json("scrub", "stop")
            check(stopped["state"] == "stopped" and stopped["percent"] < 100, "stop:", stopped)
        with Daemon(data, config=CONFIG + "scrub_rate = 1T\n") as daemon:
            first = self.scrub(daemon)
            check(first["started"] == started, "a stopped pass should go on:", first)
            again = self.scrub(daemon)
            check(again["found"] == 0, "a second pass should find nothing:", again)
            check("0 wrong places found" in daemon.cli("scrub", "status").stdout, "status")
            rows = daemon.cli_json("drive", "list")["drives"]
            check(all(d["scrub"]["unrepaired"] == 0 and d["scrub"]["bytes"] > MIB for d in rows),
                  "drives:", rows)
            log("found", first["found"], "in", first["bytes"], "bytes")
        told = fsck(data, data + ".conf", "--deep")
        check(told["findings"] == [], "the deep check finds:", told["findings"])
        for path in self.random.sample(sorted(set(self.paths(data, self.names)) -
                                              set(self.paths(data, pair))), 2):
            os.unlink(path)
        with Daemon(data, config=CONFIG) as daemon:
            self.contents.verify(daemon)
        shutil.rmtree(data)

    @staticmethod
    def scrub(daemon):
        """A pass, or the rest of one, to its end: what it says of itself."""
        daemon.cli("scrub", "start")
        end = time.monotonic() + 60
        while daemon.cli_json("scrub", "status")["state"] != "idle":
            check(time.monotonic() < end, "no end:", daemon.cli("scrub", "status").stdout)
            time.sleep(0.1)
        last = daemon.cli_json("scrub", "status")["last"]
        check(last["found"] == last["repaired"] and last["lost_chunks"] == 0, "scrub:", last)
        return last

    @staticmethod
    def lacking(daemon):
        return any("less parity" in reason for reason in daemon.status()["reasons"])


def main():
    parser = argparse.ArgumentParser(description="drives go and bytes flip")
    parser.add_argument("--pairs", type=int, default=1 if SHORT else 3)
    parser.add_argument("--rounds", type=int, default=2 if SHORT else 6)
    parser.add_argument("--seed", type=int, default=1)
    suite = Suite()
    with scratch() as folder:
        ready = []
        with suite.case("a store with six drives is filled"):
            drives = Drives(folder, parser.parse_args())
            drives.prepare()
            ready.append(drives)
        for d in ready:
            with suite.case("two drives deleted while stopped"):
                d.lost_while_stopped("deleted")
            with suite.case("two drives overwritten with noise while stopped"):
                d.lost_while_stopped("noise")
            with suite.case("two drives overwritten with noise under the running daemon"):
                d.lost_while_running()
            with suite.case("a third loss gives clear errors, never wrong bytes"):
                d.third_loss()
            with suite.case("three drives that lie give errors, never wrong bytes"):
                d.three_lie()
            with suite.case("flipped bytes are never served"):
                d.flips()
            with suite.case("drives that missed writes and come back are not believed"):
                d.stale_return()
            with suite.case("what was written while a drive was away gets its parity back"):
                d.thin_made_whole()
            with suite.case("scrub repairs what rots, across kill -9, and then two drives may go"):
                d.scrubbed()
            with suite.case("a lost drive is rebuilt in the space of the others"):
                d.rebuilt()
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
