/* mem_block: a block store in memory, a test double of the daemon's volumes.
 *
 * Sparse by 4 KiB pages. Calls complete at once unless a hook suspends. Not durable, but it counts
 * what a test wants to see: flushes, FUA writes. */
#pragma once

#include "lib/api/block.h"

struct mem_block; /* is a struct block_store */

struct mem_block_hooks {
    /* Called at the start of every I/O call of a volume; an error is returned to the caller, `op`
     * is 'r', 'w', 'f', 'd', 'z' or 'e'. May suspend. */
    int (*before)(void *arg, char op, uint64_t off, uint64_t len);
    void *arg;
};

struct mem_block_counts {
    unsigned reads, writes, flushes, fuas, discards, zeroes, extents;
};

struct mem_block *mem_block_new(void);
void mem_block_free(struct mem_block *m); /* no volume may be open */
struct block_store *mem_block_store(struct mem_block *m);
void mem_block_set_hooks(struct mem_block *m, const struct mem_block_hooks *hooks);
void mem_block_set_readonly(struct mem_block *m, const char *name, bool readonly);
struct mem_block_counts mem_block_get_counts(const struct mem_block *m);
