/* Drives come and go under a partition: new ones are filled evenly, those that leave are empty when
 * they go, the figures follow, and what would cost data is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/membership.h"
#include "daemon/partition_priv.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/unit/daemon/partition_case.h"

#define PIECE (256u * 1024)
#define SLOTS 40u

static struct partition_case pc;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    pc.slots = SLOTS;
    pc.slot_size = FORMAT_SLOT_MIN;
    pc.paths = 8;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

/* ---- Helpers ---- */

static void fill(unsigned pieces)
{
    struct block_volume *v;
    uint8_t *buf = mem_alloc(PIECE);

    assert_int_equal(block_create(pc.bs, "v", pieces * (uint64_t)PIECE, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < pieces; i++) {
        sim_case_bytes(i + 1, buf, PIECE);
        assert_int_equal(block_write(v, i * (uint64_t)PIECE, buf, PIECE, 0), 0);
    }
    block_close(v);
    mem_free(buf);
}

static void check_filled(unsigned pieces)
{
    struct block_volume *v;
    uint8_t *buf = mem_alloc(PIECE), *want = mem_alloc(PIECE);

    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < pieces; i++) {
        sim_case_bytes(i + 1, want, PIECE);
        assert_int_equal(block_read(v, i * (uint64_t)PIECE, buf, PIECE), 0);
        assert_memory_equal(buf, want, PIECE);
    }
    block_close(v);
    mem_free(buf);
    mem_free(want);
}

static uint64_t size_of(unsigned slots)
{
    return FORMAT_JOURNAL_OFF + pc.journal + slots * pc.slot_size;
}

static int add(const char *path, uint8_t class_, uint32_t replaces)
{
    struct member_add a = {
        .path = path, .size = size_of((unsigned)pc.slots), .class_ = class_, .replaces = replaces};
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    uint32_t index = 99;
    int rc = replaces == MEMBER_NOBODY ? partition_drive_add(pc.p, &a, &why, &index)
                                       : partition_drive_replace(pc.p, &a, &why, &index);

    return rc < 0 ? rc : (int)index;
}

static int order(int (*what)(struct partition *p, uint32_t index, struct strbuf *why),
                 uint32_t index, const char *said)
{
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    int rc = what(pc.p, index, &why);

    if (rc < 0)
        assert_non_null(strstr(why.len ? why.data : "", said));
    return rc;
}

static uint64_t slots_used(unsigned drive)
{
    return partition_drive_used(pc.p, drive) / pc.slot_size;
}

static const struct drive *drive(unsigned i)
{
    return &partition_drives(pc.p)->drives[i];
}

static void wait_gone(unsigned i)
{
    for (unsigned n = 0; n < 600 && drive(i)->state != DRIVE_NONE; n++)
        env_sleep(pc.c.env, ENV_NS_PER_S / 5);
    assert_int_equal(drive(i)->state, DRIVE_NONE);
}

/* ---- Adding ---- */

static void add_main(void *arg)
{
    struct partition_status before, after;
    uint64_t least = SLOTS, most = 0, moved;

    (void)arg;
    partition_case_open(&pc);
    fill(96);
    assert_int_equal(partition_settle(pc.p), 0);
    before = partition_case_status(&pc);
    assert_int_equal(add("d3", 0, MEMBER_NOBODY), 3);
    after = partition_case_status(&pc);
    assert_true(after.capacity * 3 >= before.capacity * 4 - 12 * pc.slot_size);
    assert_true(after.moves.rebalance.bytes == 0); /* decided at the next look around */
    env_sleep(pc.c.env, ENV_NS_PER_S / 5);
    after = partition_case_status(&pc);
    assert_true(after.moves.rebalance.bytes > 0);
    for (unsigned i = 0; i < 300 && partition_case_status(&pc).moves.rebalance.bytes; i++)
        env_sleep(pc.c.env, ENV_NS_PER_S / 5);
    for (unsigned i = 0; i < 4; i++) {
        least = slots_used(i) < least ? slots_used(i) : least;
        most = slots_used(i) > most ? slots_used(i) : most;
    }
    assert_true(most - least <= 4);
    moved = partition_case_status(&pc).moves.moved;
    assert_true(moved > 0 && moved < after.stored);
    env_sleep(pc.c.env, 60 * ENV_NS_PER_S); /* and that is that */
    assert_int_equal(partition_case_status(&pc).moves.moved, moved);
    check_filled(96);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_add(void **state)
{
    (void)state;
    sim_case_run(&pc.c, add_main, NULL);
}

/* All drives are full to the brim: a new one makes room only once others' data has moved to it. */
static void full_main(void *arg)
{
    struct block_volume *v;
    uint8_t *buf = mem_alloc(PIECE);
    unsigned written = 0, more = 0;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "w", 4096 * (uint64_t)PIECE, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "w", &v), 0);
    for (int rc = 0; rc == 0; written++) {
        sim_case_bytes(written, buf, PIECE);
        rc = block_write(v, written * (uint64_t)PIECE, buf, PIECE, 0);
    }
    assert_int_equal(add("d3", 0, MEMBER_NOBODY), 3);
    env_sleep(pc.c.env, 60 * ENV_NS_PER_S);
    for (int rc = 0; rc == 0; more++) {
        sim_case_bytes(written + more, buf, PIECE);
        rc = block_write(v, (written + more) * (uint64_t)PIECE, buf, PIECE, 0);
    }
    assert_true(more > written / 5);
    block_close(v);
    mem_free(buf);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_add_to_full(void **state)
{
    (void)state;
    sim_case_run(&pc.c, full_main, NULL);
}

