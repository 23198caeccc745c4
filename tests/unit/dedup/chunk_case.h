/* A chunk store on simulated drives, with records and their application of its own: what the tests
 * of dedup share. */
#pragma once

#include "dedup/chunk_priv.h"
#include "lib/store/journal.h"
#include "tests/unit/dedup/lag_kv.h"
#include "tests/unit/store/store_case.h"

extern struct sim_case c;

extern struct chunk_case {
    struct record_log log; /* first */
    struct kv_mem_image *image;
    struct kv *kv, *lag; /* lag: the one that lags, which is kv, or with `front` lies behind it */
    bool front;
    struct driveset *ds;
    struct segments *ss;
    struct chunkstore *cs;
    struct fiber_mutex applying;
    uint64_t lag_ns;
    size_t cache_rows;
    unsigned drives, freed;
} t;

/* ---- Records ---- */

struct change {
    uint64_t id;
    int64_t delta;
};

/* Applies a record: its list of chunks (may be NULL) and the changes. */
int apply(const struct strbuf *list, const struct change *changes, size_t n);
int apply_batch(const struct chunk_batch *cb, const struct change *changes, size_t n);
void ref(uint64_t id, int64_t delta);
/* cmocka's. */
int setup(void **state);
int teardown(void **state);
/* In a process. */
void open_store(void);
void make_store(unsigned drives, unsigned k, unsigned m, uint64_t slots);
void close_store(void);
void reopen_store(void);
/* Content of a seed; even seeds compress. The caller frees it. */
uint8_t *content(uint64_t seed, size_t n);
struct chunk_item item(uint64_t seed, size_t n);
void free_items(struct chunk_item *items, size_t n);
/* Reads a chunk and compares it with the content of the seed. */
int read_chunk(uint64_t id, uint64_t seed, size_t n);
/* Stores the content of one seed with one reference; returns its id. */
uint64_t store_one(uint64_t seed, size_t n);
struct chunkstore_stats stats(void);
struct segment_space space(void);
size_t kv_count(enum kv_table table);
/* Content of seeds seed, seed + 2, ... with one reference each, in one record. */
int store_many(uint64_t seed, unsigned n, size_t len);
/* Fills up the open segment, so that the one before is sealed. */
void seal(void);
/* Frees empty segments; returns how many. */
unsigned sweep(void);
