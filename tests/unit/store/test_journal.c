/* lib/store/journal: what was durable is replayed, exactly and in order, after whatever happened to
 * one of the mirrors; where it cannot be, replay says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/drive_io.h"
#include "lib/store/drive_priv.h"
#include "lib/store/journal.h"
#include "lib/rt/sync.h"
#include "tests/unit/store/store_case.h"

#define RECORDS_MAX 4096u
#define UNITS       (STORE_JOURNAL / FORMAT_UNIT)

static struct sim_case c;

/* Records in the order seen, by what their bodies say of themselves. Outlives the processes. */
struct seen {
    unsigned count;
    struct {
        uint64_t lsn, number;
        size_t length;
    } records[RECORDS_MAX];
};

static struct {
    struct driveset *ds;
    struct journal *j;
    struct seen durable, replayed;
    struct journal_replay_stats stats;
    uint64_t next; /* number of the next record made */
    int broken, broken_calls, apply_error;
    unsigned drives;
} t;

static int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    memset(&t, 0, sizeof(t));
    t.drives = 3;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sim_case_free(&c);
    return 0;
}

/* ---- Records: number, then noise made of it ---- */

static void body_make(uint64_t number, uint8_t *body, size_t n)
{
    sim_case_bytes(number, body, n);
    codec_put_le64(body, number);
}

static void see(struct seen *s, const struct journal_record *r)
{
    uint64_t number = codec_get_le64(r->body);
    uint8_t *want = malloc(r->length);

    assert_true(s->count < RECORDS_MAX);
    body_make(number, want, r->length);
    assert_memory_equal(r->body, want, r->length);
    free(want);
    assert_int_equal(r->type, 1 + number % 60000);
    assert_int_equal(r->version, 3);
    if (s->count)
        assert_int_equal(r->lsn, s->records[s->count - 1].lsn + 1);
    s->records[s->count].lsn = r->lsn;
    s->records[s->count].length = r->length;
    s->records[s->count++].number = number;
}

/* Everything durable from record `from` on, and nothing else, has been replayed. */
static void expect_replayed_from(unsigned from)
{
    assert_int_equal(t.replayed.count, t.durable.count - from);
    for (unsigned i = 0; i < t.replayed.count; i++) {
        assert_int_equal(t.replayed.records[i].lsn, t.durable.records[from + i].lsn);
        assert_int_equal(t.replayed.records[i].number, t.durable.records[from + i].number);
        assert_int_equal(t.replayed.records[i].length, t.durable.records[from + i].length);
    }
}

static void on_durable(void *arg, struct journal_batch *b)
{
    struct journal_record r;
    size_t pos = 0;
    unsigned n = 0;

    (void)arg;
    while (journal_batch_next(b, &pos, &r)) {
        if (n++ == 0)
            assert_int_equal(r.lsn, b->first_lsn);
        see(&t.durable, &r);
    }
    assert_int_equal(n, b->records);
    journal_batch_free(b);
}

static void on_broken(void *arg, int error)
{
    (void)arg;
    t.broken = error;
    t.broken_calls++;
}

static int apply(void *arg, const struct journal_record *r)
{
    (void)arg;
    see(&t.replayed, r);
    fiber_yield();
    return t.apply_error;
}

/* ---- Life ---- */

static int replay(void)
{
    static const struct journal_ops ops = {on_durable, on_broken};

    t.replayed.count = 0;
    t.ds = store_case_open(&c, t.drives);
    assert_int_equal(journal_open(t.ds, &ops, NULL, &t.j), 0);
    return journal_replay(t.j, apply, NULL, &t.stats);
}

static void start(void)
{
    assert_int_equal(replay(), 0);
    assert_int_equal(journal_start(t.j), 0);
}

static void drop(void)
{
    journal_free(t.j);
    driveset_close(t.ds);
}

static void stop(bool clean)
{
    assert_int_equal(journal_stop(t.j, clean), 0);
    drop();
}

static void expect_replay(int error)
{
    assert_int_equal(replay(), error);
    drop();
}

static void format_size(uint64_t journal)
{
    assert_int_equal(store_case_format(&c, t.drives, t.drives == 2 ? 1 : 2, 1, 2, journal), 0);
}

/* Appends a record of `length` body bytes (8 or more). */
static int append(size_t length, unsigned flags)
{
    uint8_t *body = mem_alloc(length);
    struct iovec iov[2] = {{body, 3}, {body + 3, length - 3}};
    uint64_t number = t.next++, lsn;
    int rc;

    body_make(number, body, length);
    rc = journal_append(t.j, (uint16_t)(1 + number % 60000), 3, iov, 2, flags, &lsn);
    mem_free(body);
    t.next -= rc < 0; /* it is no record */
    return rc;
}

static void wait_durable(uint64_t count)
{
    while (t.durable.count < count)
        env_sleep(c.env, ENV_NS_PER_MS);
    assert_int_equal(t.durable.count, count);
}

/* A batch of its own, of `units` on the medium. It may use the reserve. */
static void batch(unsigned units)
{
    size_t most =
        (size_t)units * FORMAT_UNIT - sizeof(struct format_batch) - sizeof(struct format_record);

    assert_int_equal(append(most, JOURNAL_DRAIN), 0);
    wait_durable(t.next);
}

static void batches(unsigned n, unsigned units)
{
    while (n--)
        batch(units);
}

static void trim_to(unsigned record)
{
    uint64_t lsn = record < t.durable.count ? t.durable.records[record].lsn : journal_next_lsn(t.j);
    unsigned share = journal_trimmable(t.j, lsn);
    struct journal_stats before, after;

    journal_get_stats(t.j, &before);
    assert_int_equal(journal_trim(t.j, lsn), 0);
    journal_get_stats(t.j, &after);
    if (after.batches == before.batches)
        assert_int_equal((before.used - after.used) * 100 / before.size, share);
}

