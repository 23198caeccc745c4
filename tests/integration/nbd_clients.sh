#!/bin/bash
# Real NBD clients against the daemon: libnbd's tools, QEMU's, fio, and what no sane client sends.
#
#   nbd_clients.sh [CASE...]
#
# FILMROOM_BUILD names the build (default: build). FILMROOM_NBD_SERVER=mem takes the build's
# nbd_mem_server instead of filmroomd, which tells a fault of the protocol from one of the engine.
# Prints "ok - CASE", "not ok - CASE: WHY" or "skip - CASE: WHAT IS MISSING" for each case; exits 1
# when one failed.
# shellcheck disable=SC2317 # the cases are called by name
set -uo pipefail
export PATH=/usr/bin:$PATH # nbdsh must find the system's python3
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(realpath "${FILMROOM_BUILD:-$root/build}")
kind=${FILMROOM_NBD_SERVER:-daemon}
export PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1

dir=$(mktemp -d "${FILMROOM_TEST_DIR:-/tmp}/filmroom-nbd-XXXXXX")
why=$dir/why
server_pid=
sock=
port=
failed=0

# ---- The server ----------------------------------------------------------------------------------

# start_server DATA NAME=SIZE...: sets server_pid, sock and port.
start_server()
{
    local data=$1 volume i

    shift
    sock=$data/nbd.sock
    if [ "$kind" = mem ]; then
        mkdir -p "$data"
        "$build/tests/unit/nbd/nbd_mem_server" "unix:$sock" tcp:127.0.0.1:0 "$@" \
            >"$data.out" 2>>"$data.log" </dev/null &
    else
        "$build/daemon/filmroomd" --data "$data" --nbd-port 0 --dicom-port 0 --http-port 0 \
            >"$data.out" 2>>"$data.log" </dev/null &
    fi
    server_pid=$!
    for ((i = 0; i < 600; i++)); do
        if [ "$kind" = mem ] && [ "$(grep -c '^listening' "$data.out")" = 2 ]; then
            port=$(sed -n 's/^listening tcp:.*://p' "$data.out")
            return 0
        elif [ "$kind" != mem ] && grep -qx ready "$data.out"; then
            port=$("$build/tools/filmroom" --data "$data" --json status | /usr/bin/python3 -c '
import json, sys
rows = json.load(sys.stdin)["listeners"]
print(next(r["port"] for r in rows if r["name"] == "nbd" and r["port"]))')
            for volume in "$@"; do
                "$build/tools/filmroom" --data "$data" volume create "${volume%=*}" "${volume#*=}" \
                    >/dev/null || return 1
            done
            return 0
        fi
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "the server did not start: $(tail -n 5 "$data.log")" >&2
    return 1
}

cleanup()
{
    if [ -n "$server_pid" ]; then
        kill -9 "$server_pid" 2>/dev/null
        wait "$server_pid" 2>/dev/null
    fi
    if [ -n "${FILMROOM_TEST_KEEP:-}" ]; then
        echo "  # kept $dir"
    else
        rm -rf "$dir"
    fi
}
trap cleanup EXIT

uri() # NAME: over the unix socket
{
    echo "nbd+unix:///$1?socket=$sock"
}

tcp() # NAME: over TCP
{
    echo "nbd://127.0.0.1:$port/$1"
}

# ---- Cases ---------------------------------------------------------------------------------------

fail()
{
    echo "$*" >&2
    exit 1
}

skip()
{
    echo "$*" >&2
    exit 77
}

need()
{
    local program

    for program in "$@"; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

# quiet COMMAND...: its output only matters when it fails.
quiet()
{
    local out code=0

    out=$(mktemp -p "$dir")
    timeout 300 "$@" >"$out" 2>&1 || code=$?
    [ "$code" -eq 0 ] || fail "$* gave $code: $(tail -n 8 "$out")"
}

# An ext4 image with something in it, made once.
image()
{
    [ -f "$dir/ext4.img" ] && return
    need mkfs.ext4
    mkdir -p "$dir/tree/sub"
    head -c 9000000 /dev/urandom >"$dir/tree/noise"
    seq 1 300000 >"$dir/tree/sub/text"
    truncate -s 128M "$dir/ext4.img"
    quiet mkfs.ext4 -q -d "$dir/tree" "$dir/ext4.img"
}

case_info()
{
    need nbdinfo
    nbdinfo "$(uri disk)" >"$dir/info" || fail "nbdinfo failed"
    for line in "export-size: 134217728" base:allocation "can_flush: true" "can_fua: true" \
        "can_multi_conn: true" "can_trim: true" "can_zero: true" "can_df: true" \
        "is_read_only: false" "block_size_maximum: 33554432" "structured packets"; do
        grep -q "$line" "$dir/info" || fail "nbdinfo does not say '$line': $(cat "$dir/info")"
    done
    nbdinfo --list "$(tcp '')" >"$dir/info" || fail "nbdinfo --list failed"
    [ "$(grep -c '^export=' "$dir/info")" = 4 ] || fail "the list: $(grep export= "$dir/info")"
    ! nbdinfo "$(tcp nothing)" >"$dir/info" 2>&1 || fail "an unknown export was served"
    ! nbdinfo "$(tcp '')" >"$dir/info" 2>&1 || fail "there is no default among several volumes"
    need qemu-img
    qemu-img info "$(uri nothing)" >"$dir/info" 2>&1
    grep -q "there is no volume of that name" "$dir/info" ||
        fail "no clear text: $(cat "$dir/info")"
}

case_copy()
{
    need nbdcopy cmp
    image
    quiet nbdcopy --flush "$dir/ext4.img" "$(uri disk)"
    quiet nbdcopy "$(tcp disk)" "$dir/out.img"
    cmp "$dir/ext4.img" "$dir/out.img" || fail "nbdcopy brought back another image"
    quiet e2fsck -fn "$dir/out.img"
    quiet nbdcopy --connections=4 --requests=16 --request-size=65536 "$(tcp disk)" "$(uri copy)"
    quiet nbdcopy --synchronous "$(uri copy)" "$dir/out.img"
    cmp "$dir/ext4.img" "$dir/out.img" || fail "a copy from volume to volume differs"
}

case_qemu_img()
{
    need qemu-img
    image
    quiet qemu-img convert -n -f raw -O raw "$dir/ext4.img" "$(uri copy)"
    quiet qemu-img compare -f raw -F raw "$dir/ext4.img" "$(tcp copy)"
    quiet qemu-img convert -f raw -O qcow2 "$(tcp copy)" "$dir/out.qcow2"
    quiet qemu-img compare -f raw -F qcow2 "$(uri copy)" "$dir/out.qcow2"
    # What the map calls zero must be zero in the image, and most of the image is.
    qemu-img map -f raw --output=json "$(uri copy)" >"$dir/map" || fail "qemu-img map failed"
    /usr/bin/python3 - "$dir/map" "$dir/ext4.img" <<'PYTHON' || fail "the map does not fit the data"
import json, sys
image = open(sys.argv[2], "rb")
zero = at = 0
for e in json.load(open(sys.argv[1])):
    assert e["start"] == at, "the map has a gap"
    at += e["length"]
    if e["zero"]:
        zero += e["length"]
        image.seek(e["start"])
        assert image.read(e["length"]) == bytes(e["length"]), f"not zero at {e['start']}"
assert at == 128 << 20 and zero > 64 << 20, (at, zero)
PYTHON
}

case_qemu_io()
{
    need qemu-io
    qemu-io -f raw -t writeback \
        -c 'write -P 0xa1 0 1M' -c 'read -P 0xa1 0 1M' \
        -c 'write -P 0xb2 4095 4098' -c 'read -P 0xb2 4095 4098' \
        -c 'read -P 0xa1 0 4095' -c 'read -P 0xa1 8193 1040383' \
        -c 'write -f -P 0xc3 65536 65536' -c 'read -P 0xc3 65536 65536' \
        -c 'write -z 131072 65536' -c 'read -P 0 131072 65536' \
        -c 'write -z -u 196609 70000' -c 'read -P 0 196609 70000' -c 'read -P 0xa1 196608 1' \
        -c 'discard 0 128M' -c 'read -P 0 0 16M' -c flush \
        -c 'aio_write -P 1 0 64k' -c 'aio_write -P 2 64k 64k' -c 'aio_write -P 3 128k 1M' \
        -c aio_flush -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' -c 'read -P 3 128k 1M' \
        -c 'write -P 0x77 134217727 1' -c 'read -P 0x77 134217727 1' \
        "$(tcp disk)" >"$dir/qemu-io" 2>&1 || fail "qemu-io: $(tail -n 5 "$dir/qemu-io")"
    ! grep -iE 'verification failed|error' "$dir/qemu-io" || fail "qemu-io found other data"
}

case_nbdsh()
{
    need nbdsh
    nbdsh -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"
    timeout 120 nbdsh -c "uri = '$(uri disk)'" -c "tcp = '$(tcp disk)'" -c "$(cat <<'PYTHON'
import errno
MIB = 1 << 20

def connect(meta=True):
    h = nbd.NBD()
    if meta:
        h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    return h

def refused(number, fn, *args, **kw):
    try:
        fn(*args, **kw)
    except nbd.Error as e:
        assert e.errnum == number, (e.errnum, number)
    else:
        raise AssertionError("was not refused")

def extents(h, count, offset, flags=0):
    got = []
    h.block_status(count, offset, lambda name, off, entries, err: got.extend(entries), flags)
    return list(zip(got[0::2], got[1::2]))

a, b = connect(), connect()
assert a.get_structured_replies_negotiated() and a.can_meta_context("base:allocation")
a.trim(128 * MIB, 0)
assert extents(a, 128 * MIB, 0) == [(128 * MIB, 3)], extents(a, 128 * MIB, 0)

# Data, holes and zeroes as block status tells them; one extent on request.
a.pwrite(b"\x11" * 65536, MIB, nbd.CMD_FLAG_FUA)
b.flush()
assert b.pread(65536, MIB) == b"\x11" * 65536
assert extents(b, 4 * MIB, 0) == [(MIB, 3), (65536, 0), (3 * MIB - 65536, 3)]
assert extents(b, 4 * MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(MIB, 3)]
assert extents(b, 100, MIB + 5, nbd.CMD_FLAG_REQ_ONE) == [(100, 0)]
a.zero(32768, MIB)
a.zero(16384, MIB + 32768, nbd.CMD_FLAG_NO_HOLE)
a.zero(8192, MIB + 49152, nbd.CMD_FLAG_FAST_ZERO)
a.flush()
want = bytes(57344) + b"\x11" * 8192
assert b.pread(65536, MIB) == want
assert extents(b, MIB, MIB)[-1][1] == 3

# Structured reads: chunks put together, holes among them, and unfragmented.
kinds = set()
def chunk(buf, offset, status, err):
    kinds.add(status)
assert b.pread_structured(4 * MIB, 0, chunk)[MIB:MIB + 65536] == want
assert kinds == {nbd.READ_DATA, nbd.READ_HOLE}, kinds
kinds.clear()
assert b.pread_structured(65536, MIB, chunk, nbd.CMD_FLAG_DF) == want
assert kinds == {nbd.READ_DATA}

# Without structured replies.
s = nbd.NBD()
s.set_request_structured_replies(False)
s.connect_uri(tcp)
assert not s.get_structured_replies_negotiated()
assert s.pread(65536, MIB) == want

# Asynchronous, many at once, finished in any order.
bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 5000) for i in range(100)]
cookies = [a.aio_pwrite(buf, 8 * MIB + 5000 * i) for i, buf in enumerate(bufs)]
while a.aio_in_flight():
    a.poll(-1)
assert all(a.aio_command_completed(c) for c in cookies)
for i in range(100):
    assert b.pread(5000, 8 * MIB + 5000 * i) == bytes([i]) * 5000

# The largest write, and what is refused while the connection goes on.
big = bytearray(range(256)) * (32 * MIB // 256)
a.pwrite(big, 64 * MIB)
assert b.pread(32 * MIB, 64 * MIB) == big
a.set_strict_mode(0)
size = a.get_size()
refused(errno.EINVAL, a.pread, 512, size)
refused(errno.EINVAL, a.pread, 1024, size - 512)
refused(errno.ENOSPC, a.pwrite, b"x" * 1024, size - 512)
refused(errno.ENOSPC, a.zero, 1024, size - 512)
refused(errno.EINVAL, a.trim, 1024, size - 512)
refused(errno.EINVAL, a.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
refused(errno.EINVAL, a.cache, 512, 0)
refused(errno.ENOTSUP, a.zero, 100, 5, nbd.CMD_FLAG_FAST_ZERO)
refused(errno.EOVERFLOW, a.pread, 32 * MIB + 1, 0)
refused(errno.EINVAL, a.pwrite, bytes(32 * MIB + 1), 0)
a.pwrite(b"", 0)
assert a.pread(512, 64 * MIB) == big[:512]

# Negotiation step by step.
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(tcp)
names = []
o.opt_list(lambda name, text: names.append(name))
assert "disk" in names and len(names) == 4, names
found = []
o.opt_list_meta_context(found.append)
assert found == ["base:allocation"], found
o.set_export_name("nothing")
refused(errno.ENOENT, o.opt_info)
o.set_export_name("disk")
o.set_full_info(True)
o.opt_info()
assert o.get_size() == size and "volume" in o.get_export_description().lower()
o.opt_go()
assert o.pread(512, 64 * MIB) == big[:512]
o2 = nbd.NBD()
o2.set_opt_mode(True)
o2.connect_uri(tcp)
o2.opt_abort()
for h in (a, b, s, o):
    h.shutdown()
PYTHON
)" >"$dir/nbdsh" 2>&1 || fail "nbdsh: $(tail -n 5 "$dir/nbdsh")"
}

case_fio()
{
    local job

    need fio
    fio --enghelp | grep -qw nbd || skip "fio has no NBD engine"
    for job in "--rw=randwrite --bs=4k --iodepth=32" "--rw=randwrite --bs=512-64k --iodepth=8" \
        "--rw=write --bs=1M --iodepth=4"; do
        # shellcheck disable=SC2086 # the job is several words
        quiet fio --name=verify --ioengine=nbd --uri="$(uri fio)" --size=48M --verify=crc32c \
            --verify_fatal=1 --verify_state_save=0 --do_verify=1 --fsync=64 $job
    done
    quiet fio --name=trim --ioengine=nbd --uri="$(tcp fio)" --size=48M --rw=randtrim --bs=64k \
        --iodepth=4
    quiet fio --name=mixed --ioengine=nbd --uri="$(tcp fio)" --size=16M --offset_increment=16M \
        --numjobs=3 --rw=randrw --bs=4k --iodepth=16 --verify=crc32c --verify_fatal=1 \
        --verify_state_save=0
}

# Noise of every sort while a witness works: he must see neither an error nor a pause.
case_noise()
{
    timeout 200 /usr/bin/python3 - "$sock" "$port" <<'PYTHON' || fail "see above"
import os, random, socket, struct, sys, threading, time
import nbd

unix, port = sys.argv[1], int(sys.argv[2])
rng = random.Random(7)
done = threading.Event()
trouble = []
rounds = 0

def witness():
    global rounds
    mine = random.Random(8)
    try:
        with nbd.Nbd(unix, "witness") as disk:
            while not done.is_set():
                start = time.monotonic()
                at, n = mine.randrange(0, 15 << 20), mine.randrange(1, 100000)
                data = mine.randbytes(n)
                disk.write(at, data, fua=True)
                assert disk.read(at, n) == data, "other bytes than were written"
                took = time.monotonic() - start
                assert took < 10, f"a pause of {took:.1f} s"
                rounds += 1
    except Exception as e:
        trouble.append(repr(e))

def option(kind, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">QII", nbd.IHAVEOPT, kind, length) + payload

def request(command, offset, length, flags=0, magic=nbd.REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, command, 1, offset, length)

hello, old = struct.pack(">I", 3), struct.pack(">I", 0)
go = option(7, struct.pack(">I", 4) + b"copy" + b"\0\0")
sessions = [
    b"", b"\0", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", rng.randbytes(100000), b"\xff" * 64,
    old + option(3), old + option(1, b"nothing"), hello + option(1, b"x" * 5000),
    hello + option(3, b"x" * 70000) + option(3), hello + option(3, b"", 1 << 30),
    hello + option(7, b"", 0xffffffff), hello + option(7, struct.pack(">I", 0xffffffff) + b"copy"),
    hello + go[:-3], hello + b"IHAVEOPX" + bytes(8), hello + option(99, b"x" * 65536) * 20,
    hello + option(3) * 500, hello + option(2, b"bye"), hello + option(5) * 3,
    hello + go + request(1, 0, 1 << 20) + b"not all of it",
    hello + go + request(1, 0, 0xffffffff) + b"x" * 100000,
    hello + go + request(0, 0, 32 << 20) * 30,  # and takes none of the answers
    hello + go + request(0, 1 << 63, 4096) + request(77, 0, 0) + request(0, 0, 16, 0xffff),
    hello + go + request(0, 0, 16, 0, 0x12345678), hello + go + rng.randbytes(5000),
    hello + go + request(2, 0, 0) + request(0, 0, 4096) * 100,
]

def throw(i):
    r = random.Random(i)
    data = sessions[i % len(sessions)]
    if i >= 2 * len(sessions):  # later rounds: with a few bytes changed
        data = bytearray(data)
        for _ in range(r.randrange(1, 5)):
            if data:
                data[r.randrange(min(len(data), 200))] = r.randrange(256)
    try:
        s = nbd.connect(unix if r.random() < 0.5 else ("127.0.0.1", port), 5)
        s.settimeout(0.2)
        cut = r.randrange(len(data) + 1)
        s.sendall(data[:cut])
        s.sendall(data[cut:])
        while s.recv(65536) and r.random() < 0.9:
            pass
    except OSError:
        pass
    finally:
        s.close()

w = threading.Thread(target=witness)
w.start()
crowd = [nbd.connect(("127.0.0.1", port), 5) for _ in range(100)]  # silent ones
end, i = time.monotonic() + 15, 0
while time.monotonic() < end and not trouble:
    throw(i)
    i += 1
for s in crowd:
    s.close()
done.set()
w.join(60)
if trouble or rounds < 50 or i < len(sessions):
    sys.exit(f"the witness: {trouble}, {rounds} rounds beside {i} sessions of noise")
print(f"  # {rounds} rounds beside {i} sessions of noise")
PYTHON
    for peer in tcp:127.0.0.1: unix:pid=; do
        grep -q "broke the protocol .*peer=$peer" "$dir/data.log" ||
            fail "the log does not tell of a peer $peer who broke the protocol"
    done
}

# The volume that a client has open cannot be deleted; then it can.
case_delete()
{
    [ "$kind" != mem ] || skip "nbd_mem_server has no command line"
    need nbdsh
    quiet "$build/tools/filmroom" --data "$dir/data" volume create victim 8M
    nbdsh -u "$(uri victim)" -c "$(cat <<PYTHON
import subprocess
def delete():
    return subprocess.run(["$build/tools/filmroom", "--data", "$dir/data", "volume", "delete",
                           "victim"], capture_output=True, text=True)
r = delete()
assert r.returncode == 1 and "in use" in r.stderr, (r.returncode, r.stderr)
h.pwrite(b"still here", 0)
h.shutdown()
for _ in range(50):
    r = delete()
    if r.returncode == 0:
        break
    import time
    time.sleep(0.1)
assert r.returncode == 0, r.stderr
PYTHON
)" >"$dir/delete" 2>&1 || fail "$(tail -n 3 "$dir/delete")"
}

