#!/usr/bin/env python3
"""DICOMweb by its clients: real files of every kind go in and come out byte for byte, singly and as
series and studies; metadata agrees with dcm2json; searches find what is there and nothing else; and
whatever one client sends wrongly, another one goes on undisturbed.
"""

import http.client
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid

from harness import (DICOM_DATA, SHORT, Daemon, Skip, check, log, main, need, phantom, run, scratch)

MULTI = 'multipart/related; type="application/dicom"'
STORED = MULTI + "; transfer-syntax=*"
JSON = "application/dicom+json"
KEYS = ("00080016", "00080018", "00080020", "00080060", "00100020", "0020000D", "0020000E",
        "00200011", "00200013", "00280010", "00280011", "00280100", "00280103")


class Client:
    """One connection, kept alive."""

    def __init__(self, daemon):
        self.http = http.client.HTTPConnection(*daemon.http, timeout=60)

    def __call__(self, method, path, body=None, headers=None, **more):
        headers = dict(headers or {})
        headers.update({k.replace("_", "-"): v for k, v in more.items()})
        self.http.request(method, "/dicom-web" + path, body=body, headers=headers)
        answer = self.http.getresponse()
        answer.data = answer.read()
        return answer

    def expect(self, status, method, path, body=None, **more):
        answer = self(method, path, body, **more)
        check(answer.status == status, f"{method} {path} gave {answer.status}, not {status}:",
              answer.data[:500])
        return answer

    def json(self, path):
        answer = self("GET", path, Accept=JSON)
        if answer.status == 204:
            return []
        check(answer.status == 200, f"GET {path} gave {answer.status}:", answer.data[:500])
        check(answer.headers["Content-Type"] == JSON, path, answer.headers["Content-Type"])
        return json.loads(answer.data)


def described_by_dcmtk(path):
    done = run("dcm2json", path, ok=False)
    if done.returncode != 0:  # it does not know compressed Pixel Data: without it, then
        with scratch() as folder:
            copy = shutil.copy(path, folder + "/copy.dcm")
            os.chmod(copy, 0o600)
            run("dcmodify", "-nb", "-e", "(7fe0,0010)", copy, ok=False)
            done = run("dcm2json", copy, ok=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


class File:
    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        self.path = path
        self.json = described_by_dcmtk(path)
        if not self.json:
            return
        self.study, self.series, self.uid = map(self.value, ("0020000D", "0020000E", "00080018"))
        self.at = f"/studies/{self.study}/series/{self.series}/instances/{self.uid}"

    def value(self, tag):
        return value(self.json, tag)


def value(row, tag):
    values = row.get(tag, {}).get("Value", [None])
    return values[0]


def files(folder, most=None):
    path = os.path.join(DICOM_DATA, folder)
    if not os.path.isdir(path):
        raise Skip("real DICOM data (FILMROOM_DICOM_DATA)")
    need("dcm2json", "dcmodify")
    names = sorted(os.listdir(path))
    if most and SHORT:
        names = names[:most]
    made = [File(os.path.join(path, name)) for name in names]
    return [f for f in made if f.json]  # DCMTK's dcm2json lacks some character sets


def body_of(parts):
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts)
    return body + f"--{boundary}--".encode(), f'{MULTI}; boundary="{boundary}"'


def stow(client, path, parts):
    body, kind = body_of(parts)
    return client("POST", path, body, Content_Type=kind, Accept=JSON)


def parts_of(answer):
    """Parts of a multipart answer: (headers, body)."""
    kind = answer.headers["Content-Type"]
    check(kind.startswith("multipart/related"), "not multipart:", kind)
    mark = b"--" + kind.split("boundary=")[1].strip('"').encode()
    data, out, pos = answer.data, [], 0
    while True:
        pos = data.index(mark, pos) + len(mark)
        if data[pos:pos + 2] == b"--":
            return out
        end = data.index(b"\r\n\r\n", pos)
        head = dict(line.split(": ", 1) for line in data[pos + 2:end].decode().split("\r\n"))
        stop = data.index(b"\r\n" + mark, end + 2)
        out.append((head, data[end + 4:stop]))
        pos = stop


