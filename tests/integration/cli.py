#!/usr/bin/python3
"""Every command of the CLI against a running daemon: what it prints, its JSON, its exit codes (0
done, 1 failed, 2 wrong command line), and that what it says on errors tells a person what to do."""

import json
import os
import resource
import sys
import time

import dicom
import nbd
from harness import (CLI, DAEMON, DUMP, MIB, Daemon, Suite, built, check, need, phantom, run,
                     scratch, store_with_dcmsend)


def fails(done, code, *words):
    """The command failed with the code, said so on stderr in one paragraph, and wrote nothing."""
    check(done.returncode == code, f"exit code {done.returncode} instead of {code}:", done.stderr)
    check(done.stdout == "", "an error must not print on stdout:", done.stdout)
    check(done.stderr.startswith("filmroom: "), "who speaks?", done.stderr)
    for word in words:
        check(word in done.stderr, f"the message should say '{word}':", done.stderr)
    for leak in ("{", "ERR_", "curl", "(null)", "errno"):
        check(leak not in done.stderr, f"the message leaks '{leak}':", done.stderr)


def without_daemon(folder):
    done = run(CLI, "--data", os.path.join(folder, "nothing"), "status", ok=False)
    fails(done, 1, "nothing", "filmroomd")
    fails(run(CLI, "frobnicate", ok=False), 2)
    fails(run(CLI, "volume", ok=False), 2)
    fails(run(CLI, "volume", "create", "only-a-name", ok=False), 2)
    fails(run(CLI, "status", "--frobnicate", ok=False), 2, "--frobnicate")
    check("Usage" in run(CLI, "--help").stdout, "no usage in the help")
    for command in ("status", "stats", "drive list", "scrub start", "scrub stop", "scrub status",
                    "volume create", "volume list", "volume show",
                    "volume resize", "volume delete", "patient list",
                    "patient show", "study list", "study show", "study delete"):
        text = run(CLI, *command.split(), "--help").stdout
        check(f"filmroom [--data DIR] [--json] {command}" in text, "no help for", command)
    check(run(CLI, "--version").stdout.strip(), "no version")


def dump_of_nothing(folder):
    """Where no drive is one, that is a failure, and what was looked at is told all the same."""
    for data in (os.path.join(folder, "nothing"), folder):
        done = run(DUMP, "--data", data, "superblock", ok=False)
        check(done.returncode == 1 and "valid superblock" in done.stderr, "dump of", data, "gave",
              done.returncode, done.stderr)
        check("drives: 6" in done.stdout and data in done.stdout, "dump told:", done.stdout)


def status(daemon):
    text = daemon.cli("status").stdout
    for word in ("4+2", "nbd", "dicom", "http", str(daemon.ports["dicom"])):
        check(word in text, f"'{word}' is not in the status:", text)
    row = daemon.status()
    check(row["state"] == "ok" and row["drives"] == 6 and row["drives_ok"] == 6, "status:", row)
    check(daemon.log_text().count("listening") == len(row["listeners"]) == 4,
          "listeners in the log:", daemon.log_text())
    check(row["profile"] == "4+2" and row["reasons"] == [], "status:", row)
    for name in ("limit", "logical", "deduped", "stored", "physical", "reclaimable", "free"):
        check(isinstance(row["capacity"][name], int), "capacity lacks", name)
    sockets = [x["addr"] for x in row["listeners"] if x["addr"].startswith("unix:")]
    check(any(a.endswith("nbd.sock") for a in sockets), "the NBD socket is not named:", sockets)
    drives = daemon.cli_json("drive", "list")["drives"]
    check([d["index"] for d in drives] == list(range(6)), "drives:", drives)
    check(all(d["state"] == "ok" and os.path.exists(d["path"]) for d in drives), "drives:", drives)
    check(len(daemon.cli("drive", "list").stdout.strip().split("\n")) == 7, "a line for each drive")


