#!/usr/bin/python3
"""/metrics of a running daemon: the text is Prometheus' format to the letter, counters only grow,
histograms are whole, and what was done is what is counted. Then the log of slow operations, the
watchdog and `filmroom stats`."""

import json
import os
import re
import sys
import threading
import time

import nbd
from harness import (MIB, ROOT, Daemon, Suite, check, need, phantom, run, scratch,
                     store_with_dcmsend)

# ---- Prometheus' text format 0.0.4, strictly -----------------------------------------------------

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? "
                    r"([0-9]+(?:\.[0-9]+)?|\+Inf|NaN)")
HELP = re.compile(rf"# HELP ({NAME}) ((?:[^\\\n]|\\\\|\\n)+)")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge|histogram)")


class Metrics:
    """A scrape: samples[(name, labels)] with labels a tuple of pairs, and each family's kind."""

    def __init__(self, text):
        check(text.endswith("\n"), "the last line has no end")
        self.kinds, self.samples = {}, {}
        self.family, self.helped = None, None
        for number, line in enumerate(text[:-1].split("\n"), 1):
            try:
                self.take(line)
            except AssertionError as e:
                check(False, f"line {number}: {e}: {line[:200]}")
        for name, kind in self.kinds.items():
            if kind == "histogram":
                self.check_histogram(name)

    def take(self, line):
        if line.startswith("#"):
            found = HELP.fullmatch(line)
            if found:
                assert found[1] not in self.kinds, "a family comes twice"
                self.helped = found[1]
                return
            found = TYPE.fullmatch(line)
            assert found, "neither HELP nor TYPE"
            assert self.helped == found[1], "TYPE without its HELP before it"
            self.kinds[found[1]] = found[2]
            self.family = found[1]
            return
        found = SAMPLE.fullmatch(line)
        assert found, "not a sample"
        name, value = found[1], float(found[len(found.groups())])
        assert self.base(name) == self.family, f"a sample of another family than {self.family}"
        labels = tuple((k, v) for k, v in re.findall(LABEL, found[2] or ""))
        assert len({k for k, _ in labels}) == len(labels), "a label comes twice"
        assert (name, labels) not in self.samples, "a sample comes twice"
        self.samples[name, labels] = value

    def base(self, name):
        for end in ("_bucket", "_sum", "_count"):
            if name.endswith(end) and self.kinds.get(name[:-len(end)]) == "histogram":
                return name[:-len(end)]
        assert self.kinds.get(name) != "histogram", "a histogram has only buckets, sum and count"
        return name

    def check_histogram(self, name):
        """Buckets rise in `le` and never fall, end with +Inf, which is the count; in file order."""
        series = {}
        for (sample, labels), value in self.samples.items():
            if sample == name + "_bucket":
                rest = tuple(l for l in labels if l[0] != "le")
                series.setdefault(rest, []).append((dict(labels)["le"], value))
        check(series, "a histogram without buckets:", name)
        for rest, buckets in series.items():
            edges = [float(le) for le, _ in buckets]
            counts = [n for _, n in buckets]
            check(edges == sorted(set(edges)), "le does not rise:", name, rest)
            check(counts == sorted(counts), "buckets are not cumulative:", name, rest, counts)
            check(buckets[-1][0] == "+Inf", "no +Inf at the end:", name, rest)
            check(counts[-1] == self.samples[name + "_count", rest], "+Inf is not the count:", name)
            check((name + "_sum", rest) in self.samples, "no sum:", name, rest)

    def get(self, name, **labels):
        for (sample, have), value in self.samples.items():
            if sample == name and dict(have) == labels:
                return value
        check(False, f"no sample {name} {labels}")
        return None

    def total(self, name):
        return sum(v for (sample, _), v in self.samples.items() if sample == name)

    def growing(self):
        """What may only grow."""
        for (sample, labels), value in self.samples.items():
            kind = self.kinds[self.base(sample)]
            if kind in ("counter", "histogram"):
                yield (sample, labels), value