/* The sequence number at an offset of a mirror's area; 0: no batch begins there. */
static uint64_t seq_at(unsigned drive, uint64_t unit)
{
    struct format_batch h;

    assert_int_equal(sim_file_read(c.sim, store_case_paths(8)[drive], &h, sizeof(h),
                                   FORMAT_JOURNAL_OFF + unit * FORMAT_UNIT),
                     0);
    return h.magic == FORMAT_BATCH_MAGIC ? h.seq : 0;
}

static void damage(unsigned drive, uint64_t unit, size_t at, size_t n)
{
    sim_file_corrupt(c.sim, store_case_paths(8)[drive],
                     FORMAT_JOURNAL_OFF + unit * FORMAT_UNIT + at, n);
}

static bool mirrors_equal(unsigned a, unsigned b)
{
    uint8_t *pa = malloc(STORE_JOURNAL), *pb = malloc(STORE_JOURNAL);
    bool same;

    sim_file_read(c.sim, store_case_paths(8)[a], pa, STORE_JOURNAL, FORMAT_JOURNAL_OFF);
    sim_file_read(c.sim, store_case_paths(8)[b], pb, STORE_JOURNAL, FORMAT_JOURNAL_OFF);
    same = memcmp(pa, pb, STORE_JOURNAL) == 0;
    free(pa);
    free(pb);
    return same;
}

/* ---- Round trips ---- */

static void empty_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    assert_int_equal(t.stats.records, 0);
    assert_int_equal(journal_next_lsn(t.j), 1);
    assert_int_equal(t.ds->super.clean, 0);
    stop(true);
    start();
    assert_int_equal(journal_next_lsn(t.j), 1);
    stop(false);
    expect_replay(0);
    journal_free(NULL);
}

static void test_empty(void **state)
{
    (void)state;
    sim_case_run(&c, empty_main, NULL);
}

static unsigned later(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

/* Several times around the ring, with small and large records, trimmed behind, reopened in between.
 */
static void around_main(void *arg)
{
    uint64_t seed = *(uint64_t *)arg;
    unsigned trimmed = 0;
    struct journal_stats s;

    format_size(STORE_JOURNAL);
    for (unsigned life = 0; life < 6; life++) {
        start();
        expect_replayed_from(trimmed);
        assert_int_equal(journal_next_lsn(t.j), t.durable.count + 1);
        for (unsigned i = 0; i < 60; i++) {
            unsigned n = 1 + (unsigned)sim_random(c.sim, 5);

            while (n--) {
                size_t max = sim_random(c.sim, 4) ? 500 : 40000;

                assert_int_equal(append(8 + sim_random(c.sim, max), 0), 0);
            }
            if (sim_random(c.sim, 2))
                wait_durable(t.next);
            if (journal_pressure(t.j) > 40) {
                wait_durable(t.next);
                trimmed = later(trimmed, t.durable.count - (unsigned)sim_random(c.sim, 4));
                trim_to(trimmed);
            }
        }
        wait_durable(t.next);
        journal_get_stats(t.j, &s);
        assert_int_equal(s.next_lsn, t.next + 1);
        assert_true(s.batches > 0 && s.batches <= s.records && s.used <= s.size);
        trimmed = later(trimmed, t.durable.count - 1 - (unsigned)sim_random(c.sim, 3));
        /* Batches go as a whole: what was asked to go may stay, never more. */
        trim_to(trimmed);
        if ((seed + life) % 3 == 0) {
            trimmed = t.durable.count;
            stop(true);
        } else {
            stop(false);
            assert_int_equal(replay(), 0);
            assert_true(t.replayed.count >= t.durable.count - trimmed);
            trimmed = t.durable.count - t.replayed.count;
            drop();
        }
    }
}

static void test_around(void **state)
{
    for (uint64_t seed = 1; seed <= 8; seed++) {
        teardown(state);
        setup(state);
        sim_case_free(&c);
        sim_case_init(&c, seed);
        sim_case_run(&c, around_main, &seed);
    }
}

static void group_main(void *arg)
{
    struct journal_stats s;

    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(append(50, 0), 0);
    assert_int_equal(t.durable.count, 0); /* in order, but nothing is durable yet */
    wait_durable(300);
    journal_get_stats(t.j, &s);
    assert_int_equal(s.batches, 1);
    assert_int_equal(s.records, 300);
    assert_int_equal(s.mirrors, 2);
    assert_int_equal(s.mirrors_wanted, 2);
    stop(false);
    expect_replay(0);
    expect_replayed_from(0);
    assert_int_equal(t.stats.batches, 1);
    assert_int_equal(t.stats.mirrors_repaired, 0);
}

static void test_group_commit(void **state)
{
    (void)state;
    sim_case_run(&c, group_main, NULL);
}

/* A pending batch must not outgrow what replay accepts, however small the journal and many the
 * writers. */
static void append_fiber(void *arg)
{
    assert_int_equal(append(4096, *(unsigned *)arg), 0);
}

static void small_main(void *arg)
{
    unsigned user = 0;

    (void)arg;
    format_size(FORMAT_JOURNAL_MIN);
    start();
    for (unsigned i = 0; i < 60; i++)
        fiber_spawn(c.env, "append", append_fiber, &user);
    wait_durable(60);
    stop(false);
    expect_replay(0);
    expect_replayed_from(0);
    assert_true(t.stats.batches >= 4); /* of 64 KiB at most */
}

static void test_small_journal(void **state)
{
    (void)state;
    sim_case_run(&c, small_main, NULL);
}

static void too_big_main(void *arg)
{
    size_t max;

    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    max = journal_record_max(t.j);
    assert_int_equal(append(max + 1, JOURNAL_INTERNAL), ERR_TOOBIG);
    assert_int_equal(append(SIZE_MAX / 2 > max * 9 ? max * 9 : 0, 0), ERR_TOOBIG);
    t.next = 0;
    assert_int_equal(append(max, 0), 0);
    assert_int_equal(append(8, 0), 0);
    assert_int_equal(append(max, 0), 0);
    wait_durable(3);
    stop(false);
    expect_replay(0);
    expect_replayed_from(0);
    assert_int_equal(t.replayed.records[0].length, max);
}

static void test_too_big(void **state)
{
    (void)state;
    sim_case_run(&c, too_big_main, NULL);
}

static void stopped_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    assert_int_equal(append(100, 0), 0);
    assert_int_equal(journal_stop(t.j, false), 0); /* waits for what was appended */
    assert_int_equal(t.durable.count, 1);
    assert_int_equal(append(100, 0), ERR_SHUTDOWN);
    assert_int_equal(append(100, JOURNAL_INTERNAL), ERR_SHUTDOWN);
    drop();
    t.apply_error = ERR_KV;
    expect_replay(ERR_KV);
}