def volumes(daemon):
    check("vm1" in daemon.cli("volume", "create", "vm1", "64M").stdout, "it should name the volume")
    daemon.cli("volume", "create", "vm2", "1G", "--durability", "on-flush")
    rows = daemon.cli_json("volume", "list")["volumes"]
    check([r["name"] for r in rows] == ["vm1", "vm2"], "volumes:", rows)
    check([r["durability"] for r in rows] == ["every-write", "on-flush"], "durability:", rows)
    row = daemon.cli_json("volume", "show", "vm1")
    check("partition" not in row and "PARTITION" not in daemon.cli("volume", "list").stdout,
          "there is one partition only:", row)
    check(row["size"] == 64 * MIB and not row["readonly"], "volume:", row)
    text = daemon.cli("volume", "show", "vm1").stdout
    check("vm1" in text and "64" in text, "volume show:", text)
    fails(daemon.cli("volume", "create", "vm1", "64M", ok=False), 1, "exists")
    fails(daemon.cli("volume", "create", "vm3", "64Q", ok=False), 2, "64Q", "10G")
    fails(daemon.cli("volume", "create", "vm3", "1000", ok=False), 2, "4096")
    fails(daemon.cli("volume", "create", "a/b", "64M", ok=False), 1, "name")
    fails(daemon.cli("volume", "create", "x" * 300, "64M", ok=False), 1, "name")
    fails(daemon.cli("volume", "create", "vm3", "1M", "--durability", "maybe", ok=False), 1)
    fails(daemon.cli("volume", "show", "nobody", ok=False), 1, "no volume")


def resize_and_delete(daemon):
    daemon.cli("volume", "resize", "vm1", "128M")
    check(daemon.cli_json("volume", "show", "vm1")["size"] == 128 * MIB, "not grown")
    fails(daemon.cli("volume", "resize", "vm1", "32M", ok=False), 1, "--shrink")
    daemon.cli("volume", "resize", "vm1", "32M", "--shrink")
    with nbd.Nbd(daemon.nbd, "vm1") as client:
        check(client.size == 32 * MIB, "NBD sees another size:", client.size)
        client.write(0, b"a" * 4096)
        check(daemon.cli_json("volume", "show", "vm1")["openers"] == 1, "one client has it open")
        fails(daemon.cli("volume", "delete", "vm1", "--force", ok=False), 1, "use")
    # Nobody can be asked here: the command must not delete, nor wait.
    fails(daemon.cli("volume", "delete", "vm2", ok=False, timeout=10), 2, "--force")
    daemon.cli("volume", "delete", "vm2", "--force")
    fails(daemon.cli("volume", "snapshot", "vm1,nosuch", "s1", ok=False), 1, '"nosuch"')
    daemon.cli("volume", "snapshot", "vm1", "s1")
    fails(daemon.cli("volume", "delete", "vm1@s1", "--force", ok=False), 1, "snapshot-delete")
    fails(daemon.cli("volume", "resize", "vm1@s1", "64M", ok=False), 1, "is a snapshot")
    try:
        nbd.Nbd(daemon.nbd, "vm1@nope").close()
        check(False, "a snapshot that is not there was opened")
    except nbd.NbdError as e:
        check("no snapshot" in str(e), "NBD says:", str(e))
    daemon.cli("volume", "snapshot-delete", "vm1", "s1", "--force")
    daemon.cli("volume", "delete", "vm1", "--force")
    check(daemon.cli_json("volume", "list")["volumes"] == [], "volumes are left")
    fails(daemon.cli("volume", "delete", "vm1", "--force", ok=False), 1, "no volume")


def studies(daemon, folder):
    need("dcmsend")
    first = phantom(os.path.join(folder, "ct"), slices=3, seed=1, patient="CLI-1",
                    name="Doe^Jane")
    second = phantom(os.path.join(folder, "mr"), slices=2, seed=2, modality="MR", rows=128,
                     cols=128, patient="CLI-2")
    store_with_dcmsend(daemon, first + second)
    ct, mr = dicom.Instance(first[0]), dicom.Instance(second[0])
    rows = daemon.cli_json("study", "list")["studies"]
    check({r["study_uid"] for r in rows} == {ct.study, mr.study}, "studies:", rows)
    for option, value in (("--patient", "CLI-1"), ("--name", "doe*"), ("--modality", "CT"),
                          ("--accession", "A1")):
        rows = daemon.cli_json("study", "list", option, value)["studies"]
        check([r["study_uid"] for r in rows] == [ct.study], f"{option} {value}:", rows)
    rows = daemon.cli_json("study", "list", "--limit", "1")
    check(len(rows["studies"]) == 1 and rows["more"], "one of two, and more:", rows)
    row = daemon.cli_json("study", "show", ct.study)
    check(row["instances"] == 3 and row["series"] == 1 and row["modalities"] == ["CT"], "show:",
          json.dumps(row))
    text = daemon.cli("study", "show", ct.study).stdout
    check("CLI-1" in text and "CT" in text, "study show:", text)
    check("CLI-1" in daemon.cli("study", "list").stdout, "study list as text")
    check(daemon.status()["studies"] == 2 and daemon.status()["instances"] == 5, "counts")
    fails(daemon.cli("study", "show", "1.2.3", ok=False), 1, "no study")
    fails(daemon.cli("study", "show", "not-a-uid", ok=False), 1)
    fails(daemon.cli("study", "delete", ct.study, ok=False, timeout=10), 2, "--force")
    daemon.cli("study", "delete", ct.study, "--force")
    check(daemon.status()["studies"] == 1, "the study is still there")
    fails(daemon.cli("study", "show", ct.study, ok=False), 1, "no study")


