#!/usr/bin/python3
"""Memory is bounded: after many gigabytes of studies and disk blocks that never repeat, the
daemon's peak resident memory is under 1 GiB.

  memory.py [--gib N]    default 1; a campaign is 10
"""

import argparse
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


def main():
    parser = argparse.ArgumentParser(description="memory is bounded")
    parser.add_argument("--gib", type=float, default=1)
    args = parser.parse_args()
    suite = Suite()
    with scratch() as folder:
        with suite.case(f"under 1 GiB of memory after {args.gib:g} GiB of new data"):
            ingest(folder, args.gib)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
