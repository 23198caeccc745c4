/* The metadata's copy on the drives: its encoding, and making the metadata anew from it. What the
 * simulator does with it at random is done here on purpose: drives are gone, too many are, the
 * metadata is there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/image_priv.h"
#include "daemon/partition_priv.h"
#include "daemon/rebuild.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/drive_io.h"
#include "lib/store/segment_priv.h"
#include "tests/unit/daemon/partition_case.h"
#include "tests/unit/dedup/lag_kv.h"

#define MIB (1u << 20)

static struct partition_case pc;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 7);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

/* ---- Encoding ---- */

static void test_form(void **state)
{
    struct image_chunk index[] = {{7, "fingerprint"}, {UINT64_MAX, "other"}};
    struct image_run runs[] = {{.number = 11,
                                .order = 5,
                                .base = true,
                                .bytes = 100,
                                .chunks = 3,
                                .pieces = 2,
                                .count = 1,
                                .index = index},
                               {.number = 12, .order = 6, .count = 1, .index = index + 1}};
    struct image_form f = {.lsn = 8, .settled = 6, .upto = 4, .time = 1, .runs = runs, .count = 2};
    struct image_form g;
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;

    (void)state;
    image_form_encode(&f, &out);
    for (size_t i = 0; i < out.len; i++)
        assert_int_equal(image_form_decode(out.data, i, &g), ERR_FORMAT);
    assert_int_equal(image_form_decode(out.data, out.len, &g), 0);
    assert_true(g.lsn == 8 && g.settled == 6 && g.upto == 4 && g.time == 1 && g.count == 2);
    assert_true(g.runs[0].base && !g.runs[1].base && g.runs[0].bytes == 100);
    assert_true(g.runs[0].number == 11 && g.runs[0].chunks == 3 && g.runs[0].pieces == 2);
    assert_memory_equal(&g.runs[0].index[0], &index[0], sizeof(index[0]));
    assert_memory_equal(&g.runs[1].index[0], &index[1], sizeof(index[1]));
    image_form_free(&g);
    strbuf_adds(&out, "tail");
    assert_int_equal(image_form_decode(out.data, out.len, &g), ERR_FORMAT);
}

static void test_pieces(void **state)
{
    uint64_t ids[] = {7, 9, 7, UINT64_MAX}, number;
    struct image_piece p = {.number = 3, .piece = 4, .count = 4, .ids = ids}, q;
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    uint8_t key[IMAGE_PIECE_LEN];
    uint32_t piece;

    (void)state;
    image_piece_encode(&p, &out);
    for (size_t i = 0; i < out.len; i++)
        assert_int_equal(image_piece_decode(out.data, i, &q), ERR_FORMAT);
    assert_int_equal(image_piece_decode(out.data, out.len, &q), 0);
    assert_true(q.number == 3 && q.piece == 4 && q.count == 4);
    assert_memory_equal(q.ids, ids, sizeof(ids));
    mem_free(q.ids);
    image_piece_key(UINT64_MAX, 5, key);
    assert_true(image_piece_is((struct kv_slice){key, sizeof(key)}, &number, &piece));
    assert_true(number == UINT64_MAX && piece == 5);
    assert_false(image_piece_is((struct kv_slice){key, sizeof(key) - 1}, &number, &piece));
    assert_false(image_piece_is((struct kv_slice){"image-xxxxxxxxxxxx", 18}, &number, &piece));
}

