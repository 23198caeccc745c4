#!/usr/bin/python3
"""Success means safe: kill -9 at random moments while instances and blocks come in from all sides,
and after each restart everything that was acknowledged is there and exact, and nothing else shows.

An instance that was sent and not acknowledged may be there whole or not at all. A block must hold a
write that may be the last one there (blockmodel.py). Some restarts are killed too. After each kill
filmroom-fsck finds nothing: in half of the rounds before the restart, so that it replays the
journal, in the others after one more kill, so that the daemon's own recovery is looked at.

All the while an administrator keeps the background work busy: takes and deletes snapshots, puts and
removes objects, has everything scrubbed, adds drives and removes them. Now and then a study is
deleted; what was acknowledged as gone stays gone. What a snapshot showed once it shows for ever,
and an object has the bytes of the last put that was acknowledged, or of the one that was killed.

A daemon that hangs keeps all its promises; so just before each kill every door must answer within
seconds, and in the end each kind of request and order must have been carried out often enough, and
in many rounds background work of each kind must have been done. No start replays more than the
journal's size.

  kill9.py [--rounds N] [--seed S]    default 6 rounds (2 on slow builds); a campaign is 200
"""

import argparse
import collections
import hashlib
import http.client
import json
import os
import random
import sys
import threading
import time

import blockmodel
import dicom
import nbd
from admin import ask
from harness import (CLI, MIB, SHORT, Daemon, Failure, Suite, check, fsck, log, phantom, run,
                     scratch)

# A small journal and cache: the journal wraps, and reads come from the drives.
JOURNAL = 16 * MIB
CONFIG = f"[store]\njournal_size = {JOURNAL}\n" \
         "cache_size = 16M\nscrub_rate = 1T\nrebuild_after = 1\n"
REGION = 8 * MIB // blockmodel.SECTOR
PROBE = 62 * MIB  # where no writer writes
DRIVES_MIN, DRIVES_MAX = 6, 8  # what the profile needs; what the administrator goes up to
ANSWER = 20 if SHORT else 5  # seconds within which every door has to answer under load
# What tells of work in the background.
BACKGROUND = {"checkpoints": "filmroom_checkpoint_seconds_count",
              "compaction": "filmroom_compaction_moved_bytes_total",
              "segments freed": "filmroom_segments_freed_total",
              "moves between drives": "filmroom_rehomed_bytes_total",
              "scrub": "filmroom_drive_scrubbed_bytes_total",
              "metadata's copy": "filmroom_metadata_copy_written_bytes_total",
              "drain": "filmroom_drain_blocks_total"}


class Instances:
    """Everything that was ever sent: what it was, and whether it was acknowledged."""

    def __init__(self, files):
        self.bases = [dicom.Instance(f) for f in files]
        self.lock = threading.Lock()
        # UID -> [digest of the data set, of the Part 10 stream or None, acked, (study, series)]
        self.sent = {}

    def fresh(self, rng):
        """An instance that was never sent: (uid, base, data set, Part 10 stream)."""
        base = rng.choice(self.bases)
        digits = len(base.uid) - 5
        uid = "2.25." + str(rng.randrange(10 ** (digits - 1), 10 ** digits))
        part10 = bytearray(base.data.replace(base.uid.encode(), uid.encode()))
        if rng.random() < 0.7:  # the others are the same pixels again
            at = rng.randrange(base.dataset_off + 4096, len(part10) - 2048)
            part10[at:at + 2048] = rng.randbytes(2048)
        part10 = bytes(part10)
        return uid, base, part10[base.dataset_off:], part10

    def note_sent(self, uid, base, dataset, part10):
        with self.lock:
            self.sent[uid] = [hashlib.sha256(dataset).digest(),
                              hashlib.sha256(part10).digest() if part10 else None, False,
                              (base.study, base.series)]

    def note_acked(self, uid):
        with self.lock:
            self.sent[uid][2] = True


