#!/usr/bin/python3
"""The CLI against a daemon of tables: output, JSON, errors and exit codes, over a real socket.

Usage: test_cli.py FILMROOM FAKE_ADMIN
"""

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

FILMROOM, FAKE = map(os.path.abspath, sys.argv[1:3])


class Cli(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory(prefix="filmroom-cli-")
        self.dir = self.tmp.name
        self.fake = subprocess.Popen([FAKE, self.dir + "/admin.sock"], stdout=subprocess.PIPE,
                                     text=True)
        self.assertEqual(self.fake.stdout.readline(), "ready\n")

    def tearDown(self):
        self.fake.terminate()
        self.assertEqual(self.fake.wait(timeout=20), 0)
        self.fake.stdout.close()
        self.tmp.cleanup()

    def run_cli(self, *args, code=0, env=None, data=True):
        command = [FILMROOM] + (["--data", self.dir] if data else []) + list(args)
        environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"} | (env or {})
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=environ, timeout=30, cwd=self.dir)
        self.assertEqual(done.returncode, code, f"{command}: {done.stdout}{done.stderr}")
        if code:
            self.assertTrue(done.stderr.startswith("filmroom: ") or "Usage" in done.stderr)
        return done.stdout, done.stderr

    def json_of(self, *args, code=0):
        return json.loads(self.run_cli("--json", *args, code=code)[0])

    def test_status(self):
        out, _ = self.run_cli("status")
        for want in ("9.8.7", "1 d 2 h 3 min", "degraded", "drive 1 is missing", "4+2",
                     "2 of 3 drives", "127.0.0.1:10809", "5 GiB (dedup 2.00x)",
                     "2 GiB (compression 2.50x), 3.1% of 64 GiB", "3 instances refused"):
            self.assertIn(want, out)
        self.assertRegex(out, r"(?m)^Used +10 GiB$")  # the capacity is not one of such bytes
        self.assertEqual(self.json_of("status")["capacity"]["limit"], 64 << 30)

    def test_df(self):
        rows = [re.split("  +", line) for line in self.run_cli("df")[0].splitlines()]
        self.assertEqual(rows[0], ["PARTITION", "USED", "DEDUPLICATED", "COMPRESSED",
                                   "WITH PARITY", "RECLAIMABLE", "CAPACITY", "USE%",
                                   "DRIVES FREE", "AMPLIFICATION"])
        sizes = ["10 GiB", "5 GiB", "2 GiB", "3 GiB", "1 GiB"]
        self.assertEqual(rows[1], ["(first)", *sizes, "48 GiB", "4.2%", "40 GiB", "4.5"])
        self.assertEqual(rows[2], ["fast", *["0 B"] * 5, "16 GiB", "0.0%", "10 GiB", "-"])
        self.assertEqual(rows[3], ["total", *sizes, "64 GiB", "3.1%", "50 GiB", "4.5"])
        self.assertEqual(len(rows), 4)
        self.assertEqual(self.json_of("df"), self.json_of("status"))

    def test_stats(self):
        out, _ = self.run_cli("stats")
        # a sixteenth of rounding up, never past the greatest
        row = re.search(r"^block read +100 +(\S+) ms +(\S+) ms +(\S+) ms +100 ms$", out, re.M)
        self.assertTrue(row, out)
        for got, exact in zip(row.groups(), (50, 90, 99)):
            self.assertTrue(exact <= float(got) <= min(100, exact * 17 / 16 + 0.1), out)
        self.assertRegex(out, r"(?m)^batch bytes +1 +20 KiB +20 KiB +20 KiB +20 KiB$")
        self.assertRegex(out, r"(?m)^sent bytes of drive 3 +(5 MiB|5120 KiB)$")
        series = {s["name"]: s for s in self.json_of("stats")["metrics"]}
        self.assertEqual(series["filmroom_block_seconds"]["max"], 100000000)
        self.assertEqual(series["filmroom_sent_bytes_total"]["value"], 5 << 20)

    def test_drive_orders(self):
        for args, words in (
                (["add", "new"], "added drive 3"),
                (["add", "/dev/x", "--class", "nvme", "--size", "1G", "--force"], "added drive 3"),
                (["add", "/dev/x", "--partition", "fast"], "added drive 3"),
                (["replace", "1", "/dev/x"], "added drive 3"),
                (["remove", "/data/drive1"], "drive 1 is leaving"),
                (["keep", "2"], "drive 2 stays"),
                (["rebuild", "1"], "drive 1 is given up"),
                (["set-class", "2", "disk"], "drive 2 has another class")):
            self.assertIn(words, self.run_cli("drive", *args)[0])
        self.assertEqual(self.json_of("drive", "keep", "2"), {"drive": 2})
        for args, words in (
                (["remove", "0"], "2 drives would be left: add one first"),
                (["remove", "/data/drive9"], "no drive has the path /data/drive9"),
                (["set-class", "2", "tape"], '"class" must be'),
                (["keep", "7"], "no such")):
            self.assertIn(words, self.run_cli("drive", *args, code=1)[1])
        self.assertIn("not a size", self.run_cli("drive", "add", "x", "--size", "9x", code=2)[1])
        for args, words in ((["/dev/\udcff"], "the path"),
                            (["x", "--class", "\udcff"], "the class"),
                            (["x", "--partition", "\udcff"], "the partition")):
            self.assertIn(words, self.run_cli("drive", "add", *args, code=2)[1])
        status = self.run_cli("status")[0]
        self.assertRegex(status, r"(?m)^Leaving +3 GiB to go, 4 min, at 12 MiB/s$")

    def test_drives(self):
        lines = self.run_cli("drive", "list")[0].splitlines()
        self.assertEqual(len(lines), 4)
        self.assertEqual(lines[0].split()[:3], ["DRIVE", "STATE", "CLASS"])
        self.assertRegex(lines[2], r"^ +1  missing  nvme +20 GiB .* 7 .*/data/drive1$")
        self.assertRegex(lines[3], r"^ +2  suspect  nvme .* 5 .* 3 GiB to go, 4 min +does not "
                                   r"answer +/data/drive2$")
        column = lines[0].index("STATE")
        self.assertTrue(all(line[column - 1] == " " and line[column] != " " for line in lines))

    def test_scrub(self):
        self.assertIn("none was finished yet", self.run_cli("scrub", "status")[0])
        self.assertEqual(self.run_cli("scrub", "start")[0], "scrub is running\n")
        self.assertEqual(self.run_cli("scrub", "start")[0], "scrub is running already\n")
        out = self.run_cli("scrub", "status")[0]
        for words in ("running", "40 %, 32 MiB/s, some 1 h 1 min left", "5 MiB verified",
                      "1 h 0 min, 9 MiB verified",
                      "5 wrong places found, 3 repaired, 2 chunks lost",
                      "filmroom-fsck --deep", "1 segments left out", "2023-11-21 22:13 UTC"):
            self.assertIn(words, out)
        self.assertEqual(self.run_cli("scrub", "stop")[0],
                         "scrub is stopped; start goes on from there\n")
        self.assertEqual(self.run_cli("scrub", "stop")[0], "scrub was not running\n")
        self.assertEqual(self.json_of("scrub", "stop")["state"], "stopped")
        self.assertEqual(self.json_of("scrub", "status")["state"], "stopped")

    def test_volumes(self):
        self.assertEqual(self.run_cli("volume", "create", "vm2", "8G")[0],
                         "created volume vm2, 8 GiB\n")
        self.assertEqual(self.json_of("volume", "show", "vm2")["size"], 8 << 30)
        self.run_cli("volume", "create", "vm3", "4096", "--durability", "on-flush")
        self.assertEqual(self.json_of("volume", "show", "vm3")["durability"], "on-flush")
        lines = self.run_cli("volume", "list")[0].splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["NAME", "vm1", "busy", "vm2", "vm3"])
        self.assertIn("10 GiB", lines[1])
        self.assertEqual(self.run_cli("volume", "resize", "vm2", "16G")[0],
                         "resized volume vm2, 16 GiB\n")
        _, err = self.run_cli("volume", "resize", "vm2", "1G", code=1)
        self.assertIn("would shrink", err)
        self.run_cli("volume", "resize", "vm2", "1G", "--shrink")
        self.assertIn("(1073741824 bytes)", self.run_cli("volume", "show", "vm2")[0])
        self.assertEqual(self.run_cli("volume", "delete", "vm2", "--force")[0],
                         "deleted volume vm2\n")
        _, err = self.run_cli("volume", "show", "vm2", code=1)
        self.assertEqual(err, 'filmroom: no volume "vm2"\n')

    def test_volume_errors(self):
        _, err = self.run_cli("volume", "delete", "busy", "--force", code=1)
        self.assertIn("disconnect its clients", err)
        _, err = self.run_cli("volume", "delete", "vm1", code=2)
        self.assertIn("add --force", err)
        self.assertEqual(self.json_of("volume", "create", "vm1", "4096", code=1)["error"]["code"],
                         "EXIST")
        _, err = self.run_cli("volume", "create", "a/b", "4096", code=1)
        self.assertIn("name is not valid", err)
        for size, words in (("4097", "multiple of 4096"), ("0", "above 0"), ("10GB", "not a size"),
                            ("ten", "not a size")):
            _, err = self.run_cli("volume", "create", "x", size, code=2)
            self.assertIn(words, err)
        _, err = self.run_cli("volume", "create", "x", "2000T", code=1)
        self.assertIn("at most", err)
        _, err = self.run_cli("volume", "show", "../status", code=1)
        self.assertIn("no volume", err)

    def test_studies(self):
        lines = self.run_cli("study", "list")[0].splitlines()
        self.assertEqual(len(lines), 3)
        self.assertRegex(lines[1], r"^P1 +Doe\^Jane +2024-01-31  CT,SR +2 +8 +.*MiB +CHEST CT "
                                   r"+1\.2\.3$")
        self.assertNotIn("\033", lines[2])
        self.assertIn("?[31mred", lines[2])
        self.assertEqual(len(self.json_of("study", "list", "--patient=P2")["studies"]), 1)
        out, err = self.run_cli("study", "list", "--limit", "1")
        self.assertEqual(len(out.splitlines()), 2)
        self.assertIn("--offset 1", err)
        _, err = self.run_cli("study", "list", "--limit", "x", code=1)
        self.assertIn("limit", err)
        out, _ = self.run_cli("study", "show", "1.2.3")
        self.assertIn("Doe^Jane", out)
        self.assertRegex(out, r"\n +CT +7 .* axial +1\.2\.3\.1\n")
        _, err = self.run_cli("study", "show", "1.9", code=1)
        self.assertEqual(err, "filmroom: no study 1.9\n")
        _, err = self.run_cli("study", "show", "abc/def", code=1)
        self.assertIn("not a DICOM UID", err)

    def test_patients(self):
        lines = self.run_cli("patient", "list")[0].splitlines()
        self.assertEqual(lines[0].split(), ["PATIENT", "ID", "ISSUER", "NAME", "BIRTH", "DATE",
                                            "SEX", "STUDIES"])
        self.assertRegex(lines[1], r"^P1 +HOSPITAL +Doe\^Jane +1970-01-31  F +1$")
        self.assertEqual(len(lines), 3)
        out, err = self.run_cli("patient", "list", "--limit", "1")
        self.assertEqual(len(out.splitlines()), 2)
        self.assertIn("--offset 1", err)
        self.assertEqual(len(self.json_of("patient", "list", "--patient=P2")["patients"]), 1)
        _, err = self.run_cli("patient", "list", "--modality", "CT", code=2)
        self.assertIn("patient list has no option --modality", err)
        out, _ = self.run_cli("patient", "show", "P1")
        self.assertIn("1970-01-31", out)
        self.assertRegex(out, r"\n\nPATIENT ID.*\nP1 .* CHEST CT +1\.2\.3\n$")
        self.assertEqual(self.json_of("patient", "show", "P1")["studies"][0]["study_uid"], "1.2.3")
        for name in ("P9", "a/b ?%", "..", "P*"):
            _, err = self.run_cli("patient", "show", name, code=1)
            self.assertIn(f'no patient has the ID "{name}"', err)

    def test_snapshots(self):
        out, _ = self.run_cli("volume", "snapshot", "vm1,busy", "a")
        self.assertEqual(out, "took snapshot vm1@a\ntook snapshot busy@a\n")
        self.assertRegex(self.run_cli("volume", "snapshots", "vm1")[0], r"SNAPSHOT.*\nvm1@a ")
        _, err = self.run_cli("volume", "clone", "vm1", "new", code=2)
        self.assertIn("write NAME@SNAP", err)
        self.assertIn("created volume new", self.run_cli("volume", "clone", "vm1@a", "new")[0])
        out, _ = self.run_cli("volume", "rollback", "vm1", "a", "--force")
        self.assertIn("rolled back volume vm1", out)
        out, _ = self.run_cli("volume", "snapshot-delete", "vm1", "a", "--force")
        self.assertEqual(out, "deleted snapshot vm1@a\n")
        _, err = self.run_cli("volume", "snapshot-delete", "vm1", "a", "--force", code=1)
        self.assertIn("no snapshot", err)
        self.run_cli("volume", "snapshot-delete", "busy", "a", "--force")
        self.run_cli("volume", "delete", "new", "--force")

    def test_study_delete(self):
        _, err = self.run_cli("study", "delete", "1.2.3", code=2)
        self.assertIn("add --force", err)
        deleted = self.json_of("study", "delete", "1.2.3", "--force")["deleted"]
        self.assertEqual((deleted["instances"], deleted["bytes"]), (8, 8000000))
        _, err = self.run_cli("study", "delete", "1.2.3", "--force", code=1)
        self.assertIn("no study 1.2.3", err)
        self.assertEqual(self.run_cli("study", "delete", "1.2.4", "--force")[0],
                         "deleted study 1.2.4: 4 instances, 3.81 MiB\n")

    def on_terminal(self, answer, *args):
        """Runs the command on a terminal; returns what it showed and its exit code."""
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(FILMROOM, [FILMROOM, "--data", self.dir, *args])
        os.write(fd, answer)
        shown = b""
        while select.select([fd], [], [], 20)[0]:
            try:
                piece = os.read(fd, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        os.close(fd)
        return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_terminal(self):
        shown, code = self.on_terminal(b"no\n", "study", "delete", "1.2.3")
        self.assertEqual(code, 1)
        self.assertIn("nothing was changed", shown)
        shown, code = self.on_terminal(b"no\n", "object", "rm", "dicom/1/2/3")
        self.assertEqual(code, 1)
        self.assertIn("Delete the DICOM instance 1/2/3?", shown)
        shown, code = self.on_terminal(b"yes\n", "study", "delete", "1.2.3")
        self.assertEqual(code, 0, shown)
        self.assertIn("8 instances, 7.62 MiB? This cannot be undone", shown)
        self.assertIn("deleting: 7 of 8 instances", shown)
        self.assertIn("deleting: 8 of 8 instances", shown)
        shown, code = self.on_terminal(b"yes\n", "volume", "delete", "vm1")
        self.assertEqual(code, 0, shown)
        self.assertIn("the 3 GiB in it", shown)

    def test_no_daemon(self):
        _, err = self.run_cli("--data", "/no/such/dir", "status", code=1, data=False)
        self.assertEqual(err, "filmroom: no daemon on /no/such/dir: "
                              "start it with filmroomd --data /no/such/dir\n")
        _, err = self.run_cli("status", code=1, data=False)
        self.assertIn("no daemon on ./filmroom-data:", err)
        _, err = self.run_cli("--data", "/" + "x" * 200, "status", code=1, data=False)
        self.assertIn("too long", err)
        self.run_cli("status", data=False, env={"FILMROOM_DATA": self.dir})
        self.run_cli("--data", self.dir, "status", data=False, env={"FILMROOM_DATA": "/nowhere"})

    def test_usage(self):
        for args, words in (
                (["nothing"], "no such command: nothing"),
                (["volume"], "volume what? One of: create, list, show, resize, delete"),
                (["volume", "grow"], 'volume has no "grow"'),
                (["volume", "create", "x"], "missing arguments: volume create NAME SIZE"),
                (["status", "now"], "too many arguments"),
                (["status", "--limit", "3"], "status has no option --limit"),
                (["status", "--bogus"], "--bogus: no such option"),
                (["status", "--json=1"], "--json takes no value"),
                (["study", "list", "--limit"], "--limit: a value is missing"),
                (["volume", "show", ""], "an argument is empty"),
                (["\033[2J"], "no such command: ?[2J")):
            _, err = self.run_cli(*args, code=2)
            self.assertIn(words, err)
        self.assertIn("Usage", self.run_cli(code=2)[1])

    def test_help(self):
        out, _ = self.run_cli("--help")
        areas = "status|stats|drive|volume|patient|study|bucket|object"
        commands = re.findall(rf"^  ((?:{areas})(?: [\w-]+)?)  ", out, re.M)
        self.assertEqual(len(commands), 32, out)
        for command in commands:
            text, _ = self.run_cli(*command.split(), "--help", data=False)
            self.assertIn(f"Usage: filmroom [--data DIR] [--json] {command}", text)
        self.assertIn("filmroom 0", self.run_cli("--version")[0])

    def test_buckets(self):
        self.assertEqual(self.run_cli("bucket", "create", "c")[0], "created bucket c\n")
        self.assertIn("exists already", self.run_cli("bucket", "create", "c", code=1)[1])
        lines = self.run_cli("bucket", "list")[0].splitlines()
        self.assertEqual([l.split()[0] for l in lines], ["NAME", "b", "dicom", "c"])
        self.assertEqual(len(self.json_of("bucket", "list")["buckets"]), 3)
        self.assertIn("is always there", self.run_cli("bucket", "delete", "dicom", code=1)[1])
        self.assertEqual(self.run_cli("bucket", "delete", "c")[0], "deleted bucket c\n")
        self.run_cli("object", "put", "b/n")
        self.assertRegex(self.run_cli("bucket", "delete", "b", code=1)[1], "has objects.*--objects")
        self.assertIn("add --force",
                      self.run_cli("bucket", "delete", "b", "--objects", code=2)[1])
        self.run_cli("bucket", "delete", "b", "--objects", "--force")
        self.assertIn("no bucket", self.run_cli("object", "list", "b", code=1)[1])

    def test_objects(self):
        src, out = self.dir + "/src", self.dir + "/out"
        with open(src, "wb") as f:
            f.write(bytes(range(256)) * 15)
        self.assertEqual(self.run_cli("object", "put", "b/x/é y", src, "--type", "t/t",
                                      "--meta", "owner=Jörg")[0], "stored b/x/é y, 3840 bytes\n")
        self.assertIn("replaced", self.run_cli("object", "put", "b/x/é y", src, "--type", "t/t",
                                               "--meta", "owner=Jörg")[0])
        self.run_cli("object", "get", "b/x/é y", "-o", out)
        with open(src, "rb") as f, open(out, "rb") as g:
            self.assertEqual(f.read(), g.read())
        self.assertEqual(self.run_cli("object", "get", "b/x/é y", "--range", "65-70")[0], "ABCDEF")
        self.assertEqual(self.run_cli("object", "get", "b/x/é y", "--range=0-0", "--output",
                                      "/dev/null")[0], "")
        shown = self.json_of("object", "show", "b/x/é y")
        self.assertEqual((shown["size"], shown["type"], shown["metadata"]),
                         (3840, "t/t", {"owner": "Jörg"}))
        self.assertRegex(self.run_cli("object", "show", "b/x/é y")[0], "Metadata +owner = Jörg")
        self.run_cli("object", "put", "b/empty")
        self.assertEqual(self.run_cli("object", "get", "b/empty")[0], "")
        listed = self.json_of("object", "list", "b/x/")["objects"]
        self.assertEqual([o["name"] for o in listed], ["x/é y"])
        self.assertIn("3840 B", self.run_cli("object", "list", "b")[0].replace("3.75 KiB",
                                                                               "3840 B"))
        self.assertEqual(self.run_cli("object", "rm", "b/empty")[0], "deleted b/empty\n")

    def test_object_errors(self):
        out = self.dir + "/out"
        with open(self.dir + "/big", "wb") as f:
            f.truncate(1 << 20)
        with open(self.dir + "/huge", "wb") as f:
            f.truncate((8 << 30) + 1)
        self.run_cli("object", "put", "b/n", "--if-absent")
        for code, words, args in (
                (1, "is there already", ("put", "b/n", "--if-absent")),
                (1, "at most 8589934592 bytes", ("put", "b/big", self.dir + "/big")),
                (1, "and an object at most", ("put", "b/huge", self.dir + "/huge")),
                (1, "no space left", ("put", "b/full", self.dir + "/big")),
                (1, "cannot be read", ("put", "b/n", self.dir + "/none")),
                (1, "is a directory", ("put", "b/n", self.dir)),
                (1, "no bucket \"z\"", ("put", "z/n")),
                (1, "C-STORE", ("put", "dicom/n")),
                (2, "is not BUCKET/NAME", ("put", "b")),
                (2, "is not BUCKET/NAME", ("get", "b/")),
                (2, "NAME=VALUE", ("put", "b/n", "--meta", "x")),
                (2, "lower-case", ("put", "b/n", "--meta", "X=y")),
                (2, "a value has no control", ("put", "b/n", "--meta", "x=y\nz")),
                (2, "a content type has no", ("put", "b/n", "--type", "a/b\r\nX-A: b")),
                (1, "at most 2048", ("put", "b/n", "--meta", "x=" + "y" * 2048)),
                (1, "at most 127", ("put", "b/n", "--type", "a/" + "y" * 126)),
                (2, "is not a range", ("get", "b/n", "--range", "99-10")),
                (2, "add --force", ("rm", "dicom/1/2/3")),
                (1, "no object", ("rm", "dicom/1/2/3", "--force")),
                (2, "too many arguments", ("put", "b/n", "a", "b")),
                (2, "is not a range", ("get", "b/n", "--range", "5")),
                (2, "value is missing", ("get", "b/n", "-o")),
                (2, "above 0", ("list", "b", "--limit", "0")),
                (1, "no object \"m\"", ("get", "b/m", "-o", out)),
                (1, "cannot be written", ("get", "b/n", "-o", out + "/x")),
                (1, "no object", ("rm", "b/m"))):
            self.assertIn(words, self.run_cli("object", *args, code=code)[1], args)
        self.assertFalse(os.path.exists(out) or os.path.exists(out + ".part"))

    def answers(self, answer, *args, code=1):
        """What the CLI says of an answer that the daemon's HTTP server would give by itself."""
        with tempfile.TemporaryDirectory(prefix="filmroom-cli-") as folder:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(folder + "/admin.sock")
            listener.listen()

            def serve():
                peer = listener.accept()[0]
                peer.recv(65536)
                peer.sendall(answer)
                peer.close()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            said = self.run_cli("--data", folder, *args, code=code, data=False)
            thread.join()
            listener.close()
            return said

    def test_plain_answers(self):
        plain = "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s"
        long = plain % ("414 Long", 20, "The target \033is long\n")
        get = ("object", "get", "b/n")
        for args in (("status",), get, (*get, "--range", "1-2")):
            self.assertEqual(self.answers(long.encode(), *args)[1],
                             "filmroom: The target ?is long\n")
            busy = plain % ("503 Busy", 5, "Busy\n")
            self.assertIn("try again in a moment", self.answers(busy.encode(), *args)[1])
            other = "HTTP/1.1 500 X\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
            self.assertIn("same version", self.answers(other.encode(), *args)[1])

    def test_range_not_taken(self):
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"
        out, err = self.answers(whole, "object", "get", "b/n", "--range", "1-2")
        self.assertEqual(out, "")
        self.assertIn("not the range", err)
        self.assertEqual(self.answers(whole, "object", "get", "b/n", code=0)[0], "whole")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