static void test_rows(void **state)
{
    struct kv_slice value = {"value", 5};
    struct kv_change row;
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    char longest[KV_KEY_MAX] = "longest";
    size_t used, first;

    (void)state;
    image_row_encode(&out, KV_BUCKET, (struct kv_slice){longest, sizeof(longest)}, &value);
    assert_int_equal(image_row_decode(out.data, out.len, &row, &used), 0);
    assert_true(used == out.len && row.key.len == sizeof(longest) && row.value.len == 5);
    assert_memory_equal(row.key.data, longest, sizeof(longest));
    strbuf_reset(&out);
    image_row_encode(&out, KV_MAP, (struct kv_slice){"key", 3}, &value);
    first = out.len;
    image_row_encode(&out, KV_CHUNK, (struct kv_slice){"k", 1}, NULL);
    for (size_t i = 0; i < first; i++)
        assert_int_equal(image_row_decode(out.data, i, &row, &used), ERR_TRUNCATED);
    assert_int_equal(image_row_decode(out.data, out.len, &row, &used), 0);
    assert_int_equal(used, first);
    assert_true(row.table == KV_MAP && !row.gone && row.key.len == 3 && row.value.len == 5);
    assert_memory_equal(row.value.data, "value", 5);
    assert_int_equal(image_row_decode(out.data + first, out.len - first, &row, &used), 0);
    assert_true(row.table == KV_CHUNK && row.gone && row.key.len == 1);
    out.data[first] = (char)KV_TABLE_COUNT;
    assert_int_equal(image_row_decode(out.data + first, out.len - first, &row, &used), ERR_FORMAT);
}

/* ---- Changed rows ---- */

static void set(struct kv_changes *c, const char *key, const char *value)
{
    struct kv_slice v = {value, value ? strlen(value) : 0};

    kv_changes_set(c, KV_MAP, (struct kv_slice){key, strlen(key)}, value ? &v : NULL);
}

static void test_changes(void **state)
{
    struct kv_changes *old = kv_changes_new(1u << KV_FPRINT), *c = kv_changes_new(0);
    struct kv_slice v = {"x", 1};
    struct kv_change *rows;

    (void)state;
    kv_changes_set(old, KV_FPRINT, (struct kv_slice){"f", 1}, &v); /* left out */
    set(old, "a", "old");
    set(old, "b", "old");
    set(c, "c", "new");
    set(c, "b", "new");
    set(c, "b", NULL);
    kv_changes_add_newer(old, c);
    assert_int_equal(kv_changes_count(old), 3);
    kv_changes_sorted(old, &rows);
    assert_true(rows[0].value.len == 3 && !rows[0].gone); /* a: only the older one has it */
    assert_true(rows[1].gone);                            /* b: deleted is newer */
    assert_memory_equal(rows[2].key.data, "c", 1);
    mem_free(rows);
    kv_changes_free(c);
    kv_changes_free(old);
}

/* ---- Making anew ---- */

static void expect(struct block_volume *v, uint64_t at, size_t n, uint64_t seed)
{
    uint8_t *want = malloc(n), *got = malloc(n);

    sim_case_bytes(seed, want, n);
    assert_int_equal(block_read(v, at, got, n), 0);
    assert_memory_equal(got, want, n);
    free(want);
    free(got);
}

static void put(struct block_volume *v, uint64_t at, size_t n, uint64_t seed)
{
    uint8_t *p = malloc(n);

    sim_case_bytes(seed, p, n);
    assert_int_equal(block_write(v, at, p, n, 0), 0);
    free(p);
}

/* A store with a copy of several runs. */
static void fill_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "v", 16 * MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_create(pc.bs, "gone", MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < 5; i++) {
        put(v, (uint64_t)i * MIB, MIB, i + 1);
        assert_int_equal(partition_settle(pc.p), 0);
        assert_true(partition_case_status(&pc).copy_lsn > 0);
    }
    assert_int_equal(block_remove(pc.bs, "gone"), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(partition_case_status(&pc).copy_failures, 0);
    put(v, 6 * MIB, 4096, 77);
    put(v, 8 * MIB, MIB, 78);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static int rebuild_rc;

static void rebuild_main(void *arg)
{
    struct rebuild_result r;
    struct kv *kv;

    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    rebuild_rc =
        rebuild_metadata(pc.c.env, kv, store_case_paths(pc.drives), pc.drives, arg != NULL, &r);
    assert_int_equal(kv_close(kv), 0);
}

static void lose_kv(void)
{
    kv_mem_image_free(pc.image);
    pc.image = kv_mem_image_new();
}

/* The KV store is lost, and made anew from the drives. */
static void lose_and_rebuild(void)
{
    lose_kv();
    sim_case_run(&pc.c, rebuild_main, NULL);
    assert_int_equal(rebuild_rc, 0);
}

static void check_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "gone", &v), ERR_NOENT);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < 5; i++)
        expect(v, (uint64_t)i * MIB, MIB, i + 1);
    expect(v, 6 * MIB, 4096, 77);
    expect(v, 8 * MIB, MIB, 78);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

