#!/usr/bin/python3
"""Snapshots as a user has them: taken by the command, read over NBD as NAME@SNAP while the volume
changes, cloned, rolled back, deleted, and there after a crash."""

import errno
import os
import sys
import threading

import nbd
from harness import MIB, Daemon, Failure, Pattern, Suite, check, need, run, scratch

SIZE = 32 * MIB


def write_all(daemon, name, data):
    with nbd.Nbd(daemon.nbd, name) as c:
        for at in range(0, len(data), 4 * MIB):
            c.write(at, data[at:at + 4 * MIB])
        c.flush()


def copy_out(daemon, name, path):
    run("nbdcopy", daemon.nbd_uri(name), path, timeout=300)
    with open(path, "rb") as f:
        return f.read()


class Churn(threading.Thread):
    """Writes small and large pieces all over a volume until told to stop."""

    def __init__(self, daemon, name):
        super().__init__()
        self.daemon, self.name = daemon, name
        self.stopping, self.writes, self.error = False, 0, None
        self.start()

    def run(self):
        try:
            with nbd.Nbd(self.daemon.nbd, self.name) as c:
                while not self.stopping:
                    n = 4096 if self.writes % 4 else 256 * 1024
                    at = self.writes * 7919 * 4096 % (SIZE - n)
                    c.write(at - at % 4096, Pattern.make(self.writes, n))
                    self.writes += 1
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def finish(self):
        self.stopping = True
        self.join()
        check(self.error is None, "the writer failed", self.error)
        check(self.writes > 20, "the writer hardly wrote", self.writes)


def read_while_changing(folder):
    need("nbdcopy", "qemu-img", "nbdinfo")
    data = Pattern.make(1, SIZE)
    with Daemon(os.path.join(folder, "store")) as daemon:
        for name in ("vol", "other"):
            daemon.volume(name, SIZE)
        write_all(daemon, "vol", data)
        daemon.cli("volume", "snapshot", "vol,other", "monday")
        churn = Churn(daemon, "vol")
        try:
            for _ in range(3):
                check(copy_out(daemon, "vol@monday", os.path.join(folder, "out")) == data,
                      "the snapshot is not what the volume was")
            qcow = os.path.join(folder, "back.qcow2")
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", daemon.nbd_uri("vol@monday"),
                qcow, timeout=300)
        finally:
            churn.finish()
        raw = os.path.join(folder, "back.raw")
        run("qemu-img", "convert", "-O", "raw", qcow, raw, timeout=300)
        with open(raw, "rb") as f:
            check(f.read() == data, "qemu-img read other bytes")
        listed = run("nbdinfo", "--list", "--json", daemon.nbd_uri("")).stdout
        check("vol@monday" in listed and "other@monday" in listed, "not in the list", listed)
        info = run("nbdinfo", daemon.nbd_uri("vol@monday")).stdout
        check("is_read_only: true" in info, "not announced as read-only", info)
        with nbd.Nbd(daemon.nbd, "vol@monday") as c:
            try:
                c.write(0, bytes(4096))
                raise Failure("a snapshot was written to")
            except nbd.NbdError as e:
                check(e.errno == errno.EPERM, "the write was refused otherwise", e)
        administer(folder, daemon, data)


def administer(folder, daemon, data):
    out = os.path.join(folder, "out")
    done = daemon.cli("volume", "delete", "vol", "--force", ok=False)
    check(done.returncode == 1 and "snapshots" in done.stderr, "deleted with its snapshots", done)
    daemon.cli("volume", "clone", "vol@monday", "copy")
    check(copy_out(daemon, "copy", out) == data, "the clone is not what the snapshot is")
    write_all(daemon, "copy", Pattern.make(2, 8 * MIB))
    daemon.cli("volume", "snapshot", "copy", "tuesday")
    daemon.kill()
    daemon.start()
    check(copy_out(daemon, "vol@monday", out) == data, "another snapshot after a crash")
    check(copy_out(daemon, "copy@tuesday", out) == Pattern.make(2, 8 * MIB) + data[8 * MIB:],
          "another snapshot of the clone after a crash")
    daemon.cli("volume", "rollback", "vol", "monday", "--force")
    check(copy_out(daemon, "vol", out) == data, "the rollback did not bring back what was")
    names = [s["name"] for s in daemon.cli_json("volume", "snapshots", "vol")["snapshots"]]
    check(names == ["vol@monday"], "other snapshots", names)
    check("vol@monday" in daemon.cli("volume", "snapshots", "vol").stdout, "not in the table")
    daemon.cli("volume", "snapshot-delete", "vol", "monday", "--force")
    daemon.wait_quiet()
    check(copy_out(daemon, "vol", out) == data, "lost with its snapshot")
    check(copy_out(daemon, "copy", out) == Pattern.make(2, 8 * MIB) + data[8 * MIB:],
          "the clone changed with the snapshot's end")
    daemon.cli("volume", "delete", "vol", "--force")
    daemon.cli("volume", "snapshot-delete", "copy", "tuesday", "--force")
    daemon.cli("volume", "delete", "copy", "--force")
    done = daemon.cli("volume", "snapshot", "other,none", "x", ok=False)
    check(done.returncode == 1, "a snapshot of what is not there", done)


def main():
    suite = Suite()
    with scratch() as folder:
        with suite.case("a snapshot is read while its volume changes"):
            read_while_changing(folder)
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