class Sender(threading.Thread):
    """Sends instances over one connection until it breaks; C-STORE or STOW."""

    def __init__(self, daemon, instances, seed, stop, how):
        super().__init__(daemon=True)
        self.instances, self.stop_event, self.how = instances, stop, how
        self.addr = daemon.dicom if how == "C-STORE" else daemon.http
        self.random = random.Random(seed)
        self.error = None
        self.acks = 0

    def run(self):
        try:
            if self.how == "C-STORE":
                self.run_store()
            else:
                self.run_stow()
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def run_store(self):
        classes = {b.sop_class for b in self.instances.bases}
        with dicom.Association(self.addr, [(c, dicom.EXPLICIT_LE) for c in classes]) as a:
            while not self.stop_event.is_set():
                uid, base, dataset, _ = self.instances.fresh(self.random)
                self.instances.note_sent(uid, base, dataset, None)
                status = a.store(base.sop_class, uid, dataset)
                check(status == 0, f"C-STORE gave status {status:04x}")
                self.instances.note_acked(uid)
                self.acks += 1

    def run_stow(self):
        with dicom.Web(self.addr) as web:
            while not self.stop_event.is_set():
                count = self.random.randint(1, 4)
                batch = [self.instances.fresh(self.random) for _ in range(count)]
                for uid, base, dataset, part10 in batch:
                    self.instances.note_sent(uid, base, dataset, part10)
                status, stored, failed = web.stow(*(part10 for _, _, _, part10 in batch))
                check(status == 200 and not failed, f"STOW gave HTTP status {status}", failed)
                check(sorted(stored) == sorted(uid for uid, _, _, _ in batch),
                      "STOW acknowledged other instances than were sent")
                for uid in stored:
                    self.instances.note_acked(uid)
                self.acks += len(stored)