/* Again and again, from the copy that the store made anew has written. */
static void test_rebuild(void **state)
{
    (void)state;
    sim_case_run(&pc.c, fill_main, NULL);
    for (unsigned i = 0; i < 3; i++) {
        lose_and_rebuild();
        sim_case_run(&pc.c, check_main, NULL);
    }
    sim_case_run(&pc.c, rebuild_main, NULL);
    assert_int_equal(rebuild_rc, ERR_EXIST);
}

/* How many runs have pieces in the KV store. */
static unsigned runs_kept(void)
{
    struct kv_rows *rows;
    uint64_t number, last = 0;
    uint32_t piece;
    unsigned n = 0;

    assert_int_equal(
        kv_scan(pc.kv, KV_META, image_pieces_from(), image_pieces_to(), 100000, 1u << 30, 0, &rows),
        0);
    for (size_t i = 0; i < rows->count; i++) {
        assert_true(image_piece_is(rows->rows[i].key, &number, &piece));
        n += number != last;
        last = number;
    }
    kv_rows_free(rows);
    return n;
}

static unsigned runs_named(void)
{
    struct image_form form;
    unsigned n;
    void *value;
    size_t len;

    assert_int_equal(kv_get(pc.kv, KV_META,
                            (struct kv_slice){IMAGE_META_KEY, sizeof(IMAGE_META_KEY) - 1}, &value,
                            &len),
                     0);
    assert_int_equal(image_form_decode(value, len, &form), 0);
    n = form.count;
    image_form_free(&form);
    mem_free(value);
    return n;
}

/* The copy cannot be continued: a new base is written in the background, while others write and
 * checkpoints go on; then it is named, and what was before it is dropped. */
static void lost_main(void *arg)
{
    struct kv_batch *mark = kv_batch_new();
    struct block_volume *v;
    uint64_t copied;

    (void)arg;
    partition_case_open(&pc);
    kv_batch_put(mark, KV_IMAGE, (struct kv_slice){IMAGE_MENDED_KEY, 1}, (struct kv_slice){"", 0});
    assert_int_equal(kv_write(pc.kv, mark), 0);
    kv_batch_free(mark);
    assert_int_equal(partition_case_close(&pc), 0);

    partition_case_open(&pc);
    copied = partition_case_status(&pc).copy_lsn;
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < 200; i++) {
        put(v, 10 * MIB + (uint64_t)i * 4096, 4096, 100 + i);
        if (i % 50 == 49)
            assert_int_equal(partition_settle(pc.p), 0);
    }
    env_sleep(pc.c.env, 20 * ENV_NS_PER_S);
    assert_true(partition_case_status(&pc).copy_lsn > copied);
    assert_int_equal(partition_settle(pc.p), 0);
    env_sleep(pc.c.env, 20 * ENV_NS_PER_S);
    assert_int_equal(runs_kept(), runs_named());
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void lost_check_main(void *arg)
{
    struct block_volume *v;

    check_main(arg);
    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < 200; i++)
        expect(v, 10 * MIB + (uint64_t)i * 4096, 4096, 100 + i);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_lost(void **state)
{
    (void)state;
    pc.options.copy_at_once = 1;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, lost_main, NULL);
    lose_and_rebuild();
    sim_case_run(&pc.c, lost_check_main, NULL);
}

