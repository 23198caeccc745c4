/* A partition on simulated drives and a key-value store in memory, opened, closed and killed. */
#pragma once

#include "daemon/partition.h"
#include "tests/unit/store/store_case.h"

struct partition_case {
    struct sim_case c;
    struct kv_mem_image *image; /* what of the KV store outlives a process */
    unsigned drives, m;
    unsigned paths; /* under which drives are looked for; 0: as many as `drives` */
    uint64_t slots, slot_size, journal; /* slot_size 0: the usual */
    struct partition_options options;
    struct kv *(*wrap)(struct env *env, struct kv *kv); /* puts a store on the KV store, if set */
    /* Of the running process: */
    struct kv *kv;
    struct partition *p;
    struct partition_start start;
    struct block_store *bs;
    struct object_store *os;
};

/* Three drives, 2+1, a small journal and small caches; changed to taste before the first open. */
void partition_case_init(struct partition_case *pc, uint64_t seed);
void partition_case_free(struct partition_case *pc);

/* In a process: opens the partition, formatted first if that was not done. */
int partition_case_try_open(struct partition_case *pc);
void partition_case_open(struct partition_case *pc); /* stops the test on an error */
int partition_case_close(struct partition_case *pc);

struct partition_status partition_case_status(struct partition_case *pc);
