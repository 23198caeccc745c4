#!/usr/bin/python3
"""What a large store costs: a million small instances, and a volume of a tebibyte.

Sends small instances (STOW-RS, several clients), writes a piece into every part of a large thin
volume, most of it the same data again, and then states what an administrator notices: how fast it
went, the daemon's memory, how long a clean start and one after kill -9 take, and how long lists and
queries take, at several sizes on the way, so that what grows with the store's size is seen.

  scale.py [--instances 1000000] [--volume-gib 1024] [--written-gib 4] [--json FILE] [--dir DIR]
"""

import argparse
import http.client
import json
import multiprocessing
import os
import statistics
import struct
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tests", "integration"))

import harness  # noqa: E402 pylint: disable=wrong-import-position

SERIES_SIZE, STUDY_SERIES, PATIENT_STUDIES = 50, 2, 5
STUDY_SIZE = SERIES_SIZE * STUDY_SERIES
SIDE = 16
LONG = (b"OW", b"OB")


def element(group, number, vr, value):
    value = value if isinstance(value, bytes) else value.encode()
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    head = struct.pack("<HH2s", group, number, vr)
    if vr in LONG:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def us(n):
    return struct.pack("<H", n)


def instance(n):
    """A Part 10 stream of some 1.3 KiB, for every number another one."""
    series, study = n // SERIES_SIZE, n // STUDY_SIZE
    patient = study // PATIENT_STUDIES
    uid = f"2.25.77.{study}.{series}.{n}"
    meta = (element(2, 1, b"OB", b"\0\1") + element(2, 2, b"UI", "1.2.840.10008.5.1.4.1.1.4")
            + element(2, 3, b"UI", uid) + element(2, 0x10, b"UI", "1.2.840.10008.1.2.1")
            + element(2, 0x12, b"UI", "2.25.77"))
    pixels = (n * 2654435761 % (1 << 64)).to_bytes(8, "little") * (SIDE * SIDE * 2 // 8)
    data = (element(8, 0x16, b"UI", "1.2.840.10008.5.1.4.1.1.4") + element(8, 0x18, b"UI", uid)
            + element(8, 0x20, b"DA", f"20{study % 25:02}{study % 12 + 1:02}{study % 28 + 1:02}")
            + element(8, 0x50, b"SH", f"A{study}") + element(8, 0x60, b"CS", "MR")
            + element(8, 0x1030, b"LO", f"Study number {study}")
            + element(0x10, 0x10, b"PN", f"Family{patient % 997}^Given{patient}")
            + element(0x10, 0x20, b"LO", f"P{patient}")
            + element(0x20, 0xD, b"UI", f"2.25.77.{study}")
            + element(0x20, 0xE, b"UI", f"2.25.77.{study}.{series}")
            + element(0x20, 0x11, b"IS", str(series % STUDY_SERIES))
            + element(0x20, 0x13, b"IS", str(n % SERIES_SIZE))
            + element(0x28, 2, b"US", us(1)) + element(0x28, 4, b"CS", "MONOCHROME2")
            + element(0x28, 0x10, b"US", us(SIDE)) + element(0x28, 0x11, b"US", us(SIDE))
            + element(0x28, 0x100, b"US", us(16)) + element(0x28, 0x101, b"US", us(16))
            + element(0x28, 0x102, b"US", us(15)) + element(0x28, 0x103, b"US", us(0))
            + element(0x7FE0, 0x10, b"OW", pixels))
    return (bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta
            + data)


def send(port, first, count):
    """One request per study's worth of instances."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    for at in range(first, first + count, STUDY_SIZE):
        body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + instance(i) + b"\r\n"
                        for i in range(at, min(at + STUDY_SIZE, first + count))) + b"--b--\r\n"
        c.request("POST", "/dicom-web/studies", body,
                  {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'})
        answer = c.getresponse()
        text = answer.read()
        harness.check(answer.status == 200, "STOW gave", answer.status, text[:300])


def fill(daemon, first, last, clients=4):
    start = time.monotonic()
    step = (last - first) // clients // STUDY_SIZE * STUDY_SIZE or STUDY_SIZE
    jobs = []
    for i in range(clients):
        at = first + i * step
        n = step if i < clients - 1 else last - at
        jobs.append(multiprocessing.Process(target=send, args=(daemon.ports["http"], at, n)))
        jobs[-1].start()
    for job in jobs:
        job.join()
        harness.check(job.exitcode == 0, "a sender failed")
    return (last - first) / (time.monotonic() - start)


def timed(call, rounds=5):
    took = []
    for _ in range(rounds):
        start = time.monotonic()
        call()
        took.append((time.monotonic() - start) * 1000)
    return round(statistics.median(took), 1)


def qido(daemon, path, most=None):
    c = http.client.HTTPConnection("127.0.0.1", daemon.ports["http"], timeout=600)
    c.request("GET", "/dicom-web" + path, headers={"Accept": "application/dicom+json"})
    answer = c.getresponse()
    data = answer.read()
    harness.check(answer.status in (200, 204), path, "gave", answer.status)
    rows = json.loads(data) if data else []
    harness.check(most is None or 0 < len(rows) <= most, path, "found", len(rows))
    return rows


def look(daemon, count):
    """How long questions take, in milliseconds."""
    studies = count // STUDY_SIZE
    middle = studies // 2
    return {
        "studies of one patient": timed(
            lambda: qido(daemon, f"/studies?PatientID=P{middle // PATIENT_STUDIES}",
                         PATIENT_STUDIES)),
        "one study by UID": timed(
            lambda: qido(daemon, f"/studies?StudyInstanceUID=2.25.77.{middle}", 1)),
        "instances of a series": timed(
            lambda: qido(daemon, f"/studies/2.25.77.{middle}/series/2.25.77.{middle}."
                                 f"{middle * STUDY_SERIES}/instances", SERIES_SIZE)),
        "first 100 studies": timed(lambda: qido(daemon, "/studies?limit=100", 100)),
        "studies of one day": timed(
            lambda: qido(daemon, "/studies?StudyDate=20010202", studies), 3),
        "100 studies by part of a name": timed(
            lambda: qido(daemon, "/studies?PatientName=Family0*&limit=100", 100), 3),
        "filmroom study list": timed(lambda: daemon.cli("study", "list"), 3),
        "filmroom volume list": timed(lambda: daemon.cli("volume", "list"), 3),
        "filmroom status": timed(lambda: daemon.cli("status"), 3),
    }


def starts(daemon, extra):
    """Milliseconds of a start after a clean stop, and of one after kill -9."""
    daemon.restart()
    clean = daemon.status()["start"]["milliseconds"]
    extra = 10 ** 9 + extra
    fill(daemon, extra, extra + 4 * STUDY_SIZE)
    daemon.kill()
    daemon.start()
    start = daemon.status()["start"]
    return {"clean_ms": clean, "killed_ms": start["milliseconds"],
            "replayed_records": start["replayed_records"]}


def write_volume(daemon, gib, written_gib):
    piece = 64
    skip = gib * harness.MIB // (written_gib * harness.MIB // piece) - piece
    daemon.volume("large", gib * harness.GIB)
    done = harness.run("fio", "--name=large", "--ioengine=nbd",
                       f"--uri=nbd+unix:///large?socket={daemon.data}/nbd.sock",
                       f"--rw=write:{skip}k", f"--bs={piece}k", f"--size={gib}g", "--iodepth=16",
                       f"--io_size={written_gib}g", "--dedupe_percentage=90", "--refill_buffers=1",
                       "--output-format=json", timeout=24 * 3600)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["write"]
    return round(job["bw_bytes"] / harness.MIB)


def measure(args, folder):
    sizes = [n for n in (args.instances // 100, args.instances // 10, args.instances)
             if n >= 10 * STUDY_SIZE]
    sizes = [n // STUDY_SIZE * STUDY_SIZE for n in sizes]
    result, at = [], 0
    with harness.Daemon(os.path.join(folder, "data"), "--capacity", "64G",
                        ready_timeout=600) as daemon:
        for n in sizes:
            rate = fill(daemon, at, n)
            at = n
            row = {"instances": n, "rate": round(rate), "rss_mib": daemon.rss() >> 20,
                   "start": starts(daemon, n), "rss_after_start_mib": daemon.rss() >> 20,
                   "ms": look(daemon, n)}
            result.append(row)
            print(json.dumps(row), flush=True)
        if args.volume_gib:
            row = {"volume_gib": args.volume_gib,
                   "mib_s": write_volume(daemon, args.volume_gib, args.written_gib),
                   "rss_mib": daemon.rss() >> 20, "start": starts(daemon, at + STUDY_SIZE),
                   "rss_after_start_mib": daemon.rss() >> 20, "ms": look(daemon, at),
                   "capacity": daemon.status()["capacity"]}
            result.append(row)
            print(json.dumps(row), flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--instances", type=int, default=1000000)
    parser.add_argument("--volume-gib", type=int, default=1024, help="0: none")
    parser.add_argument("--written-gib", type=int, default=4)
    parser.add_argument("--json", default="")
    parser.add_argument("--dir", default=None, help="where the store is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="filmroom-scale-", dir=args.dir) as folder:
        result = measure(args, folder)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
