"""A small DICOM sender and a DICOMweb client that say exactly what was acknowledged and send the
bytes they are given: dcmsend rewrites data sets, so it cannot show that they are kept as they were.

The sender speaks PS3.8 (upper layer) and the C-STORE and C-ECHO of PS3.7; the parser understands
the explicit VR little endian files of tools/phantom and no more.
"""

import http.client
import json
import socket
import struct
import uuid

EXPLICIT_LE = "1.2.840.10008.1.2.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
VERIFICATION = "1.2.840.10008.1.1"
LONG_VRS = set(b"OB OW OF OD OL OV SQ UC UR UT UN SV UV".split())


class Instance:
    """A Part 10 file of tools/phantom: its bytes, data set and UIDs."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        self.path = path
        self.dataset_off = 144 + struct.unpack_from("<I", self.data, 140)[0]
        self.dataset = self.data[self.dataset_off:]
        uids = dict(self.uids())
        self.sop_class, self.uid = uids[0x00080016], uids[0x00080018]
        self.study, self.series = uids[0x0020000D], uids[0x0020000E]

    def uids(self):
        pos, data = self.dataset_off, self.data
        while pos + 8 <= len(data):
            group, element, vr, length = struct.unpack_from("<HH2sH", data, pos)
            pos += 8
            if vr in LONG_VRS:
                length = struct.unpack_from("<I", data, pos)[0]
                pos += 4
            if group >= 0x0028:
                return
            if vr == b"UI":
                yield group << 16 | element, data[pos:pos + length].rstrip(b"\0 ").decode()
            pos += length

    @property
    def location(self):
        return f"/studies/{self.study}/series/{self.series}/instances/{self.uid}"


def dataset_of(part10):
    """The data set of a Part 10 stream."""
    if part10[128:132] != b"DICM":
        raise ValueError("not a Part 10 stream")
    return part10[144 + struct.unpack_from("<I", part10, 140)[0]:]


# ---- C-STORE -------------------------------------------------------------------------------------


def item(kind, data):
    return struct.pack(">BBH", kind, 0, len(data)) + data


def padded_uid(uid):
    raw = uid.encode()
    return raw + b"\0" * (len(raw) & 1)


def command(elements):
    """A command set: implicit VR little endian, group length first (PS3.7 section 6.3.1)."""
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def parse_command(data):
    out, pos = {}, 0
    while pos + 8 <= len(data):
        _, tag, length = struct.unpack_from("<HHI", data, pos)
        out[tag] = data[pos + 8:pos + 8 + length]
        pos += 8 + length
    return out


def us(value):
    return struct.pack("<H", value)


class Association:
    """An association that offers the given (abstract syntax, transfer syntax) pairs."""

    def __init__(self, addr, contexts, called="FILMROOM", calling="TESTER", timeout=60):
        self.socket = socket.create_connection(addr, timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.contexts = {pair: 2 * i + 1 for i, pair in enumerate(contexts)}
        self.message_id = 0
        try:
            self.socket.sendall(self.request(called, calling))
            kind, data = self.pdu()
            if kind != 2:
                raise ConnectionError(f"association refused: PDU type {kind}, {data.hex()}")
            self.max_pdu = self.parse_accept(data)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.release()
        self.socket.close()

    def request(self, called, calling):
        body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(),
                           calling.ljust(16).encode())
        body += item(0x10, b"1.2.840.10008.3.1.1.1")
        for (abstract, transfer), number in self.contexts.items():
            body += item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + item(0x30, abstract.encode())
                         + item(0x40, transfer.encode()))
        body += item(0x50, item(0x51, struct.pack(">I", 65536)) + item(0x52, b"2.25.1234567")
                     + item(0x55, b"FILMROOM_TEST"))
        return struct.pack(">BBI", 1, 0, len(body)) + body

    def parse_accept(self, data):
        pos, max_pdu = 68, 16384
        self.accepted = set()
        while pos + 4 <= len(data):
            kind, _, length = struct.unpack_from(">BBH", data, pos)
            value = data[pos + 4:pos + 4 + length]
            if kind == 0x21 and value[2] == 0:
                self.accepted.add(value[0])
            if kind == 0x50 and value[:1] == b"\x51":
                max_pdu = struct.unpack_from(">I", value, 4)[0] or 1 << 20
            pos += 4 + length
        return max_pdu

    def exactly(self, n):
        out = bytearray()
        while len(out) < n:
            piece = self.socket.recv(n - len(out))
            if not piece:
                raise ConnectionError("the server closed the connection")
            out += piece
        return bytes(out)

    def pdu(self):
        kind, _, length = struct.unpack(">BBI", self.exactly(6))
        return kind, self.exactly(length)

    def send_pdv(self, context, data, is_command):
        """One message part, cut into PDUs of the size the peer takes."""
        room = min(self.max_pdu, 1 << 17) - 6
        out = bytearray()
        for pos in range(0, max(len(data), 1), room):
            piece = data[pos:pos + room]
            last = 2 if pos + room >= len(data) else 0
            out += struct.pack(">BBIIBB", 4, 0, len(piece) + 6, len(piece) + 2, context,
                               last | is_command)
            out += piece
        self.socket.sendall(out)

    def response(self):
        """The command set of the next message, which has no data set."""
        kind, data = self.pdu()
        if kind != 4:
            raise ConnectionError(f"PDU type {kind} instead of an answer: {data.hex()}")
        return parse_command(data[6:])

    def status(self):
        return struct.unpack("<H", self.response()[0x0900])[0]

    def store(self, sop_class, uid, dataset, transfer=EXPLICIT_LE):
        """C-STORE; returns the status (0: success)."""
        context = self.contexts[sop_class, transfer]
        if context not in self.accepted:
            raise ConnectionError("presentation context refused")
        self.message_id = self.message_id % 65535 + 1
        self.send_pdv(context, command([
            (0x0002, padded_uid(sop_class)), (0x0100, us(1)), (0x0110, us(self.message_id)),
            (0x0700, us(0)), (0x0800, us(1)), (0x1000, padded_uid(uid))]), 1)
        self.send_pdv(context, dataset, 0)
        return self.status()

    def echo(self):
        """C-ECHO; returns the status."""
        context = self.contexts[VERIFICATION, IMPLICIT_LE]
        self.message_id = self.message_id % 65535 + 1
        self.send_pdv(context, command([
            (0x0002, padded_uid(VERIFICATION)), (0x0100, us(0x30)), (0x0110, us(self.message_id)),
            (0x0800, us(0x0101))]), 1)
        return self.status()

    def release(self):
        self.socket.sendall(struct.pack(">BBII", 5, 0, 4, 0))
        kind, _ = self.pdu()
        if kind != 6:
            raise ConnectionError(f"PDU type {kind} instead of a release")


def store_all(addr, instances, **options):
    """Stores instances over one association; every one must be taken."""
    classes = sorted({i.sop_class for i in instances})
    with Association(addr, [(c, EXPLICIT_LE) for c in classes], **options) as a:
        for i in instances:
            status = a.store(i.sop_class, i.uid, i.dataset)
            if status != 0:
                raise AssertionError(f"C-STORE of {i.path} gave status {status:04x}")


def echo(addr, **options):
    with Association(addr, [(VERIFICATION, IMPLICIT_LE)], **options) as a:
        return a.echo()


# ---- DICOMweb ------------------------------------------------------------------------------------


class WebError(Exception):
    def __init__(self, status, text):
        super().__init__(f"HTTP {status}: {text[:500]}")
        self.status = status


class Web:
    """DICOMweb (PS3.18) over one kept connection."""

    def __init__(self, addr, base="/dicom-web", timeout=120):
        self.base = base
        self.connection = http.client.HTTPConnection(*addr, timeout=timeout)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.connection.close()

    def call(self, method, path, body=None, headers=None):
        """Returns (status, headers, body); a broken connection raises."""
        self.connection.request(method, self.base + path, body=body, headers=headers or {})
        answer = self.connection.getresponse()
        data = answer.read()
        length = answer.getheader("Content-Length")
        if length is not None and int(length) != len(data):
            raise ConnectionError("the answer is shorter than its Content-Length")
        return answer.status, answer.headers, data

    def stow(self, *bodies):
        """STOW-RS (section 10.5). Returns (HTTP status, UIDs stored, {UID: reason} refused)."""
        boundary = "b-" + uuid.uuid4().hex
        body = b"".join(b"--" + boundary.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n"
                        + data + b"\r\n" for data in bodies)
        body += b"--" + boundary.encode() + b"--\r\n"
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        status, _, answer = self.call("POST", "/studies", body, {
            "Content-Type": kind, "Accept": "application/dicom+json"})
        try:
            rows = json.loads(answer)
        except ValueError:
            return status, [], {}
        if not isinstance(rows, dict) or not any(k[:4] == "0008" for k in rows):
            return status, [], {}
        stored = [r["00081155"]["Value"][0] for r in rows.get("00081199", {}).get("Value", [])]
        failed = {r.get("00081155", {}).get("Value", ["?"])[0]: r["00081197"]["Value"][0]
                  for r in rows.get("00081198", {}).get("Value", [])}
        return status, stored, failed

    def qido(self, path):
        """A QIDO-RS search (section 10.6): the rows."""
        status, _, data = self.call("GET", path, headers={"Accept": "application/dicom+json"})
        if status == 204:
            return []
        if status != 200:
            raise WebError(status, data.decode(errors="replace"))
        return json.loads(data)

    def all_instances(self):
        """All instances as (study, series, UID)."""
        rows, page = [], 1000
        while True:
            more = self.qido(f"/instances?limit={page}&offset={len(rows)}")
            rows += more
            if len(more) < page:
                break
        return [tuple(r[t]["Value"][0] for t in ("0020000D", "0020000E", "00080018")) for r in rows]

    def instance(self, study, series, uid):
        """WADO-RS of one instance, as stored (section 10.4): its Part 10 stream."""
        status, headers, data = self.call(
            "GET", f"/studies/{study}/series/{series}/instances/{uid}",
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'})
        if status != 200:
            raise WebError(status, data.decode(errors="replace"))
        parts = multipart(headers["Content-Type"], data)
        if len(parts) != 1:
            raise ValueError(f"{len(parts)} parts for one instance")
        return parts[0]

    def delete_study(self, study):
        status, _, data = self.call("DELETE", f"/studies/{study}")
        if status not in (200, 204):
            raise WebError(status, data.decode(errors="replace"))


def multipart(content_type, body):
    """The parts of a multipart body (RFC 2046 section 5.1)."""
    words = [w.strip() for w in content_type.split(";")]
    boundary = [w[9:].strip('"') for w in words if w.lower().startswith("boundary=")][0]
    mark = b"--" + boundary.encode()
    if not body.startswith(mark) and b"\r\n" + mark not in body:
        raise ValueError("no boundary in a multipart body")
    body = b"\r\n" + body
    pieces = body.split(b"\r\n" + mark)
    if not pieces[-1].startswith(b"--"):
        raise ConnectionError("a multipart body without its end")
    return [p.split(b"\r\n\r\n", 1)[1] for p in pieces[1:-1]]
