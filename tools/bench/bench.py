#!/usr/bin/python3
"""Filmroom beside what else is there, in one run on one machine.

A figure by itself says more about the machine than about the program, so nothing here is judged
against a number: each measurement is made with Filmroom and with its peer in turn, several rounds,
the order changing from round to round, and what counts is the ratio within a round (median, least
and greatest). Everything runs over loopback or unix sockets on the disk that holds --dir.

  block    fio's NBD engine against Filmroom and against qemu-nbd on a raw file. Where writes must
           be durable, Filmroom's volume is of durability every-write, and qemu-nbd
           (cache=writeback) gets a flush after each write, which promises the same. Reads and
           streams: qemu-nbd with cache=none and aio=native. The region is filled first; all data
           is random, so Filmroom can neither compress nor deduplicate it.
  store    dcmsend to Filmroom, to storescp +B --fork (a plain receiver without fsync: the ceiling)
           and to Orthanc (default settings), in 1 and in 4 associations at once; a fresh store each
           round. Files: the real CT series of FILMROOM_DICOM_DATA, or a phantom; four variants with
           new UIDs and rotated pixels, so that nothing repeats.

  bench.py [--only NAME,...] [--rounds N] [--seconds T] [--gib N] [--json FILE] [--dir DIR]
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tests", "integration"))

import harness  # noqa: E402 pylint: disable=wrong-import-position

GIB = harness.GIB
FILES_PER_STORE = 140


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(probe, what, timeout=30):
    end = time.monotonic() + timeout
    while not probe():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not start")
        time.sleep(0.05)


def port_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Process:
    """A peer: started by start(), stopped by stop()."""

    def __init__(self):
        self.process = None

    def spawn(self, *argv, **options):
        self.process = subprocess.Popen([str(a) for a in argv], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, **options)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


# ---- Block servers -------------------------------------------------------------------------------


class FilmroomBlock:
    name = "filmroom"

    def __init__(self, folder, size):
        self.size = size
        self.daemon = harness.Daemon(os.path.join(folder, "filmroom"), "--capacity", 4 * size)

    def start(self, _):
        self.daemon.start()
        self.daemon.volume("bench", self.size)

    def uri(self, _):
        return f"nbd+unix:///bench?socket={self.daemon.data}/nbd.sock"

    def settle(self):
        self.daemon.wait_quiet()

    def stop(self):
        self.daemon.kill()


class QemuNbd:
    """Two exports of one raw file would not see each other's cache: a process for each cache mode,
    only one of them running at a time."""

    name = "qemu-nbd"

    def __init__(self, folder, size):
        self.file = os.path.join(folder, "qemu.raw")
        self.socket = os.path.join(folder, "qemu.sock")
        self.size = size
        self.mode = None
        self.process = Process()

    def start(self, mode):
        if not os.path.exists(self.file):
            with open(self.file, "wb") as f:
                f.truncate(self.size)
        if mode == self.mode:
            return
        self.process.stop()
        cache = {"durable": ["--cache=writeback"], "direct": ["--cache=none", "--aio=native"]}[mode]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        self.process.spawn("qemu-nbd", "-f", "raw", "-t", "-e", "8", "-x", "bench", "-k",
                           self.socket, "--discard=unmap", *cache, self.file)
        wait_for(lambda: os.path.exists(self.socket), "qemu-nbd")
        self.mode = mode

    def uri(self, mode):
        self.start(mode)
        return f"nbd+unix:///bench?socket={self.socket}"

    def settle(self):
        pass

    def stop(self):
        self.process.stop()
        self.mode = None


# name: (fio options, which qemu-nbd, unit, how to read fio's report)
# In this order: the streams run over a region written in order, and the last shows what is left of
# that after random writes, which a store that never writes in place scatters.
BLOCK_JOBS = {
    "write-1m-qd8": ("write", "1m", 8, "direct", "MB/s"),
    "read-1m-qd8": ("read", "1m", 8, "direct", "MB/s"),
    "randwrite-4k-qd1": ("randwrite", "4k", 1, "durable", "IOPS"),
    "randwrite-4k-qd32": ("randwrite", "4k", 32, "durable", "IOPS"),
    "randread-4k-qd32": ("randread", "4k", 32, "direct", "IOPS"),
    "read-1m-aged": ("read", "1m", 8, "direct", "MB/s"),
}


def fio(uri, kind, size, region, *extra):
    argv = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={kind}", f"--bs={size}",
            f"--size={region}", "--refill_buffers=1", "--randrepeat=0", "--output-format=json",
            *extra]
    done = harness.run(*argv, timeout=3600)
    # fio may print notes before the JSON.
    report = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if report["error"]:
        raise SystemExit(f"fio reports error {report['error']} on {uri}")
    return report


def measure_block(server, job, region, seconds):
    kind, size, depth, mode, unit = BLOCK_JOBS[job]
    extra = [f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--ramp_time=2"]
    if mode == "durable" and server.name == "qemu-nbd":
        extra.append("--fsync=1")
    report = fio(server.uri(mode), kind, size, region, *extra)
    row = report["read" if "read" in kind else "write"]
    times = row["clat_ns"].get("percentile", {})
    return {"value": row["iops"] if unit == "IOPS" else row["bw_bytes"] / 1e6, "unit": unit,
            "p50_us": times.get("50.000000", 0) / 1e3, "p99_us": times.get("99.000000", 0) / 1e3}


def run_block(args, folder, results):
    jobs = [j for j in BLOCK_JOBS if wanted(args, j, "block")]
    if not jobs:
        return
    region = int(args.gib * GIB)
    servers = [s(folder, region) for s in (FilmroomBlock, QemuNbd) if serves(args, s.name)]
    try:
        for s in servers:
            s.start("direct")
            say(f"filling {args.gib:g} GiB of {s.name}")
            fio(s.uri("direct"), "write", "1m", region, "--iodepth=8", "--end_fsync=1")
            s.settle()
        for number in range(args.rounds):
            for job in jobs:
                for s in servers[::-1] if number % 2 else servers:
                    os.sync()
                    row = measure_block(s, job, region, args.seconds)
                    note(results, job, s.name, number, row)
    finally:
        for s in servers:
            s.stop()


# ---- DICOM receivers -----------------------------------------------------------------------------


class FilmroomStore:
    name = "filmroom"
    aet = "FILMROOM"

    def start(self, folder):
        self.daemon = harness.Daemon(os.path.join(folder, "data"))
        self.daemon.start()
        self.port = self.daemon.ports["dicom"]

    def count(self):
        return self.daemon.status()["instances"]

    def stop(self):
        self.daemon.kill()


class Storescp(Process):
    name = "storescp"
    aet = "STORESCP"

    def start(self, folder):
        self.port = free_port()
        self.folder = folder
        self.spawn("storescp", "+B", "--fork", "-od", folder, self.port, env=dicom_env())
        wait_for(lambda: port_open(self.port), "storescp")

    def count(self):
        return len(os.listdir(self.folder))


class Orthanc(Process):
    name = "orthanc"
    aet = "ORTHANC"

    def start(self, folder):
        self.port, self.http = free_port(), free_port()
        config = {"Name": "bench", "StorageDirectory": folder, "IndexDirectory": folder,
                  "DicomAet": self.aet, "DicomPort": self.port, "HttpPort": self.http,
                  "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": []}
        path = os.path.join(folder, "orthanc.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)
        self.spawn("Orthanc", path, env=dicom_env())
        wait_for(lambda: port_open(self.port) and port_open(self.http), "Orthanc")

    def count(self):
        done = harness.run("curl", "-sf", f"http://127.0.0.1:{self.http}/statistics")
        return json.loads(done.stdout)["CountInstances"]


def dicom_env():
    """Without this dcmtk waits 44 ms for a delayed acknowledgement at every file."""
    return {**os.environ, "TCP_NODELAY": "1"}


def make_files(folder):
    """Four lists of files, all different in UIDs and pixels."""
    source = os.path.join(harness.DICOM_DATA, "ct")
    real = os.path.isdir(source)
    if not real:
        source = os.path.join(folder, "source")
        harness.phantom(source, slices=FILES_PER_STORE)
    lists = []
    for variant in range(4):
        out = os.path.join(folder, f"variant{variant}")
        harness.run(harness.PHANTOM, "--out", out, "--reheader", source, "--patient",
                    f"BENCH{variant}", "--seed", variant)
        for name in os.listdir(out):
            rotate_pixels(os.path.join(out, name), variant + 1)
        lists.append([os.path.join(out, n) for n in sorted(os.listdir(out))])
    size = sum(os.path.getsize(f) for files in lists for f in files)
    count = sum(map(len, lists))
    say(f"{count} files of {'a real CT' if real else 'a phantom'}, {size / 1e6:.0f} MB")
    return lists, real


def rotate_pixels(path, rows):
    """Moves the first rows of the picture to its end: as compressible as before, but new."""
    with open(path, "rb") as f:
        data = f.read()
    at = data.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 12
    step = rows * 1024
    with open(path, "wb") as f:
        f.write(data[:at] + data[at + step:] + data[at:at + step])


def measure_store(server, lists, parallel):
    groups = lists if parallel == 4 else [[f for files in lists for f in files]]
    start = time.monotonic()
    senders = [subprocess.Popen(["dcmsend", "-aec", server.aet, "127.0.0.1", str(server.port), *g],
                                env=dicom_env(), stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE) for g in groups]
    errors = [s.communicate()[1].decode(errors="replace") for s in senders]
    took = time.monotonic() - start
    if any(s.returncode for s in senders):
        raise SystemExit(f"dcmsend to {server.name} failed: {errors}")
    total = sum(map(len, groups))
    if server.count() != total:
        raise SystemExit(f"{server.name} has {server.count()} of {total} instances")
    return {"value": total / took, "unit": "files/s"}


def run_store(args, folder, results):
    jobs = {f"c-store-x{n}": n for n in (1, 4) if wanted(args, f"c-store-x{n}", "store")}
    if not jobs:
        return
    classes = [c for c in (FilmroomStore, Storescp, Orthanc) if serves(args, c.name)]
    lists, real = make_files(folder)
    results["store_files"] = "real CT" if real else "phantom"
    for number in range(args.rounds):
        for job, parallel in jobs.items():
            for kind in classes[number % len(classes):] + classes[:number % len(classes)]:
                home = tempfile.mkdtemp(prefix=kind.name + "-", dir=folder)
                server = kind()
                os.sync()
                try:
                    server.start(home)
                    note(results, job, kind.name, number, measure_store(server, lists, parallel))
                finally:
                    server.stop()
                    shutil.rmtree(home, ignore_errors=True)


# ---- Results -------------------------------------------------------------------------------------


def say(*words):
    print("#", *words, file=sys.stderr, flush=True)


def wanted(args, job, group):
    return not args.only or any(o in (group, job) or re.search(o, job) for o in args.only)


def serves(args, name):
    return not args.servers or name in args.servers


def note(results, job, server, number, row):
    results["runs"].append({"job": job, "server": server, "round": number, **row})
    say(f"round {number + 1}: {job:18} {server:9} {row['value']:10.0f} {row['unit']}")


def summary(results):
    """Per job and peer: medians, and Filmroom's ratio to the peer within each round."""
    rows = []
    for job in dict.fromkeys(r["job"] for r in results["runs"]):
        runs = [r for r in results["runs"] if r["job"] == job]
        values = {}
        for r in runs:
            values.setdefault(r["server"], {})[r["round"]] = r["value"]
        ours = values.pop("filmroom", {})
        for peer, theirs in values.items():
            ratios = [ours[n] / v for n, v in theirs.items() if n in ours]
            row = {"job": job, "peer": peer, "unit": runs[0]["unit"],
                   "peer_median": statistics.median(theirs.values())}
            if ratios:
                row.update(ours_median=statistics.median(ours.values()),
                           ratio=statistics.median(ratios), ratio_min=min(ratios),
                           ratio_max=max(ratios))
            rows.append(row)
    return rows


