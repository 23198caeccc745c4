/* A key-value store stacked on another: each write takes its time before it takes effect, as
 * RocksDB's do when a memory table is full. */
#pragma once

#include "lib/kv/kv.h"

/* Writes sleep *lag_ns first, in the order of the calls. Closing it closes the one under it. */
struct kv *lag_kv_new(struct env *env, struct kv *under, const uint64_t *lag_ns);
/* From now on kv_multi_get gives this error; 0: none. */
void lag_kv_fail_reads(struct kv *kv, int error);
/* From now on rows that are there, and were neither read by their keys nor written since, take so
 * long: as those do that are not in RocksDB's cache. 0: no more. */
void lag_kv_slow_reads(struct kv *kv, uint64_t ns);