static void test_stop(void **state)
{
    (void)state;
    sim_case_run(&c, stopped_main, NULL);
}

/* ---- Places in the ring ---- */

/* F4: a batch that does not fit before the end of the area lies at offset 0. */
static void offset0_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    batches(10, 25);
    assert_int_equal(seq_at(0, 0), 1);
    assert_int_equal(seq_at(0, 225), 10);
    trim_to(6);
    batch(25); /* six units are left at the end: too few */
    assert_int_equal(seq_at(0, 250), 0);
    assert_int_equal(seq_at(0, 0), 11);
    assert_int_equal(seq_at(1, 0), 11);
    batch(1); /* would fit at the end, but lies behind its predecessor */
    assert_int_equal(seq_at(0, 25), 12);
    stop(false);
    expect_replay(0);
    expect_replayed_from(6);
    start();
    assert_int_equal(journal_next_lsn(t.j), 13);
    batch(2);
    assert_int_equal(seq_at(0, 26), 13);
    stop(false);
    expect_replay(0);
    expect_replayed_from(6);
}

static void test_offset_0(void **state)
{
    (void)state;
    sim_case_run(&c, offset0_main, NULL);
}

/* The last batch ends exactly where the area ends; then everything is trimmed. */
static void exact_main(void *arg)
{
    bool clean = *(bool *)arg;

    format_size(STORE_JOURNAL);
    start();
    batches(10, 25);
    trim_to(8);
    batch(6);
    assert_int_equal(seq_at(0, 250), 11);
    trim_to(11);
    assert_int_equal(t.ds->super.replay_off, STORE_JOURNAL);
    stop(clean);
    start();
    assert_int_equal(t.replayed.count, 0);
    assert_int_equal(journal_next_lsn(t.j), 12);
    batch(3);
    assert_int_equal(seq_at(0, 0), 12);
    stop(false);
    expect_replay(0);
    expect_replayed_from(11);
}

static void test_exact_end(void **state)
{
    for (int clean = 0; clean < 2; clean++) {
        bool flag = clean;

        teardown(state);
        setup(state);
        sim_case_run(&c, exact_main, &flag);
    }
}

static void trim_main(void *arg)
{
    struct journal_stats s;

    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(append(100, 0), 0); /* one batch of ten */
    wait_durable(10);
    batches(5, 2);
    trim_to(9); /* its last record is still wanted */
    journal_get_stats(t.j, &s);
    assert_int_equal(s.used, (1 + 10) * FORMAT_UNIT);
    trim_to(10);
    journal_get_stats(t.j, &s);
    assert_int_equal(s.used, 10 * FORMAT_UNIT);
    assert_int_equal(t.ds->super.replay_seq, 2);
    assert_int_equal(t.ds->super.replay_lsn, 11);
    trim_to(3); /* backwards: nothing */
    assert_int_equal(t.ds->super.replay_seq, 2);
    trim_to(13);
    stop(false);
    expect_replay(0);
    expect_replayed_from(13);
    start();
    trim_to(15);
    journal_get_stats(t.j, &s);
    assert_int_equal(s.used, 0);
    stop(false);
    expect_replay(0);
    assert_int_equal(t.replayed.count, 0);
}

static void test_trim(void **state)
{
    (void)state;
    sim_case_run(&c, trim_main, NULL);
}

/* ---- Backpressure ---- */

static unsigned user_done, internal_done, last_done, drain_done;

static void user_fiber(void *arg)
{
    for (unsigned i = 0; i < *(unsigned *)arg; i++) {
        assert_int_equal(append(20000, 0), 0);
        user_done++;
    }
}

static void internal_fiber(void *arg)
{
    for (unsigned i = 0; i < *(unsigned *)arg; i++) {
        assert_int_equal(append(6000, JOURNAL_INTERNAL), 0);
        internal_done++;
    }
}

static void drain_fiber(void *arg)
{
    for (unsigned i = 0; i < *(unsigned *)arg; i++) {
        assert_int_equal(append(6000, JOURNAL_DRAIN), 0);
        drain_done++;
    }
}

static void settle(void)
{
    env_sleep(c.env, 2 * ENV_NS_PER_S);
}

