#!/usr/bin/python3
"""What is stored twice costs almost nothing, and a full store refuses clearly, goes on reading, and
takes writes again once something was deleted. One whose metadata has no space waits for it."""

import contextlib
import errno
import os
import random
import sys
import threading
import time
import urllib.request

import dicom
import nbd
from contents import Contents
from harness import (DICOM_DATA, MIB, PHANTOM, Daemon, Failure, Skip, Suite, check, log, need,
                     phantom, run, scratch, store_with_dcmsend)


def make_image(folder):
    """An ext4 image with files in it, as a guest would have."""
    need("mkfs.ext4")
    image = os.path.join(folder, "disk.img")
    tree = os.path.join(folder, "tree")
    os.makedirs(tree)
    run("cp", "-a", "/usr/lib/python3/dist-packages", tree, ok=False)
    with open(os.path.join(tree, "noise"), "wb") as f:
        f.write(random.Random(1).randbytes(16 * MIB))
    run("mkfs.ext4", "-q", "-F", "-d", tree, image, "192M")
    return image


def grown_by(daemon, action):
    """How many stored bytes the action adds, once background work has settled."""
    daemon.wait_quiet()
    before = daemon.stored()
    action()
    daemon.wait_quiet()
    return daemon.stored() - before


def same_image_twice(folder):
    need("nbdcopy", "mkfs.ext4")
    image = make_image(folder)
    with Daemon(os.path.join(folder, "twice")) as daemon:
        for name in ("one", "two"):
            daemon.volume(name, os.path.getsize(image))

        def copy(name):
            run("nbdcopy", "--flush", image, daemon.nbd_uri(name), timeout=600)

        first = grown_by(daemon, lambda: copy("one"))
        second = grown_by(daemon, lambda: copy("two"))
        log(f"first {first / MIB:.1f} MiB, second {second / MIB:.2f} MiB")
        check(first > 4 * MIB, "the image cannot have taken only", first)
        check(second < 0.05 * first, f"the second copy cost {second} of {first} bytes")
        back = os.path.join(folder, "back.img")
        run("nbdcopy", daemon.nbd_uri("two"), back, timeout=600)
        run("cmp", image, back)


def study_twice(folder, files, name):
    need("dcmsend")
    with Daemon(os.path.join(folder, name)) as daemon:
        again = os.path.join(folder, name + "-again")
        run(PHANTOM, "--out", again, "--reheader", os.path.dirname(files[0]), "--patient", "OTHER",
            "--seed", 7)
        others = [os.path.join(again, f) for f in sorted(os.listdir(again))]
        raw = sum(map(os.path.getsize, files))
        first = grown_by(daemon, lambda: store_with_dcmsend(daemon, files))
        second = grown_by(daemon, lambda: store_with_dcmsend(daemon, others))
        log(f"{len(files)} slices, {raw / MIB:.1f} MiB: stored in {first / MIB:.1f} MiB, "
            f"again under other headers {second / MIB:.2f} MiB")
        check(second < 0.05 * first, f"the second study cost {second} of {first} bytes")
        check(first < raw / 1.8, f"{raw} bytes of CT took {first} bytes")
        check(daemon.status()["instances"] == 2 * len(files), "instances are missing")


def real_study_twice(folder):
    source = os.path.join(DICOM_DATA, "ct")
    if not os.path.isdir(source):
        raise Skip("real DICOM data (FILMROOM_DICOM_DATA)")
    study_twice(folder, [os.path.join(source, f) for f in sorted(os.listdir(source))], "real")


# ---- What status says --------------------------------------------------------------------------


