#!/usr/bin/python3
"""The metadata directory is lost: filmroom-fsck --rebuild makes it anew from the drives, exactly,
after a clean stop and after kill -9, with two of six drives gone as well.

  rebuild.py [--seed S]
"""

import argparse
import os
import random
import shutil
import sys

import nbd
from admin import ask
from contents import Contents
from harness import FSCK, MIB, Daemon, Pattern, Suite, check, fsck, log, run, scratch

CONFIG = "[store]\ncapacity = 1G\njournal_size = 16M\ncache_size = 16M\n"
BLOCK = 4096


class Store:
    def __init__(self, folder, seed):
        self.folder = folder
        self.data = os.path.join(folder, "data")
        self.random = random.Random(seed)
        self.contents = Contents(folder, seed=seed, slices=8, volume_mib=8)
        self.daemon = Daemon(self.data, config=CONFIG)
        self.config = self.data + ".conf"
        self.disk = bytearray(32 * MIB)
        self.frozen = None  # what the snapshot has
        self.objects = {}  # name -> bytes
        self.shown = {}  # name -> what is told of it: etag, type, metadata

    @property
    def kv(self):
        return os.path.join(self.data, "kv")

    def fill(self):
        self.daemon.start()
        self.contents.store(self.daemon)
        self.daemon.volume("disk", len(self.disk))
        self.write(300)
        self.frozen = bytes(self.disk)
        self.daemon.cli("volume", "snapshot", "disk", "s")
        self.write(300)
        self.daemon.cli("bucket", "create", "b")
        self.put_some()

    def write(self, count):
        """Small writes all over, and a few large ones."""
        with nbd.Nbd(self.daemon.nbd, "disk") as c:
            for i in range(count):
                n = BLOCK if i % 40 else MIB
                at = self.random.randrange((len(self.disk) - n) // BLOCK) * BLOCK
                data = Pattern.make(self.random.randrange(1 << 30), n)
                c.write(at, data)
                self.disk[at:at + n] = data
            c.flush()

    def put(self, name, size):
        """An object with a type and metadata, in place of another one or none."""
        data = Pattern.make(self.random.randrange(1 << 30), size)
        status, _, _ = ask(self.daemon, "PUT", f"/v1/buckets/b/objects/{name}", data,
                           {"Content-Type": f"test/{size}", "X-Filmroom-Meta-size": str(size)})
        check(status in (200, 201), "a put gave HTTP status", status)
        self.objects[name] = data
        shown = self.show(name)
        check(shown["type"] == f"test/{size}" and shown["metadata"] == {"size": str(size)} and
              shown["etag"], "an object is told to be", shown)
        self.shown[name] = shown

    def show(self, name):
        return self.daemon.cli_json("object", "show", f"b/{name}")

    def put_some(self):
        for name, size in (("a", 0), ("b", 5000), ("deep/c", 300000), ("deep/d", 2 * MIB)):
            self.put(name, size + self.random.randrange(1000))
        status, _, _ = ask(self.daemon, "DELETE", "/v1/buckets/b/objects/b")
        check(status in (200, 204), "a delete gave HTTP status", status)
        del self.objects["b"], self.shown["b"]

    def verify_objects(self):
        listed = [o["name"] for o in self.daemon.cli_json("object", "list", "b")["objects"]]
        check(listed == sorted(self.objects), "the bucket lists", listed)
        for name, data in self.objects.items():
            status, _, got = ask(self.daemon, "GET", f"/v1/buckets/b/objects/{name}")
            check(status == 200 and got == data, "object", name, "is not what was put", status)
            check(self.show(name) == self.shown[name], "object", name, "is told to be",
                  self.show(name), "not", self.shown[name])

    def churn(self):
        """Enough for many checkpoints of a journal of 16 MiB."""
        self.put_some()
        for _ in range(4):
            self.write(2000)

    def verify(self):
        self.contents.verify(self.daemon)
        for name, want in (("disk", bytes(self.disk)), ("disk@s", self.frozen)):
            with nbd.Nbd(self.daemon.nbd, name) as c:
                got = b"".join(c.read(at, MIB) for at in range(0, len(want), MIB))
            check(got == want, name, "is not what was written")
        self.verify_objects()

    def rebuild(self):
        told = fsck(self.data, self.config, "--rebuild", code=1)
        log("rebuilt:", told["rebuilt"], "replayed:", told["replayed_records"])
        check(told["left"] == 0 and told["mended"] == 0, "findings:", told)
        check(told["checked"]["volumes"] == 3  # the snapshot counts
              and told["checked"]["instances"] == len(self.contents.instances),
              "what was brought back:", told["checked"])
        fsck(self.data, self.config, "--deep", code=0)

    # ---- Cases -----------------------------------------------------------------------------------

    def refused(self):
        """Without metadata the daemon says what to do; with it a rebuild is refused."""
        self.fill()
        self.daemon.stop()
        self.marked()
        done = run(FSCK, "--data", self.data, "--config", self.config, "--rebuild",
                   ok=False)
        check(done.returncode == 8 and "move that directory away" in done.stderr,
              "a rebuild over metadata gave", done.returncode, done.stderr)
        os.rename(self.kv, self.kv + ".lost")
        done = run(FSCK, "--data", self.data, "--config", self.config, ok=False)
        check(done.returncode == 8 and "--rebuild" in done.stderr, "fsck said", done.stderr)
        self.daemon.start(expect_ready=False)
        self.daemon.kill()
        check("--rebuild" in self.daemon.log_text(), "the daemon said", self.daemon.log_tail())

    def marked(self):
        """As a crash leaves it that came between making the store and saying so: the drives are
        not to be taken for an unfinished store's once the metadata is lost."""
        marker = os.path.join(self.data, "formatting")
        os.mkdir(marker)  # cannot be removed as a file
        self.daemon.start(expect_ready=False)
        self.daemon.kill()
        check("remove it" in self.daemon.log_text(), "the daemon said", self.daemon.log_tail())
        os.rmdir(marker)
        with open(marker, "w") as f:
            for i in range(6):
                f.write(os.path.join(self.data, "drives", f"drive-{i}") + "\n")
        self.daemon.start()
        self.daemon.stop()
        check(not os.path.exists(marker), "the mark is still there")

    def stopped(self):
        """After a clean stop."""
        self.rebuild()
        self.daemon.start()
        self.verify()

    def killed(self):
        """After kill -9 in the middle of writes, again and again."""
        self.churn()
        self.daemon.kill()
        shutil.rmtree(self.kv)
        self.rebuild()
        self.daemon.start()
        self.verify()

    def drives(self):
        """With two drives gone too."""
        self.churn()
        self.daemon.kill()
        shutil.rmtree(self.kv)
        for i in self.random.sample(range(6), 2):
            os.unlink(os.path.join(self.data, "drives", f"drive-{i}"))
        told = fsck(self.data, self.config, "--rebuild", code=1)
        check(told["left"] == 0, "findings:", told)
        self.daemon.start()
        self.verify()
        self.daemon.stop()

    def beyond(self):
        """With five: what cannot be had is said, nothing is made up."""
        shutil.rmtree(self.kv)
        there = [i for i in range(6)
                 if os.path.exists(os.path.join(self.data, "drives", f"drive-{i}"))]
        for i in there[:3]:
            os.unlink(os.path.join(self.data, "drives", f"drive-{i}"))
        done = run(FSCK, "--data", self.data, "--config", self.config, "--rebuild",
                   ok=False)
        check(done.returncode == 8 and done.stderr, "it said", done.returncode, done.stderr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    suite = Suite()
    with scratch() as folder:
        store = Store(folder, options.seed)
        for case in (store.refused, store.stopped, store.killed, store.drives, store.beyond):
            with suite.case(case.__doc__.split("\n")[0].rstrip(".")):
                case()
        store.daemon.kill()
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