def stored(answer, tag="00081199"):
    return len(json.loads(answer.data).get(tag, {}).get("Value", []))


def failure(answer):
    report = json.loads(answer.data)
    items = [i for tag in ("00081198", "0008119A") for i in report.get(tag, {}).get("Value", [])]
    return [value(i, "00081197") for i in items]


# ---- Cases ---------------------------------------------------------------------------------------


def exact():
    """Files of every transfer syntax come back byte for byte"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        client, count = Client(daemon), 0
        for kind in ("codecs", "enhanced", "ct", "mr"):
            for f in files(kind, 12):
                client("DELETE", f.at)  # the codecs are one slice over and over
                answer = stow(client, f"/studies/{f.study}" if count % 2 else "/studies", [f.data])
                check(answer.status == 200 and stored(answer) == 1, f.path, answer.data[:300])
                one = client.expect(200, "GET", f.at, Accept="application/dicom")
                check(one.data == f.data, f"{f.path} came back otherwise")
                check(client.expect(200, "HEAD", f.at).headers["Content-Length"] ==
                      str(len(f.data)), "HEAD lies about", f.path)
                parts = parts_of(client.expect(200, "GET", f.at, Accept=STORED))
                check(len(parts) == 1 and parts[0][1] == f.data, f"{f.path} as a part")
                count += 1
        log(count, "files")


def whole():
    """Series and studies hold every instance once"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        client = Client(daemon)
        series = files("ct", 20)
        answer = stow(client, "/studies", [f.data for f in series])
        check(answer.status == 200 and stored(answer) == len(series), answer.data[:300])
        for path in (series[0].at.split("/instances")[0], series[0].at.split("/series")[0]):
            answer = client.expect(200, "GET", path, Accept=STORED)
            check(int(answer.headers["Content-Length"]) == len(answer.data), "length of", path)
            got = sorted(part for _, part in parts_of(answer))
            check(got == sorted(f.data for f in series), f"{path}: {len(got)} parts")
        daemon.restart()
        client = Client(daemon)
        answer = client.expect(200, "GET", series[0].at.split("/series")[0], Accept=MULTI)
        check(len(parts_of(answer)) == len(series), "after a restart")


