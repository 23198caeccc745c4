/* An object store in memory: the test double that front doors are tested against.
 *
 * It does what object.h says with the simplest means: instances in an array, queries by looking at
 * all of them. What is stored under a SOP Instance UID stays; other content is a conflict.
 */
#pragma once

#include "lib/api/object.h"

struct env;

/* env: headers are parsed on its cpu lane (a fiber's stack is small for DCMTK); NULL parses inline,
 * for tests without a loop. */
struct object_store *mem_object_new(struct env *env);
void mem_object_free(struct object_store *os); /* no put, no object may be open */

size_t mem_object_count(const struct object_store *os);

/* From now on put_begin, put_append or put_commit returns the error; 0 makes it work again. */
struct mem_object_faults {
    int begin, append, commit;
};
void mem_object_set_faults(struct object_store *os, const struct mem_object_faults *faults);

/* The whole Part 10 stream of the i-th instance (in the order of storing); NULL past the last. It
 * stays valid until the instance is deleted. */
const void *mem_object_bytes(const struct object_store *os, size_t i, size_t *ret_len,
                             const char **ret_instance_uid);
