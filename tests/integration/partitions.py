#!/usr/bin/python3
"""Several partitions in one daemon: volumes are spread over them, each on a loop of its own, and
everything is there after a kill; tools on a store at rest look at one at a time."""

import os
import re
import sys
import threading
import urllib.request

import nbd
from harness import (DUMP, FSCK, KIB, MIB, Daemon, Pattern, check, fsck, main, phantom, run,
                     scratch, store_with_dcmsend)

CONFIG = """[store]
capacity = 512M
drives = 4
[partition fast]
capacity = 512M
drives = 2
[partition third]
capacity = 512M
drives = 3
"""
SIZE = 8 * MIB
NAMES = [f"vol-{i}" for i in range(9)]


def partition_of(daemon):
    """Which partitions have taken space, by what their drives hold."""
    used = {}
    for d in daemon.cli_json("drive", "list")["drives"]:
        used[d["partition"]] = used.get(d["partition"], 0) + d["used"]
    return used


class Writer(threading.Thread):
    """Writes blocks of a volume one after the other, until the daemon is gone."""

    def __init__(self, daemon, name, seed):
        super().__init__()
        self.data = bytearray(SIZE)  # what was acknowledged
        self.next = (0, b"")  # the write under way, or the last one: offset and bytes
        self.acks, self.error = 0, None
        self.daemon, self.name, self.seed = daemon, name, seed
        self.start()

    def run(self):
        try:
            with nbd.Nbd(self.daemon.nbd, self.name) as c:
                for i in range(100000):
                    n = 4 * KIB if i % 3 else 128 * KIB
                    at = (i * 7919 * 4096) % (SIZE - n) // 4096 * 4096
                    self.next = (at, Pattern.make(self.seed + i, n))
                    c.write(*self.next)
                    self.data[at:at + n] = self.next[1]
                    self.acks += 1
        except ConnectionError:
            pass  # the kill
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def verify(self, daemon):
        compare(daemon, self.name, self.data, *self.next)


def compare(daemon, name, data, at=0, new=b""):
    """The volume holds `data`; where a write of `new` was under way, each block has that or what
    was there before."""
    with nbd.Nbd(daemon.nbd, name) as c:
        back = b"".join(c.read(off, 4 * MIB) for off in range(0, SIZE, 4 * MIB))
    for off in range(0, SIZE, 4 * KIB):
        got = back[off:off + 4 * KIB]
        check(got == data[off:off + 4 * KIB] or
              (at <= off < at + len(new) and got == new[off - at:off - at + 4 * KIB]),
              f"{name} holds other bytes at {off}")


def told_where(daemon):
    """Each volume's partition is told, to people and in JSON, and how full each partition is."""
    where = {v["name"]: v["partition"] for v in daemon.cli_json("volume", "list")["volumes"]}
    check(set(where.values()) == {"", "fast", "third"}, "partitions of volumes:", where)
    listed = daemon.cli("volume", "list").stdout.splitlines()
    check(listed[0].endswith("PARTITION"), "no column:", listed[0])
    for line, name in zip(listed[1:], NAMES):
        check(line.split()[-1] == (where[name] or "(first)"), "listed:", line, where[name])
        check(daemon.cli_json("volume", "show", name)["partition"] == where[name], "show", name)
        check(f"Partition     {where[name] or '(first)'}\n"
              in daemon.cli("volume", "show", name).stdout, "show as text:", name)
    apart = [next(n for n in NAMES if where[n] == p) for p in ("", "fast")]
    done = daemon.cli("volume", "snapshot", ",".join(apart), "s", ok=False)
    check(done.returncode == 1 and "different partitions" in done.stderr, "a group:", done.stderr)
    rows = daemon.status()["partitions"]
    check([r["name"] for r in rows] == ["", "fast", "third"], "status:", rows)
    check(sum(r["limit"] for r in rows) == daemon.status()["capacity"]["limit"], "sum:", rows)
    rows = [re.split("  +", line) for line in daemon.cli("df").stdout.splitlines()]
    check([r[0] for r in rows] == ["PARTITION", "(first)", "fast", "third", "total"], "df:", rows)
    text = daemon.cli("status").stdout
    check("Partitions    (first): " in text and " fast: " in text, "status as text:", text)


def spread_killed_and_whole():
    """volumes on three loops are written, killed, and whole"""
    with scratch() as folder:
        store, conf = os.path.join(folder, "store"), os.path.join(folder, "store.conf")
        with Daemon(store, config=CONFIG) as daemon:
            for name in NAMES:
                daemon.volume(name, SIZE)
            check(daemon.cli("volume", "create", NAMES[0], SIZE, ok=False).returncode != 0,
                  "a name was given twice")
            listed = [v["name"] for v in daemon.cli_json("volume", "list")["volumes"]]
            check(listed == NAMES, "the list is", listed)
            told_where(daemon)
            writers = [Writer(daemon, name, 1000003 * i) for i, name in enumerate(NAMES)]
            for w in writers:
                w.join(0.4)
            daemon.kill()
            for w in writers:
                w.join()
                check(w.error is None, "a writer failed before the kill:", w.error)
                check(w.acks > 3, "hardly anything was written")
            daemon.start()
            for w in writers:
                w.verify(daemon)
            used = partition_of(daemon)
            check(sorted(used) == ["", "fast", "third"] and all(used.values()),
                  "not all partitions are used", used)
            daemon.stop()
            for options in ([], ["--partition", "fast"], ["--partition", "third"]):
                fsck(store, conf, "--deep", *options)
            daemon.start()
            for w in writers[:3]:
                daemon.cli("volume", "delete", w.name, "--force")
            daemon.restart()
            for w in writers[3:]:
                w.verify(daemon)


