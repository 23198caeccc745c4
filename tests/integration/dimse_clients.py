#!/usr/bin/python3
"""DCMTK's own clients against the DICOM door: what they send is kept byte for byte.

The oracle is `storescp +B`, which writes down what came off the wire: the same sender with the same
file must leave the same data set in both. Phantom series are sent always; real data (ct, mr,
codecs, enhanced, charset, odd) where FILMROOM_DICOM_DATA has it.

  dimse_clients.py [--mem]    --mem: against dimse_mem_server (tests/unit/dimse), not the daemon
"""

import collections
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import dicom
from harness import (BUILD, DICOM_DATA, SHORT, Daemon, Suite, Skip, check, log, need, phantom, run,
                     scratch)

MEM_SERVER = os.path.join(BUILD, "tests", "unit", "dimse", "dimse_mem_server")
CAP = 32  # associations at a time, by default


class MemTarget:
    """dimse_mem_server: what it holds is seen when it stops."""

    def __init__(self, folder):
        self.folder = folder
        self.start()

    def start(self):
        self.dump = os.path.join(self.folder, "dump")
        shutil.rmtree(self.dump, ignore_errors=True)
        os.mkdir(self.dump)
        with open(os.path.join(self.folder, "log"), "ab") as log_file:
            self.process = subprocess.Popen([MEM_SERVER, "--dump", self.dump],
                                            stdout=subprocess.PIPE, stderr=log_file)
        self.addr = ("127.0.0.1", int(self.process.stdout.readline().split()[1]))

    def stop(self):
        check(self.process.poll() is None, "dimse_mem_server died", self.process.poll())
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(60) == 0, "dimse_mem_server stopped with", self.process.returncode)
        self.process.stdout.close()

    def take_all(self):
        """Everything that is stored, as {UID: [data set]}; nothing is left."""
        self.stop()
        out = {}
        for name in os.listdir(self.dump):
            with open(os.path.join(self.dump, name), "rb") as f:
                out[name[:-len(".dcm")]] = [dicom.dataset_of(f.read())]
        self.start()
        return out


class DaemonTarget:
    """filmroomd, read back through DICOMweb."""

    def __init__(self, folder):
        self.daemon = Daemon(os.path.join(folder, "data"))
        self.daemon.start()
        self.addr = self.daemon.dicom

    def stop(self):
        self.daemon.stop()

    def take_all(self):
        out = {}
        with dicom.Web(self.daemon.http) as web:
            rows = web.all_instances()
            for study, series, uid in rows:
                out[uid] = [dicom.dataset_of(web.instance(study, series, uid))]
            for study in {row[0] for row in rows}:
                web.delete_study(study)
        self.daemon.check_alive()
        return out


class Oracle:
    """storescp that keeps data sets as they come."""

    def __init__(self, folder):
        need("storescp", "echoscu")
        self.folder = os.path.join(folder, "oracle")
        os.mkdir(self.folder)
        for _ in range(10):
            if self.start():
                return
        raise AssertionError("storescp does not listen")

    def start(self):
        with socket.socket() as s:  # storescp takes no port 0
            s.bind(("127.0.0.1", 0))
            self.addr = s.getsockname()
        self.process = subprocess.Popen(
            ["storescp", "-q", "--fork", "+B", "+xa", "--promiscuous", "-pdu", "131072",
             "-od", self.folder, str(self.addr[1])], stderr=subprocess.DEVNULL)
        for _ in range(100):
            if self.process.poll() is not None:
                return False  # someone else has the port now
            if run("echoscu", *self.addr, ok=False).returncode == 0:
                return True
            time.sleep(0.05)
        self.stop()
        return False

    def stop(self):
        self.process.kill()
        self.process.wait()

    def take_all(self):
        out = collections.defaultdict(list)
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            with open(path, "rb") as f:
                out[name.split(".", 1)[1]].append(dicom.dataset_of(f.read()))
            os.remove(path)
        return out


def send(addr, files):
    """dcmsend, which may itself fail or crash on odd files; how many successes it was told of."""
    done = run("dcmsend", "-v", "-dn", "-nh", "-nuc", addr[0], addr[1], *files, ok=False,
               timeout=600)
    return sum(int(n) for n in re.findall(r"with status SUCCESS\s*: (\d+)",
                                          done.stdout + done.stderr))


def compare(target, oracle, files, all_of_them=False):
    """Sends the files to both. What the target called a success it has, and in the bytes that the
    oracle has. Returns what is in the target."""
    send(oracle.addr, files)
    told = send(target.addr, files)
    want, got = oracle.take_all(), target.take_all()
    check(told == len(got), "successes told:", told, "stored:", len(got), *files[:3])
    check(not all_of_them or len(got) == len(want) == len(files), "sent:", len(files), "stored:",
          len(got), "by the oracle:", len(want))
    for uid, data_sets in got.items():
        # The oracle does not take every transfer syntax.
        check(uid not in want or data_sets[0] in want[uid], uid, "has other bytes:", *files[:3])
    return got


def folder_files(name):
    folder = os.path.join(DICOM_DATA, name)
    if not os.path.isdir(folder):
        raise Skip(f"no real data in {folder} (set FILMROOM_DICOM_DATA)")
    return sorted(os.path.join(folder, f) for f in os.listdir(folder))


# ---- Cases --------------------------------------------------------------------------------------

