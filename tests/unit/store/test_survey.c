/* lib/store/journal_survey: what people are shown of the ring is every whole batch, with the
 * mirrors that have it, and nothing else; damage on one mirror leaves what the other has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/journal.h"
#include "tests/unit/store/store_case.h"

#define BATCHES 5u
#define MIRRORS 3u /* drives 0 and 1: two columns, one of parity */

static struct sim_case c;
static struct driveset *ds;
static struct journal *j;

static int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sim_case_free(&c);
    return 0;
}

static void on_durable(void *arg, struct journal_batch *b)
{
    (void)arg;
    journal_batch_free(b);
}

static void on_broken(void *arg, int error)
{
    (void)arg;
    fail_msg("the journal broke: %s", err_name(error));
}

static int apply(void *arg, const struct journal_record *r)
{
    (void)arg;
    (void)r;
    return 0;
}

static void open_journal(void)
{
    static const struct journal_ops ops = {on_durable, on_broken};

    ds = store_case_open(&c, 3);
    assert_int_equal(journal_open(ds, &ops, NULL, &j), 0);
}

static void close_journal(void)
{
    journal_free(j);
    driveset_close(ds);
}

/* Batch i has one record, of i KiB, which begins with its number. */
static void append(unsigned i)
{
    uint8_t body[BATCHES * 1024] = {0};
    struct iovec iov = {body, i * 1024};
    uint64_t lsn;

    codec_put_le64(body, i);
    assert_int_equal(journal_append(j, 7, 1, &iov, 1, 0, &lsn), 0);
    assert_int_equal(lsn, i);
    env_sleep(c.env, 50 * ENV_NS_PER_MS); /* it goes by itself */
}

static void fill(void)
{
    struct journal_replay_stats stats;

    assert_int_equal(store_case_format(&c, 3, 2, 1, 2, FORMAT_JOURNAL_MIN), 0);
    open_journal();
    assert_int_equal(journal_replay(j, apply, NULL, &stats), 0);
    assert_int_equal(journal_start(j), 0);
    for (unsigned i = 1; i <= BATCHES; i++)
        append(i);
    assert_int_equal(journal_stop(j, false), 0);
    close_journal();
}

static void expect_batch(const struct journal_seen *s, unsigned number, uint64_t mirrors)
{
    struct journal_batch *b;
    struct journal_record r;
    size_t pos = 0;

    assert_int_equal(s->first_lsn, number);
    assert_int_equal(s->records, 1);
    assert_int_equal(s->mirrors, mirrors);
    assert_int_equal(journal_survey_read(j, s, &b), 0);
    assert_true(journal_batch_next(b, &pos, &r));
    assert_int_equal(r.length, number * 1024);
    assert_int_equal(codec_get_le64(r.body), number);
    assert_false(journal_batch_next(b, &pos, &r));
    journal_batch_free(b);
}

/* Noise over a batch on one mirror. */
static void spoil(const char *path, const struct journal_seen *s)
{
    assert_int_equal(sim_file_corrupt(c.sim, path, ds->super.journal_off + s->off + 100, 16), 0);
}

static void survey_main(void *arg)
{
    struct journal_seen *seen, *again, gone;
    struct journal_batch *b;
    size_t n;

    (void)arg;
    fill();
    open_journal();
    assert_int_equal(journal_survey(j, &seen, &n), 0);
    assert_int_equal(n, BATCHES);
    for (unsigned i = 0; i < BATCHES; i++)
        expect_batch(&seen[i], i + 1, MIRRORS);

    /* One mirror lacks the second, none has the fourth. */
    spoil("d0", &seen[1]);
    spoil("d0", &seen[3]);
    spoil("d1", &seen[3]);
    gone = seen[3];
    assert_int_equal(journal_survey(j, &again, &n), 0);
    assert_int_equal(n, BATCHES - 1);
    expect_batch(&again[1], 2, 2);
    expect_batch(&again[3], 5, MIRRORS);
    expect_batch(&seen[1], 2, MIRRORS); /* read from the one that has it */
    assert_int_equal(journal_survey_read(j, &gone, &b), ERR_LOST);
    mem_free(seen);
    mem_free(again);
    close_journal();
}

static void test_survey(void **state)
{
    (void)state;
    sim_case_run(&c, survey_main, NULL);
}

static int no_reads(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    (void)path;
    return io->kind == ENV_READ && io->off >= FORMAT_JOURNAL_OFF ? ERR_IO : 0;
}

/* What cannot be read holds nothing; without any mirror there is nothing to look at. */
static void unreadable_main(void *arg)
{
    struct journal_seen *seen;
    size_t n;

    (void)arg;
    fill();
    open_journal();
    c.hook = no_reads;
    assert_int_equal(journal_survey(j, &seen, &n), 0);
    assert_int_equal(n, 0);
    mem_free(seen);
    c.hook = NULL;
    close_journal();
    assert_int_equal(sim_file_delete(c.sim, "d0"), 0);
    assert_int_equal(sim_file_delete(c.sim, "d1"), 0);
    open_journal();
    assert_int_equal(journal_survey(j, &seen, &n), ERR_LOST);
    close_journal();
}

static void test_unreadable(void **state)
{
    (void)state;
    sim_case_run(&c, unreadable_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_survey, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unreadable, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