def snapshots_studies_metrics():
    """snapshots, studies, status and metrics know of partitions"""
    with scratch() as folder:
        store = os.path.join(folder, "store")
        with Daemon(store, config=CONFIG) as daemon:
            data = [Pattern.make(i, SIZE) for i in range(3)]
            for i, name in enumerate(NAMES[:3]):
                daemon.volume(name, SIZE)
                with nbd.Nbd(daemon.nbd, name) as c:
                    c.write(0, data[i])
                    c.flush()
                daemon.cli("volume", "snapshot", name, "s")
                with nbd.Nbd(daemon.nbd, name) as c:
                    c.write(0, bytes(SIZE))
            refused = daemon.cli("volume", "snapshot", ",".join(NAMES[:3]), "all", ok=False)
            check(refused.returncode != 0 and "different partitions" in refused.stderr,
                  "a group over partitions:", refused.stderr)
            for i, name in enumerate(NAMES[:3]):
                compare(daemon, name + "@s", data[i])
                daemon.cli("volume", "clone", f"{name}@s", f"{name}-clone")
                daemon.cli("volume", "rollback", name, "s", "--force")
                compare(daemon, name, data[i])
                compare(daemon, f"{name}-clone", data[i])
            files = phantom(os.path.join(folder, "ct"), slices=5)
            store_with_dcmsend(daemon, files)
            status = daemon.status()
            check(status["instances"] == 5 and status["volumes"] == 6, "the sums", status)
            check(status["drives"] == 9, "the drives", status["drives"])
            url = f"http://127.0.0.1:{daemon.ports['http']}/metrics"
            text = urllib.request.urlopen(url, timeout=30).read().decode()
            for name in ("", "fast", "third"):
                check(re.search(r'filmroom_volumes\{partition="%s"\} [1-9]' % name, text),
                      f"no volumes of partition \"{name}\" in the metrics")
            daemon.restart()
            for i, name in enumerate(NAMES[:3]):
                compare(daemon, name, data[i])


def tools_and_settings():
    """a bad partition is told; tools name the others"""
    with scratch() as folder:
        store, conf = os.path.join(folder, "store"), os.path.join(folder, "store.conf")
        with Daemon(store, config=CONFIG) as daemon:
            daemon.volume("v", SIZE)
            path = os.path.join(folder, "more")
            daemon.cli("drive", "add", path, "--size", "256M", "--partition", "third")
            rows = daemon.cli_json("drive", "list")["drives"]
            check([r["partition"] for r in rows if r["path"] == path] == ["third"],
                  "the new drive is of", rows)
            done = daemon.cli("drive", "add", path, "--partition", "none", ok=False)
            check(done.returncode == 1 and "no partition" in done.stderr, "of none:", done.stderr)
            for words, want in (("start", "running"), ("stop", "stopped"), ("status", "stopped")):
                state = daemon.cli_json("scrub", words)["state"]
                check(state in (want, "idle"), f"after scrub {words} it is", state)
        done = run(FSCK, "--data", store, "--config", conf, ok=False)
        check(done.returncode == 0 and "--partition third" in done.stderr, "fsck:", done.stderr)
        done = run(DUMP, "--data", store, "--config", conf, "--partition", "none", "superblock",
                   ok=False)
        check(done.returncode != 0 and "no such partition" in done.stderr, "dump:", done.stderr)
        done = run(DUMP, "--data", store, "--config", conf, "--partition", "fast", "--json",
                   "superblock")
        check('"1+1"' in done.stdout or "data_columns" in done.stdout, "dump:", done.stdout[:500])


def relative_drives():
    """drives of relative paths are found from elsewhere"""
    config = ("[store]\ncapacity = 512M\ndrive = a0\ndrive = a1\n"
              "[partition fast]\ncapacity = 512M\ndrive = b0\ndrive = b1\n")
    with scratch() as folder:
        store, conf = os.path.join(folder, "store"), os.path.join(folder, "store.conf")
        data = [Pattern.make(i, SIZE) for i in range(4)]
        with Daemon(store, config=config, cwd=folder) as daemon:
            for i, name in enumerate(NAMES[:4]):
                daemon.volume(name, SIZE)
                with nbd.Nbd(daemon.nbd, name) as c:
                    c.write(0, data[i])
                    c.flush()
            check(daemon.drives()[0].startswith(folder), "the paths are", daemon.drives())
        with Daemon(store, config=config, cwd="/") as daemon:
            check(daemon.status()["state"] == "ok", "the state is", daemon.status())
            for i, name in enumerate(NAMES[:4]):
                compare(daemon, name, data[i], None)
        fsck(store, conf)
        fsck(store, conf, "--partition", "fast")


sys.exit(main([spread_killed_and_whole, snapshots_studies_metrics, tools_and_settings,
               relative_drives]))
