#!/usr/bin/python3
"""Does a nearly full store stay fast? A plot of random overwrites over time.

Makes a store of file-backed drives, fills a volume that takes a given share of what users may
store with random data, and writes over it, 4 KiB at a time and everywhere, until as many times its
size was written. A store that never writes in place lives then from compaction: the question is
whether the rate holds. Prints the rate of the first and last fifths and what the drives were given
for each byte written, keeps the rate second by second as JSON, and draws it.

  steady.py [--capacity SIZE_GIB] [--fill 0.9] [--times 10] [--depth 32] [--json FILE] [--svg FILE]
            [--dir DIR] [--seconds MOST]
"""

import argparse
import glob
import json
import os
import statistics
import sys
import tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tests", "integration"))

import harness  # noqa: E402 pylint: disable=wrong-import-position

MIB = 1 << 20


def fio(daemon, folder, kind, size, bs, depth, *extra):
    log = os.path.join(folder, f"{kind}-log")
    harness.run("fio", "--name=steady", "--ioengine=nbd",
                f"--uri=nbd+unix:///steady?socket={daemon.data}/nbd.sock", f"--rw={kind}",
                f"--bs={bs}", f"--iodepth={depth}", f"--size={size}", "--refill_buffers=1",
                "--randrepeat=0", "--norandommap=1", f"--write_bw_log={log}", "--log_avg_msec=1000",
                "--output-format=json", *extra, timeout=24 * 3600)
    rates = []
    for name in glob.glob(log + "_bw*.log"):
        with open(name, encoding="utf-8") as f:
            for line in f:
                rates.append(int(line.split(",")[1]) * 1024 / MIB)  # KiB/s to MiB/s
        os.unlink(name)
    return rates


def written_by(daemon):
    """Bytes that the process had written to the disk."""
    with open(f"/proc/{daemon.process.pid}/io", encoding="ascii") as f:
        for line in f:
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    return 0


def draw(path, rates, title):
    """A plain line over time, MiB/s over seconds."""
    width, height, left, bottom = 900, 320, 60, 40
    top = max(rates) * 1.1 or 1
    step = (width - left - 20) / max(1, len(rates) - 1)

    def y(value):
        return height - bottom - value / top * (height - bottom - 30)

    points = " ".join(f"{left + i * step:.1f},{y(v):.1f}" for i, v in enumerate(rates))
    grid = "".join(
        f'<line x1="{left}" x2="{width - 20}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>'
        f'<text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.0f}</text>'
        for v in [top * i / 4 for i in range(5)])
    marks = "".join(
        f'<text x="{left + i * step:.1f}" y="{height - 18}" text-anchor="middle">{i} s</text>'
        for i in range(0, len(rates), max(1, len(rates) // 6)))
    with open(path, "w", encoding="utf-8") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                'font-family="sans-serif" font-size="12">'
                f'<rect width="{width}" height="{height}" fill="white"/>{grid}{marks}'
                f'<text x="{left}" y="18">{title}</text>'
                f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>'
                "</svg>\n")


def measure(args, folder):
    capacity = int(args.capacity * harness.GIB)
    size = int(capacity * args.fill) // MIB * MIB
    with harness.Daemon(os.path.join(folder, "data"), "--capacity", capacity) as daemon:
        daemon.volume("steady", size)
        fio(daemon, folder, "write", size, "1m", 4)
        daemon.wait_quiet()
        before = written_by(daemon)
        limit = [f"--runtime={args.seconds}"] if args.seconds else []
        rates = fio(daemon, folder, "randwrite", size, "4k", args.depth,
                    f"--io_size={int(size * args.times)}", *limit)
        given = written_by(daemon) - before
        status = daemon.status()
    user = sum(rates) * MIB
    fifth = max(1, len(rates) // 5)
    return {"capacity_gib": args.capacity, "fill": args.fill, "times": user / size,
            "depth": args.depth, "seconds": len(rates), "rates_mib_s": rates,
            "first_fifth": statistics.mean(rates[:fifth]),
            "last_fifth": statistics.mean(rates[-fifth:]),
            "slowest_second": min(rates), "written_per_byte": given / user if user else 0,
            "status": {k: v for k, v in status.items() if not isinstance(v, (list, dict))}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--capacity", type=float, default=2, help="of the store, GiB")
    parser.add_argument("--fill", type=float, default=0.9)
    parser.add_argument("--times", type=float, default=10, help="how often the volume's size")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; 0: never")
    parser.add_argument("--json", default="")
    parser.add_argument("--svg", default="")
    parser.add_argument("--dir", default=None, help="where the store is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="filmroom-steady-", dir=args.dir) as folder:
        result = measure(args, folder)
    print(f"filled to {args.fill:.0%}, written over {result['times']:.1f} times in "
          f"{result['seconds']} s: first fifth {result['first_fifth']:.0f} MiB/s, last fifth "
          f"{result['last_fifth']:.0f} MiB/s, slowest second {result['slowest_second']:.0f} MiB/s, "
          f"{result['written_per_byte']:.1f} bytes to the drives for each")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)
    if args.svg:
        draw(args.svg, result["rates_mib_s"],
             f"random 4 KiB overwrites, MiB/s; store {args.fill:.0%} full")


if __name__ == "__main__":
    main()