def table(rows):
    print(f"{'job':18} {'peer':9} {'unit':8} {'filmroom':>10} {'peer':>10} {'ratio':>7}"
          f" {'min':>6} {'max':>6}")
    for r in rows:
        print(f"{r['job']:18} {r['peer']:9} {r['unit']:8} ", end="")
        if "ratio" in r:
            print(f"{r['ours_median']:10.0f} {r['peer_median']:10.0f} {r['ratio']:7.2f} "
                  f"{r['ratio_min']:6.2f} {r['ratio_max']:6.2f}")
        else:
            print(f"{'-':>10} {r['peer_median']:10.0f}")


def machine(folder):
    disk = harness.run("df", "--output=source,fstype", folder).stdout.split("\n")[1].split()
    return {"cpus": os.cpu_count(), "kernel": platform.release(), "disk": disk,
            "fio": harness.run("fio", "-v").stdout.strip()}


def main():
    parser = argparse.ArgumentParser(description="Filmroom beside its peers")
    parser.add_argument("--only", type=lambda s: s.split(","), default=[],
                        help="jobs or groups (block, store), comma-separated")
    parser.add_argument("--servers", type=lambda s: s.split(","), default=[],
                        help="only these: filmroom, qemu-nbd, storescp, orthanc")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of each fio run")
    parser.add_argument("--gib", type=float, default=2, help="region of the block jobs")
    parser.add_argument("--json", default=os.path.join(harness.BUILD, "bench.json"))
    parser.add_argument("--dir", default=harness.BUILD, help="where data goes while it runs")
    args = parser.parse_args()
    os.makedirs(args.dir, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="bench-", dir=args.dir)
    results = {"machine": machine(folder), "options": vars(args), "runs": []}
    try:
        run_block(args, folder, results)
        run_store(args, folder, results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results["summary"] = summary(results)
    with open(args.json, "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)
    table(results["summary"])


if __name__ == "__main__":
    main()