static void full_main(void *arg)
{
    unsigned users = 60, internals = 90, drains = 90;
    struct journal_stats s;
    int rc;

    (void)arg;
    user_done = internal_done = last_done = drain_done = 0;
    format_size(STORE_JOURNAL);
    start();
    fiber_spawn(c.env, "user", user_fiber, &users);
    settle();
    journal_get_stats(t.j, &s);
    assert_true(user_done >= 20 && user_done < users); /* waits */
    assert_true(s.used <= STORE_JOURNAL - 3 * STORE_JOURNAL / 8);
    assert_int_equal(t.durable.count, user_done); /* what was taken is durable all the same */
    assert_true(journal_pressure(t.j) > 40);

    /* Some of the reserve is there for internal records, and they leave the rest alone. */
    assert_int_equal(append(6000, JOURNAL_INTERNAL), 0);
    wait_durable(user_done + 1);
    fiber_spawn(c.env, "internal", internal_fiber, &internals);
    settle();
    assert_true(internal_done >= 8 && internal_done < internals);
    journal_get_stats(t.j, &s);
    assert_true(s.used <= STORE_JOURNAL - 2 * STORE_JOURNAL / 8);
    assert_int_equal(t.durable.count, user_done + 1 + internal_done);

    /* That is for checkpoints, which do not wait for what is left. */
    while ((rc = append(6000, JOURNAL_LAST)) == 0)
        last_done++;
    assert_int_equal(rc, ERR_NOSPC);
    assert_true(last_done >= 8 && journal_is_tight(t.j));
    wait_durable(user_done + 1 + internal_done + last_done);

    /* The rest is for draining. Past it even that waits. */
    fiber_spawn(c.env, "drain", drain_fiber, &drains);
    settle();
    assert_true(drain_done >= 8 && drain_done < drains);
    assert_true(t.durable.count < user_done + 1 + internal_done + last_done + drain_done);

    /* Room: now everything goes, in order, nothing is lost of the batch that waited. */
    while (user_done < users || internal_done < internals || drain_done < drains) {
        trim_to(t.durable.count);
        settle();
    }
    settle();
    assert_int_equal(t.durable.count, users + internals + drains + last_done + 1);
    assert_int_equal(t.next, t.durable.count);
    stop(false);
    expect_replay(0);
    expect_replayed_from(t.durable.count - t.replayed.count);
    assert_true(t.replayed.count > 0);
}

static void test_backpressure(void **state)
{
    (void)state;
    sim_case_run(&c, full_main, NULL);
}

static int told[4];

/* Appends with the flags until that is refused. */
static void until_refused(void *arg)
{
    unsigned flags = *(unsigned *)arg;

    while ((told[flags & 3] = append(6000, flags)) == 0)
        ;
}

/* Who waits for room, and is told not to. */
static void refused_main(void *arg)
{
    unsigned user = 0, internal = JOURNAL_INTERNAL, drain = JOURNAL_DRAIN;

    (void)arg;
    memset(told, 0, sizeof(told));
    format_size(STORE_JOURNAL);
    start();
    journal_refuse(t.j, 0, ERR_NOSPC);
    journal_refuse(t.j, 0, 0);
    fiber_spawn(c.env, "user", until_refused, &user);
    settle();
    assert_int_equal(told[0], 0); /* waits */
    journal_refuse(t.j, 0, ERR_NOSPC);
    settle();
    assert_int_equal(told[0], ERR_NOSPC);
    assert_int_equal(append(6000, 0), ERR_NOSPC);
    fiber_spawn(c.env, "internal", until_refused, &internal);
    settle();
    assert_int_equal(told[1], 0);
    journal_refuse(t.j, JOURNAL_INTERNAL, ERR_SHUTDOWN);
    settle();
    assert_int_equal(told[1], ERR_SHUTDOWN);
    fiber_spawn(c.env, "drain", until_refused, &drain);
    settle();
    assert_int_equal(told[3], 0); /* even the writer waits now */
    journal_give_up(t.j, ERR_KV);
    settle();
    assert_int_equal(told[3], ERR_KV);
    assert_int_equal(journal_stop(t.j, false), ERR_KV); /* and the stop does not */
    drop();
}

static void test_refused(void **state)
{
    (void)state;
    sim_case_run(&c, refused_main, NULL);
}

/* ---- Damage at rest ---- */

static void five_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    batches(5, 4);
    stop(false);
}

/* Each place where a batch may be hit: header, a record's head, a body, its last bytes. */
static const size_t spots[] = {0, 20, 64, 70, 5000, 4 * FORMAT_UNIT - 1};

static void one_mirror_main(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < sizeof(spots) / sizeof(spots[0]); i++) {
        damage(i % 2, 4 * (i % 5), spots[i], 1);
        assert_false(mirrors_equal(0, 1));
        expect_replay(0);
        expect_replayed_from(0);
        assert_int_equal(t.stats.mirrors_repaired, 1);
        assert_true(mirrors_equal(0, 1));
    }
    damage(0, 4, 0, 4 * FORMAT_UNIT); /* each mirror lacks another batch */
    damage(1, 12, 100, 1);
    expect_replay(0);
    expect_replayed_from(0);
    assert_int_equal(t.stats.mirrors_repaired, 2);
    assert_true(mirrors_equal(0, 1));
    expect_replay(0);
    assert_int_equal(t.stats.mirrors_repaired, 0);
}

static void test_hole_in_one_mirror(void **state)
{
    (void)state;
    sim_case_run(&c, five_main, NULL);
    sim_case_run(&c, one_mirror_main, NULL);
}

static void all_mirrors_main(void *arg)
{
    unsigned i = *(unsigned *)arg;

    five_main(NULL);
    damage(0, 4 * (i % 4), spots[i], 1);
    damage(1, 4 * (i % 4), spots[i], 1);
    expect_replay(ERR_JOURNAL);
    assert_int_equal(t.replayed.count, i % 4); /* those before the hole were good */
}

static void test_hole_in_all_mirrors(void **state)
{
    for (unsigned i = 0; i < sizeof(spots) / sizeof(spots[0]); i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, all_mirrors_main, &i);
    }
}

/* Only the last batch may be missing everywhere: nobody was told that it is durable. Behind it the
 * journal goes on with a batch of the same number. */
static void torn_main(void *arg)
{
    unsigned i = *(unsigned *)arg;

    five_main(NULL);
    damage(0, 16, spots[i], 1);
    damage(1, 16, spots[i], 1);
    start();
    t.durable.count = 4;
    expect_replayed_from(0);
    t.next = 4;
    assert_int_equal(journal_next_lsn(t.j), 5);
    batch(2);
    assert_int_equal(seq_at(0, 16), 5);
    batch(1);
    stop(false);
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_torn_end(void **state)
{
    for (unsigned i = 0; i < sizeof(spots) / sizeof(spots[0]); i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, torn_main, &i);
    }
}