def described():
    """Metadata agrees with dcm2json, and its bulk data can be had"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        client, uris = Client(daemon), 0
        for kind in ("codecs", "enhanced", "ct", "charset"):
            for f in files(kind, 5)[:40]:
                if not (f.study and f.series and f.uid):
                    continue
                client("DELETE", f.at)
                answer = stow(client, "/studies", [f.data])
                check(answer.status == 200, f.path, answer.data[:300])
                rows = client.json(f.at + "/metadata")
                check(len(rows) == 1, f.path)
                for tag in KEYS:
                    check(value(rows[0], tag) == f.value(tag), f"{f.path} {tag}:",
                          value(rows[0], tag), f.value(tag))
                check(not any(tag.startswith("0002") for tag in rows[0]), "group 2 is shown")
                uris += bulk(client, rows[0], f)
        log(uris, "pieces of bulk data")


def bulk(client, row, f):
    """Follows the BulkDataURIs of a row."""
    count = 0
    for tag, attribute in row.items():
        uri = attribute.get("BulkDataURI")
        for nested in attribute.get("Value", []) if attribute["vr"] == "SQ" else []:
            count += bulk(client, nested, f)
        if not uri:
            continue
        answer = client("GET", uri.split("/dicom-web")[1])
        # Frames of big-endian and deflated data sets are not converted.
        check(answer.status in (200, 406), f"{f.path}: {uri} gave {answer.status}")
        check(answer.status == 200 or tag == "7FE00010", uri)
        count += answer.status == 200
    return count


def frame_ok(frame, f):
    """A frame lies in the file in one piece, or is a whole JPEG out of several fragments."""
    if "fragmented" in f.path:
        return frame[:3] == b"\xff\xd8\xff" and frame.rstrip(b"\0")[-2:] == b"\xff\xd9"
    return frame in f.data


def framed():
    """Frames are the bytes of Pixel Data, and have the media type of their transfer syntax"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        client, count, kinds = Client(daemon), 0, set()
        for kind in ("enhanced", "codecs", "ct"):
            for f in files(kind, 4)[:40]:
                if not f.value("00280010"):
                    continue
                client("DELETE", f.at)
                check(stow(client, "/studies", [f.data]).status == 200, f.path)
                last = int(f.value("00280008") or 1)
                refused_here = "BigEndian" in f.path or "Deflated" in f.path
                client.expect(406 if refused_here else 404, "GET", f"{f.at}/frames/{last + 1}")
                for frame in sorted({1, last}):
                    answer = client("GET", f"{f.at}/frames/{frame}",
                                    Accept="multipart/related; type=application/octet-stream; "
                                           "transfer-syntax=*")
                    if answer.status == 406:
                        check(refused_here, f.path, answer.data)
                        continue
                    check(answer.status == 200, f.path, answer.status, answer.data[:200])
                    parts = parts_of(answer)
                    check(len(parts) == 1 and frame_ok(parts[0][1], f), f.path)
                    kinds.add(parts[0][0]["Content-Type"])
                    count += 1
        log(count, "frames of", len(kinds), "kinds")


