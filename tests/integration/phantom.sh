#!/bin/bash
# The phantom maker: its files are sound DICOM to a library that had no part in them, the same for
# the same seed and new for another; a re-issued series has the same pixels under all other names.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
phantom=${FILMROOM_BUILD:-$root/build}/tools/phantom/filmroom-phantom
work=$(mktemp -d "${TMPDIR:-/tmp}/filmroom-test-XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=0

# check NAME COMMAND...: one case.
check()
{
    local name=$1 out

    shift
    if out=$("$@" 2>&1); then
        echo "ok - $name"
    else
        echo "$out" | tail -n 20
        echo "not ok - $name: exit code from: $*"
        failed=1
    fi
}

for program in dcmdump dcmftest storescp storescu; do
    if ! command -v $program >/dev/null; then
        echo "skip - phantom: $program (package dcmtk)"
        exit 0
    fi
done

value()
{
    dcmdump -q +P "$2" "$1" | sed 's/^.*\[\(.*\)\].*$/\1/'
}

study()
{
    value "$1/000001.dcm" 0020,000d
}

makes_sound_files()
{
    "$phantom" --out "$work/ct" --slices 5 --seed 7 --patient P1 &&
        "$phantom" --out "$work/mr" --slices 3 --seed 7 --modality MR --rows 200 --cols 160 &&
        [ "$(dcmftest "$work"/ct/* "$work"/mr/* | grep -c '^yes')" -eq 8 ] &&
        [ "$(value "$work/ct/000001.dcm" 0010,0020)" = P1 ] &&
        ! dcmdump "$work/mr/000003.dcm" 2>&1 >/dev/null | grep .
}

same_seed_same_bytes()
{
    "$phantom" --out "$work/ct2" --slices 5 --seed 7 --patient P1 &&
        diff -r "$work/ct" "$work/ct2" &&
        "$phantom" --out "$work/ct3" --slices 5 --seed 8 --patient P1 &&
        [ "$(study "$work/ct")" != "$(study "$work/ct3")" ] &&
        ! cmp -s <(tail -c 524288 "$work/ct/000002.dcm") <(tail -c 524288 "$work/ct3/000002.dcm") &&
        ! cmp -s <(tail -c 524288 "$work/ct/000002.dcm") <(tail -c 524288 "$work/ct/000003.dcm")
}

reissues_with_the_same_pixels()
{
    local f tag

    "$phantom" --out "$work/other" --reheader "$work/ct" --patient OTHER --seed 3 || return 1
    [ "$(dcmftest "$work"/other/* | grep -c '^yes')" -eq 5 ] || return 1
    for f in 000001.dcm 000005.dcm; do
        cmp <(tail -c 524288 "$work/ct/$f") <(tail -c 524288 "$work/other/$f") || return 1
        for tag in 0010,0010 0010,0020 0008,0018 0020,000d 0020,000e 0002,0003; do
            [ "$(value "$work/ct/$f" $tag)" != "$(value "$work/other/$f" $tag)" ] || return 1
        done
        [ "$(value "$work/ct/$f" 0008,0060)" = "$(value "$work/other/$f" 0008,0060)" ] || return 1
    done
    [ "$(study "$work/other")" = "$(value "$work/other/000005.dcm" 0020,000d)" ]
}

refuses_what_it_cannot_do()
{
    mkdir "$work/junk" && head -c 5000 /dev/urandom >"$work/junk/a" || return 1
    ! "$phantom" --out "$work/x" --reheader "$work/junk" --patient X &&
        ! "$phantom" --out "$work/x" --slices 0 &&
        ! "$phantom" --out "$work/x" --rows 100000 &&
        ! "$phantom" --out "$work/x" --study-uid hello &&
        ! "$phantom" --frobnicate
}

# Any change of any byte of a file must give a result or a refusal, never a crash.
survives_damaged_input()
{
    mkdir "$work/damaged" || return 1
    local i code

    for i in $(seq 1 60); do
        head -c 3000 "$work/mr/000001.dcm" >"$work/damaged/a"
        printf "\\x$(printf %02x $((RANDOM % 256)))" |
            dd of="$work/damaged/a" bs=1 seek=$((128 + RANDOM % 1500)) conv=notrunc status=none
        code=0
        "$phantom" --out "$work/x" --reheader "$work/damaged" --patient X 2>"$work/err" || code=$?
        if [ $code -gt 1 ] || grep -q 'Sanitizer\|runtime error' "$work/err"; then
            cat "$work/err"
            return 1
        fi
    done
}

check "files are sound DICOM" makes_sound_files
check "same seed, same bytes; other seed, others" same_seed_same_bytes
check "a re-issued series has the same pixels and other names" reissues_with_the_same_pixels
check "what it cannot do it refuses" refuses_what_it_cannot_do
check "damaged input does not crash it" survives_damaged_input
exit $failed
