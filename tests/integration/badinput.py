#!/usr/bin/python3
"""Bad input gets a clear error, at worst its own connection's end: never a crash, and never a
moment's harm to another client, who works on beside it all the time and checks what it gets.

  badinput.py [--rounds N] [--seed S]    mutated sessions for each port (default 150)
"""

import argparse
import errno
import os
import random
import socket
import struct
import sys
import threading
import time

import dicom
import nbd
from harness import (DICOM_DATA, MIB, SHORT, Daemon, Skip, Suite, check, log, phantom, run, scratch)


class Witness(threading.Thread):
    """The other client: writes and reads blocks, stores and fetches instances, checks them all."""

    def __init__(self, daemon, instances):
        super().__init__(daemon=True)
        self.store_, self.instances = daemon, instances
        self.done = threading.Event()
        self.rounds = 0
        self.slowest = 0.0
        self.error = None

    def run(self):
        rng = random.Random(99)
        try:
            offer = [(self.instances[0].sop_class, dicom.EXPLICIT_LE)]
            with nbd.Nbd(self.store_.nbd, "witness") as disk, dicom.Web(self.store_.http) as web, \
                    dicom.Association(self.store_.dicom, offer) as association:
                while not self.done.is_set():
                    start = time.monotonic()
                    self.once(rng, disk, web, association)
                    self.slowest = max(self.slowest, time.monotonic() - start)
                    self.rounds += 1
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def once(self, rng, disk, web, association):
        offset = rng.randrange(0, 16 * MIB - 65536, 512)
        data = rng.randbytes(rng.randrange(512, 65536, 512))
        disk.write(offset, data)
        check(disk.read(offset, len(data)) == data, "the witness read other bytes than it wrote")
        i = rng.choice(self.instances)
        check(association.store(i.sop_class, i.uid, i.dataset) == 0, "the witness was refused")
        check(dicom.dataset_of(web.instance(i.study, i.series, i.uid)) == i.dataset,
              "the witness got another data set than it stored")

    def check(self):
        if self.error:
            raise AssertionError(f"the other client was disturbed: {self.error!r}")

    def finish(self):
        self.done.set()
        self.join(60)
        self.check()
        check(self.rounds > 3, "the other client got nothing done in all that time")
        log(f"the other client did {self.rounds} rounds, the slowest in {self.slowest:.2f} s")


def throw(addr, data, wait=0.05):
    """Sends bytes and reads what comes until the server hangs up or falls silent."""
    answer = b""
    try:
        with nbd.connect(addr, 5) as s:
            try:
                s.sendall(data)
            except OSError:
                pass
            s.settimeout(wait)
            while len(answer) < 1 << 20:
                piece = s.recv(65536)
                if not piece:
                    break
                answer += piece
    except OSError:
        pass
    return answer


# ---- NBD -----------------------------------------------------------------------------------------


def option(kind, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">QII", nbd.IHAVEOPT, kind, length) + payload


def request(command, offset, length, flags=0):
    return struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, command, 1, offset, length)


def bad_nbd(daemon, witness):
    addr = daemon.nbd
    hello = struct.pack(">I", 3)
    go = option(nbd.OPT_GO, struct.pack(">I", 7) + b"witness" + struct.pack(">H", 0))
    for data in (
            b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"\xff" * 4096,
            struct.pack(">I", 0xffffffff), hello + b"junk" * 64,
            hello + option(nbd.OPT_GO, b"", 0xffffffff),
            hello + option(nbd.OPT_GO, struct.pack(">I", 0xffffffff) + b"x"),
            hello + option(nbd.OPT_GO, struct.pack(">I", 300) + b"x" * 300 + b"\0\0"),
            hello + option(nbd.OPT_GO, struct.pack(">I", 7) + b"witness" + b"\xff\xff"),
            hello + option(0xdeadbeef, b"abc") + option(nbd.OPT_LIST, b"abc"),
            hello + option(nbd.OPT_LIST) * 2000,
            hello + option(nbd.OPT_LIST, b"x" * 65536),
            hello + go + b"not a request" * 100,
            hello + go + request(nbd.CMD_WRITE, 0, 0xffffffff),
            hello + go + request(nbd.CMD_WRITE, 0, 65536) + b"x"):
        throw(addr, data)
        daemon.check_alive()
        witness.check()