static int fail_journal_reads(void *arg, const char *path, const struct env_io *io)
{
    uint64_t from = *(const uint64_t *)arg;
    bool there = io->kind == ENV_READ && io->off + io->len > from && io->off < from + FORMAT_UNIT;

    (void)path;
    return there ? ERR_IO : 0;
}

/* What no mirror can be read of is not the end: acknowledged records may be there. */
static void unread_main(void *arg)
{
    uint64_t at;

    (void)arg;
    five_main(NULL);
    at = FORMAT_JOURNAL_OFF + 16 * FORMAT_UNIT; /* the last batch */
    c.hook = fail_journal_reads;
    c.hook_arg = &at;
    expect_replay(ERR_IO);
    c.hook = NULL;
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_unreadable_end(void **state)
{
    (void)state;
    sim_case_run(&c, unread_main, NULL);
}

/* The same across the end of the area: the later batches lie before the hole. */
static void hole_wrapped_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    batches(10, 25);
    trim_to(8);
    batches(3, 25);
    stop(false);
    damage(0, 225, 0, 64);
    damage(1, 225, 0, 64);
    expect_replay(ERR_JOURNAL);
}

static void test_hole_before_wrap(void **state)
{
    (void)state;
    sim_case_run(&c, hole_wrapped_main, NULL);
}

static void gone_main(void *arg)
{
    bool clean = *(bool *)arg;

    format_size(STORE_JOURNAL);
    start();
    batches(3, 2);
    stop(clean);
    sim_file_delete(c.sim, "d0");
    sim_file_delete(c.sim, "d1");
    if (!clean) {
        expect_replay(ERR_JOURNAL);
        return;
    }
    start();
    assert_int_equal(journal_next_lsn(t.j), 4);
    assert_int_equal(t.ds->super.journal_mirrors, 4);
    batch(1);
    stop(false);
    expect_replay(0);
    expect_replayed_from(3);
}

static void test_all_mirrors_gone(void **state)
{
    for (int clean = 0; clean < 2; clean++) {
        bool flag = clean;

        teardown(state);
        setup(state);
        sim_case_run(&c, gone_main, &flag);
    }
}

/* A change of the superblocks is cut short, and only one drive has it; the store goes on without
 * that drive, for a while; then it is back, and another one away. What the others said later
 * counts, and so does what was written meanwhile. */
static void torn_change_main(void *arg)
{
    struct format_super torn;
    struct buf *b = buf_new(FORMAT_UNIT);

    (void)arg;
    t.drives = 3;
    format_size(STORE_JOURNAL);
    start();
    batches(2, 2);
    torn = t.ds->super;
    torn.generation++;
    torn.epoch++;
    drive_super_sign(&torn, 0, t.ds->drives[0].uuid, b);
    assert_int_equal(drive_pwrite(&t.ds->drives[0], b, FORMAT_UNIT, FORMAT_SUPER_OFF_A, true), 0);
    buf_unref(b);
    stop(false);

    assert_int_equal(sim_file_keep(c.sim, "d0"), 0);
    assert_int_equal(sim_file_corrupt(c.sim, "d0", 0, sim_file_size(c.sim, "d0")), 0);
    start();
    batches(2, 2);
    stop(false);

    assert_int_equal(sim_file_restore(c.sim, "d0"), 0);
    assert_int_equal(sim_file_delete(c.sim, "d1"), 0);
    expect_replay(0);
    assert_int_equal(t.durable.count, 4);
    expect_replayed_from(0);
}

static void test_torn_change(void **state)
{
    (void)state;
    sim_case_run(&c, torn_change_main, NULL);
}

