/* I/O on a file that is no drive of the set, not yet or not any more, and that may not answer.
 *
 * Nobody else watches over such a file, and what waits for it must end: an operation that is not
 * answered in time stays with the env, with its buffer, and nothing more is asked of the file.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/rt/env.h"

struct lone_file {
    struct env *env;
    struct env_file *file;
    uint64_t patience; /* ns for one operation */
    bool silent;       /* an operation was not answered in time: everything ends at once */
};

/* Runs one operation on the first `len` bytes of b (NULL where there are none); a WRITE is durable.
 * 0 or an error: ERR_TRUNCATED for a short read, ERR_TIMEDOUT. After that a buffer for reading must
 * not be used; one for writing not be changed. Suspends. */
int lone_io_run(struct lone_file *f, enum env_io_kind kind, struct buf *b, size_t len,
                uint64_t off);

/* Closes the file; one that is silent is left to the env. */
void lone_io_close(struct lone_file *f);