def patients(daemon, folder):
    """Patients come with their first study and go with their last."""
    before = {r["patient_id"] for r in daemon.cli_json("patient", "list")["patients"]}
    check("PAT/1 ?" not in before, "patients:", before)
    first = phantom(os.path.join(folder, "p1"), slices=1, seed=11, patient="PAT/1 ?",
                    name="Roe^Richard")
    second = phantom(os.path.join(folder, "p2"), slices=1, seed=12, patient="PAT/1 ?",
                     name="Roe^Rich")
    third = phantom(os.path.join(folder, "p3"), slices=1, seed=13, patient="PAT-2")
    for files in (first, second, third):
        dicom.store_all(daemon.dicom, [dicom.Instance(f) for f in files])
    uids = sorted(dicom.Instance(f[0]).study for f in (first, second))
    rows = daemon.cli_json("patient", "list", "--name", "roe*")["patients"]
    check([(r["patient_id"], r["patient_name"], r["studies"]) for r in rows]
          == [("PAT/1 ?", "Roe^Richard", 2)], "one patient, named by the first study:", rows)
    text = daemon.cli("patient", "list").stdout
    check("PAT/1 ?" in text and "PAT-2" in text and "BIRTH DATE" in text, "patient list:", text)
    rows = daemon.cli_json("patient", "list", "--limit", "1")
    check(len(rows["patients"]) == 1 and rows["more"], "one, and more:", rows)
    shown = daemon.cli_json("patient", "show", "PAT/1 ?")
    check(sorted(r["study_uid"] for r in shown["studies"]) == uids, "patient show:", shown)
    check(shown["patients"][0]["studies"] == 2, "patient show:", shown)
    text = daemon.cli("patient", "show", "PAT-2").stdout
    check("PAT-2" in text and dicom.Instance(third[0]).study in text, "patient show:", text)
    rows = daemon.cli_json("study", "list", "--patient", "PAT-2")["studies"]
    check([r["study_uid"] for r in rows] == [dicom.Instance(third[0]).study], "by ID:", rows)
    daemon.cli("study", "delete", uids[0], "--force")
    check(daemon.cli_json("patient", "show", "PAT/1 ?")["patients"][0]["studies"] == 1,
          "a study is deleted and still counted")
    daemon.cli("study", "delete", uids[1], "--force")
    fails(daemon.cli("patient", "show", "PAT/1 ?", ok=False), 1, "no patient", "list")
    daemon.cli("study", "delete", dicom.Instance(third[0]).study, "--force")
    check({r["patient_id"] for r in daemon.cli_json("patient", "list")["patients"]} == before,
          "patients are left")


def identical_and_other(daemon, folder):
    """Re-sending is counted, and so is other content under the same UID."""
    files = phantom(os.path.join(folder, "again"), slices=1, seed=9)
    one = dicom.Instance(files[0])
    dicom.store_all(daemon.dicom, [one, one])
    counters = daemon.status()["counters"]
    check(counters["identical_instances"] >= 1, "identical data is not counted:", counters)
    other = bytearray(one.dataset)
    other[-1000] ^= 1
    with dicom.Association(daemon.dicom, [(one.sop_class, dicom.EXPLICIT_LE)]) as a:
        status_code = a.store(one.sop_class, one.uid, bytes(other))
    after = daemon.status()["counters"]
    noted = (after["refused_conflicts"] + after["replaced_instances"]
             - counters["refused_conflicts"] - counters["replaced_instances"])
    check(noted == 1, f"other content under one UID (status {status_code:04x}) is not counted:",
          after)
    with dicom.Web(daemon.http) as web:
        kept = dicom.dataset_of(web.instance(one.study, one.series, one.uid))
    check(kept == (one.dataset if status_code else bytes(other)),
          "what is kept is not what the answer said")
    check(one.uid in daemon.log_text(), "the log does not name the instance")


def drive_comes_and_goes(daemon, folder):
    """A drive that has left is not told to be out: nothing is to be replaced."""
    fails(daemon.cli("drive", "add", os.path.join(folder, "no/x"), "--size", "256M", ok=False), 1,
          "directory that", "no/x")
    fails(daemon.cli("drive", "add", folder, ok=False), 1, "block device or a file")
    path = os.path.join(folder, "extra")
    for _ in range(2):
        daemon.cli("drive", "add", path, "--size", "256M", "--force")
        daemon.cli("drive", "remove", path)
        end = time.monotonic() + 60
        while len(daemon.cli_json("drive", "list")["drives"]) > 6:
            check(time.monotonic() < end, "the drive does not leave")
            time.sleep(0.2)
    time.sleep(0.5)  # the standing of drives is looked at ten times a second
    text = daemon.log_text()
    check("drive has left" in text, "the log does not tell that it left")
    for words in ("is out", "is trusted again"):
        check(words not in text, f"the log says '{words}':", text)


