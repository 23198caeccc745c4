"""A known set of volumes and instances in a store, and a look at whether all still reads exact.

Used by the tests that take something away from a store: what is read must be the bytes that were
written, or (where the test allows it) a clear error; wrong bytes are a failure in any case.
"""

import errno
import http.client
import os
import random
import socket

import dicom
import nbd
from harness import MIB, check, phantom

STEP = MIB


class Contents:
    def __init__(self, folder, seed=1, slices=16, volume_mib=24):
        self.seed = seed
        files = phantom(os.path.join(folder, f"contents-{seed}"), slices=slices, seed=seed)
        self.instances = [dicom.Instance(f) for f in files]
        self.volume = f"vol{seed}"
        self.volume_size = volume_mib * MIB
        self.steps = {}  # offset -> bytes
        rng = random.Random(seed)
        for offset in range(0, self.volume_size, STEP):
            # Noise, text that compresses, zeroes, and a repeat of what was there before.
            kind = rng.randrange(4)
            self.steps[offset] = {0: rng.randbytes(STEP), 1: rng.randbytes(64) * (STEP // 64),
                                  2: bytes(STEP), 3: self.steps.get(0, bytes(STEP))}[kind]

    def store(self, daemon):
        daemon.volume(self.volume, self.volume_size)
        half = len(self.instances) // 2
        dicom.store_all(daemon.dicom, self.instances[:half])
        with dicom.Web(daemon.http) as web:
            for i in self.instances[half:]:
                status, stored, _ = web.stow(i.data)
                check(status == 200 and stored == [i.uid], f"STOW gave HTTP status {status}")
        with nbd.Nbd(daemon.nbd, self.volume) as client:
            for offset, data in self.steps.items():
                client.write(offset, data)
            client.flush()

    def verify(self, daemon, errors_allowed=False):
        """Reads all of it. Returns the number of pieces that gave an error instead of bytes."""
        return (self.verify_volume(daemon, errors_allowed)
                + self.verify_instances(daemon, errors_allowed))

    def verify_volume(self, daemon, errors_allowed):
        errors = 0
        with nbd.Nbd(daemon.nbd, self.volume) as client:
            for offset, data in self.steps.items():
                try:
                    got = client.read(offset, len(data))
                except nbd.NbdError as e:
                    if not errors_allowed or e.errno != errno.EIO:
                        raise
                    errors += 1
                    continue
                check(got == data, f"volume {self.volume} holds other bytes at {offset}")
        return errors

    def verify_instances(self, daemon, errors_allowed):
        errors = 0
        for number, i in enumerate(self.instances):
            try:
                with dicom.Web(daemon.http) as web:
                    got = web.instance(i.study, i.series, i.uid)
            except (dicom.WebError, ConnectionError, http.client.HTTPException,
                    socket.timeout) as e:
                # An error found after the answer has begun can only break the connection off.
                if not errors_allowed or getattr(e, "status", 500) < 500:
                    raise
                errors += 1
                continue
            if number >= len(self.instances) // 2:
                check(got == i.data, f"instance {i.uid} reads back with other bytes")
            else:
                check(dicom.dataset_of(got) == i.dataset,
                      f"instance {i.uid} reads back with another data set")
        return errors