def case_echo(target, _oracle):
    """echoscu gets an answer, whatever title it calls"""
    need("echoscu")
    for title in ("FILMROOM", "SOMEONE"):
        run("echoscu", "-aec", title, *target.addr)


def case_phantom(target, oracle):
    """a phantom series arrives as it was sent"""
    with scratch() as folder:
        files = phantom(os.path.join(folder, "series"), slices=12)
        compare(target, oracle, files, all_of_them=True)


def series_case(name):
    def case(target, oracle):
        files = folder_files(name)
        compare(target, oracle, files, all_of_them=True)

    case.__doc__ = f"{name}: the series arrives as it was sent"
    return case


def one_by_one_case(name):
    def case(target, oracle):
        kept = 0
        files = folder_files(name)
        for path in files:
            kept += len(compare(target, oracle, [path]))
        log(f"{kept} of {len(files)} kept, the others refused or not sent")
        check(kept >= len(files) * 3 // 4, "too few are kept:", kept)

    case.__doc__ = f"{name}: each file alone arrives as it was sent, or is refused"
    return case


def case_storescu(target, oracle):
    """storescu, which proposes one transfer syntax after the other, is taken as well"""
    need("storescu")
    files = folder_files("codecs")
    path = [f for f in files if f.endswith("TestPattern_RGB.dcm")][0]
    for syntax in ("-xe", "-xb", "-xi", "-xd"):
        for place in (oracle, target):
            run("storescu", syntax, *place.addr, path)
        want, got = oracle.take_all(), target.take_all()
        check(len(got) == 1, "nothing was stored with", syntax)
        for uid, data_sets in got.items():
            check(data_sets[0] in want[uid], "other bytes with", syntax)


def case_again(target, _oracle):
    """the same again is a success; other content under the same UID is not"""
    with scratch() as folder:
        files = phantom(os.path.join(folder, "series"), slices=2)
        a, b = (dicom.Instance(f) for f in files)
        dicom.store_all(target.addr, [a, b])
        dicom.store_all(target.addr, [a, b])
        other = bytearray(a.dataset)
        other[-1] ^= 1
        with dicom.Association(target.addr, [(a.sop_class, dicom.EXPLICIT_LE)]) as assoc:
            status = assoc.store(a.sop_class, a.uid, bytes(other))
            check(status == 0x0111, f"status {status:04x}")
            status = assoc.store(a.sop_class, b.uid, a.dataset)
            check(status == 0xA900, f"status {status:04x}")
        got = target.take_all()
        check(got[a.uid][0] == a.dataset and got[b.uid][0] == b.dataset, "other bytes are kept")


def case_crowd(target, _oracle):
    """many senders at once"""
    senders, each = (4, 4) if SHORT else (12, 10)
    with scratch() as folder:
        sets = [phantom(os.path.join(folder, str(i)), slices=each, seed=1000 + i)
                for i in range(senders)]
        running = [subprocess.Popen(["dcmsend", "-q", "-nuc", target.addr[0], str(target.addr[1]),
                                     *files]) for files in sets]
        for process in running:
            check(process.wait(300) == 0, "dcmsend gave", process.returncode)
        got = target.take_all()
        check(len(got) == senders * each, "instances stored:", len(got))
        for files in sets:
            for path in files:
                i = dicom.Instance(path)
                check(i.uid in got, path, "is missing")


def case_cap(target, _oracle):
    """past the cap an association is refused, and taken when another has ended"""
    pair = [(dicom.VERIFICATION, dicom.IMPLICIT_LE)]
    held = [dicom.Association(target.addr, pair) for _ in range(CAP)]
    try:
        try:
            dicom.Association(target.addr, pair).release()
            raise AssertionError("one association too many was taken")
        except ConnectionError as e:
            check("PDU type 3, 00020302" in str(e), "refused in another way:", e)
        for a in held:
            check(a.echo() == 0, "an association within the cap suffered")
    finally:
        for a in held:
            a.release()
            a.socket.close()
    for _ in range(50):
        try:
            check(dicom.echo(target.addr) == 0, "no echo")
            return
        except ConnectionError:
            time.sleep(0.1)
    raise AssertionError("the cap is not given back")


def case_garbage(target, _oracle):
    """garbage on the port ends its own connection"""
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff", bytes(100000),
                 b"\x01\x00\x00\x00\x00\x04\x00\x01\x00\x00", b"\x16\x03\x01\x02\x00\x01\x00"):
        with socket.create_connection(target.addr, 10) as s:
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                s.settimeout(60)
                while s.recv(4096):
                    pass
            except OSError:
                pass  # the server was quicker to close
        check(dicom.echo(target.addr) == 0, "no echo after", data[:20])


CASES = [case_echo, case_phantom, series_case("ct"), series_case("mr"), series_case("enhanced"),
         one_by_one_case("codecs"), one_by_one_case("charset"), one_by_one_case("odd"),
         case_storescu, case_again, case_crowd, case_cap, case_garbage]


def main():
    os.environ["TCP_NODELAY"] = "1"  # for DCMTK's tools
    suite = Suite()
    with scratch() as folder:
        oracle = target = None
        with suite.case("dcmtk's tools and a server to talk to"):
            need("dcmsend", "storescp")
            oracle = Oracle(folder)
            target = (MemTarget if "--mem" in sys.argv[1:] else DaemonTarget)(folder)
        if target:
            for case in CASES:
                with suite.case(case.__doc__):
                    case(target, oracle)
            with suite.case("a clean stop"):
                target.stop()
        if oracle:
            oracle.stop()
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