def nbd_errors_keep_the_connection(daemon):
    """Wrong requests in a right frame get an errno, and the connection goes on."""
    with nbd.Nbd(daemon.nbd, "witness") as client:
        cases = [
            (errno.EINVAL, (nbd.CMD_READ, client.size, 4096)),
            (errno.EINVAL, (nbd.CMD_READ, client.size - 4096, 8192)),
            (errno.EINVAL, (nbd.CMD_READ, (1 << 64) - 4096, 8192)),
            (errno.EINVAL, (200, 0, 0)),
            (errno.EINVAL, (nbd.CMD_TRIM, client.size - 4096, 8192)),
            (errno.EINVAL, (nbd.CMD_READ, 0, 0xf0000000)),
        ]
        for want, what in cases:
            try:
                client.call(*what)
            except nbd.NbdError as e:
                check(e.errno in (want, errno.ENOSPC, errno.EOVERFLOW),
                      f"request {what} gave errno {e.errno}")
            else:
                check(False, f"request {what} was not refused")
        try:
            client.write(client.size - 4096, b"x" * 8192)
            check(False, "a write over the end was not refused")
        except nbd.NbdError as e:
            check(e.errno in (errno.ENOSPC, errno.EINVAL), f"a write over the end: errno {e.errno}")
        client.write(0, b"y" * 4096)
        check(client.read(0, 4096) == b"y" * 4096, "the connection does not work any more")
    for name in ("", "nothing", "../x", "x" * 4000, "\xff\xfe"):
        try:
            nbd.Nbd(daemon.nbd, name).close()
            # The empty name may stand for a default export.
            check(name == "", f"an export of the name {name[:20]!r} was opened")
        except (nbd.NbdError, ConnectionError):
            pass


# ---- DICOM ---------------------------------------------------------------------------------------