/* A list of changes that is damaged costs the copy, which is made anew, and not the start. */
static void broken_list_main(void *arg)
{
    static const uint8_t key[9] = {IMAGE_CHANGED_KEY, 0xff};
    struct kv_batch *b = kv_batch_new();
    struct kv_slice row = {key, sizeof(key)};
    uint64_t copied;

    (void)arg;
    partition_case_open(&pc);
    copied = partition_case_status(&pc).copy_lsn;
    kv_batch_put(b, KV_IMAGE, row, (struct kv_slice){"garbage", 7});
    assert_int_equal(kv_write(pc.kv, b), 0);
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "new", MIB, BLOCK_EVERY_WRITE), 0);
    env_sleep(pc.c.env, 20 * ENV_NS_PER_S);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_true(partition_case_status(&pc).copy_lsn > copied);
    kv_batch_clear(b);
    kv_batch_delete(b, KV_IMAGE, row);
    assert_int_equal(kv_write(pc.kv, b), 0);
    kv_batch_free(b);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_broken_list(void **state)
{
    (void)state;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, broken_list_main, NULL);
    lose_and_rebuild();
    sim_case_run(&pc.c, check_main, NULL);
}

/* A chunk that was known to be lost, and is not any more: the copy hears of that too, also where
 * the daemon was killed in between. */
static uint64_t lost_in_table(void)
{
    struct chunkstore_stats s;

    chunkstore_get_stats(pc.p->chunks, &s);
    return s.lost;
}

