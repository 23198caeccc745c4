/* A drive is lost where the others have not enough room for all that it had: what can be written
 * anew is, room stays for what makes room, status tells, and all goes on once there is more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/partition_priv.h"
#include "daemon/membership.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "tests/unit/daemon/partition_case.h"

#define MIB   (1u << 20)
#define SLOTS 40u
#define LOST  5u

static struct partition_case pc;
static struct block_volume *volume;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    log_set_level((enum log_level)(LOG_ERROR + 1)); /* of draining, which the lost drive disturbs */
    pc.drives = 6;
    pc.m = 2;
    pc.paths = 8;
    pc.slots = SLOTS;
    pc.slot_size = 1u << 20;
    pc.options.overlay_bytes = 2u << 20;
    pc.options.rebuild_delay_ns = 10 * ENV_NS_PER_S;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

/* ---- Helpers ---- */

static int write_piece(uint64_t i)
{
    uint8_t *buf = malloc(MIB);
    int rc;

    sim_case_bytes(i + 1, buf, MIB);
    rc = block_write(volume, i * MIB, buf, MIB, 0);
    free(buf);
    return rc;
}

/* The first `zeroed` bytes of each piece are gone. */
static void check_pieces(uint64_t n, size_t zeroed)
{
    uint8_t *want = malloc(MIB), *got = malloc(MIB);

    for (uint64_t i = 0; i < n; i++) {
        sim_case_bytes(i + 1, want, MIB);
        memset(want, 0, zeroed);
        assert_int_equal(block_read(volume, i * MIB, got, MIB), 0);
        assert_memory_equal(got, want, MIB);
    }
    free(want);
    free(got);
}

/* Fills the store to so many percent; returns the number of pieces. */
static uint64_t fill(unsigned percent)
{
    struct partition_status s = partition_case_status(&pc);
    uint64_t n = 0;

    assert_int_equal(block_create(pc.bs, "v", 1024 * (uint64_t)MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "v", &volume), 0);
    for (; s.free > s.capacity * (100 - percent) / 100; n++) {
        assert_int_equal(write_piece(n), 0);
        s = partition_case_status(&pc);
    }
    assert_int_equal(partition_checkpoint(pc.p), 0);
    return n;
}

/* What draining, the metadata's copy and compaction need is there whatever goes on. */
static void check_reserve(void)
{
    struct segment_space sp;

    segment_get_space(pc.p->segments, &sp);
    assert_true(sp.free + (SEGMENT_STREAMS - 1) * sp.segment + 2 * sp.segment >
                chunkstore_kept(pc.p->chunks));
    assert_true(sp.free > 0);
}

/* Waits until no segment lacks parity, or nothing more can be done about it. */
static void await_rebuild(bool whole)
{
    struct partition_status s = partition_case_status(&pc);

    for (unsigned i = 0; i < 3000 && (s.thin_segments || !whole); i++) {
        check_reserve();
        if (!whole && i > 300 && s.moves.waits)
            break;
        env_sleep(pc.c.env, ENV_NS_PER_S / 5);
        s = partition_case_status(&pc);
    }
    assert_int_equal(s.thin_segments > 0, !whole);
    assert_int_equal(s.moves.waits, !whole);
}

static void lose_drive(void)
{
    driveset_put_out(pc.p->ds, LOST, "test");
    await_rebuild(false);
}

/* ---- Deleting ---- */

static void deleted_main(void *arg)
{
    uint64_t n;

    (void)arg;
    partition_case_open(&pc);
    n = fill(85);
    lose_drive();
    check_pieces(n, 0);
    for (uint64_t i = 0; i < n; i++)
        assert_int_equal(block_zero(volume, i * MIB, MIB / 2, 0), 0);
    await_rebuild(true);
    check_pieces(n, MIB / 2);
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(write_piece(1000 + i), 0);
    block_close(volume);
    assert_int_equal(partition_case_close(&pc), 0);
}

/* Half of each piece is: no segment dies as a whole. */
static void test_deleted(void **state)
{
    (void)state;
    sim_case_run(&pc.c, deleted_main, NULL);
}

/* ---- Adding ---- */

static void added_main(void *arg)
{
    struct member_add a = {.path = "d6", .replaces = MEMBER_NOBODY};
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    uint32_t index;
    uint64_t n;

    (void)arg;
    partition_case_open(&pc);
    n = fill(100);
    lose_drive();
    a.size = FORMAT_JOURNAL_OFF + pc.journal + SLOTS * pc.slot_size;
    assert_int_equal(partition_drive_add(pc.p, &a, &why, &index), 0);
    await_rebuild(true);
    check_pieces(n, 0);
    block_close(volume);
    assert_int_equal(partition_case_close(&pc), 0);
}

/* The new drive is empty and the others are full: the room is in pieces. */
static void test_added(void **state)
{
    (void)state;
    sim_case_run(&pc.c, added_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_deleted, setup, teardown),
        cmocka_unit_test_setup_teardown(test_added, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