/* A mirror missing at start is replaced, with all that is live. */
static void missing_main(void *arg)
{
    (void)arg;
    sim_file_delete(c.sim, "d0");
    start();
    expect_replayed_from(0);
    assert_int_equal(t.ds->super.journal_mirrors, 6);
    assert_true(mirrors_equal(1, 2));
    batch(3);
    stop(false);
    sim_file_delete(c.sim, "d1");
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_mirror_missing_at_start(void **state)
{
    (void)state;
    sim_case_run(&c, five_main, NULL);
    sim_case_run(&c, missing_main, NULL);
}

/* Both mirrors lost their superblocks, but their journals can be read: all is there. */
static void headless_main(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 2; i++) {
        sim_file_corrupt(c.sim, store_case_paths(3)[i], FORMAT_SUPER_OFF_A, FORMAT_UNIT);
        sim_file_corrupt(c.sim, store_case_paths(3)[i], FORMAT_SUPER_OFF_B, FORMAT_UNIT);
    }
    start();
    expect_replayed_from(0);
    assert_int_equal(t.ds->super.journal_mirrors, 4);
    batch(1);
    stop(false);
    sim_file_delete(c.sim, "d0");
    sim_file_delete(c.sim, "d1");
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_mirrors_without_superblock(void **state)
{
    (void)state;
    sim_case_run(&c, five_main, NULL);
    sim_case_run(&c, headless_main, NULL);
}

/* Another disk lies where a mirror was expected: that it has no batch says nothing. */
static void strange_disk(unsigned drive)
{
    sim_file_corrupt(c.sim, store_case_paths(3)[drive], FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    sim_file_corrupt(c.sim, store_case_paths(3)[drive], FORMAT_SUPER_OFF_B, FORMAT_UNIT);
    damage(drive, 0, 0, STORE_JOURNAL);
}

static int fail_on_d0(void *arg, const char *path, const struct env_io *io)
{
    return store_case_drive(path) == 0 ? fail_journal_reads(arg, path, io) : 0;
}

static void strange_main(void *arg)
{
    uint64_t at = FORMAT_JOURNAL_OFF + 16 * FORMAT_UNIT; /* the last batch */

    (void)arg;
    five_main(NULL);
    strange_disk(1);
    c.hook = fail_on_d0;
    c.hook_arg = &at;
    expect_replay(ERR_IO);
    c.hook = NULL;
    expect_replay(0);
    expect_replayed_from(0);
    strange_disk(0);
    expect_replay(ERR_JOURNAL);
}

static void test_strange_disk(void **state)
{
    (void)state;
    sim_case_run(&c, strange_main, NULL);
}

/* ---- Drives failing while the journal is written ---- */

struct fault {
    unsigned writes; /* bit per drive: writes fail from now on ... */
    unsigned copies; /* ... or all but the wiping of its area, which comes first */
    unsigned failed;
};

static int hook_fault(void *arg, const char *path, const struct env_io *io)
{
    struct fault *f = arg;
    unsigned d = store_case_drive(path);
    bool wipe;

    if (io->kind != ENV_WRITE)
        return 0;
    wipe = io->off >= FORMAT_JOURNAL_OFF && !io->dsync && io->len == STORE_JOURNAL;
    if (!(f->writes >> d & 1) && (wipe || !(f->copies >> d & 1)))
        return 0;
    f->failed++;
    return ERR_IO;
}

static void fault_start(struct fault *f)
{
    format_size(STORE_JOURNAL);
    start();
    batches(4, 3);
    c.hook = hook_fault;
    c.hook_arg = f;
}

static void one_fails_main(void *arg)
{
    struct fault f = {.writes = 2};
    struct journal_stats s;

    (void)arg;
    fault_start(&f);
    batches(3, 2);
    assert_int_equal(f.failed, 1); /* it was not asked again */
    assert_int_equal(t.ds->drives[1].state, DRIVE_FAILED);
    assert_string_equal(t.ds->drives[1].reason, "journal write failed");
    assert_int_equal(t.ds->super.journal_mirrors, 5);
    assert_int_equal(t.ds->super.members[1].state, FORMAT_DRIVE_OUT);
    journal_get_stats(t.j, &s);
    assert_int_equal(s.mirrors, 2);
    stop(false);
    c.hook = NULL;
    assert_true(mirrors_equal(0, 2));
    sim_file_delete(c.sim, "d0"); /* the new mirror alone has everything */
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_one_mirror_fails(void **state)
{
    (void)state;
    sim_case_run(&c, one_fails_main, NULL);
}

static void both_fail_main(void *arg)
{
    struct fault f = {.writes = 3};
    struct journal_stats s;

    (void)arg;
    fault_start(&f);
    batches(2, 2); /* the batch is in memory, the others are read from where they were */
    assert_int_equal(t.broken_calls, 0);
    journal_get_stats(t.j, &s);
    assert_int_equal(s.mirrors, 1);
    stop(false);
    c.hook = NULL;
    sim_file_delete(c.sim, "d0");
    sim_file_delete(c.sim, "d1");
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_both_mirrors_fail(void **state)
{
    (void)state;
    sim_case_run(&c, both_fail_main, NULL);
}

/* The drive that should take over fails under the copy: the one mirror left goes on alone. */
static void target_fails_main(void *arg)
{
    struct fault f = {.writes = 2, .copies = 4};

    (void)arg;
    fault_start(&f);
    batches(2, 2);
    assert_int_equal(t.ds->drives[2].state, DRIVE_FAILED);
    assert_string_equal(t.ds->drives[2].reason, "could not take a copy of the journal");
    assert_int_equal(t.ds->super.journal_mirrors, 1);
    stop(false);
    c.hook = NULL;
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_target_fails(void **state)
{
    (void)state;
    sim_case_run(&c, target_fails_main, NULL);
}

static void all_fail_main(void *arg)
{
    struct fault f = {.writes = 7};

    (void)arg;
    fault_start(&f);
    assert_int_equal(append(100, 0), 0);
    settle();
    assert_int_equal(t.broken, ERR_LOST);
    assert_int_equal(t.broken_calls, 1);
    assert_int_equal(append(100, 0), ERR_LOST);
    assert_int_equal(append(100, JOURNAL_INTERNAL), ERR_LOST);
    assert_int_equal(t.durable.count, 4);
    assert_int_equal(journal_stop(t.j, true), ERR_LOST);
    drop();
    c.hook = NULL;
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_all_fail(void **state)
{
    (void)state;
    sim_case_run(&c, all_fail_main, NULL);
}

/* A live batch that the remaining mirror cannot give is taken from the one that has just failed; a
 * healthy drive is not put out for it. */
static void bad_source_main(void *arg)
{
    struct fault f = {.writes = 2};
    bool lost = *(bool *)arg;

    fault_start(&f);
    damage(0, 3, 100, 1);
    if (lost)
        damage(1, 3, 100, 1);
    if (!lost) {
        batches(2, 2);
        assert_true(drive_usable(&t.ds->drives[2]));
        stop(false);
        c.hook = NULL;
        sim_file_delete(c.sim, "d0");
        sim_file_delete(c.sim, "d1");
        expect_replay(0);
        expect_replayed_from(0);
        return;
    }
    assert_int_equal(append(100, 0), 0);
    settle();
    assert_int_equal(t.broken, ERR_LOST); /* loudly: not with one copy where two are promised */
    assert_true(drive_usable(&t.ds->drives[2]));
    assert_int_equal(t.durable.count, 4);
    assert_int_equal(journal_stop(t.j, false), ERR_LOST);
    drop();
    c.hook = NULL;
}

static void test_bad_source(void **state)
{
    for (int lost = 0; lost < 2; lost++) {
        bool flag = lost;

        teardown(state);
        setup(state);
        sim_case_run(&c, bad_source_main, &flag);
    }
}

/* Trimming while a new mirror is being filled: the copy walks the same list. */
static void trim_fiber(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 40; i++) {
        env_sleep(c.env, ENV_NS_PER_MS / 2);
        trim_to(i / 2);
    }
}

static void trim_under_copy_main(void *arg)
{
    struct fault f = {.writes = 2};

    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    batches(20, 3);
    c.hook = hook_fault;
    c.hook_arg = &f;
    fiber_spawn(c.env, "trim", trim_fiber, NULL);
    batches(4, 2);
    settle();
    stop(false);
    c.hook = NULL;
    sim_file_delete(c.sim, "d0");
    expect_replay(0);
    expect_replayed_from(19);
}

static void test_trim_under_copy(void **state)
{
    (void)state;
    sim_case_run(&c, trim_under_copy_main, NULL);
}

/* A drive put out elsewhere (a segment write failed) is replaced before the next batch counts. */
static void out_elsewhere_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
    start();
    batches(2, 2);
    driveset_put_out(t.ds, 0, "for the test");
    batches(2, 2);
    assert_int_equal(t.ds->super.journal_mirrors, 6);
    stop(false);
    /* It comes back with an old journal that must not be taken for a mirror's. */
    start();
    expect_replayed_from(0);
    assert_int_equal(t.ds->super.journal_mirrors, 6);
    batches(1, 2);
    stop(false);
    sim_file_delete(c.sim, "d1");
    start();
    expect_replayed_from(0);
    assert_int_equal(t.ds->super.journal_mirrors, 5); /* a mirror again, made anew */
    stop(false);
    assert_true(mirrors_equal(0, 2));
}

static void test_put_out_elsewhere(void **state)
{
    (void)state;
    sim_case_run(&c, out_elsewhere_main, NULL);
}

/* What a new mirror gets is read and written many batches at a time, since writes wait for it; and
 * one by one where no mirror has all of them whole. */
static unsigned copy_reads;

static int hook_copy(void *arg, const char *path, const struct env_io *io)
{
    (void)arg, (void)path;
    copy_reads += io->kind == ENV_READ && io->off >= FORMAT_JOURNAL_OFF;
    return 0;
}

static void copy_main(void *arg)
{
    const bool *damaged = arg;

    t.drives = 4;
    format_size(STORE_JOURNAL);
    start();
    batches(40, 2);
    for (unsigned i = 0; *damaged && i < 2; i++) /* another batch on each mirror */
        assert_int_equal(sim_file_corrupt(c.sim, store_case_paths(4)[i],
                                          FORMAT_JOURNAL_OFF + (10 + i) * 2 * FORMAT_UNIT, 100),
                         0);
    c.hook = hook_copy;
    copy_reads = 0;
    driveset_put_out(t.ds, 3, "for the test"); /* no mirror: that alone needs no copy */
    assert_int_equal(driveset_tell(t.ds), 0);
    t.ds->drives[2].class_ = 1;
    batches(2, 2);
    c.hook = NULL;
    assert_true(t.ds->super.journal_mirrors >> 2 & 1);
    assert_in_range(copy_reads, 1, *damaged ? 60 : 5);
    stop(false);
    assert_int_equal(sim_file_delete(c.sim, "d0"), 0);
    assert_int_equal(sim_file_delete(c.sim, "d1"), 0);
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_copy(void **state)
{
    for (unsigned damaged = 0; damaged < 2; damaged++) {
        bool is = damaged;

        teardown(state);
        setup(state);
        sim_case_run(&c, copy_main, &is);
    }
}

/* Both mirrors are lost, and while one of the two that take over is filled the other goes. */
static unsigned late_writes;

static int hook_goes(void *arg, const char *path, const struct env_io *io)
{
    unsigned d = store_case_drive(path);

    (void)arg;
    if (io->kind == ENV_WRITE && io->off >= FORMAT_JOURNAL_OFF && d == 2)
        t.ds->drives[3].transit = true;
    late_writes += io->kind == ENV_WRITE && io->off >= FORMAT_JOURNAL_OFF && d == 3;
    return 0;
}

static void goes_main(void *arg)
{
    (void)arg;
    t.drives = 4;
    late_writes = 0;
    format_size(STORE_JOURNAL);
    start();
    batches(2, 2);
    c.hook = hook_goes;
    driveset_put_out(t.ds, 0, "for the test");
    driveset_put_out(t.ds, 1, "for the test");
    batches(2, 2);
    assert_int_equal(t.ds->super.journal_mirrors, 4);
    assert_int_equal(late_writes, 0);
    c.hook = NULL;
    stop(false);
}

static void test_one_goes(void **state)
{
    (void)state;
    sim_case_run(&c, goes_main, NULL);
}

/* A drive is put out for another reason while it is made a mirror: it is not written any more. */
static int hook_put_out(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    if (io->kind == ENV_WRITE && io->off >= FORMAT_JOURNAL_OFF && store_case_drive(path) == 3 &&
        late_writes++ == 0)
        driveset_put_out(t.ds, 3, "for the test");
    return 0;
}

/* Two that would be better than the mirrors there are, and one has no space for it: that it may be
 * tried again, by the time that the other is filled, does not make it one. */
static int hook_cramped(void *arg, const char *path, const struct env_io *io)
{
    unsigned d = store_case_drive(path);

    (void)arg;
    if (io->kind != ENV_WRITE || io->off < FORMAT_JOURNAL_OFF)
        return 0;
    if (d == 3 && late_writes++ == 0)
        t.ds->drives[2].cramped_till = 0;
    return d == 2 && late_writes == 0 ? ERR_NOSPC : 0;
}

static void better_start(int (*hook)(void *arg, const char *path, const struct env_io *io),
                         uint64_t journal)
{
    c.hook = NULL;
    t.drives = 4;
    late_writes = 0;
    format_size(journal);
    start();
    batches(2, 2);
    c.hook = hook;
    t.ds->drives[3].class_ = 1;
}

static void better_has_no_space_main(void *arg)
{
    (void)arg;
    better_start(hook_cramped, STORE_JOURNAL);
    t.ds->drives[2].class_ = 1;
    batches(2, 2);
    c.hook = NULL;
    assert_int_equal(t.ds->drives[3].state, DRIVE_OK);
    assert_int_equal(t.ds->super.journal_mirrors, 9);
    stop(false);
    assert_true(mirrors_equal(0, 3));
}

static void test_better_has_no_space(void **state)
{
    (void)state;
    sim_case_run(&c, better_has_no_space_main, NULL);
}

/* Nothing is written but what was under way: a few pieces of a journal of many. */
static void better_is_put_out_main(void *arg)
{
    (void)arg;
    better_start(hook_put_out, 32 * STORE_JOURNAL);
    batches(2, 2);
    c.hook = NULL;
    assert_int_equal(t.ds->drives[3].state, DRIVE_FAILED);
    assert_int_equal(t.ds->super.journal_mirrors, 3);
    assert_in_range(late_writes, 1, 8);
    stop(false);
}

static void test_better_is_put_out(void **state)
{
    (void)state;
    sim_case_run(&c, better_is_put_out_main, NULL);
}

/* Mirrors behind one write cache are flushed by one SYNC; where that fails, each by its own. */
struct shared {
    unsigned plain, dsync, syncs; /* of batches, seen so far */
    unsigned broken;              /* bits: drives whose SYNC fails */
};

static int hook_shared(void *arg, const char *path, const struct env_io *io)
{
    struct shared *s = arg;

    if (io->kind == ENV_WRITE && io->off >= FORMAT_JOURNAL_OFF && io->len < STORE_JOURNAL) {
        s->plain += !io->dsync;
        s->dsync += io->dsync;
    }
    if (io->kind != ENV_SYNC)
        return 0;
    s->syncs++;
    return s->broken >> store_case_drive(path) & 1 ? ERR_IO : 0;
}

static void shared_cache_main(void *arg)
{
    struct shared s = {0};

    (void)arg;
    c.cache = 7;
    format_size(STORE_JOURNAL);
    start();
    c.hook = hook_shared;
    c.hook_arg = &s;
    batches(3, 2);
    assert_int_equal(s.plain, 6);
    assert_int_equal(s.dsync, 0);
    assert_int_equal(s.syncs, 3);
    s.broken = 1;
    s.syncs = 0;
    batch(2);
    assert_true(s.syncs >= 2);
    assert_int_equal(t.ds->drives[0].state, DRIVE_FAILED);
    assert_int_equal(t.ds->super.journal_mirrors, 6);
    batches(2, 2);
    stop(false);
    c.hook = NULL;
    assert_true(mirrors_equal(1, 2));
    sim_file_delete(c.sim, "d1");
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_shared_cache(void **state)
{
    (void)state;
    sim_case_run(&c, shared_cache_main, NULL);
}

/* ---- Power cuts ---- */

/* What a new mirror was given is durable before anything relies on it. */
static void new_mirror_main(void *arg)
{
    struct fault f = {.writes = 2};

    (void)arg;
    fault_start(&f);
    batch(2);
    sim_pause(c.sim);
    env_sleep(c.env, ENV_NS_PER_S);
}

static void new_mirror_alone_main(void *arg)
{
    (void)arg;
    sim_file_delete(c.sim, "d0");
    expect_replay(0);
    expect_replayed_from(0);
}

static void test_new_mirror_durable(void **state)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        teardown(state);
        setup(state);
        sim_case_free(&c);
        sim_case_init(&c, seed);
        sim_case_run_and_kill(&c, new_mirror_main, NULL, true);
        c.hook = NULL;
        sim_case_run(&c, new_mirror_alone_main, NULL);
    }
}

static void cut_main(void *arg)
{
    uint64_t until = *(uint64_t *)arg;

    start();
    for (unsigned i = 0; i < 400; i++) {
        assert_int_equal(append(8 + sim_random(c.sim, 9000), 0), 0);
        if (sim_random(c.sim, 3) == 0)
            env_sleep(c.env, sim_random(c.sim, ENV_NS_PER_MS));
        if (journal_pressure(t.j) > 30)
            trim_to(t.durable.count);
        if (i >= until)
            sim_pause(c.sim);
    }
}

static void after_cut_main(void *arg)
{
    uint64_t first = 0;

    (void)arg;
    assert_int_equal(replay(), 0);
    drop();
    if (t.replayed.count)
        first = t.replayed.records[0].number;
    /* Numbers run from 0 without a gap, so one may be compared with the count of durable ones. */
    assert_true(first <= t.durable.count);
    assert_true(t.replayed.count == 0 || first + t.replayed.count >= t.durable.count);
}

static void format_main(void *arg)
{
    (void)arg;
    format_size(STORE_JOURNAL);
}

static void test_power_cuts(void **state)
{
    for (uint64_t seed = 1; seed <= 60; seed++) {
        uint64_t until = seed * 6;

        teardown(state);
        setup(state);
        sim_case_free(&c);
        sim_case_init(&c, seed);
        sim_case_run(&c, format_main, NULL);
        sim_case_run_and_kill(&c, cut_main, &until, true);
        sim_case_run(&c, after_cut_main, NULL);
    }
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_empty),
        CASE(test_around),
        CASE(test_group_commit),
        CASE(test_small_journal),
        CASE(test_too_big),
        CASE(test_stop),
        CASE(test_offset_0),
        CASE(test_exact_end),
        CASE(test_trim),
        CASE(test_backpressure),
        CASE(test_refused),
        CASE(test_hole_in_one_mirror),
        CASE(test_hole_in_all_mirrors),
        CASE(test_torn_end),
        CASE(test_unreadable_end),
        CASE(test_hole_before_wrap),
        CASE(test_all_mirrors_gone),
        CASE(test_torn_change),
        CASE(test_mirror_missing_at_start),
        CASE(test_mirrors_without_superblock),
        CASE(test_strange_disk),
        CASE(test_one_mirror_fails),
        CASE(test_both_mirrors_fail),
        CASE(test_target_fails),
        CASE(test_all_fail),
        CASE(test_bad_source),
        CASE(test_trim_under_copy),
        CASE(test_put_out_elsewhere),
        CASE(test_copy),
        CASE(test_one_goes),
        CASE(test_better_has_no_space),
        CASE(test_better_is_put_out),
        CASE(test_shared_cache),
        CASE(test_new_mirror_durable),
        CASE(test_power_cuts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