/* ---- Removing ---- */

static void remove_main(void *arg)
{
    struct partition_status s;

    (void)arg;
    partition_case_open(&pc);
    fill(60);
    assert_int_equal(order(partition_drive_remove, 1, "needs 3: add a drive first"), ERR_PERM);
    assert_int_equal(order(partition_drive_remove, 7, "no such drive"), ERR_NOENT);
    assert_int_equal(order(partition_drive_keep, 1, "not leaving"), ERR_INVAL);
    assert_int_equal(order(partition_drive_rebuild, 1, "in service"), ERR_INVAL);
    assert_int_equal(add("d3", 0, MEMBER_NOBODY), 3);
    assert_int_equal(order(partition_drive_remove, 1, ""), 0);
    assert_int_equal(order(partition_drive_remove, 0, "needs 3"), ERR_PERM);
    assert_int_equal(order(partition_drive_keep, 1, ""), 0);
    assert_int_equal(order(partition_drive_remove, 1, ""), 0);
    s = partition_case_status(&pc);
    assert_true(s.moves.leaving.bytes > 0);
    assert_int_equal(s.moves.leaving.bytes, s.moves.drives[1].bytes);
    env_sleep(pc.c.env, ENV_NS_PER_S / 2);
    assert_int_equal(partition_case_close(&pc), 0);
    /* Over restarts. */
    partition_case_open(&pc);
    assert_true(drive(1)->state == DRIVE_NONE || drive(1)->leaving);
    wait_gone(1);
    assert_false(partition_drives(pc.p)->super.journal_mirrors & 2);
    assert_int_equal(partition_case_status(&pc).moves.leaving.bytes, 0);
    check_filled(60);
    assert_int_equal(add("d1", 0, MEMBER_NOBODY), 1); /* it was made blank */
    assert_int_equal(partition_case_close(&pc), 0);
    sim_file_delete(pc.c.sim, "d0");
    partition_case_open(&pc);
    check_filled(60);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_remove(void **state)
{
    (void)state;
    sim_case_run(&pc.c, remove_main, NULL);
}

/* Four drives hold what three cannot. */
static void too_much_main(void *arg)
{
    (void)arg;
    pc.drives = 4;
    partition_case_open(&pc);
    assert_int_equal(add("d4", 0, MEMBER_NOBODY), 4);
    fill(270);
    assert_int_equal(order(partition_drive_remove, 4, "add drives or delete data"), ERR_NOSPC);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_remove_needs_room(void **state)
{
    (void)state;
    sim_case_run(&pc.c, too_much_main, NULL);
}

/* Has each stream open a segment; what is written there is nobody's. */
static void open_streams(void)
{
    uint8_t *bytes = mem_zalloc(SEGMENT_CHUNK_MAX);

    for (unsigned i = 0; i < SEGMENT_STREAMS; i++) {
        struct segment_chunk c = {
            .data = bytes, .id = 1u << 30, .stored = SEGMENT_CHUNK_MAX, .raw = SEGMENT_CHUNK_MAX};
        struct segment_stripe where;

        assert_int_equal(segment_write(pc.p->segments, (enum segment_stream)i, &c, 1, &where), 0);
        segment_release(pc.p->segments, where.segment);
    }
    mem_free(bytes);
}

/* What is kept is most of the store, and its few segments are open ones: a drive that may leave
 * does. */
static void small_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(add("d4", 0, MEMBER_NOBODY), 4);
    fill(1);
    open_streams();
    assert_int_equal(partition_settle(pc.p), 0);
    env_sleep(pc.c.env, 10 * ENV_NS_PER_S);
    assert_int_equal(order(partition_drive_remove, 1, ""), 0);
    wait_gone(1);
    check_filled(1);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_small(void **state)
{
    (void)state;
    pc.drives = 4;
    pc.m = 2;
    pc.slots = 8;
    pc.journal = FORMAT_JOURNAL_MIN;
    sim_case_run(&pc.c, small_main, NULL);
}

/* ---- Replacing ---- */

/* A dead drive is given up at once, and the new one may have its path. */
static void replace_main(void *arg)
{
    struct partition_status s;

    (void)arg;
    partition_case_open(&pc);
    fill(60);
    assert_int_equal(partition_case_close(&pc), 0);
    sim_file_delete(pc.c.sim, "d1");
    partition_case_open(&pc);
    assert_int_equal(drive(1)->state, DRIVE_MISSING);
    assert_int_equal(add("d1", 0, 1), 3);
    s = partition_case_status(&pc);
    assert_true(s.moves.given_up & 2);
    assert_true(s.moves.rebuild.bytes > 0);
    wait_gone(1);
    s = partition_case_status(&pc);
    assert_int_equal(s.thin_segments, 0);
    assert_int_equal(s.moves.given_up, 0);
    assert_int_equal(s.current_k + s.current_m, 3);
    assert_int_equal(partition_case_close(&pc), 0);
    sim_file_delete(pc.c.sim, "d0");
    partition_case_open(&pc);
    check_filled(60);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_replace(void **state)
{
    (void)state;
    sim_case_run(&pc.c, replace_main, NULL);
}

/* A drive that is out is rebuilt on order, and may go where fewer are left than the profile has
 * columns: keeping its place would help nobody. */
static void rebuild_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fill(30);
    assert_int_equal(partition_case_close(&pc), 0);
    sim_file_delete(pc.c.sim, "d2");
    partition_case_open(&pc);
    env_sleep(pc.c.env, 30 * ENV_NS_PER_S);
    assert_true(partition_case_status(&pc).thin_segments > 0);
    assert_int_equal(order(partition_drive_rebuild, 2, ""), 0);
    env_sleep(pc.c.env, 30 * ENV_NS_PER_S);
    assert_int_equal(partition_case_status(&pc).thin_segments, 0);
    assert_int_equal(order(partition_drive_remove, 2, ""), 0);
    wait_gone(2);
    check_filled(30);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_rebuild(void **state)
{
    (void)state;
    sim_case_run(&pc.c, rebuild_main, NULL);
}

/* ---- Classes ---- */

static void class_main(void *arg)
{
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;

    (void)arg;
    partition_case_open(&pc);
    fill(4);
    assert_int_equal(partition_drives(pc.p)->super.journal_mirrors, 3);
    assert_int_equal(partition_drive_set_class(pc.p, 2, 1, &why), 0);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(partition_drives(pc.p)->super.journal_mirrors, 5);
    assert_int_equal(add("d3", 1, MEMBER_NOBODY), 3);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(partition_drives(pc.p)->super.journal_mirrors, 12);
    sim_pause(pc.c.sim); /* and the power fails: the new mirrors have all there is */
    env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void class_after_main(void *arg)
{
    (void)arg;
    sim_file_delete(pc.c.sim, "d2");
    partition_case_open(&pc);
    assert_int_equal(drive(3)->class_, 1);
    check_filled(4);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_class(void **state)
{
    (void)state;
    sim_case_run_and_kill(&pc.c, class_main, NULL, true);
    sim_case_run(&pc.c, class_after_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_add, setup, teardown),
        cmocka_unit_test_setup_teardown(test_add_to_full, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove_needs_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_small, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replace, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rebuild, setup, teardown),
        cmocka_unit_test_setup_teardown(test_class, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