def scrape(daemon, unix=False):
    need("curl")
    where = ["--unix-socket", os.path.join(daemon.data, "admin.sock"), "http://filmroom/metrics"]
    if not unix:
        where = [f"http://127.0.0.1:{daemon.ports['http']}/metrics"]
    done = run("curl", "-sS", "-D", "/dev/stderr", *where)
    head = done.stderr.lower()
    check(head.startswith("http/1.1 200"), "status:", done.stderr)
    check("content-type: text/plain; version=0.0.4; charset=utf-8" in head.splitlines(),
          "content type:", done.stderr)
    return Metrics(done.stdout)


# ---- Cases ---------------------------------------------------------------------------------------

def parser_is_strict():
    """A parser that takes everything would prove nothing."""
    good = "# HELP a_total A\n# TYPE a_total counter\na_total{x=\"1\"} 1\n"
    Metrics(good)
    hist = ("# HELP h H\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n"
            "h_sum 3\nh_count 2\n")
    Metrics(hist)
    for bad in (good[:-1], good + "a_total{x=\"1\"} 2\n", good + "b 1\n", good + "\n",
                good.replace("x=\"1\"", "x=\"\\q\""), good.replace(" 1\n", " x\n"),
                good.replace("# TYPE a_total counter\n", ""), good.replace("a_total{", "a-total{"),
                good.replace("\"1\"", "\"1\",x=\"2\""), good + good,
                hist.replace("h_count 2", "h_count 3"), hist.replace("} 1", "} 5"),
                hist.replace("h_bucket{le=\"+Inf\"} 2\n", ""), hist + "h 1\n"):
        try:
            Metrics(bad)
        except Exception:  # pylint: disable=broad-except
            continue
        check(False, "the parser takes:", bad)


def counts(daemon):
    daemon.volume("vm1", "64M")
    before = scrape(daemon)
    with nbd.Nbd(daemon.nbd, "vm1") as client:
        for i in range(37):
            client.write(i * 8192, os.urandom(4096))
        client.write(1 * MIB, os.urandom(2 * MIB))
        for i in range(11):
            client.read(i * 8192, 8192)
        for i in range(5):
            client.flush()
        client.trim(0, 8192)
    after = scrape(daemon)

    def grew(name, **labels):
        return after.get(name, **labels) - before.get(name, **labels)

    for name in ("filmroom_nbd_request_seconds_count", "filmroom_block_seconds_count"):
        check(grew(name, op="write") == 38, name, grew(name, op="write"), "for 38 writes")
        check(grew(name, op="read") == 11, name, grew(name, op="read"), "for 11 reads")
        check(grew(name, op="flush") == 5, name, "for 5 flushes")
    check(grew("filmroom_nbd_request_seconds_count", op="trim") == 1, "trims")
    check(grew("filmroom_door_received_bytes_total", door="nbd") == 37 * 4096 + 2 * MIB, "in")
    check(grew("filmroom_door_sent_bytes_total", door="nbd") == 11 * 8192, "out")
    check(grew("filmroom_nbd_connections_total") == 1, "connections")
    check(grew("filmroom_chunks_new_total") >= 512, "chunks of the large write")
    records = (after.get("filmroom_journal_batch_records_sum") -
               before.get("filmroom_journal_batch_records_sum"))
    applied = grew("filmroom_apply_seconds_count")
    check(applied >= 39 and abs(records - applied) < 50, "records and applied:", records, applied)
    for drive in range(3):
        check(grew("filmroom_drive_writes_total", drive=str(drive)) >= 38, "journal's mirrors")
    check(after.total("filmroom_drive_ok") == 6, "drives in service")
    check(after.total("filmroom_drive_read_errors_total") == 0, "errors")


