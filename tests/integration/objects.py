#!/usr/bin/python3
"""Buckets and objects with a real daemon, the CLI and curl: what was stored comes back, in ranges
and lists; memory is bounded; kill -9 during puts leaves what was acknowledged and nothing that was
not; the same bytes cost little, whichever door they come through; bad input is refused.

  objects.py [--rounds N] [--seed S]    rounds of kill -9, default 4
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import socket
import sys
import threading
import time

from admin import ask
from harness import (CLI, DUMP, KIB, MIB, SHORT, Daemon, Failure, Suite, check, fsck, log, need,
                     phantom, run, same_as_text, scratch, store_with_dcmsend)

CONFIG = "[store]\njournal_size = 16M\ncache_size = 16M\n"
SIZES = [0, 1, 131, 4095, 256 * KIB, 256 * KIB + 1, 5 * MIB + 3]
BIG = (20 if SHORT else 200) * MIB
MEMORY = 400 * MIB  # of the daemon, with a put and a get of BIG


def expect(daemon, want, method, path, body=None, headers=None):
    status, head, got = ask(daemon, method, path, body, headers)
    check(status == want, f"{method} {path[:80]} gave {status}, not {want}:", got[:300])
    return head, got


def peak(daemon):
    with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as f:
        return next(int(l.split()[1]) * KIB for l in f if l.startswith("VmHWM:"))


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)
    return path


def big_file(path, size, seed):
    """Bytes that never repeat, written in pieces; their digest."""
    rng, digest = random.Random(seed), hashlib.sha256()
    with open(path, "wb") as f:
        for _ in range(size // MIB):
            piece = rng.randbytes(MIB)
            digest.update(piece)
            f.write(piece)
    return digest.hexdigest()


def file_digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---- Cases ---------------------------------------------------------------------------------------

def all_shown(d, bucket):
    """What is told of each object of a bucket, beside its bytes."""
    names = [o["name"] for o in d.cli_json("object", "list", bucket)["objects"]]
    return {n: d.cli_json("object", "show", f"{bucket}/{n}") for n in names}


def sizes(folder):
    with Daemon(os.path.join(folder, "sizes"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        rng = random.Random(1)
        digests = {}
        for size in SIZES:
            data = rng.randbytes(size)
            digests[size] = hashlib.sha256(data).digest()
            src = write(os.path.join(folder, "src"), data)
            out = os.path.join(folder, "out")
            d.cli("object", "put", f"b/size/{size}", src, "--type", "test/size",
                  "--meta", f"size={size}", "--meta", "wer=Jörg")
            d.cli("object", "get", f"b/size/{size}", "-o", out)
            with open(out, "rb") as f:
                check(f.read() == data, "other bytes came back, of", size)
            check(not os.path.exists(out + ".part"), "the part is left over")
            shown = d.cli_json("object", "show", f"b/size/{size}")
            check(shown["metadata"] == {"size": str(size), "wer": "Jörg"} and
                  shown["type"] == "test/size" and shown["size"] == size, "shown:", shown)
        listed = d.cli_json("object", "list", "b/size/")["objects"]
        check([o["name"] for o in listed] == sorted(f"size/{n}" for n in SIZES), "listed:", listed)
        check(d.status()["objects"] == len(SIZES) and d.status()["object_bytes"] == sum(SIZES),
              "the status counts", d.status()["objects"])
        shown = all_shown(d, "b")
        check(len({o["etag"] for o in shown.values()}) == len(SIZES), "etags:", shown)
        for again in (d.restart, d.kill):
            again()
            if not d.process:
                d.start()
            check(all_shown(d, "b") == shown, "it tells of other objects than before:",
                  all_shown(d, "b"), "not", shown)
            for size, digest in digests.items():
                got = expect(d, 200, "GET", f"/v1/buckets/b/objects/size/{size}")[1]
                check(hashlib.sha256(got).digest() == digest, "other bytes are back, of", size)
        for size in SIZES:
            d.cli("object", "rm", f"b/size/{size}")
        check(d.status()["objects"] == 0, "objects are left")
        d.cli("bucket", "delete", "b")


def ranges(folder):
    data = random.Random(2).randbytes(700 * KIB)
    with Daemon(os.path.join(folder, "ranges"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        expect(d, 201, "PUT", "/v1/buckets/b/objects/n", data)
        for text, want in (("0-0", data[:1]), ("5-1000", data[5:1001]), ("300000-", data[300000:]),
                           ("-7", data[-7:]), ("716000-999999999", data[716000:])):
            head, got = expect(d, 206, "GET", "/v1/buckets/b/objects/n",
                               headers={"Range": "bytes=" + text})
            check(got == want, "range", text)
            check(head["Content-Range"].endswith(f"/{len(data)}"), head["Content-Range"])
            got = run(CLI, "--data", d.data, "object", "get", "b/n", "--range", text,
                      "-o", os.path.join(folder, "part"))
            with open(os.path.join(folder, "part"), "rb") as f:
                check(f.read() == want, "range by CLI", text)
        head, _ = expect(d, 416, "GET", "/v1/buckets/b/objects/n",
                         headers={"Range": f"bytes={len(data)}-"})
        check(head["Content-Range"] == f"bytes */{len(data)}", head["Content-Range"])
        for text in ("bytes=9-5", "bytes=a-", "bytes=0-1,5-6", "lines=1-2", "bytes=-"):
            check(expect(d, 200, "GET", "/v1/buckets/b/objects/n",
                         headers={"Range": text})[1] == data, "ignored:", text)
        head, got = expect(d, 200, "HEAD", "/v1/buckets/b/objects/n")
        check(got == b"" and head["Content-Length"] == str(len(data)), "HEAD")


def conditions(folder):
    with Daemon(os.path.join(folder, "conditions"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        path = "/v1/buckets/b/objects/a/b%20c"
        expect(d, 201, "PUT", path, b"1", {"If-None-Match": "*"})
        expect(d, 412, "PUT", path, b"2", {"If-None-Match": "*"})
        etag = expect(d, 200, "HEAD", path)[0]["ETag"]
        expect(d, 200, "PUT", path, b"2", {"If-Match": etag})
        expect(d, 412, "PUT", path, b"3", {"If-Match": etag})
        expect(d, 400, "PUT", path, b"3", {"If-Match": "x"})
        check(expect(d, 200, "GET", path)[1] == b"2", "the wrong one won")
        check(d.cli("object", "put", "b/a/b c", "--if-absent", ok=False).returncode == 1, "absent")
        # Of many at once exactly one finds nobody there.
        won = []
        threads = [threading.Thread(target=lambda i=i: won.append(ask(
            d, "PUT", "/v1/buckets/b/objects/one", str(i).encode(), {"If-None-Match": "*"})[0]))
                   for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        check(sorted(won) == [201] + [412] * 11, "won:", won)


def lists(folder):
    with Daemon(os.path.join(folder, "lists"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        names = [f"{a}/{b}" for a in "xyz" for b in range(7)] + ["x", "é", "x/3/deep"]
        for n in names:
            run(CLI, "--data", d.data, "object", "put", "b/" + n, stdin=n.encode())
        listed = [o["name"] for o in d.cli_json("object", "list", "b")["objects"]]
        check(listed == sorted(names, key=lambda n: n.encode()), "listed:", listed)
        page = json.loads(expect(d, 200, "GET", "/v1/buckets/b/objects?delimiter=/&limit=3")[1])
        check([o["name"] for o in page["objects"]] == ["x", "x/", "y/"] and page["more"], page)
        page = json.loads(expect(
            d, 200, "GET", "/v1/buckets/b/objects?delimiter=/&limit=3&after=y/")[1])
        check([o["name"] for o in page["objects"]] == ["z/", "é"] and not page["more"], page)
        listed = d.cli_json("object", "list", "b/x/3", "--folders")["objects"]
        check([o["name"] for o in listed] == ["x/3", "x/3/"], "folders:", listed)
        check(d.cli("bucket", "delete", "b", ok=False).returncode == 1, "deleted with objects")
        d.cli("bucket", "delete", "b", "--objects", "--force")
        end = time.monotonic() + 30
        while d.status()["objects"] and time.monotonic() < end:
            time.sleep(0.1)
        check(d.status()["objects"] == 0, "the bucket is not given back")
        d.cli("bucket", "create", "b")
        check(d.cli_json("object", "list", "b")["objects"] == [], "it came back")


def large(folder):
    src, out = os.path.join(folder, "big"), os.path.join(folder, "big.out")
    digest = big_file(src, BIG, 3)
    with Daemon(os.path.join(folder, "large"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        d.cli("bucket", "create", "other")
        start = time.monotonic()
        d.cli("object", "put", "b/big", src, "--meta", "of=bytes", timeout=600)
        put = time.monotonic() - start
        d.cli("object", "get", "b/big", "-o", out, timeout=600)
        get = time.monotonic() - start - put
        check(file_digest(out) == digest, "other bytes came back")
        log(f"{BIG // MIB} MiB: put {BIG / MIB / put:.0f} MiB/s, get {BIG / MIB / get:.0f} MiB/s, "
            f"peak {peak(d) // MIB} MiB")
        check(peak(d) < MEMORY, "the daemon took", peak(d) // MIB, "MiB")
        before = d.status()["capacity"]
        with open(src, "rb") as f:  # without a length: chunked
            run("curl", "-sSf", "--unix-socket", d.data + "/admin.sock", "-T", "-",
                "http://x/v1/buckets/other/objects/again", stdin=f.read(), timeout=600)
        after = d.status()["capacity"]
        check(after["logical"] - before["logical"] == BIG, "logical")
        check(after["stored"] - before["stored"] < MIB, "stored again:",
              after["stored"] - before["stored"])
        got = d.cli_json("object", "show", "other/again")["etag"]
        check(got == d.cli_json("object", "show", "b/big")["etag"], "etags of the same bytes")
    os.unlink(src)
    os.unlink(out)
    store = os.path.join(folder, "large")
    dump = json.loads(run(DUMP, "--data", store, "--json", "object", "b/big").stdout)
    check(dump["bytes"] == BIG and sum(p["length"] for p in dump["pieces"]) == BIG, "dump", dump)
    same_as_text(run(DUMP, "--data", store, "object", "b/big").stdout, dump)
    dump = json.loads(run(DUMP, "--data", store, "--json", "buckets").stdout)
    check([(b["name"], b["bytes"]) for b in dump["buckets"]] == [("b", BIG), ("other", BIG)],
          "dump", dump)
    same_as_text(run(DUMP, "--data", store, "buckets").stdout, dump)
    fsck(store, store + ".conf")


def instances(folder):
    files = phantom(os.path.join(folder, "ct"), slices=6)
    with Daemon(os.path.join(folder, "instances"), config=CONFIG) as d:
        need("dcmsend")
        store_with_dcmsend(d, files)
        listed = d.cli_json("object", "list", "dicom")["objects"]
        check(len(listed) == 6, "listed:", len(listed))
        folders = d.cli_json("object", "list", "dicom", "--folders")["objects"]
        check(len(folders) == 1 and folders[0]["prefix"], "folders:", folders)
        d.cli("bucket", "create", "b")
        before = d.status()["capacity"]["stored"]
        for i, o in enumerate(listed):
            part10 = expect(d, 200, "GET", "/v1/buckets/dicom/objects/" + o["name"])[1]
            check(len(part10) == o["size"] and part10[128:132] == b"DICM", "not Part 10")
            expect(d, 201, "PUT", f"/v1/buckets/b/objects/{i}", part10)
            check(expect(d, 200, "GET", f"/v1/buckets/b/objects/{i}")[1] == part10, "bytes")
        cost = d.status()["capacity"]["stored"] - before
        log(f"6 instances of {sum(o['size'] for o in listed)} bytes again, as objects: {cost}")
        check(cost == 0, "the same bytes as objects cost", cost)
        status, _, got = ask(d, "PUT", "/v1/buckets/dicom/objects/x", b"x")
        check(status == 403 and b"C-STORE" in got, "put to dicom:", status, got)
        done = d.cli("bucket", "delete", "dicom", ok=False)
        check(done.returncode == 1 and "always there" in done.stderr, "to delete dicom:",
              done.stderr)
        d.cli("object", "rm", "dicom/" + listed[0]["name"], "--force")
        check(len(d.cli_json("object", "list", "dicom")["objects"]) == 5, "not deleted")


def bad_input(folder):
    with Daemon(os.path.join(folder, "bad"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        o = "/v1/buckets/b/objects"
        for method, path, headers, want in (
                ("PUT", o + "/a%0Ab", {}, 400), ("PUT", o + "/%FF", {}, 400),
                ("PUT", o + "/" + "n" * 1025, {}, 400), ("PUT", "/v1/buckets/c/objects/n", {}, 404),
                ("PUT", o + "/n", {"X-Filmroom-Meta-a b": "x"}, 400),
                ("PUT", o + "/n", {"X-Filmroom-Meta-a": "x" * 2048}, 413),
                ("PUT", o + "/n", {"Content-Length": str(1 << 40)}, 413),
                ("PUT", o + "/n", {"Content-Range": "bytes 0-0/2"}, 400),
                ("PUT", o + "/n", {"Content-Type": "a/" + "b" * 126}, 413),
                ("PUT", o + "/n", {f"X-{i}": "x" for i in range(128)}, 431),
                ("GET", "/v1/status", {f"X-{i}": "x" for i in range(128)}, 431),
                ("GET", "/v1/status", {f"X-{i}": "x" for i in range(120)}, 200),
                ("PUT", o + "/n?x=y", {}, 400), ("POST", o + "/n", {}, 405),
                ("GET", o + "/n", {}, 404), ("GET", o + "?limit=0", {}, 400),
                ("GET", o + "?delimiter=ab", {}, 400), ("GET", "/v1/buckets/c/objects", {}, 404),
                ("DELETE", o + "/n", {}, 404), ("DELETE", "/v1/buckets/dicom", {}, 403),
                ("DELETE", "/v1/buckets/b?objects=maybe", {}, 400)):
            try:
                status = ask(d, method, path, None if "Content-Length" in headers else b"",
                             headers)[0]
            except (http.client.HTTPException, ValueError) as e:
                status = 400 if want == 400 else repr(e)
            check(status == want, f"{method} {path[:60]} {headers} gave {status}, not", want)
        # Bodies that end early, in different places, leave nothing.
        rng = random.Random(4)
        for i in range(20):
            s = socket.socket(socket.AF_UNIX)
            s.connect(os.path.join(d.data, "admin.sock"))
            s.sendall(f"PUT {o}/cut{i} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
                      .encode() + rng.randbytes(rng.randrange(2000000)))
            s.close()
        expect(d, 201, "PUT", o + "/fine", b"fine")
        head, got = expect(d, 413, "PUT", o + "/n", None, {"Content-Length": str((8 << 30) + 1)})
        check(head["Content-Type"] == "application/json" and b"8 GiB" in got, "too big:", got)
        end = time.monotonic() + 20
        while d.log_text().count("an upload ended before its end") < 10 and time.monotonic() < end:
            time.sleep(0.1)  # some may have found no place, and were refused
        told = d.log_text().count("an upload ended before its end")
        check(10 <= told <= 20, "of 20 cut uploads the log tells", told)
        listed = [x["name"] for x in d.cli_json("object", "list", "b")["objects"]]
        check(listed == ["fine"], "listed:", listed)
        for argv in (("object", "put", "b"), ("object", "put", "b/n", "/no/such/file"),
                     ("object", "put", "b/n", "--meta", "x"), ("object", "get", "b/fine", "--range",
                                                               "5"),
                     ("object", "get", "b/none", "-o", os.path.join(folder, "none")),
                     ("bucket", "create", "a/b"), ("object", "list", "none")):
            done = d.cli(*argv, ok=False)
            check(done.returncode in (1, 2) and done.stderr.startswith("filmroom: "), argv)
        check(not os.path.exists(os.path.join(folder, "none")), "a file for what is not there")


def busy(folder):
    """With as many transfers as there may be, others are told so, and commands are heard."""
    with Daemon(os.path.join(folder, "busy"), config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        held = []
        for i in range(16):
            s = socket.socket(socket.AF_UNIX)
            s.connect(os.path.join(d.data, "admin.sock"))
            s.sendall(f"PUT /v1/buckets/b/objects/held{i} HTTP/1.1\r\nHost: x\r\n"
                      "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
            check(s.recv(100).startswith(b"HTTP/1.1 100"), "a transfer was not let in")
            held.append(s)
        expect(d, 503, "PUT", "/v1/buckets/b/objects/n", b"x")
        head, got = expect(d, 503, "GET", "/v1/buckets/b/objects/n")
        check(b"try again" in got and head["Retry-After"] == "2", "the words:", got)
        done = d.cli("object", "put", "b/n", stdin=b"y", ok=False)
        check(done.returncode == 1 and "16 objects are being" in done.stderr, done.stderr)
        check(d.status()["state"] == "ok" and d.cli("object", "list", "b").stdout, "the status")
        for s in held:
            s.sendall(b"hello")
            check(s.recv(100).startswith(b"HTTP/1.1 201"), "what was held is not stored")
            s.close()
        expect(d, 201, "PUT", "/v1/buckets/b/objects/n", b"z")
        check(expect(d, 200, "GET", "/v1/buckets/b/objects/n")[1] == b"z", "not stored")
        check(len(d.cli_json("object", "list", "b")["objects"]) == 17, "the objects")


def full(folder):
    with Daemon(os.path.join(folder, "full"), "--capacity", "300M", config=CONFIG) as d:
        d.cli("bucket", "create", "b")
        d.cli("object", "put", "b/kept", write(os.path.join(folder, "kept"), b"kept"))
        with open(os.path.join(folder, "hole"), "wb") as f:
            f.truncate(600 * MIB)
        start = time.monotonic()
        done = d.cli("object", "put", "b/n", os.path.join(folder, "hole"), ok=False)
        check(done.returncode == 1 and "no space" in done.stderr, done.stderr)
        check(time.monotonic() - start < 2, "it was refused only after it had been sent")
        done = run(CLI, "--data", d.data, "object", "put", "b/n", ok=False,
                   stdin=os.urandom(500 * MIB))  # no size beforehand
        check(done.returncode == 1 and ("full" in done.stderr or "no space" in done.stderr),
              done.stderr)
        check([o["name"] for o in d.cli_json("object", "list", "b")["objects"]] == ["kept"], "list")
        check(expect(d, 200, "GET", "/v1/buckets/b/objects/kept")[1] == b"kept", "not kept")
        d.cli("bucket", "delete", "b", "--objects", "--force")


def state_of(body, kind, pairs):
    """Bytes, type and metadata: they come and go together."""
    return hashlib.sha256(body).hexdigest(), kind, tuple(sorted(pairs.items()))


def state_got(head, body):
    prefix = "x-filmroom-meta-"
    pairs = {k.lower()[len(prefix):]: v for k, v in head.items() if k.lower().startswith(prefix)}
    return state_of(body, head["Content-Type"], pairs)


class Writer(threading.Thread):
    """Puts and deletes under names of its own, until the daemon is gone."""

    def __init__(self, daemon, number, seed, known):
        super().__init__()
        self.daemon_, self.number, self.rng = daemon, number, random.Random(seed)
        self.known = known  # name -> set of what it may be (state_of); None: absent
        self.puts = 0

    def run(self):
        bodies = [self.rng.randbytes(self.rng.choice((10, 5000, 300000, 2000000)))
                  for _ in range(4)]
        while True:
            name = f"w{self.number}/{self.rng.randrange(6)}"
            body = None if self.rng.random() < 0.2 else self.rng.choice(bodies)
            kind = f"test/{self.rng.randrange(10)}"
            pairs = {f"x{i}": str(self.rng.random()) for i in range(self.rng.randrange(3))}
            digest = body and state_of(body, kind, pairs)
            before = self.known.get(name, {None})
            self.known[name] = before | {digest}
            headers = {"Content-Type": kind}
            headers.update({f"X-Filmroom-Meta-{k}": v for k, v in pairs.items()})
            try:
                status = ask(self.daemon_, "DELETE" if body is None else "PUT",
                             f"/v1/buckets/b/objects/{name}", body, headers if body else {})[0]
            except (OSError, http.client.HTTPException):
                return
            if status in (200, 201) or (status == 404 and body is None):
                self.known[name] = {digest}
                self.puts += 1
            else:
                return


def kills(folder, rounds, seed):
    data = os.path.join(folder, "kills")
    d = Daemon(data, config=CONFIG)
    known, rng, puts = {}, random.Random(seed), 0
    d.start()
    try:
        d.cli("bucket", "create", "b")
        for _ in range(rounds):
            writers = [Writer(d, i, rng.random(), known) for i in range(4)]
            for w in writers:
                w.start()
            time.sleep(0.3 + rng.random() * 2)
            d.kill()
            for w in writers:
                w.join()
            puts += sum(w.puts for w in writers)
            d.start()
            listed = {o["name"] for o in d.cli_json("object", "list", "b")["objects"]}
            check(listed <= set(known), "names that nobody put:", listed - set(known))
            for name, may in known.items():
                status, head, body = ask(d, "GET", f"/v1/buckets/b/objects/{name}")
                got = state_got(head, body) if status == 200 else None
                check(status in (200, 404) and got in may, name, "has", status, got, "not", may)
                check((name in listed) == (status == 200), "the list is wrong about", name)
                known[name] = {got}
        check(puts > 10 * rounds, "only", puts, "operations were acknowledged")
        log(puts, "operations acknowledged")
    except Exception:
        print(d.log_tail(), flush=True)
        raise
    finally:
        if d.process and d.process.poll() is None:
            d.stop()
    fsck(data, data + ".conf")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2 if SHORT else 4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    suite = Suite()
    with scratch() as folder:
        for name, case in (("objects of all sizes come back", sizes), ("ranges", ranges),
                           ("conditions", conditions), ("lists and folders", lists),
                           ("a large object, in bounded memory, once however often", large),
                           ("instances as objects", instances),
                           ("more transfers than there may be", busy),
                           ("a full store refuses before data is taken", full),
                           ("bad input is refused", bad_input)):
            with suite.case(name):
                case(folder)
        with suite.case(f"kill -9 during puts, seed {args.seed}"):
            kills(folder, args.rounds, args.seed)
    return suite.finish()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as e:
        print("not ok -", e)
        sys.exit(1)