# With one volume, the empty export name means it; stopping does not wait for idle clients.
case_default()
{
    need nbdinfo
    trap '[ -z "$server_pid" ] || kill -9 "$server_pid"' EXIT
    start_server "$dir/single" alone="$(size_of 8)" || fail "no second server"
    [ "$(nbdinfo --size "$(tcp '')")" = 8388608 ] || fail "the only volume is not the default"
    /usr/bin/python3 -c '
import nbd, signal, sys, os, time
a, b = nbd.connect(sys.argv[1]), nbd.Nbd(sys.argv[1], "")
assert b.size == 8 << 20
b.write(0, b"data")
start = time.monotonic()
os.kill(int(sys.argv[2]), signal.SIGTERM)
assert b.socket.recv(1) == b"", "the stop did not close the connection"
assert time.monotonic() - start < 5' "$sock" "$server_pid" || fail "the stop with clients"
    wait "$server_pid" || fail "the stop gave status $?: $(tail -n 5 "$dir/single.log")"
    server_pid=
}

# Not a subshell's: it waits for a child of this shell.
case_stop()
{
    local code=0

    kill -TERM "$server_pid"
    wait "$server_pid" || code=$?
    server_pid=
    [ $code -eq 0 ] || echo "status $code: $(tail -n 5 "$dir/data.log")" >&2
    ! grep -hE 'Sanitizer|runtime error:|check failed' "$dir"/*.log >&2 && [ $code -eq 0 ]
}

# ---- Main ----------------------------------------------------------------------------------------

# run_case NAME: in a subshell, so that fail and skip end it alone. The server must survive it.
run_case()
{
    local code=0

    if [ "$1" = stop ]; then
        case_stop 2>"$why.stop" || code=1
    else
        ("case_$1") 2>"$why.$1" || code=$?
        if ! kill -0 "$server_pid" 2>/dev/null; then
            code=1
            echo "the server died: $(tail -n 5 "$dir/data.log")" >>"$why.$1"
        fi
    fi
    case $code in
    0) echo "ok - $1" ;;
    77) echo "skip - $1: $(tr '\n' ' ' <"$why.$1")" ;;
    *)
        echo "not ok - $1: $(tail -c 1500 "$why.$1" | tr '\n' ' ')"
        failed=1
        ;;
    esac
}

size_of() # MIB: in the words that each kind of server takes
{
    if [ "$kind" = mem ]; then echo $(($1 << 20)); else echo "$1M"; fi
}

if ! start_server "$dir/data" disk="$(size_of 128)" copy="$(size_of 128)" fio="$(size_of 64)" \
    witness="$(size_of 16)" 2>"$why"; then
    echo "not ok - start: $(tr '\n' ' ' <"$why")"
    exit 1
fi
[ $# -gt 0 ] || set -- info copy qemu_img qemu_io nbdsh fio noise delete default
for name in "$@"; do
    run_case "$name"
done
run_case stop
server_pid=
exit $failed
