#!/usr/bin/python3
"""Memory is bounded: after many gigabytes of studies and disk blocks that never repeat, the
daemon's peak resident memory is under 1 GiB. Nor do clients take it that search and do not read.

  memory.py [--gib N]    default 1; a campaign is 10
"""

import argparse
import http.client
import json
import os
import random
import sys
import threading

import dicom
import nbd
from harness import GIB, KIB, MIB, Daemon, Suite, check, log, phantom, scratch

LIMIT = GIB


def peak(daemon):
    with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    return 0


def send_studies(addr, bases, size, seed, errors):
    """Instances whose pixels are those of a phantom, shifted: they compress as usual and never
    repeat."""
    rng = random.Random(seed)
    try:
        with dicom.Association(addr, [(bases[0].sop_class, dicom.EXPLICIT_LE)]) as a:
            sent = 0
            while sent < size:
                base = rng.choice(bases)
                digits = len(base.uid) - 5
                uid = "2.25." + str(rng.randrange(10 ** (digits - 1), 10 ** digits))
                head = base.dataset[:-512 * 512 * 2].replace(base.uid.encode(), uid.encode())
                pixels = base.dataset[-512 * 512 * 2:]
                shift = 2 * rng.randrange(512 * 512)
                status = a.store(base.sop_class, uid, head + pixels[shift:] + pixels[:shift])
                check(status == 0, f"C-STORE gave status {status:04x}")
                sent += len(base.dataset)
    except Exception as e:  # pylint: disable=broad-except
        errors.append(e)


def write_blocks(addr, volume, first, size, seed, errors):
    rng = random.Random(seed)
    try:
        with nbd.Nbd(addr, volume) as client:
            for offset in range(first, first + size, MIB):
                client.write(offset, rng.randbytes(MIB // 2) + rng.randbytes(16) * (MIB // 32))
    except Exception as e:  # pylint: disable=broad-except
        errors.append(e)


def ingest(folder, gib):
    total = int(gib * GIB)
    bases = [dicom.Instance(f) for f in phantom(os.path.join(folder, "ct"), slices=24)]
    with Daemon(os.path.join(folder, "data"), "--capacity", str(2 * total + 4 * GIB)) as daemon:
        daemon.volume("blocks", (total // 2 + GIB) // MIB * MIB)
        errors = []
        share = total // 4 // MIB * MIB
        threads = []
        for i in range(2):
            threads.append(threading.Thread(
                target=send_studies, args=(daemon.dicom, bases, share, i, errors)))
            threads.append(threading.Thread(
                target=write_blocks, args=(daemon.nbd, "blocks", i * share, share, i, errors)))
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        check(not errors, "a client failed:", errors)
        daemon.check_alive()
        rows = daemon.status()
        log(f"{rows['instances']} instances, peak {peak(daemon) / MIB:.0f} MiB, now "
            f"{daemon.rss() / MIB:.0f} MiB, capacity {rows['capacity']}")
        check(peak(daemon) < LIMIT, f"the peak of {peak(daemon)} bytes is over {LIMIT}")
        with dicom.Web(daemon.http) as web:  # reading a lot at once is bounded too
            check(len(web.all_instances()) == rows["instances"], "instances are missing in QIDO")
        check(peak(daemon) < LIMIT, f"listing took the peak to {peak(daemon)} bytes")


def store_small(addr, base, first, count, errors):
    """Instances without pixels."""
    head = base.dataset[:base.dataset.rindex(b"\xe0\x7f\x10\x00")]
    digits = len(base.uid) - 5
    try:
        with dicom.Association(addr, [(base.sop_class, dicom.EXPLICIT_LE)]) as a:
            for i in range(first, first + count):
                uid = "2.25." + str(10 ** (digits - 1) + i)
                status = a.store(base.sop_class, uid, head.replace(base.uid.encode(), uid.encode()))
                check(status == 0, f"C-STORE gave status {status:04x}")
    except Exception as e:  # pylint: disable=broad-except
        errors.append(e)


def slow_readers(folder):
    """Clients that search and do not read the answer: they keep pages of it in memory. Another one
    gets all of it, and is told that there are more rows than an answer holds."""
    share, limit, readers = 2600, 10000, []
    base = dicom.Instance(phantom(os.path.join(folder, "one"), slices=1)[0])
    with Daemon(os.path.join(folder, "rows")) as daemon:
        errors = []
        threads = [threading.Thread(target=store_small,
                                    args=(daemon.dicom, base, i * share, share, errors))
                   for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        check(not errors, "a client failed:", errors)
        before = daemon.rss()
        try:
            for _ in range(40):
                readers.append(http.client.HTTPConnection(*daemon.http, timeout=60))
                readers[-1].request("GET", "/dicom-web/instances")
            for reader in readers:
                check(reader.sock.recv(12) == b"HTTP/1.1 200", "a search failed")
            grown = daemon.rss() - before
            with dicom.Web(daemon.http) as web:
                _, headers, data = web.call("GET", "/instances")
                check("exceeded" in (headers["Warning"] or ""), "no warning:", headers)
                rows = json.loads(data)
                check(len(rows) == limit, f"{len(rows)} rows beside clients that do not read")
                _, headers, data = web.call("GET", f"/instances?offset={limit}")
                check("Warning" not in headers, "a warning with the last rows:", headers)
                rows += json.loads(data)
            uids = {row["00080018"]["Value"][0] for row in rows}
            check(len(rows) == len(uids) == 4 * share, f"{len(uids)} UIDs in {len(rows)} rows")
        finally:
            for reader in readers:
                reader.close()
        log(f"{grown / MIB:.0f} MiB for {len(readers)} answers of {limit} rows")
        check(grown < 256 * MIB, f"answers that are not read hold {grown / MIB:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description="memory is bounded")
    parser.add_argument("--gib", type=float, default=1)
    args = parser.parse_args()
    suite = Suite()
    with scratch() as folder:
        with suite.case(f"under 1 GiB of memory after {args.gib:g} GiB of new data"):
            ingest(folder, args.gib)
        with suite.case("clients that do not read what they searched for"):
            slow_readers(folder)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