def dicom(daemon, folder):
    before = scrape(daemon)
    files = phantom(os.path.join(folder, "ct"), slices=7)
    store_with_dcmsend(daemon, files)
    store_with_dcmsend(daemon, files[:2])
    after = scrape(daemon)

    def grew(name, **labels):
        return after.get(name, **labels) - before.get(name, **labels)

    check(grew("filmroom_dicom_store_seconds_count") == 9, "C-STOREs:",
          grew("filmroom_dicom_store_seconds_count"))
    check(grew("filmroom_object_put_seconds_count") == 9, "puts")
    check(grew("filmroom_instances_total", outcome="stored") == 7, "stored")
    check(grew("filmroom_instances_total", outcome="identical") == 2, "identical")
    check(grew("filmroom_dicom_associations_total") == 2, "associations")
    check(after.get("filmroom_instances") == 7 and after.get("filmroom_studies") == 1, "catalogue")
    size = sum(os.path.getsize(f) for f in files + files[:2])
    check(0.9 * size < grew("filmroom_door_received_bytes_total", door="dicom") <= size, "bytes in")


def http(daemon):
    base = f"http://127.0.0.1:{daemon.ports['http']}"
    before = scrape(daemon)
    studies = json.loads(run("curl", "-sS", base + "/dicom-web/studies").stdout)
    uid = studies[0]["0020000D"]["Value"][0]
    for _ in range(3):
        run("curl", "-sS", "-o", "/dev/null", f"{base}/dicom-web/studies/{uid}")
    run("curl", "-sS", "-o", "/dev/null", f"{base}/dicom-web/studies/{uid}/metadata")
    run("curl", "-sS", "-o", "/dev/null", base + "/nothing")
    status = run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST",
                 base + "/metrics").stdout
    check(status == "405", "POST /metrics gives", status)
    want = {"search": 1, "retrieve": 3, "metadata": 1, "other": 3}
    end = time.monotonic() + 10
    while True:  # a request is counted when its last byte has gone, which the client may see first
        after = scrape(daemon)
        got = {route: after.get("filmroom_http_request_seconds_count", route=route) -
                      before.get("filmroom_http_request_seconds_count", route=route)
               for route in want}
        # The scrapes themselves are in "other".
        if all(got[r] >= want[r] for r in want) or time.monotonic() > end:
            break
        time.sleep(0.1)
    check(all(got[r] == want[r] for r in want if r != "other"), "HTTP requests:", got)
    check(got["other"] >= want["other"], "HTTP requests:", got)
    check(after.get("filmroom_http_answers_total", status="4xx") -
          before.get("filmroom_http_answers_total", status="4xx") == 2, "404 and 405")
    check(after.get("filmroom_door_sent_bytes_total", door="http") -
          before.get("filmroom_door_sent_bytes_total", door="http") > 3 * 7 * 100000, "bytes out")


def only_grow(daemon):
    """Scrapes while writers work: nothing that may only grow falls, and no scrape is torn."""
    stop = threading.Event()
    errors = []

    def writer(index):
        try:
            with nbd.Nbd(daemon.nbd, "vm1") as client:
                n = 0
                while not stop.is_set():
                    client.write((index * 500 + n % 500) * 16384, os.urandom(4096))
                    n += 1
        except Exception as e:  # pylint: disable=broad-except
            errors.append(e)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    try:
        first = last = dict(scrape(daemon).growing())
        for round_ in range(12):
            now = dict(scrape(daemon, unix=round_ % 2 == 1).growing())
            check(now.keys() == last.keys(), "series come or go")
            for key, value in now.items():
                check(value >= last[key], "fell:", key, last[key], value)
            last = now
    finally:
        stop.set()
        for t in threads:
            t.join()
    check(not errors, "a writer failed:", errors)
    key = ("filmroom_block_seconds_count", (("op", "write"),))
    check(last[key] > first[key], "no write was counted")


def stats(daemon):
    text = daemon.cli("stats").stdout
    for word in ("block write", "journal commit", "nbd request write", "P99", "object put",
                 "door received bytes nbd"):
        check(word in text, f"'{word}' is not in the stats:", text)
    rows = {(r["name"], tuple(r["labels"].items())): r for r in
            daemon.cli_json("stats")["metrics"]}
    row = rows["filmroom_block_seconds", (("op", "write"),)]
    check(0 < row["p50"] <= row["p90"] <= row["p99"] <= row["p999"] <= row["max"], "order:", row)
    check(row["count"] * row["max"] >= row["sum"], "sum:", row)
    metrics = scrape(daemon)
    check(len([r for r in rows.values() if r["kind"] == "histogram"]) ==
          len([s for s, _ in metrics.samples if s.endswith("_count")]), "not the same series")