class Known:
    """What snapshots and objects must hold. An order that was killed leaves more than one answer;
    what is found after the restart is the only one from then on."""

    def __init__(self):
        self.snapshots = {}  # (volume, name) -> [(offset, digest of PIECE bytes)]
        self.objects = {}    # name -> digests it may have; None: absent

    PIECE = 512 * 1024

    def look(self, daemon, volume, name, rng, timeout=60):
        """Takes down what a snapshot shows in some places of where the writers write."""
        with nbd.Nbd(daemon.nbd, f"{volume}@{name}", timeout) as client:
            pieces = [rng.randrange(8 * MIB // self.PIECE) * self.PIECE for _ in range(3)]
            self.snapshots[volume, name] = [
                (at, hashlib.sha256(client.read(at, self.PIECE)).digest()) for at in pieces]

    def verify(self, daemon, volumes, rng):
        """Returns how many snapshots and objects were there."""
        there = set()
        for volume in volumes:
            for row in daemon.cli_json("volume", "snapshots", volume)["snapshots"]:
                there.add(tuple(row["name"].split("@")))
        lost = set(self.snapshots) - there
        check(not lost, "snapshots are gone:", lost)
        for volume, name in sorted(there):
            with nbd.Nbd(daemon.nbd, f"{volume}@{name}") as client:
                for at, digest in self.snapshots.get((volume, name), []):
                    got = hashlib.sha256(client.read(at, self.PIECE)).digest()
                    check(got == digest, f"{volume}@{name} has changed at {at}")
            if (volume, name) not in self.snapshots:
                self.look(daemon, volume, name, rng)
        for name, may in self.objects.items():
            status, _, body = ask(daemon, "GET", f"/v1/buckets/b/objects/{name}")
            got = hashlib.sha256(body).digest() if status == 200 else None
            check(status in (200, 404) and got in may, f"object {name}: HTTP status {status},",
                  len(body), "bytes; it must be one of", len(may), "others")
            self.objects[name] = {got}
        return len(there), sum(may != {None} for may in self.objects.values())


class Administrator(threading.Thread):
    """Gives orders of all kinds, one after the other, until the daemon is gone. Which of them are
    carried out depends on what there is: `done` counts those, by kind."""

    ORDERS = ("snapshot", "snapshot", "snapshot_delete", "put", "put", "remove", "scrub",
              "drive_add", "drive_remove")

    def __init__(self, daemon, seed, stop, known):
        super().__init__(daemon=True)
        self.daemon_, self.stop_event, self.known = daemon, stop, known
        self.random = random.Random(seed)
        self.error = None
        self.done = collections.Counter()

    def run(self):
        try:
            while not self.stop_event.is_set():
                kind = self.random.choice(self.ORDERS)
                if getattr(self, kind)():
                    self.done[kind] += 1
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def order(self, *argv, stdin=b""):
        """True when it was carried out."""
        done = run(CLI, "--data", self.daemon_.data, *argv, ok=False, stdin=stdin)
        check(done.returncode >= 0, "the command died:", done.stderr)
        return done.returncode == 0

    def name(self):
        return f"n{self.random.randrange(6)}"

    def snapshot(self):
        name = self.name()
        if not self.order("volume", "snapshot", "sure,cached", name):
            return False
        for volume in ("sure", "cached"):
            self.known.snapshots[volume, name] = []  # it must be there from now on
        try:
            self.known.look(self.daemon_, self.random.choice(["sure", "cached"]), name,
                            self.random)
        except ConnectionError:
            pass  # the kill
        return True

    def snapshot_delete(self):
        volume, name = self.random.choice(["sure", "cached"]), self.name()
        self.known.snapshots.pop((volume, name), None)
        return self.order("volume", "snapshot-delete", volume, name, "--force")

    def put(self):
        name, data = self.name(), self.random.randbytes(self.random.randrange(300000))
        digest = hashlib.sha256(data).digest()
        self.known.objects[name] = self.known.objects.get(name, {None}) | {digest}
        if not self.order("object", "put", f"b/{name}", stdin=data):
            return False
        self.known.objects[name] = {digest}
        return True

    def remove(self):
        name = self.name()
        self.known.objects[name] = self.known.objects.get(name, {None}) | {None}
        if not self.order("object", "rm", f"b/{name}", "--force"):
            return False
        self.known.objects[name] = {None}
        return True

    def scrub(self):
        return self.order("scrub", self.random.choice(["start", "start", "stop"]))

    def drives(self):
        """Those there are, or none when the daemon is gone."""
        try:
            status, _, body = ask(self.daemon_, "GET", "/v1/drives")
        except (OSError, http.client.HTTPException):
            return []
        return json.loads(body)["drives"] if status == 200 else []

    def drive_add(self):
        """The place of one that has left may be taken again."""
        rows = self.drives()
        paths = {os.path.join(self.daemon_.data, f"extra-{i}") for i in range(DRIVES_MAX)}
        free = sorted(paths - {row["path"] for row in rows})
        return 0 < len(rows) < DRIVES_MAX and self.order(
            "drive", "add", self.random.choice(free), "--size", "512M", "--force")

    def drive_remove(self):
        rows = [row for row in self.drives() if not row["leaving"]]
        return len(rows) > DRIVES_MIN and self.order(
            "drive", "remove", str(self.random.choice(rows)["index"]))


class Rounds:
    def __init__(self, folder, seed):
        self.random = random.Random(seed)
        self.instances = Instances(
            phantom(os.path.join(folder, "ct"), slices=8, seed=seed)
            + phantom(os.path.join(folder, "mr"), slices=8, rows=192, cols=192, modality="MR",
                      seed=seed))
        self.daemon = Daemon(os.path.join(folder, "data"), config=CONFIG)
        self.volumes = {}
        self.verified = set()
        self.known = Known()
        self.count = 0
        self.total = collections.Counter()  # acknowledged: requests and orders by kind
        self.background = collections.Counter()

    def prepare(self):
        self.daemon.start()
        self.daemon.cli("bucket", "create", "b")
        for name, durability in (("sure", "every-write"), ("cached", "on-flush")):
            self.daemon.cli("volume", "create", name, "64M", "--durability", durability)
            self.volumes[name] = [
                blockmodel.BlockModel(i * REGION, REGION, durability == "every-write",
                                      tag=i + 1 if name == "sure" else 9)
                for i in range(3 if name == "sure" else 1)]

    def workers(self, stop):
        seed = self.random.random
        for name, models in self.volumes.items():
            for model in models:
                yield blockmodel.BlockWriter(self.daemon.nbd, name, model, seed(), stop)
        for how in ("C-STORE", "C-STORE", "STOW"):
            yield Sender(self.daemon, self.instances, seed(), stop, how)
        yield Administrator(self.daemon, seed(), stop, self.known)

    def round(self):
        stop = threading.Event()
        workers = list(self.workers(stop))
        for worker in workers:
            worker.start()
        time.sleep(self.random.uniform(0.2, 2.5))
        self.probe()
        self.look_back()
        early = [w.error for w in workers if w.error]
        self.daemon.check_alive()
        check(not early, "a client failed before the kill:", early)
        self.daemon.kill()
        stop.set()
        for worker in workers:
            worker.join(30)
            check(not worker.is_alive(), "a client did not notice the kill")
            if isinstance(worker.error, (Failure, nbd.NbdError)):
                raise worker.error
        acked = self.acknowledged(workers)
        self.total += acked
        self.count += 1
        while self.random.random() < 0.3:
            self.kill_in_recovery()
        fsck_first = self.random.random() < 0.5
        if fsck_first:
            self.fsck()
        start = time.monotonic()
        self.daemon.start()
        took = time.monotonic() - start
        replayed = self.daemon.cli_json("status")["start"]["replayed_bytes"]
        check(replayed <= JOURNAL, f"{replayed} bytes were replayed")
        listed = self.verify()
        snapshots, objects = self.known.verify(self.daemon, self.volumes, self.random)
        if not fsck_first:
            self.daemon.kill()
            self.fsck()
            self.daemon.start()
        log(f"acknowledged: {', '.join(f'{n} {kind}' for kind, n in sorted(acked.items()))}")
        log(f"back after {took:.2f} s; {listed} instances, {snapshots} snapshots, {objects} "
            "objects, all exact")
        if listed > 1500:
            self.delete_study()

    def probe(self):
        """Every door answers, and in time."""
        def within(what, fn):
            start = time.monotonic()
            try:
                fn()
            except TimeoutError as e:
                raise Failure(f"{what}: no answer within {ANSWER} s") from e
            took = time.monotonic() - start
            check(took < ANSWER, f"{what} took {took:.1f} s")

        def block():
            with nbd.Nbd(self.daemon.nbd, "sure", ANSWER) as client:
                data = self.random.randbytes(4096)
                client.write(PROBE, data)
                client.flush()
                check(client.read(PROBE, 4096) == data, "a probe reads back other bytes")

        def query():
            with dicom.Web(self.daemon.http, timeout=ANSWER) as web:
                web.qido("/studies?limit=1")

        self.daemon.check_alive()
        within("NBD", block)
        within("C-ECHO", lambda: check(dicom.echo(self.daemon.dicom, timeout=ANSWER) == 0,
                                       "C-ECHO failed"))
        within("QIDO", query)
        within("status", lambda: check(
            ask(self.daemon, "GET", "/v1/status", timeout=ANSWER)[0] == 200, "no status"))

    def look_back(self):
        """Counts the rounds in which work of each kind was done in the background."""
        status, _, body = ask(self.daemon, "GET", "/metrics", timeout=ANSWER)
        check(status == 200, "no metrics")
        sums = collections.Counter()
        for line in body.decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                sums[name.split("{")[0]] += float(value)
        for kind, name in BACKGROUND.items():
            self.background[kind] += sums[name] > 0

    def acknowledged(self, workers):
        total = collections.Counter()
        for w in workers:
            if isinstance(w, blockmodel.BlockWriter):
                total[f"blocks of {w.export}"] += w.acks
            elif isinstance(w, Sender):
                total[w.how] += w.acks
            else:
                total += w.done
        return total

    def check_total(self):
        """Work of every kind was done: a few of each where there was time for it."""
        log("in all:", dict(self.total))
        for kind, each in (("blocks of sure", 20), ("blocks of cached", 20), ("C-STORE", 3),
                           ("STOW", 2)):
            check(self.total[kind] >= (1 if SHORT else each * self.count), f"{kind}: only "
                  f"{self.total[kind]} were acknowledged in {self.count} rounds")
        orders = sorted(set(Administrator.ORDERS))
        check(sum(self.total[k] for k in orders) >= (1 if SHORT else self.count),
              "only few orders were carried out:", dict(self.total))
        log("rounds with work in the background:", dict(self.background))
        for kind in BACKGROUND if self.count >= 20 else []:
            check(self.background[kind] >= self.count // 10,
                  f"{kind}: at work in {self.background[kind]} of {self.count} rounds")
        for kind in orders if self.count >= 20 else ["put"] if self.count >= 6 else []:
            check(self.total[kind] >= max(self.count // 20, 1),
                  f"{kind}: {self.total[kind]} carried out in {self.count} rounds")

    def delete_study(self):
        """One of the two; what comes in later is new."""
        study = self.random.choice(self.instances.bases).study
        self.daemon.cli("study", "delete", study, "--force")
        gone = [uid for uid, row in self.instances.sent.items() if row[3][0] == study]
        for uid in gone:
            del self.instances.sent[uid]
            self.verified.discard(uid)

    def fsck(self):
        told = fsck(self.daemon.data, self.daemon.data + ".conf", "--deep")
        check(not told["findings"], "fsck found something:", told["findings"][:5])
        log(f"fsck: {told['checked']['chunks']} chunks, {told['checked']['stripes']} stripes, "
            f"{told['replayed_records']} records replayed: clean")

    def kill_in_recovery(self):
        """A start that is killed before, or just after, it is ready."""
        self.daemon.ready_timeout = self.random.uniform(0.0, 0.4)
        try:
            self.daemon.start(expect_ready=False)
            self.daemon.kill()
        finally:
            self.daemon.ready_timeout = 60

    def verify(self, everything=False):
        for name, models in self.volumes.items():
            with nbd.Nbd(self.daemon.nbd, name) as client:
                for model in models:
                    model.verify(client)
        with dicom.Web(self.daemon.http) as web:
            listed = web.all_instances()
            self.verify_list(listed)
            for study, series, uid in listed:
                # What was exact before is looked at again now and then, and all of it at the end.
                if everything or uid not in self.verified or self.random.random() < 0.1:
                    self.verify_instance(web, study, series, uid)
        return len(listed)

    def verify_list(self, listed):
        names = [uid for _, _, uid in listed]
        check(len(set(names)) == len(names), "an instance is listed twice")
        lost = [uid for uid, row in self.instances.sent.items() if row[2] and uid not in set(names)]
        check(not lost, f"{len(lost)} acknowledged instances are gone, one is", lost[:1])
        strange = set(names) - set(self.instances.sent)
        check(not strange, "instances that nobody sent:", strange)

    def verify_instance(self, web, study, series, uid):
        dataset_digest, part10_digest, _, place = self.instances.sent[uid]
        check((study, series) == place, f"instance {uid} is listed in another series")
        part10 = web.instance(study, series, uid)
        dataset = hashlib.sha256(dicom.dataset_of(part10)).digest()
        check(dataset == dataset_digest, f"instance {uid} reads back with other bytes")
        if part10_digest:
            check(hashlib.sha256(part10).digest() == part10_digest,
                  f"instance {uid} has another head than the one sent")
        self.instances.note_acked(uid)  # once seen, it must stay
        self.verified.add(uid)


def main():
    parser = argparse.ArgumentParser(description="kill -9 while data comes in from all sides")
    parser.add_argument("--rounds", type=int, default=2 if SHORT else 6)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    suite = Suite()
    with scratch() as folder:
        rounds = []
        with suite.case("a daemon with volumes starts"):
            rounds.append(Rounds(folder, args.seed))
            rounds[0].prepare()
        for r in rounds:
            try:
                run_rounds(suite, r, args.rounds)
            finally:
                r.daemon.kill()
    return suite.finish()


def run_rounds(suite, rounds, count):
    for i in range(count):
        if not suite.failed:
            with suite.case(f"round {i + 1}: what was acknowledged is there and exact"):
                rounds.round()
    if not suite.failed:
        with suite.case("everything, after a clean stop and start"):
            rounds.daemon.restart()
            rounds.verify(everything=True)
            rounds.known.verify(rounds.daemon, rounds.volumes, rounds.random)
            rounds.daemon.stop()
    if not suite.failed and count:
        with suite.case("requests and orders of every kind were carried out"):
            rounds.check_total()
    if suite.failed:
        print(rounds.daemon.log_tail())


if __name__ == "__main__":
    sys.exit(main())