def daemon_refuses(folder):
    """What is wrong with the command line or the data directory is said by name, in a line."""
    path = os.path.join(folder, "file")
    with open(path, "w", encoding="ascii"):
        pass
    for argv, code, words in ((["--nonsense"], 2, "filmroomd: --nonsense: no such option"),
                              (["--data", path, "--nbd-port", "x"], 2, "filmroomd: --nbd-port:"),
                              (["--data", path], 1, "not a directory"),
                              (["--data", path + "-no/sub"], 1, "make that first")):
        done = run(DAEMON, *argv, ok=False)
        check(done.returncode == code and words in done.stderr, argv[0], "gave",
              done.returncode, done.stderr)
        check(done.stderr.endswith("\n") and done.stderr.count("\n") == 1, "lines:", done.stderr)


def without_metadata(daemon):
    """Where the metadata is gone, the start says which directory that is."""
    kv = os.path.join(daemon.data, "kv")
    os.rename(kv, kv + ".away")
    done = run(DAEMON, "--data", daemon.data, ok=False)
    check(done.returncode == 1 and f"directory {kv} is gone" in done.stderr, "it should name it:",
          done.stderr)


def second_daemon(daemon):
    """Two daemons on one store: the second refuses, the first goes on."""
    other = Daemon(daemon.data, ready_timeout=20)
    other.log_path += ".second"
    check(not other.start(expect_ready=False), "a second daemon started on the same store")
    code = other.process.wait(10)
    check(code not in (0, -6, -11), f"the second daemon ended with {code}")
    check("another daemon uses this store" in other.log_text(), "it should say why:",
          other.log_text())
    check(other.log_text().count("\n") == 1, "it should say so once:", other.log_text())
    check(daemon.status()["state"] == "ok", "the first daemon suffers")


def descriptors(folder):
    """The soft limit of open files does not matter; a hard one that is too low is told, once."""
    data, (soft, hard) = os.path.join(folder, "files"), resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        with Daemon(data, config="[store]\ndrives = 1\ncapacity = 64M\n") as d:
            limits = resource.prlimit(d.process.pid, resource.RLIMIT_NOFILE)
            check(limits == (hard, hard), "the daemon's limits:", limits)
            check("files may be open" not in d.log_text(), d.log_tail())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    conf = os.path.join(folder, "files.conf")
    with open(conf, "w", encoding="utf-8") as f:
        f.write("[store]\ndrive = /dev/nothing\n[http]\nmax_connections = 1000\n")
    done = run("sh", "-c", f"ulimit -n 400; exec {DAEMON} --data {data}.2 --config {conf}",
               ok=False)
    check(done.stderr.count("files may be open") == 1 and "limit=400 wanted=1" in done.stderr,
          "the daemon said", done.stderr)


def main():
    suite = Suite()
    with scratch() as folder:
        with suite.case("wrong command lines, help, no daemon"):
            built(CLI)
            without_daemon(folder)
        with suite.case("a daemon refuses"):
            daemon_refuses(folder)
        with suite.case("a dump of what is no store"):
            built(DUMP)
            dump_of_nothing(folder)
        with suite.case("limits of open files"):
            descriptors(folder)
        daemons = []
        with suite.case("a daemon starts"):
            daemons.append(Daemon(os.path.join(folder, "data")))
            daemons[0].start()
        for d in daemons:
            try:
                for name, step in (
                        ("status and drives", lambda: status(d)),
                        ("volumes: create, list, show", lambda: volumes(d)),
                        ("volumes: resize, delete", lambda: resize_and_delete(d)),
                        ("studies: list, show, delete", lambda: studies(d, folder)),
                        ("patients: list, show", lambda: patients(d, folder)),
                        ("identical and conflicting instances are counted and logged",
                         lambda: identical_and_other(d, folder)),
                        ("a drive comes and goes", lambda: drive_comes_and_goes(d, folder)),
                        ("a second daemon on the same store is refused", lambda: second_daemon(d)),
                        ("a clean stop", d.stop),
                        ("a start without metadata", lambda: without_metadata(d))):
                    with suite.case(name):
                        step()
            finally:
                d.kill()
        if suite.failed and daemons:
            print(daemons[0].log_tail())
    return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