def bad_dicom(daemon, witness, instance):
    addr = daemon.dicom
    association = record_association(instance)
    for data in (
            b"", b"\0" * 1000, b"\xff" * 1000, b"GET / HTTP/1.1\r\n\r\n",
            struct.pack(">BBI", 1, 0, 0xffffffff), struct.pack(">BBI", 1, 0, 10) + b"x" * 10,
            struct.pack(">BBI", 4, 0, 6) + b"\0\0\0\2\1\3", struct.pack(">BBI", 99, 0, 4) + b"abcd",
            association[0][:50], association[0] + association[0],
            association[0] + struct.pack(">BBI", 4, 0, 6) + struct.pack(">IBB", 0xffffffff, 1, 3),
            association[0] + struct.pack(">BBI", 4, 0, 0),
            association[0] + struct.pack(">BBI", 4, 0, 0xfffffff0),
            association[0] + association[1][:100],
            association[0] + association[1] + association[2][:len(association[2]) // 2],
            association[0] + association[2], association[0] + association[1] * 3):
        throw(addr, data, 0.1)
        daemon.check_alive()
        witness.check()
    check(dicom.echo(addr) == 0, "C-ECHO does not work any more")


def record_association(instance):
    """The client's side of a session: request, command, data set, release."""
    class Recorder(dicom.Association):
        def __init__(self):  # pylint: disable=super-init-not-called
            self.contexts = {(instance.sop_class, dicom.EXPLICIT_LE): 1}
            self.max_pdu, self.message_id, self.accepted = 16384, 0, {1}
            self.socket, self.out = self, []

        def sendall(self, data):
            self.out.append(bytes(data))

        def status(self):
            return 0

    r = Recorder()
    r.out.append(r.request("FILMROOM", "BAD"))
    r.store(instance.sop_class, instance.uid, instance.dataset)
    r.out.append(struct.pack(">BBII", 5, 0, 4, 0))
    return r.out


def bad_data_sets(daemon, instance):
    """A well-formed C-STORE of something that is not what it says gets an error status."""
    other = "2.25.99999999999999999999"
    for name, uid, dataset in (
            ("noise", other, random.Random(1).randbytes(5000)),
            ("nothing", other, b""),
            ("half a header", other, instance.dataset[:101]),
            ("another UID", other, instance.dataset),
            ("a bad UID", "not.a.uid", instance.dataset)):
        try:
            with dicom.Association(daemon.dicom, [(instance.sop_class, dicom.EXPLICIT_LE)]) as a:
                status = a.store(instance.sop_class, uid, dataset)
                check(status != 0, f"C-STORE of {name} was acknowledged")
        except ConnectionError:
            pass  # an abort is an answer too
        daemon.check_alive()
    with dicom.Web(daemon.http) as web:
        check(other not in [uid for _, _, uid in web.all_instances()], "a bad instance is listed")


# ---- HTTP ----------------------------------------------------------------------------------------

STOW = (b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; "
        b'type="application/dicom"; boundary=b\r\n')


def http_requests(instance):
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
    end = b"\r\n--b--\r\n"
    for path in (b"/dicom-web/studies/../../etc/passwd", b"/dicom-web/studies/%00",
                 b"/%2e%2e/%2e%2e/", b"/dicom-web/studies?limit=-1",
                 b"/dicom-web/studies?limit=99999999999999999999",
                 b"/dicom-web/studies?00100010=%ff%fe", b"/dicom-web/studies?" + b"a=b&" * 5000,
                 b"/dicom-web/studies/" + b"1." * 5000, b"/dicom-web/studies?includefield=%zz",
                 b"/dicom-web/studies?StudyDate=2020-01-01-x", b"/dicom-web/nothing",
                 b"/dicom-web/studies/1.2/series/x/instances/y/frames/0,-1,99999999999"):
        yield b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    yield b"\0" * 1000
    yield b"GET / HTTP/9.9\r\n\r\n"
    yield b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"y" * 200000 + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000
    for length, body in ((10, b"x" * 10), (1 << 62, b"x" * 1000), (5, b""), (len(end), end),
                         (100000, part + instance.data[:500])):
        yield STOW + b"Content-Length: %d\r\n\r\n" % length + body
    yield STOW + b"Content-Length: -5\r\n\r\nx"
    yield STOW + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"
    yield STOW + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx"
    for inner in (b"", b"junk", instance.data[:200], instance.data[:2000], part * 50,
                  part + b"DICM" * 100, b"\0" * 132 + b"DICM" + b"\xff" * 200):
        body = part + inner + end
        yield STOW + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def bad_http(daemon, witness, instance):
    for data in http_requests(instance):
        answer = throw(daemon.http, data, 0.2)
        daemon.check_alive()
        witness.check()
        if answer:
            check(answer.startswith(b"HTTP/1."), "an answer that is not HTTP:", answer[:80])
            check(not answer.startswith(b"HTTP/1.1 500"), "an internal error for", data[:100],
                  answer[:300])


def bad_admin(daemon, witness):
    """The admin socket: garbage, and JSON that is not what is asked for."""
    addr = os.path.join(daemon.data, "admin.sock")
    bodies = [b"", b"{", b"[]", b"null", b'{"name": 5}', b'{"name": "x"}',
              b'{"name": "x", "size": -1}', b'{"name": "x", "size": 1e400}',
              b'{"name": "../x", "size": 4096}',
              b'{"name": "x", "size": 4097}', b'{"name": "x\\u0000y", "size": 4096}',
              b"[" * 100000, b'{"name": "' + b"x" * 60000 + b'", "size": 4096}', b"\xff\xfe"]
    for body in bodies:
        answer = throw(addr, b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body, 0.2)
        check(answer.startswith(b"HTTP/1.1 4"), f"admin took {body[:60]!r}:", answer[:200])
    for data in (b"\0" * 500, b"GET /v1/../../x HTTP/1.1\r\n\r\n",
                 b"DELETE /v1/volumes/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"GET /v1/studies?limit=-1&offset=x HTTP/1.1\r\nHost: x\r\n\r\n"):
        throw(addr, data, 0.1)
        daemon.check_alive()
        witness.check()
    check([v["name"] for v in daemon.cli_json("volume", "list")["volumes"]] == ["witness"],
          "a bad request made a volume")


# ---- Mutations and crowds ------------------------------------------------------------------------


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(max(len(data), 1))
        draw = rng.random()
        if not data:
            break
        if draw < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        elif draw < 0.7:
            data[at:at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        elif draw < 0.85:
            del data[at:at + rng.randint(1, 64)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 64))
    return bytes(data)


def mutated_sessions(daemon, witness, instance, rounds, seed):
    rng = random.Random(seed)
    hello = struct.pack(">I", 3)
    go = option(nbd.OPT_GO, struct.pack(">I", 7) + b"scratch" + struct.pack(">H", 0))
    requests = b"".join(request(c, 4096 * c, 512, f) + (b"z" * 512 if c == nbd.CMD_WRITE else b"")
                        for c in range(8) for f in (0, 1))
    association = b"".join(record_association(instance)[:2])
    association += b"".join(record_association(instance)[2:])[:20000]
    stows = [d for d in http_requests(instance) if len(d) < 5000]
    for _ in range(rounds):
        throw(daemon.nbd, mutate(rng, hello + go + requests), 0.02)
        head = mutate(rng, association[:600]) + association[600:]
        throw(daemon.dicom, head if rng.random() < 0.7 else mutate(rng, association), 0.02)
        throw(daemon.http, mutate(rng, rng.choice(stows)), 0.02)
        daemon.check_alive()
        witness.check()


def idle_crowd(daemon, witness):
    """Many connections that say nothing, on every port: later clients are served or refused, and
    the witness does not notice."""
    crowd = []
    try:
        admin = os.path.join(daemon.data, "admin.sock")
        for addr in (daemon.nbd, daemon.http, daemon.dicom, admin):
            for _ in range(150):
                try:
                    crowd.append(nbd.connect(addr, 5))
                except OSError:
                    break
        time.sleep(1.0)
        witness.check()
        daemon.check_alive()
    finally:
        for s in crowd:
            s.close()
    time.sleep(1.0)
    with nbd.Nbd(daemon.nbd, "witness") as client:
        client.read(0, 4096)
    check(dicom.echo(daemon.dicom) == 0, "C-ECHO does not work after the crowd has gone")
    daemon.status()


def odd_files(daemon, witness):
    """Every odd file is taken and comes back exact, or is refused."""
    folder = os.path.join(DICOM_DATA, "odd")
    if not os.path.isdir(folder):
        raise Skip("real DICOM data (FILMROOM_DICOM_DATA)")
    taken = refused = 0
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as f:
            data = f.read()
        with dicom.Web(daemon.http) as web:
            try:
                status, stored, _ = web.stow(data)
            except (ConnectionError, socket.timeout) as e:
                check(False, f"STOW of {name} broke the connection off: {e}")
            check(status in (200, 202, 400, 409, 415), f"STOW of {name} gave HTTP status {status}")
            taken, refused = taken + len(stored), refused + (not stored)
            for uid in stored:
                row = [r for r in web.all_instances() if r[2] == uid]
                check(row, f"{name} was acknowledged and is not listed")
                check(web.instance(*row[0]) == data, f"{name} does not read back as it was sent")
        # dcmsend and storescu may well fail on these files; the daemon must not.
        run("storescu", "-aec", "FILMROOM", "-R", "127.0.0.1", daemon.ports["dicom"],
            os.path.join(folder, name), ok=False)
        daemon.check_alive()
        witness.check()
    log(f"{taken} odd files taken, {refused} refused")


def run_cases(suite, daemon, instances, args):
    witness = Witness(daemon, instances[1:])
    witness.start()
    bad = instances[0]
    steps = [
        ("garbage on the NBD port", lambda: bad_nbd(daemon, witness)),
        ("wrong NBD requests get an errno", lambda: nbd_errors_keep_the_connection(daemon)),
        ("garbage on the DICOM port", lambda: bad_dicom(daemon, witness, bad)),
        ("data sets that are not what they say", lambda: bad_data_sets(daemon, bad)),
        ("garbage on the HTTP port", lambda: bad_http(daemon, witness, bad)),
        ("garbage on the admin socket", lambda: bad_admin(daemon, witness)),
        ("mutated sessions on every port",
         lambda: mutated_sessions(daemon, witness, bad, args.rounds, args.seed)),
        ("hundreds of idle connections", lambda: idle_crowd(daemon, witness)),
        ("odd DICOM files", lambda: odd_files(daemon, witness)),
        ("the other client was never disturbed", witness.finish)]
    for name, step in steps:
        with suite.case(name):
            if name == "mutated sessions on every port":
                daemon.volume("scratch", "4M")
            step()


def main():
    parser = argparse.ArgumentParser(description="garbage on every port")
    parser.add_argument("--rounds", type=int, default=40 if SHORT else 150)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    suite = Suite()
    with scratch() as folder:
        daemons = []
        with suite.case("a daemon starts"):
            instances = [dicom.Instance(f) for f in phantom(os.path.join(folder, "ct"), slices=4)]
            daemon = Daemon(os.path.join(folder, "data"))
            daemon.start()
            daemon.volume("witness", "16M")
            daemons.append(daemon)
        for d in daemons:
            try:
                run_cases(suite, d, instances, args)
                with suite.case("a clean stop after all that"):
                    d.stop()
            finally:
                d.kill()
        if suite.failed and daemons:
            print(daemons[0].log_tail())
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
