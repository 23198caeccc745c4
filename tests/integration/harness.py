"""What the integration scripts share: a daemon in a folder of its own, phantom series, cases.

A script is an executable file of this folder. It prints one line per case, "ok - NAME", "not ok -
NAME: WHY" or "skip - NAME: WHAT IS MISSING", and exits 1 when a case failed; tools/test counts
these lines. It works against the build that FILMROOM_BUILD names (default: build), on free ports
and in a temporary folder, and stops only processes that it started.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD = os.path.abspath(os.environ.get("FILMROOM_BUILD", os.path.join(ROOT, "build")))
DAEMON = os.path.join(BUILD, "daemon", "filmroomd")
CLI = os.path.join(BUILD, "tools", "filmroom")
FSCK = os.path.join(BUILD, "tools", "filmroom-fsck")
DUMP = os.path.join(BUILD, "tools", "filmroom-dump")
PHANTOM = os.path.join(BUILD, "tools", "phantom", "filmroom-phantom")
# Real data is used in place where there is some; the tests do not need it.
DICOM_DATA = os.environ.get("FILMROOM_DICOM_DATA", os.path.join(ROOT, "..", "shared", "dicom"))
# Set when running on a slow build: fewer rounds of the same.
SHORT = bool(os.environ.get("FILMROOM_TEST_SHORT"))

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SANITIZER_MARKS = ("ERROR: AddressSanitizer", "runtime error:", "ERROR: LeakSanitizer",
                   "check failed")


class Skip(Exception):
    """Raised in a case that cannot run here; its text says what is missing."""


class Failure(Exception):
    """A promise was broken."""


def check(condition, text, *details):
    if not condition:
        raise Failure(" ".join([text, *map(str, details)]))


def log(*words):
    print("  #", *words, flush=True)


class Suite:
    """The cases of a script.

        suite = Suite()
        with suite.case("reads go on"):
            ...
        sys.exit(suite.finish())
    """

    def __init__(self):
        self.failed = 0
        self.count = 0

    @contextlib.contextmanager
    def case(self, name):
        self.count += 1
        start = time.monotonic()
        try:
            yield
        except Skip as e:
            print(f"skip - {name}: {e}", flush=True)
        except Exception as e:  # pylint: disable=broad-except
            self.failed += 1
            traceback.print_exc(file=sys.stdout)
            text = str(e).replace("\n", " ") or type(e).__name__
            print(f"not ok - {name}: {text}", flush=True)
        else:
            print(f"ok - {name}", flush=True)
            log(f"{time.monotonic() - start:.1f} s")

    def finish(self):
        if not self.count:
            print("not ok - no case ran")
        return 1 if self.failed or not self.count else 0


def built(*paths):
    """What the build makes must be there: that is no reason to skip."""
    for path in paths:
        check(os.path.exists(path), f"{path} is not built")


def need(*programs):
    for program in programs:
        if not (os.path.exists(program) if "/" in program else shutil.which(program)):
            raise Skip(f"{program} is not there")


@contextlib.contextmanager
def scratch():
    """A temporary folder; FILMROOM_TEST_DIR says where, FILMROOM_TEST_KEEP keeps it."""
    path = tempfile.mkdtemp(prefix="filmroom-test-", dir=os.environ.get("FILMROOM_TEST_DIR"))
    try:
        yield path
    finally:
        if os.environ.get("FILMROOM_TEST_KEEP"):
            log("kept", path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def run(*argv, ok=True, timeout=120, stdin=None):
    """Runs a program; returns it with stdout and stderr as text. ok=True: it must succeed."""
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=timeout, check=False, input=stdin)
    done.stdout = done.stdout.decode("utf-8", "replace")
    done.stderr = done.stderr.decode("utf-8", "replace")
    if ok and done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))[:300]} gave {done.returncode}: "
                      f"{(done.stderr or done.stdout)[-1500:]}")
    return done


def phantom(folder, **options):
    """Makes a series (tools/phantom); returns its files in order."""
    built(PHANTOM)
    argv = [PHANTOM, "--out", folder]
    for name, value in options.items():
        argv += ["--" + name.replace("_", "-"), str(value)]
    run(*argv, timeout=900)
    return sorted(os.path.join(root, f) for root, _, files in os.walk(folder) for f in files)


class Daemon:
    """filmroomd on a data folder. Use as a context manager: leaving it stops the daemon.

    `config` is the text of a configuration file (filmroomd(8)), `cwd` where it is started."""

    def __init__(self, data, *args, config=None, ready_timeout=60, cwd=None):
        built(DAEMON, CLI)
        self.data = data
        self.cwd = cwd
        self.args = list(args)
        if config:
            path = data.rstrip("/") + ".conf"
            with open(path, "w", encoding="utf-8") as f:
                f.write(config)
            self.args += ["--config", path]
        self.ready_timeout = ready_timeout
        self.process = None
        self.log_path = data.rstrip("/") + ".log"
        self.ports = {}

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.stop()
        else:
            self.kill()
            print(self.log_tail(), flush=True)

    # ---- Life ------------------------------------------------------------------------------------

    def start(self, expect_ready=True):
        with open(self.log_path, "ab") as log_file:
            self.process = subprocess.Popen(
                [DAEMON, "--data", self.data, "--nbd-port", "0", "--dicom-port", "0",
                 "--http-port", "0", *map(str, self.args)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log_file, cwd=self.cwd)
        ready = self.wait_ready()
        if expect_ready and not ready:
            code = self.process.poll()
            self.kill()
            raise Failure(f"the daemon was not ready (exit code {code}): {self.log_tail()}")
        if ready:
            self.ports = self.read_ports()
        return ready

    def wait_ready(self):
        """Waits for the line "ready"; False when the daemon ends or takes too long."""
        found = threading.Event()
        stream = self.process.stdout

        def reader():
            for line in stream:
                if line.strip() == b"ready":
                    found.set()
            stream.close()

        thread = threading.Thread(target=reader, daemon=True)
        thread.start()
        end = time.monotonic() + self.ready_timeout
        while not found.wait(0.01):
            if self.process.poll() is not None or time.monotonic() > end:
                thread.join(1)
                return found.is_set()
        return True

    def kill(self):
        """kill -9, at once."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process:
            self.process.wait()
        self.process = None

    def stop(self, timeout=60):
        """A clean stop: exit code 0, nothing from the sanitizers."""
        if not self.process:
            return
        self.check_alive()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"the daemon did not stop in {timeout} s: {self.log_tail()}") from None
        self.process = None
        self.check_log()
        check(code == 0, f"the daemon stopped with exit code {code}:", self.log_tail())

    def restart(self):
        self.stop()
        self.start()

    def check_alive(self):
        code = self.process.poll() if self.process else "none"
        if code is not None:
            raise Failure(f"the daemon died (exit code {code}): {self.log_tail()}")

    def check_log(self):
        text = self.log_text()
        for mark in SANITIZER_MARKS:
            check(mark not in text, "in the daemon's log:", text[text.find(mark) - 200:][:4000])

    def log_text(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def log_tail(self, size=4000):
        return self.log_text()[-size:]

    # ---- The CLI ---------------------------------------------------------------------------------

    def cli(self, *argv, ok=True, timeout=120, stdin=None):
        return run(CLI, "--data", self.data, *argv, ok=ok, timeout=timeout, stdin=stdin)

    def cli_json(self, *argv):
        return json.loads(self.cli(*argv, "--json").stdout)

    def status(self):
        return self.cli_json("status")

    def read_ports(self):
        return {row["name"]: row["port"] for row in self.status()["listeners"] if row["port"]}

    def drives(self):
        """Paths of the drive files in order."""
        rows = self.cli_json("drive", "list")
        rows = rows.get("drives", rows) if isinstance(rows, dict) else rows
        return [row["path"] for row in sorted(rows, key=lambda r: r["index"])]

    def stored(self):
        """Bytes stored, after deduplication and compression, before parity."""
        return self.status()["capacity"]["stored"]

    def wait_quiet(self, timeout=60):
        """Waits until background work has settled: the stored bytes stay the same for a while."""
        end = time.monotonic() + timeout
        last, same = None, 0
        while same < 4 and time.monotonic() < end:
            now = self.status()["capacity"]
            now = (now["stored"], now["logical"])
            same = same + 1 if now == last else 0
            last = now
            time.sleep(0.5)

    def volume(self, name, size):
        self.cli("volume", "create", name, size)

    def rss(self):
        """Resident memory of the daemon in bytes."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * KIB
        raise Failure("no VmRSS of the daemon")

    @property
    def nbd(self):
        return ("127.0.0.1", self.ports["nbd"])

    @property
    def dicom(self):
        return ("127.0.0.1", self.ports["dicom"])

    @property
    def http(self):
        return ("127.0.0.1", self.ports["http"])

    def nbd_uri(self, name):
        return f"nbd://127.0.0.1:{self.ports['nbd']}/{name}"


def store_with_dcmsend(daemon, files, aet="FILMROOM"):
    """Sends files with dcmsend, in one association; every one must be taken."""
    need("dcmsend")
    done = run("dcmsend", "-v", "-aec", aet, "127.0.0.1", daemon.ports["dicom"], *files, ok=False,
               timeout=600)
    check(done.returncode == 0, "dcmsend failed:", (done.stdout + done.stderr)[-2000:])
    return done


def same_as_text(text, value, name=None):
    """Checks that filmroom-dump's text has every name and every value of its JSON."""
    if isinstance(value, dict):
        for key, field in value.items():
            check(re.search(rf"\b{re.escape(key)}[:=]", text), f"{key} is not in the text:",
                  text[:2000])
            same_as_text(text, field, key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for row in value:
            same_as_text(text, row)
    else:
        words = {True: "yes", False: "no", None: "-"}
        said = ",".join(words[v] if v is None or isinstance(v, bool) else str(v)
                        for v in (value if isinstance(value, list) else [value]))
        check(re.search(rf"\b{re.escape(name)}(: |=){re.escape(said)}(\s|$)", text),
              f"{name} {said} is not in the text:", text[:2000])


def fsck(data, config, *options, code=0):
    """filmroom-fsck on a store at rest; returns what it told. It must end with this exit code."""
    done = run(FSCK, "--data", data, "--config", config, "--json", *options, ok=False, timeout=600)
    check(done.returncode == code, f"fsck gave {done.returncode}, not {code}:",
          (done.stdout + done.stderr)[-4000:])
    for mark in SANITIZER_MARKS:
        check(mark not in done.stderr, "fsck:", done.stderr[-4000:])
    return json.loads(done.stdout)


class Pattern:
    """Bytes that can be made again from a seed, and that do not compress."""

    @staticmethod
    def make(seed, size):
        return random.Random(seed).randbytes(size)


def main(cases):
    """Runs each function of `cases` as a case named by its docstring's first line."""
    suite = Suite()
    for function in cases:
        with suite.case((function.__doc__ or function.__name__).strip().split("\n")[0].rstrip(".")):
            function()
    return suite.finish()