def found():
    """Searches find what is there and nothing else"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        client = Client(daemon)
        a = [File(p) for p in phantom(folder + "/a", modality="CT", slices=6, seed=1)]
        b = [File(p) for p in phantom(folder + "/b", modality="MR", slices=3, seed=2)]
        for series in (a, b):
            check(stow(client, "/studies", [f.data for f in series]).status == 200, "stow")
        both = {a[0].study, b[0].study}

        def studies(query):
            return {value(row, "0020000D") for row in client.json("/studies?" + query)}

        row = [r for r in client.json("/studies") if value(r, "0020000D") == a[0].study][0]
        check(value(row, "00201208") == 6 and value(row, "00201206") == 1, "counts:", row)
        check(row["00080061"]["Value"] == ["CT"], "modalities:", row)
        check(value(row, "00081190").endswith(f"/dicom-web/studies/{a[0].study}"), "URL:", row)
        check(list(row) == sorted(row), "tags in order")
        date = a[0].value("00080020")
        name = value(a[0].json, "00100010")["Alphabetic"].replace("^", "%5E").replace(" ", "+")
        for query, want in (
                ("", both), ("limit=1000&offset=0&fuzzymatching=false&includefield=all", both),
                (f"StudyInstanceUID={a[0].study}", {a[0].study}),
                (f"StudyInstanceUID={a[0].study},{b[0].study},1.2.3", both),
                (f"0020000D={b[0].study}", {b[0].study}), ("StudyInstanceUID=1.2.3", set()),
                ("ModalitiesInStudy=MR", {b[0].study}), ("ModalitiesInStudy=MR,CT", both),
                (f"PatientID={a[0].value('00100020')}&ModalitiesInStudy=CT", {a[0].study}),
                (f"PatientName={name}&ModalitiesInStudy=CT", {a[0].study}),
                ("PatientName=*", both), (f"PatientName={name[0]}*&ModalitiesInStudy=CT",
                                          {a[0].study}),
                ("PatientName=QQQ*", set()), (f"StudyDate={date}-&ModalitiesInStudy=CT",
                                              {a[0].study}),
                (f"StudyDate={date}-{date}&ModalitiesInStudy=CT", {a[0].study}),
                ("StudyDate=-19000101", set()), ("offset=2", set())):
            check(studies(query) == want, f"/studies?{query}:", studies(query))
        check(len(studies("limit=1")) == 1 and studies("limit=1") | studies("limit=1&offset=1") ==
              both, "paging")
        for path, want in (("/series", 2), (f"/studies/{a[0].study}/series", 1),
                           ("/series?Modality=MR", 1), ("/instances", 9),
                           (f"/studies/{a[0].study}/instances", 6),
                           (f"/studies/{a[0].study}/series/{a[0].series}/instances", 6),
                           (f"/instances?SOPInstanceUID={b[0].uid}", 1),
                           (f"/studies/{a[0].study}/instances?InstanceNumber=3", 1),
                           (f"/studies/{a[0].study}/series/{b[0].series}/instances", 0)):
            rows = client.json(path)
            check(len(rows) == want, f"{path}: {len(rows)}")
            check(all(value(r, "0020000D") in both for r in rows), path)
        rows = client.json(f"/studies/{a[0].study}/instances?includefield=00280010")
        check({value(r, "00080018") for r in rows} == {f.uid for f in a}, "instances' UIDs")
        check(all(value(r, "00280010") == a[0].value("00280010") for r in rows), "Rows")
        answer = client("GET", "/studies?fuzzymatching=true")
        check(answer.headers["Warning"].startswith("299"), "no Warning for fuzzy matching")


def refused():
    """Data that cannot be stored is refused with its reason"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        client = Client(daemon)
        a, b = [File(p) for p in phantom(folder + "/a", slices=2, seed=1)]
        answer = stow(client, "/studies/1.2.3", [a.data])
        check(answer.status == 409 and failure(answer) == [0xA900], answer.status, answer.data)
        answer = stow(client, "/studies", [b"not DICOM" * 999, a.data])
        check(answer.status == 202 and failure(answer) == [0xC000], answer.status, answer.data)
        check(stored(answer) == 1, answer.data)
        answer = stow(client, "/studies", [a.data[:1000]])
        check(answer.status == 409, answer.status, answer.data)
        body, kind = body_of([b.data])
        answer = client("POST", "/studies", body[:-30], Content_Type=kind)
        check(answer.status in (400, 409), answer.status, answer.data)
        client.expect(404, "GET", b.at)
        other = bytearray(a.data)
        other[-1] ^= 1
        answer = stow(client, "/studies", [bytes(other)])
        same = client.expect(200, "GET", a.at).data
        check(answer.status == 409 and same == a.data or answer.status == 200 and
              same == bytes(other), "same UID, other bytes:", answer.status, answer.data)
        client.expect(204, "DELETE", a.at)
        client.expect(404, "GET", a.at)
        client.expect(404, "DELETE", a.at)
        check(client.json("/studies") == [], "a study without instances")


WRONG = [
    ("GET", "/", {}, None, 404), ("GET", "/studies/x", {}, None, 400),
    ("GET", "/studies/1.2.3", {}, None, 404), ("GET", "/studies/1.2.3/metadata", {}, None, 404),
    ("PUT", "/studies", {}, b"x", 405), ("DELETE", "/studies", {}, None, 405),
    ("POST", "/instances", {}, b"x", 405), ("BREW", "/studies", {}, None, 405),
    ("POST", "/studies", {}, b"x", 415), ("POST", "/studies", {"Content-Type": "text/plain"}, b"x",
                                          415),
    ("POST", "/studies", {"Content-Type": MULTI}, b"x", 415),
    ("POST", "/studies", {"Content-Type": MULTI + "; boundary=b"}, b"--c--", 400),
    ("POST", "/studies", {"Content-Type": MULTI + "; boundary=b"}, b"--b\r\nX\r\n\r\n", 400),
    ("GET", "/studies", {"Accept": "image/png"}, None, 406),
    ("GET", "/studies", {"Accept": "///"}, None, 400),
    ("GET", "/studies?StudyDate=soon", {}, None, 400), ("GET", "/studies?Nothing=1", {}, None, 400),
    ("GET", "/studies?limit=all", {}, None, 400), ("GET", "/studies?PatientID=%zz", {}, None, 400),
    ("GET", "/studies?PatientID=%00", {}, None, 400), ("GET", "/" + "x" * 9000, {}, None, 414),
    ("GET", "/studies", {f"X-{i}": "y" * 900 for i in range(60)}, None, 431),
]

GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), b"\r\n" * 5000,
    b"GET /dicom-web/studies\r\n\r\n", b"GET " + b"/" * 300000 + b" HTTP/1.1\r\n\r\n",
    b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\n"
    b"Content-Length: 5000000\r\n\r\n" + b"\0" * 100000,
    b"GET /dicom-web/studies HTTP/1.1\r\n" + b"X: " + b"y" * 600000 + b"\r\n\r\n",
    os.urandom(100000), b"\0" * 100000,
]


def undisturbed():
    """Wrong requests of every kind get a clear answer, and another client does not notice"""
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        series = [File(p) for p in phantom(folder + "/a", slices=8, seed=1)]
        client = Client(daemon)
        check(stow(client, "/studies", [f.data for f in series]).status == 200, "stow")
        ended, errors, reads = threading.Event(), [], [0]

        def other():
            mine = Client(daemon)
            while not ended.is_set() and not errors:
                for f in series:
                    answer = mine("GET", f.at)
                    if answer.status != 200 or answer.data != f.data:
                        errors.append((f.at, answer.status, answer.data[:200]))
                    reads[0] += 1

        thread = threading.Thread(target=other)
        thread.start()
        try:
            for _ in range(2 if SHORT else 5):
                for method, path, headers, body, want in WRONG:
                    answer = Client(daemon)(method, path, body, headers)
                    check(answer.status == want,
                          f"{method} {path[:60]}: {answer.status}, not {want}")
                    check(len(answer.data) > 10, f"{method} {path[:60]}: no sentence")
                for junk in GARBAGE:
                    with socket.create_connection(daemon.http, timeout=20) as s:
                        try:
                            s.sendall(junk)
                            s.shutdown(socket.SHUT_WR)
                            while s.recv(65536):
                                pass
                        except (ConnectionError, BrokenPipeError):
                            pass
        finally:
            ended.set()
            thread.join()
        check(not errors, "the other client got", errors[:1])
        log(reads[0], "reads meanwhile")


def by_curl():
    """curl stores with 100-continue, chunked and plain, and reads with HEAD and by name"""
    need("curl")
    with scratch() as folder, Daemon(folder + "/data") as daemon:
        paths = phantom(folder + "/a", slices=3, seed=3)
        base = "http://%s:%d/dicom-web" % daemon.http
        kind = "Content-Type: application/dicom"
        for path, extra in zip(paths, (["-H", "Expect: 100-continue"],
                                       ["-H", "Transfer-Encoding: chunked"], [])):
            done = run("curl", "-sS", "--fail-with-body", "-X", "POST", "-H", kind, *extra,
                       "--data-binary", "@" + path, base + "/studies")
            check("00081199" in done.stdout, done.stdout)
        f = File(paths[1])
        run("curl", "-sSf", "-o", folder + "/out", base + f.at)
        with open(folder + "/out", "rb") as out:
            check(out.read() == f.data, "what curl read")
        check(f"Content-Length: {len(f.data)}" in run("curl", "-sSfI", base + f.at).stdout, "HEAD")
        start = time.monotonic()
        run("curl", "-sSf", "-o", "/dev/null", base + "/studies?limit=[1-200]")
        took = time.monotonic() - start
        log(f"200 searches over one connection in {took:.2f} s")
        check(took < 6, "answers wait for something: Nagle?")  # 40 ms each would be 8 s


if __name__ == "__main__":
    sys.exit(main([exact, whole, described, framed, found, refused, undisturbed, by_curl]))
