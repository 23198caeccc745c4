#!/usr/bin/python3
"""filmroom-fsck and filmroom-dump on stores at rest: clean after kill -9, damage on a drive found
and blamed on that drive, a live store refused, dumps that are JSON and agree with each other.

  fsck.py [--seed S]
"""

import argparse
import json
import os
import random
import shutil
import sys

import nbd
from contents import Contents
from harness import (BUILD, DUMP, FSCK, MIB, Daemon, Suite, built, check, fsck, log, run,
                     same_as_text, scratch)

POKE = os.path.join(BUILD, "tests", "unit", "daemon", "kv-poke")
CHUNKS, SEGMENTS, CATALOG, RECIPES = 3, 5, 6, 7  # lib/kv/kv.h
CONFIG = "[store]\ncapacity = 1G\njournal_size = 16M\ncache_size = 16M\n"


class Store:
    def __init__(self, folder, seed):
        self.folder = folder
        self.data = os.path.join(folder, "data")
        self.random = random.Random(seed)
        self.contents = Contents(folder, seed=seed, slices=8, volume_mib=8)
        self.daemon = Daemon(self.data, config=CONFIG)
        self.config = self.data + ".conf"

    def dump(self, *words, ok=True, data=None):
        done = run(DUMP, "--data", data or self.data, "--config", self.config, "--json", *words,
                   ok=ok)
        return json.loads(done.stdout) if ok else done

    def fsck(self, *options, code=0, data=None):
        return fsck(data or self.data, self.config, *options, code=code)

    # ---- Cases -----------------------------------------------------------------------------------

    def live(self):
        """A store in use is refused."""
        self.daemon.start()
        self.contents.store(self.daemon)
        done = run(FSCK, "--data", self.data, "--config", self.config, ok=False)
        check(done.returncode == 8, "fsck of a live store gave", done.returncode, done.stderr)
        check("in use" in done.stderr and "stop the daemon" in done.stderr,
              "the message should say what to do:", done.stderr)
        done = self.dump("segments", ok=False)
        check(done.returncode != 0 and "in use" in done.stderr,
              "dump of a live store gave", done.returncode, done.stderr)
        self.contents.verify(self.daemon)

    def killed(self):
        """After kill -9 fsck replays the journal and finds nothing."""
        self.daemon.restart()  # some of the state is in the metadata, some only in the journal
        with nbd.Nbd(self.daemon.nbd, self.contents.volume) as client:
            for _ in range(50):  # small writes: in the journal and not drained
                offset = self.random.randrange(self.contents.volume_size // 4096) * 4096
                data = self.random.randbytes(4096)
                client.write(offset, data)
                step = offset // MIB * MIB
                old = self.contents.steps[step]
                self.contents.steps[step] = (old[:offset - step] + data
                                             + old[offset - step + 4096:])
        self.daemon.kill()
        self.unclean = self.copy("unclean")
        before = self.dump("journal")
        check(not before["clean"] and before["records"], "a journal that is not clean:", before)
        told = self.fsck()
        check(not told["journal_clean"] and told["replayed_records"] > 0,
              "the journal should have been replayed:", told)
        check(told["checked"]["instances"] == len(self.contents.instances)
              and told["checked"]["volumes"] == 1 and told["checked"]["chunks"] > 0,
              "what was checked:", told["checked"])
        again = self.fsck("--deep")
        check(again["journal_clean"] and again["checked"]["stripes"] > 0, "a second run:", again)

    def mended(self):
        """Damaged metadata is told, mended only when asked, and no ground to replay on."""
        for data in (self.unclean, self.copy("broken")):
            clean = data != self.unclean
            poke(data, CHUNKS, "", 36, 7777)
            poke(data, SEGMENTS, "", 14, 7777)
            poke(data, CATALOG, "T", 9, 7777)
            told = self.fsck(code=4, data=data)
            kinds = {f["kind"]: f["fate"] for f in told["findings"]}
            want = {"chunk-refs", "segment-count", "study-count"}
            want |= set() if clean else {"journal"}
            check(want <= set(kinds) and set(kinds.values()) == {"mendable"}, "findings:", kinds)
            check(told["journal_clean"] == clean and told["replayed_records"] == 0, "told:", told)
            check(told["left"] == len(told["findings"]), "what is left:", told)
            text = run(FSCK, "--data", data, "--config", self.config, ok=False).stdout
            check(f"0 mended, {told['left']} left" in text and
                  ("not replayed" in text) == (not clean), "as text:", text)
            check(self.dump("journal", data=data)["clean"] == clean, "the journal was touched")
            told = self.fsck("--repair", code=1, data=data)
            check(told["mended"] >= 3 and told["left"] == 0, "told:", told)
            check((told["replayed_records"] > 0) == (not clean), "replayed:", told)
            self.fsck("--deep", data=data)
            with Daemon(data, config=CONFIG) as daemon:
                self.contents.verify(daemon)
            shutil.rmtree(data)

    def recipe(self):
        """An instance whose recipe is gone is named, and its chunks are given back when asked."""
        data = self.copy("recipe")
        poke(data, RECIPES, "", -1, 0)
        told = self.fsck(code=4, data=data)
        lost = [f for f in told["findings"] if f["kind"] == "instance-data"]
        check(len(lost) == 1 and lost[0]["fate"] == "left"
              and any(i.uid in lost[0]["text"] for i in self.contents.instances), "told:", lost)
        check(any(f["kind"] == "chunk-orphan" for f in told["findings"]), "orphans:", told)
        told = self.fsck("--repair", code=5, data=data)
        check(told["left"] == 1, "only the instance should be left:", told)
        done = run(FSCK, "--data", data, "--config", self.config, ok=False)
        check(done.stdout.count("lost") == 1, "as text:", done.stdout)
        shutil.rmtree(data)

    def starts(self):
        """The daemon starts afterwards with all data."""
        self.daemon.start()
        self.contents.verify(self.daemon)
        self.daemon.stop()

    def copy(self, name):
        path = os.path.join(self.folder, name)
        run("cp", "-a", "--sparse=always", self.data, path)
        return path

    def damaged(self):
        """Damage on one drive is found, is blamed on that drive, and costs nothing."""
        superblock = self.dump("superblock")["drives"][0]["copies"][0]
        slots = superblock["slots_off"]
        for victim in self.random.sample(range(6), 2):
            data = self.copy("damaged")
            path = os.path.join(data, "drives", f"drive-{victim}")
            flips = spoil(path, slots, self.random)
            told = self.fsck("--deep", code=4, data=data)
            rows = [d for d in told["drives"] if d["bad_columns"] or d["bad_headers"]]
            check([d["index"] for d in rows] == [victim], "damage was on", victim, "not", rows)
            check(rows[0]["bad_columns"] and rows[0]["bad_headers"] == 1, "the counts:", rows)
            check(told["checked"]["lost_chunks"] == 0, "nothing is lost:", told)
            texts = [f["text"] for f in told["findings"] if f["kind"] == "drive-damage"]
            check(len(texts) == 1 and "readable by parity" in texts[0], "the words:", texts)
            log(flips, "bytes flipped:", texts[0])
            self.fsck(data=data)  # the metadata is whole
            with Daemon(data, config=CONFIG) as daemon:
                self.contents.verify(daemon)
            shutil.rmtree(data)

    def lost(self):
        """Damage beyond parity: what is hit is named, volume and instance, and nothing else."""
        slots = self.dump("superblock")["drives"][0]["copies"][0]["slots_off"]
        data = self.copy("lost")
        for victim in (0, 2, 4):
            blank(os.path.join(data, "drives", f"drive-{victim}"), slots)
        told = self.fsck("--deep", code=4, data=data)
        kinds = {f["kind"] for f in told["findings"]}
        check({"chunk-lost", "volume-data", "instance-data"} <= kinds, "the findings:", kinds)
        uids = {i.uid for i in self.contents.instances}
        named = {f["text"].split()[1].rstrip(":") for f in told["findings"]
                 if f["kind"] == "instance-data"}
        check(named and named <= uids, "instances named:", named)
        check(all(f["fate"] == "left" for f in told["findings"]), "no data is made up")
        self.fsck("--deep", "--repair", code=4, data=data)
        shutil.rmtree(data)

    def dumps(self):
        """Dumps are JSON and agree with each other."""
        supers = self.dump("superblock")
        check(len(supers["drives"]) == 6 and all(
            c["valid"] for d in supers["drives"] for c in d["copies"]), "superblocks:", supers)
        one = self.dump("superblock", "3")
        check(one["drives"] == [supers["drives"][3]], "one superblock:", one)
        check(self.dump("journal")["clean"] == bool(supers["drives"][0]["copies"][0]["clean"]),
              "journal and superblock differ")
        instance = self.contents.instances[0]
        row = self.dump("instance", instance.uid)
        check(row["study"] == instance.study and row["series"] == instance.series,
              "the instance is in", row["study"], row["series"])
        check(sum(p["length"] for p in row["pieces"]) == row["bytes"], "pieces do not add up")
        segments = {s["id"]: s for s in self.dump("segments")["segments"]}
        for piece in row["pieces"][:3]:
            self.chunk_agrees(piece["chunk"], segments)
        volume = self.dump("volume", self.contents.volume, "0-1M")
        check(volume["size"] == self.contents.volume_size, "the volume's size", volume["size"])
        chunks = [e["chunk"] for e in volume["extents"] if e["chunk"]]
        for chunk in chunks[:3]:
            self.chunk_agrees(chunk, segments)

    def snapshots(self):
        """What a volume shares with its snapshots is dumped for each, and named when lost."""
        name, size = self.contents.volume, self.contents.volume_size
        data = self.copy("snapshots")
        whole = self.dump("volume", name, data=data)
        with Daemon(data, config=CONFIG) as daemon:
            daemon.cli("volume", "snapshot", name, "s")
            with nbd.Nbd(daemon.nbd, name) as client:
                client.write(0, self.random.randbytes(64 * 1024))
                client.trim(MIB, 4096)
                client.flush()
        told = self.fsck("--deep", data=data)
        check(told["checked"]["volumes"] == 2, "what was checked:", told["checked"])
        old = self.dump("volume", name + "@s", data=data)
        new = self.dump("volume", name, data=data)
        check(len(whole["maps"]) == len(old["maps"]) == 1 and new["maps"][1:] == old["maps"],
              "maps:", old["maps"], new["maps"])
        check(old["extents"] == whole["extents"] and old["size"] == size, "the snapshot differs")
        before, after = blocks(old), blocks(new)
        check({at for at in before if before[at] != after.get(at)}
              == set(range(0, 64 * 1024, 4096)) | {MIB} and MIB not in after, "what has changed")
        slots = self.dump("superblock", data=data)["drives"][0]["copies"][0]["slots_off"]
        for victim in (0, 2, 4):
            blank(os.path.join(data, "drives", f"drive-{victim}"), slots)
        texts = [f["text"] for f in self.fsck("--deep", code=4, data=data)["findings"]
                 if f["kind"] == "volume-data"]
        check(any(f"volume {name}@s (and what shares it: {name}): blocks" in t for t in texts),
              "the words:", texts[:3])
        shutil.rmtree(data)

    def chunk_agrees(self, chunk, segments):
        row = self.dump("chunk", str(chunk))
        segment = self.dump("segment", str(row["segment"]))
        check(row["segment"] in segments, "a chunk in a segment that is not listed:", row)
        check(any(c["id"] == chunk and c["crc"] == row["crc"] and c["position"] == row["position"]
                  for s in segment["stripes"] if s["offset"] == row["offset"]
                  for c in s["chunks"]), "the segment does not say so of itself:", row)
        check(row["references"] >= 1, "a chunk without references:", row)

    def dumps_alone(self):
        """Superblock, journal and segments are dumped without the metadata directory."""
        data = self.copy("alone")
        before = {s["id"] for s in self.dump("segments")["segments"] if s["table"]}
        shutil.rmtree(os.path.join(data, "kv"))
        check(len(self.dump("superblock", data=data)["drives"]) == 6, "superblocks")
        check("records" in self.dump("journal", data=data), "journal")
        alone = {s["id"] for s in self.dump("segments", data=data)["segments"]}
        check(before and before <= alone, "segments of the table that are not found alone:",
              before - alone)
        segment = self.dump("segment", str(min(before)), data=data)
        check(segment["stripes"], "a segment without stripes:", segment)
        done = self.dump("instance", self.contents.instances[0].uid, ok=False, data=data)
        check(done.returncode != 0 and "metadata" in done.stderr, "without metadata:", done.stderr)
        check(not os.path.exists(os.path.join(data, "kv")), "the tools made a metadata directory")
        done = run(FSCK, "--data", data, "--config", self.config, ok=False)
        check(done.returncode == 8 and "no metadata" in done.stderr, "fsck:", done.stderr)
        shutil.rmtree(data)

    def text(self):
        """Text is for people, and bad command lines get a clear error."""
        base = ["--data", self.data, "--config", self.config]
        segment = self.dump("segments")["segments"][0]["id"]
        for words in (["superblock"], ["journal"], ["segments"], ["segment", segment], ["scrub"],
                      ["buckets"], ["instance", self.contents.instances[0].uid],
                      ["volume", self.contents.volume, "0-1M"]):
            same_as_text(run(DUMP, *base, *words).stdout, self.dump(*words))
        for words, why in (([], "missing"), (["nonsense"], "nonsense"), (["chunk"], "missing"),
                           (["chunk", "x"], "number"), (["journal", "x"], "too many"),
                           (["superblock", "6"], "there are 6"),
                           (["volume", self.contents.volume, "1M-0"], "range")):
            done = run(DUMP, *base, *words, ok=False)
            check(done.returncode == 2 and why in done.stderr, words, "gave", done.returncode,
                  done.stderr)
        for words in (["chunk", "123456789"], ["segment", "123456789"], ["instance", "1.2.3"],
                      ["volume", "none"]):
            done = run(DUMP, *base, *words, ok=False)
            check(done.returncode == 1 and done.stderr, words, "gave", done.returncode, done.stderr)
        check(run(FSCK, *base, "--no-such", ok=False).returncode == 16, "an unknown option")
        done = run(FSCK, "--data", self.folder + "/none", ok=False)
        check(done.returncode == 8 and not os.path.exists(self.folder + "/none"),
              "fsck of nothing gave", done.returncode)


def blocks(volume):
    """Where each block of a dumped volume lies."""
    return {e["offset"] + i: (e["chunk"], e["chunk_offset"] + i)
            for e in volume["extents"] for i in range(0, e["length"], 4096)}


def poke(data, table, prefix, offset, value):
    run(POKE, os.path.join(data, "kv"), table, prefix, offset, value)


def spoil(path, slots, rng):
    """Flips bytes everywhere behind `slots` where the file has data; returns how many."""
    count = 0
    with open(path, "r+b") as f:
        f.seek(slots)
        f.write(b"\0")  # the first fragment's header
        end = f.seek(0, os.SEEK_END)
        at = slots
        while at < end:
            f.seek(at)
            piece = f.read(MIB)
            if any(piece):
                used = [i for i, b in enumerate(piece[:MIB // 2]) if b and i >= 4096] or [4096]
                where = rng.choice(used)
                f.seek(at + where)
                f.write(bytes([piece[where] ^ 0xff]))
                count += 1
            at += MIB
    check(count, "there was nothing to damage on", path)
    return count


def blank(path, slots):
    """Noise over everything behind `slots` where the file has data."""
    with open(path, "r+b") as f:
        end = f.seek(0, os.SEEK_END)
        for at in range(slots, end, MIB):
            f.seek(at)
            if any(f.read(MIB)):
                f.seek(at)
                f.write(random.Random(at).randbytes(min(MIB, end - at)))


def main():
    parser = argparse.ArgumentParser(description="filmroom-fsck and filmroom-dump")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    suite = Suite()
    built(FSCK, DUMP, POKE)
    with scratch() as folder:
        store = Store(folder, args.seed)
        try:
            for case in (store.live, store.killed, store.starts, store.mended, store.recipe,
                         store.damaged, store.lost, store.dumps, store.snapshots,
                         store.dumps_alone, store.text, store.starts):
                with suite.case(case.__doc__.split("\n")[0].rstrip(".")):
                    case()
        finally:
            store.daemon.kill()
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