def documented(daemon):
    with open(os.path.join(ROOT, "docs", "METRICS.md"), encoding="utf-8") as f:
        text = f.read()
    there = set(scrape(daemon).kinds)
    told = set(re.findall(r"\bfilmroom_\w+", text)) - {"filmroom_block_seconds_bucket",
                                                        "filmroom_overlay_wait_seconds_count"}
    check(not there - told, "not in docs/METRICS.md:", sorted(there - told))
    check(not told - there, "docs/METRICS.md tells of what is not there:", sorted(told - there))


def slow_lines(folder):
    data = os.path.join(folder, "slow")
    config = "[log]\nslow_ms = 1\nwatchdog_ms = 1\n"
    with Daemon(data, config=config) as daemon:
        daemon.volume("vm1", "64M")
        with nbd.Nbd(daemon.nbd, "vm1") as client:
            for i in range(30):  # 2 MiB of new data take more than a millisecond
                client.write(i * 2 * MIB, os.urandom(2 * MIB))
        metrics = scrape(daemon)
        steps = metrics.get("filmroom_loop_step_seconds_count")
        check(steps > 100, "steps of a watched loop:", steps)
        check(0 < metrics.get("filmroom_loop_step_max_seconds") < 60, "the longest step")
        slow = metrics.get("filmroom_slow_operations_total")
        text = daemon.log_text()
    lines = re.findall(r"warn  slow: slow operation (.*)", text)
    check(slow >= 30, "slow operations counted:", slow)
    check(len(lines) < slow, "the limit of lines:", len(lines), slow)
    form = (r'op=block\.write us=(\d+) volume="vm1" offset=\d+ length=2097152 range_us=\d+ '
            r"room_us=\d+ chunks_us=(\d+) result=ok left_out=\d+")
    found = [m for m in (re.fullmatch(form, line) for line in lines) if m]
    check(found, "no line of a block write:", lines)
    for m in found:
        check(int(m[1]) >= 1000 and int(m[2]) <= int(m[1]), "times:", m[0])


def quiet_by_default(folder):
    with Daemon(os.path.join(folder, "off"), config="[log]\nslow_ms = 0\n") as daemon:
        daemon.volume("vm1", "64M")
        with nbd.Nbd(daemon.nbd, "vm1") as client:
            for i in range(4):
                client.write(i * 4 * MIB, os.urandom(4 * MIB))
        metrics = scrape(daemon)
        check(metrics.get("filmroom_slow_operations_total") == 0, "slow_ms = 0 counts")
        check("slow operation" not in daemon.log_text(), "slow_ms = 0 logs")


def main():
    suite = Suite()
    with suite.case("the parser is strict"):
        parser_is_strict()
    with scratch() as folder:
        with Daemon(os.path.join(folder, "data")) as daemon:
            with suite.case("the admin socket and HTTP say the same"):
                a, b = scrape(daemon), scrape(daemon, unix=True)
                check(a.samples.keys() == b.samples.keys() and len(a.kinds) > 40, "series differ")
            with suite.case("NBD requests are counted"):
                counts(daemon)
            with suite.case("C-STOREs are counted"):
                dicom(daemon, folder)
            with suite.case("HTTP requests are counted"):
                http(daemon)
            with suite.case("what may only grow only grows"):
                only_grow(daemon)
            with suite.case("docs/METRICS.md describes what there is"):
                documented(daemon)
            with suite.case("filmroom stats"):
                stats(daemon)
        with suite.case("slow operations are logged, within bounds"):
            slow_lines(folder)
        with suite.case("slow_ms = 0 is quiet"):
            quiet_by_default(folder)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