static void found_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    chunkstore_note_lost(pc.p->chunks, 1);
    assert_int_equal(chunkstore_tell_lost(pc.p->chunks), 0);
    assert_int_equal(lost_in_table(), 1);
    assert_int_equal(partition_settle(pc.p), 0);
    chunkstore_note_back(pc.p->chunks, 1);
    assert_int_equal(chunkstore_tell_lost(pc.p->chunks), 0);
    assert_int_equal(kv_flush(pc.kv), 0);
    sim_pause(pc.c.sim);
    env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void not_lost_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(lost_in_table(), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_found(void **state)
{
    (void)state;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run_and_kill(&pc.c, found_main, NULL, true);
    sim_case_run(&pc.c, not_lost_main, NULL);
    lose_and_rebuild();
    sim_case_run(&pc.c, not_lost_main, NULL);
    sim_case_run(&pc.c, check_main, NULL);
}

/* Leaves a header of a segment that is gone, which lay in one of drive 0's free slots, and on the
 * other drives where `s` does. */
static void leave_header(const struct segment *s, uint64_t id, uint32_t slot)
{
    struct segment gone = *s;
    struct buf *b = buf_new(FORMAT_UNIT);

    memset(b->data, 0, FORMAT_UNIT);
    gone.id = id;
    for (unsigned i = 0; i < gone.k + gone.m; i++) {
        if (gone.drive[i] != 0)
            continue;
        gone.slot[i] = slot;
        segment_fragment_header(pc.p->segments, &gone, i, b);
    }
    assert_int_equal(
        drive_pwrite(&pc.p->ds->drives[0], b, FORMAT_UNIT, drive_slot_off(pc.p->ds, slot), true),
        0);
    buf_unref(b);
}

/* Of the copy's segments drive 0 has lost the headers, and shows old ones instead, of segments that
 * lay where these lie on the other drives. */
static void old_headers_main(void *arg)
{
    uint32_t slot = (uint32_t)pc.slots;

    (void)arg;
    partition_case_open(&pc);
    list_for_each (it, &pc.p->segments->all) {
        const struct segment *s = LIST_ENTRY(it, struct segment, link);

        if (s->stream != SEGMENT_IMAGE)
            continue;
        for (unsigned i = 0; i < s->k + s->m; i++)
            if (s->drive[i] == 0)
                sim_file_corrupt(pc.c.sim, store_case_paths(pc.drives)[0],
                                 drive_slot_off(pc.p->ds, s->slot[i]), FORMAT_UNIT);
        for (unsigned i = 0; i < 6; i++) {
            slot--;
            assert_false(pc.p->segments->slots[0][slot / 8] >> slot % 8 & 1);
            leave_header(s, 10000 + slot, slot);
        }
    }
    assert_true(slot < pc.slots);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_old_headers(void **state)
{
    (void)state;
    pc.slots = 100;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, old_headers_main, NULL);
    lose_and_rebuild();
    sim_case_run(&pc.c, check_main, NULL);
}

static void test_rebuild_short(void **state)
{
    (void)state;
    sim_case_run(&pc.c, fill_main, NULL);
    lose_kv();
    assert_int_equal(sim_file_delete(pc.c.sim, store_case_paths(pc.drives)[1]), 0);
    sim_case_run(&pc.c, rebuild_main, NULL);
    assert_int_equal(rebuild_rc, 0);
    sim_case_run(&pc.c, check_main, NULL);
}

/* Beyond parity: it is said, nothing is left that the daemon would take for a store, and what there
 * is can be had. */
static void test_beyond(void **state)
{
    (void)state;
    pc.drives = 4; /* 3+1: journals on two drives */
    sim_case_run(&pc.c, fill_main, NULL);
    lose_kv();
    assert_int_equal(sim_file_delete(pc.c.sim, store_case_paths(pc.drives)[2]), 0);
    assert_int_equal(sim_file_delete(pc.c.sim, store_case_paths(pc.drives)[3]), 0);
    sim_case_run(&pc.c, rebuild_main, NULL);
    assert_int_equal(rebuild_rc, ERR_LOST);
    sim_case_run(&pc.c, rebuild_main, NULL);
    assert_int_equal(rebuild_rc, ERR_LOST); /* and not ERR_EXIST */
    sim_case_run(&pc.c, rebuild_main, &pc);
    assert_int_equal(rebuild_rc, 0);
}

/* Many small increments upon a large base: no reason to write all of it anew. */
static void many_main(void *arg)
{
    struct partition *p;
    struct block_volume *v;
    uint64_t base;

    (void)arg;
    partition_case_open(&pc);
    p = pc.p;
    assert_int_equal(block_create(pc.bs, "v", 64 * MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < 240; i++)
        put(v, (uint64_t)i * 4096 * 61, 4096 * 61, i);
    assert_int_equal(partition_settle(p), 0);
    assert_int_equal(partition_checkpoint(p), 0);
    base = p->image->named.runs[0].number;
    assert_true(p->image->named.runs[0].base);
    for (unsigned i = 0; i < 25; i++) {
        put(v, (uint64_t)i * 4096, 4096, 1000 + i);
        assert_int_equal(partition_settle(p), 0);
        assert_int_equal(partition_checkpoint(p), 0);
        env_sleep(pc.c.env, 2 * ENV_NS_PER_S);
    }
    assert_int_equal(p->image->named.runs[0].number, base);
    assert_true(p->image->named.count > 50);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_many(void **state)
{
    (void)state;
    pc.slots = 40;
    sim_case_run(&pc.c, many_main, NULL);
}

static const uint64_t write_lag = 10 * ENV_NS_PER_MS;

static struct kv *lag(struct env *env, struct kv *kv)
{
    return lag_kv_new(env, kv, &write_lag);
}

/* A checkpoint while the record of a mapping is being applied: the write has left the overlay, and
 * the mapping is not in the KV store yet. One of them has to be in what the copy goes with. */
static void amid_main(void *arg)
{
    struct block_volume *v;
    uint64_t wrote, mapped;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "v", MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    assert_int_equal(partition_checkpoint(pc.p), 0); /* there is a base now */
    put(v, 0, 4096, 1);
    wrote = pc.p->processed_lsn;
    assert_int_equal(volumes_oldest_lsn(pc.p->volumes), wrote);
    volumes_hurry(pc.p->volumes, wrote);
    while (volumes_oldest_lsn(pc.p->volumes) == wrote)
        env_sleep(pc.c.env, ENV_NS_PER_MS);
    mapped = journal_next_lsn(pc.p->journal) - 1;
    assert_true(pc.p->processed_lsn < mapped);
    assert_int_equal(partition_checkpoint(pc.p), 0);
    assert_true(pc.p->image->named.upto <= wrote || pc.p->image->named.settled >= mapped);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_amid_record(void **state)
{
    (void)state;
    pc.wrap = lag;
    sim_case_run(&pc.c, amid_main, NULL);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form), cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_rows), cmocka_unit_test(test_changes),
        CASE(test_rebuild),          CASE(test_lost),
        CASE(test_broken_list),      CASE(test_found),

        CASE(test_old_headers),      CASE(test_rebuild_short),
        CASE(test_beyond),           CASE(test_many),
        CASE(test_amid_record),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