def figures(folder):
    """Each figure of the space is what was written, also after a kill."""
    noise_bytes = random.Random(5).randbytes(32 * MIB)
    numbers = b"".join(i.to_bytes(64, "little") for i in range(16 * MIB // 64))  # packs well
    with Daemon(os.path.join(folder, "figures"), "--capacity", "1G") as daemon:
        def expect(logical, deduped):
            daemon.wait_quiet()
            told = daemon.status()
            space = told["capacity"]
            log({k: f"{v / MIB:.1f} MiB" for k, v in space.items()}, told["counters"])
            check(space["logical"] == logical * MIB, "logical bytes:", space)
            check(space["deduped"] == deduped * MIB, "after deduplication:", space)
            return space, told["counters"]

        for name in ("one", "two"):
            daemon.volume(name, 64 * MIB)
            with nbd.Nbd(daemon.nbd, name) as client:
                for at in range(0, 32 * MIB, MIB):
                    client.write(at, noise_bytes[at:at + MIB])
                for at in range(0, 16 * MIB if name == "one" else 0, MIB):
                    client.write(40 * MIB + at, numbers[at:at + MIB])
        space, counters = expect(80, 48)
        check(32 * MIB <= space["stored"] < 34 * MIB, "after compression:", space)
        # Whole segments of 4+2 slots of 4 MiB, of which the last ones are not full.
        check(0 <= space["physical"] - 1.5 * space["stored"] <= 2 * 24 * MIB, "on drives:", space)
        # All went to three mirrors of the journal or, encoded, to the drives.
        client, drives = counters["client_bytes"], counters["drive_bytes"]
        check(client == 80 * MIB, "bytes from clients:", counters)
        check(0.5 < drives / client < 5, "amplification:", counters)
        daemon.kill()
        daemon.start()
        again, counters = expect(80, 48)
        check(again["stored"] == space["stored"] and counters["client_bytes"] == 0,
              "after a kill:", again, counters)
        daemon.cli("volume", "delete", "two", "--force")
        expect(48, 48)
        daemon.cli("volume", "delete", "one", "--force")
        check(expect(0, 0)[0]["stored"] == 0, "of nothing something is stored")


# ---- Full --------------------------------------------------------------------------------------


def fill(daemon, volume, limit):
    """Writes noise until there is no space; returns what was acknowledged, {offset: seed}."""
    written = {}
    with nbd.Nbd(daemon.nbd, volume) as client:
        for offset in range(0, limit, MIB):
            try:
                client.write(offset, random.Random(offset).randbytes(MIB))
            except nbd.NbdError as e:
                check(e.errno == errno.ENOSPC, "a full store must answer ENOSPC, not", e)
                return written
            written[offset] = offset
    raise Failure(f"{limit} bytes of noise fitted")


def check_written(daemon, volume, written):
    with nbd.Nbd(daemon.nbd, volume) as client:
        for offset, seed in written.items():
            check(client.read(offset, MIB) == random.Random(seed).randbytes(MIB),
                  f"the full store reads other bytes at {offset}")


def noise_instance(base, number):
    """An instance with noise for pixels, so that it takes its full size."""
    uid = base.uid[:-6] + f"{100000 + number}"
    data = base.data.replace(base.uid.encode(), uid.encode())
    size = 512 * 512 * 2
    return uid, data[:-size] + random.Random(number).randbytes(size)


def refused_when_full(daemon, base):
    """Both DICOM doors say that there is no space, and say it within a bounded number of tries."""
    for number in range(200):
        uid, data = noise_instance(base, number)
        with dicom.Web(daemon.http) as web:
            status, stored, failed = web.stow(data)
        if uid not in stored:
            break
    else:
        raise Failure("200 instances of noise fitted in a full store")
    log(f"STOW: HTTP status {status}, reasons {failed}")
    check(status in (409, 503, 507), f"a full store answers STOW with {status}")
    if failed:
        check(all(0xA700 <= r <= 0xA7FF for r in failed.values()),
              "the reason should be A7xx:", failed)
    with dicom.Association(daemon.dicom, [(base.sop_class, dicom.EXPLICIT_LE)]) as a:
        for number in range(300, 500):
            uid, data = noise_instance(base, number)
            status = a.store(base.sop_class, uid, dicom.dataset_of(data))
            if status:
                break
        check(0xA700 <= status <= 0xA7FF, f"a full store answers C-STORE with {status:04x}")


def writes_work_again(daemon, volume, timeout=60):
    """Space comes back in the background after a deletion; bounded wait."""
    end = time.monotonic() + timeout
    while True:
        try:
            with nbd.Nbd(daemon.nbd, volume) as client:
                for offset in range(0, 16 * MIB, MIB):
                    client.write(offset, random.Random(offset + 1).randbytes(MIB))
            return
        except nbd.NbdError as e:
            if e.errno != errno.ENOSPC or time.monotonic() > end:
                raise
        time.sleep(1)


def full_store(folder):
    files = phantom(os.path.join(folder, "one"), slices=1, seed=5)
    base = dicom.Instance(files[0])
    with Daemon(os.path.join(folder, "full"), "--capacity", "256M") as daemon:
        kept = Contents(folder, seed=3, slices=6, volume_mib=8)
        kept.store(daemon)
        daemon.volume("filler", "4G")
        daemon.volume("later", "64M")
        written = fill(daemon, "filler", 2048 * MIB)
        log(f"{len(written)} MiB of noise fitted in 256 MiB")
        check(64 < len(written) < 512, "capacity and what fitted do not agree:", len(written))
        refused_when_full(daemon, base)
        check_written(daemon, "filler", written)
        kept.verify(daemon)
        daemon.restart()
        check_written(daemon, "filler", written)
        kept.verify(daemon)
        daemon.cli("volume", "delete", "filler", "--force")
        writes_work_again(daemon, "later")
        kept.verify(daemon)
        with dicom.Web(daemon.http) as web:
            uid, data = noise_instance(base, 900)
            status, stored, _ = web.stow(data)
            check(stored == [uid], f"after a deletion STOW still gives HTTP status {status}")


# ---- Nearly full -------------------------------------------------------------------------------

WRITERS = 4
DEPTH = 16  # writes under way, of each
BLOCK = 4096
OVERWRITTEN = 256 * MIB  # several times what room there is beside the data


def moved(daemon):
    """Bytes that compaction has moved since the start."""
    url = f"http://127.0.0.1:{daemon.ports['http']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    rows = [line.split() for line in text.splitlines()
            if line.startswith("filmroom_compaction_moved_bytes_total")]
    check(rows, "no metric of what compaction moves")
    return sum(float(value) for _, value in rows)


def noise(seed):
    return random.Random(seed).randbytes(BLOCK)


def overwrite(daemon, count, amount, number, result):
    """Writes over blocks that no other writer has; result[number]: {block: seed} or an error."""
    rng = random.Random(number)
    blocks = {}
    try:
        with nbd.Nbd(daemon.nbd, "busy") as client:
            for _ in range(amount // BLOCK // DEPTH):
                some = {rng.randrange(count // WRITERS) * WRITERS + number: rng.getrandbits(32)
                        for _ in range(DEPTH)}
                for block, seed in some.items():
                    client.send(nbd.CMD_WRITE, block * BLOCK, BLOCK, noise(seed))
                for _ in some:
                    error = client.reply()[1]
                    if error:
                        raise nbd.NbdError(error, os.strerror(error))
                blocks.update(some)
        result[number] = blocks
    except (OSError, nbd.NbdError) as e:
        result[number] = e


def nearly_full(folder):
    """Overwriting needs no new space in the end, but lives from compaction: it may wait, and is
    not refused. What is overwritten is more than the spare room, so only compaction can make it."""
    capacity = 256 * MIB
    size = 243 * MIB
    with Daemon(os.path.join(folder, "busy"), "--capacity", capacity) as daemon:
        daemon.volume("busy", size)
        with nbd.Nbd(daemon.nbd, "busy") as client:
            for offset in range(0, size, MIB):
                client.write(offset, random.Random(offset).randbytes(MIB))
        space, before = daemon.status()["capacity"], moved(daemon)
        spare = space["limit"] - space["stored"]
        check(2 * spare < OVERWRITTEN, "the store is not nearly full:", space)
        result, start = {}, time.monotonic()
        threads = [threading.Thread(target=overwrite,
                                    args=(daemon, size // BLOCK, OVERWRITTEN // WRITERS, n, result))
                   for n in range(WRITERS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for n in range(WRITERS):
            check(isinstance(result[n], dict), "a writer at a store 95% full:", result[n])
        log(f"{OVERWRITTEN >> 20} MiB overwritten in {time.monotonic() - start:.1f} s beside "
            f"{spare / MIB:.0f} MiB of room; {(moved(daemon) - before) / MIB:.0f} MiB moved")
        # Live data is spread evenly over the segments: to empty one most of it must be moved.
        check(moved(daemon) - before > OVERWRITTEN - spare, "compaction moved only",
              moved(daemon) - before)
        daemon.restart()
        with nbd.Nbd(daemon.nbd, "busy") as client:
            seeds = {block: seed for blocks in result.values() for block, seed in blocks.items()}
            for offset in range(0, size, MIB):
                got, old = client.read(offset, MIB), random.Random(offset).randbytes(MIB)
                for at in range(0, MIB, BLOCK):
                    seed = seeds.get((offset + at) // BLOCK)
                    check(got[at:at + BLOCK] == (old[at:at + BLOCK] if seed is None
                                                 else noise(seed)),
                          f"the block at {offset + at} is not what was written there last")


# ---- No space for the metadata -----------------------------------------------------------------

AREA = 128 * MIB


@contextlib.contextmanager
def small_file_system(path, size):
    """A file system of this size at path."""
    os.makedirs(path)
    if os.geteuid() != 0 or run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs",
                                path, ok=False).returncode != 0:
        raise Skip("root, and leave to mount a tmpfs")
    try:
        yield
    finally:
        run("umount", "-l", path)


class Scribbler(threading.Thread):
    """Writes small blocks of noise all over a volume, until told to end."""

    def __init__(self, daemon, volume):
        super().__init__(daemon=True)
        self.daemon_, self.volume = daemon, volume
        self.blocks, self.error, self.ending = {}, None, False

    def run(self):
        rng = random.Random(self.volume)
        try:
            with nbd.Nbd(self.daemon_.nbd, self.volume, timeout=120) as client:
                while not self.ending:
                    some = {rng.randrange(AREA // BLOCK): rng.getrandbits(32)
                            for _ in range(DEPTH)}
                    for block, seed in some.items():
                        client.send(nbd.CMD_WRITE, block * BLOCK, BLOCK, noise(seed))
                    for _ in some:
                        error = client.reply()[1]
                        check(not error, "a write was refused:", os.strerror(error))
                    self.blocks.update(some)
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def verify(self):
        with nbd.Nbd(self.daemon_.nbd, self.volume) as client:
            for block, seed in self.blocks.items():
                check(client.read(block * BLOCK, BLOCK) == noise(seed),
                      f"block {block} is not what was written there last")


def await_line(daemon, writer, line, timeout):
    end = time.monotonic() + timeout
    while line not in daemon.log_text():
        check(not writer.error, "the writer:", writer.error)
        check(time.monotonic() < end, f"not logged in {timeout} s: {line}")
        time.sleep(0.2)


def metadata_without_space(folder):
    """The file system of kv/ is full for a while: writes wait, reads go on, nothing is lost."""
    data = os.path.join(folder, "narrow")
    kv = os.path.join(data, "kv")
    with small_file_system(kv, 256 * MIB), Daemon(data, "--capacity", "2G") as daemon:
        daemon.volume("busy", AREA)
        writer = Scribbler(daemon, "busy")
        kept = Contents(folder, seed=4, slices=4, volume_mib=4)
        kept.store(daemon)
        filler = os.path.join(kv, "filler")
        with open(filler, "wb") as f:
            with contextlib.suppress(OSError):
                while True:
                    f.write(bytes(MIB))
                    f.flush()
        writer.start()
        await_line(daemon, writer, "no space for the metadata", 240)
        kept.verify(daemon)
        time.sleep(5)
        before = len(writer.blocks)
        os.unlink(filler)
        await_line(daemon, writer, "there is space for the metadata again", 60)
        time.sleep(2)
        writer.ending = True
        writer.join(60)
        check(not writer.is_alive() and not writer.error, "the writer:", writer.error)
        log(f"{before} blocks written before there was space again, {len(writer.blocks)} in all")
        writer.verify()
        daemon.volume("later", MIB)
        daemon.restart()
        writer.verify()
        kept.verify(daemon)
        check("writes stopped" not in daemon.log_text(), "the daemon stopped writes")


def large_store(folder):
    """Thirty tebibytes, empty: neither memory nor the start may grow with that."""
    data = os.path.join(folder, "large")
    try:
        with open(data + ".probe", "wb") as f:
            os.truncate(f.fileno(), 8 << 40)
        os.unlink(data + ".probe")
    except OSError as e:
        raise Skip("a file system with sparse files of 8 TiB") from e
    with Daemon(data, "--capacity", "30T") as daemon:
        daemon.volume("v", "1T")
        with nbd.Nbd(daemon.nbd, "v") as c:
            for at in range(0, 1 << 40, 1 << 34):
                c.write(at, b"x" * 4096)
            c.flush()
        daemon.restart()
        start = daemon.status()["start"]["milliseconds"]
        check(daemon.status()["capacity"]["limit"] >= 30 << 40, "the capacity is less")
        check(daemon.rss() < 200 * MIB, "memory:", daemon.rss())
        log(f"started in {start} ms, {daemon.rss() >> 20} MiB of memory")
        with nbd.Nbd(daemon.nbd, "v") as c:
            check(c.read(5 << 34, 4096) == b"x" * 4096, "a block is not what was written")


def main():
    suite = Suite()
    with scratch() as folder:
        with suite.case("the same disk image in a second volume costs under 5 %"):
            same_image_twice(folder)
        with suite.case("the same study under other headers costs under 5 %"):
            study_twice(folder, phantom(os.path.join(folder, "ct"), slices=40), "phantom")
        with suite.case("a real study under other headers costs under 5 %"):
            real_study_twice(folder)
        with suite.case("status says what was written, what it takes, and what it cost"):
            figures(folder)
        with suite.case("a full store refuses clearly, reads on, and recovers by deletion"):
            full_store(folder)
        with suite.case("a store that is 95% full takes overwrites without end"):
            nearly_full(folder)
        with suite.case("without space for the metadata writes wait, and go on"):
            metadata_without_space(folder)
        with suite.case("a large store costs no more to start than a small one"):
            large_store(folder)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
