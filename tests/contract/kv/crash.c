/* The workload and the verifier of crash.h. */
#include "tests/contract/kv/crash.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"
#include "tests/contract/kv/suite.h"

#define CRASH_SLOTS 64u /* rows per table */
#define CRASH_TRAIL                                                               \
    20u /* rows that KV_INDEX keeps: batch n adds row n and deletes row n - TRAIL \
         */

static struct kv_slice crash_key(char text[24], uint64_t i)
{
    snprintf(text, 24, "%020llu", (unsigned long long)i);
    return (struct kv_slice){text, 20};
}

static struct kv_slice crash_counter(void)
{
    return suite_text("counter");
}

static void crash_batch(struct kv_batch *b, uint64_t n, void *value, size_t value_len)
{
    char text[24];

    kv_batch_clear(b);
    memcpy(value, &n, sizeof(n));
    kv_batch_put(b, KV_META, crash_counter(), (struct kv_slice){value, sizeof(n)});
    for (unsigned t = KV_META + 1; t < KV_INDEX; t++)
        kv_batch_put(b, (enum kv_table)t, crash_key(text, n % CRASH_SLOTS),
                     (struct kv_slice){value, value_len});
    kv_batch_put(b, KV_INDEX, crash_key(text, n), (struct kv_slice){value, sizeof(n)});
    if (n > CRASH_TRAIL)
        kv_batch_delete(b, KV_INDEX, crash_key(text, n - CRASH_TRAIL));
}

/* ---- Verifying ------------------------------------------------------------------------------ */

static uint64_t crash_value_number(struct kv_slice value)
{
    uint64_t n;

    CHECK(value.len >= sizeof(n));
    memcpy(&n, value.data, sizeof(n));
    return n;
}

static uint64_t crash_read_counter(struct kv *kv)
{
    void *value;
    size_t len;
    uint64_t n;
    int r = kv_get(kv, KV_META, crash_counter(), &value, &len);

    if (r == ERR_NOENT)
        return 0;
    CHECK_OK(r);
    n = crash_value_number((struct kv_slice){value, len});
    mem_free(value);
    return n;
}

static void crash_verify_slots(struct kv *kv, enum kv_table t, uint64_t n)
{
    struct kv_slice none = {NULL, 0};
    struct kv_rows *rows;

    CHECK_OK(kv_scan(kv, t, none, none, 2 * CRASH_SLOTS, 64u << 20, 0, &rows));
    /* Slot 0 is first written by batch 64. */
    CHECK(rows->count == (n < CRASH_SLOTS ? n : CRASH_SLOTS));
    for (size_t i = 0; i < rows->count; i++) {
        uint64_t slot = n < CRASH_SLOTS ? i + 1 : i;
        uint64_t last = n - (n - slot) % CRASH_SLOTS; /* the last batch <= n that wrote it */
        char text[24];

        CHECK(memcmp(rows->rows[i].key.data, crash_key(text, slot).data, 20) == 0);
        CHECK(crash_value_number(rows->rows[i].value) == last);
    }
    kv_rows_free(rows);
}

static void crash_verify_trail(struct kv *kv, uint64_t n)
{
    struct kv_slice none = {NULL, 0};
    struct kv_rows *rows;

    CHECK_OK(kv_scan(kv, KV_INDEX, none, none, 2 * CRASH_TRAIL, 1u << 20, 1, &rows));
    CHECK(rows->count == (n < CRASH_TRAIL ? n : CRASH_TRAIL));
    for (size_t i = 0; i < rows->count; i++)
        CHECK(crash_value_number(rows->rows[i].value) == n - i);
    kv_rows_free(rows);
}

uint64_t crash_verify(struct kv *kv, const struct crash_progress *p)
{
    uint64_t n = crash_read_counter(kv);

    CHECK(n >= p->flushed);
    CHECK(n <= p->written);
    for (unsigned t = KV_META + 1; t < KV_INDEX; t++)
        crash_verify_slots(kv, (enum kv_table)t, n);
    crash_verify_trail(kv, n);
    return n;
}

/* ---- Working -------------------------------------------------------------------------------- */

struct crash_flush {
    struct kv *kv;
    struct crash_progress *p;
    struct fiber_group *group;
    uint64_t upto;
};

static void crash_flush_fiber(void *arg)
{
    struct crash_flush *f = arg;

    CHECK_OK(kv_flush(f->kv));
    if (f->upto > f->p->flushed)
        f->p->flushed = f->upto;
    fiber_group_done(f->group);
    mem_free(f);
}

static void crash_flush_start(struct env *env, struct kv *kv, struct crash_progress *p,
                              struct fiber_group *group, uint64_t upto)
{
    struct crash_flush *f = mem_alloc(sizeof(*f));

    *f = (struct crash_flush){kv, p, group, upto};
    fiber_group_add(group, 1);
    fiber_spawn(env, "flush", crash_flush_fiber, f);
}

void crash_workload(struct env *env, struct kv *kv, struct crash_progress *p, uint64_t first,
                    uint64_t count, size_t value_len, uint64_t seed)
{
    struct kv_batch *b = kv_batch_new();
    void *value = mem_zalloc(value_len);
    struct fiber_group group;

    CHECK(value_len >= sizeof(uint64_t));
    fiber_group_init(&group);
    for (uint64_t n = first; n < first + count; n++) {
        uint64_t dice = suite_random(&seed) % 256;

        crash_batch(b, n, value, value_len);
        p->written = n;
        CHECK_OK(kv_write(kv, b));
        if (dice < 6)
            crash_flush_start(env, kv, p, &group, n);
        else if (dice < 16)
            env_sleep(env, suite_random(&seed) % ENV_NS_PER_MS);
        else if (dice < 60)
            fiber_yield();
    }
    fiber_group_wait(&group);
    mem_free(value);
    kv_batch_free(b);
}
