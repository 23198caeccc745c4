/* Replay over an area that holds anything: batches with sound checksums in any order, of any
 * numbers and lengths, on one mirror or the other, between noise. What replay accepts is
 * consecutive; where it succeeds the journal can be written on, and replays the same and what was
 * added.
 *
 * Input: operations. Each is a kind byte, a place byte, and
 *   a batch: mirrors, seq, first LSN, records, tweak byte, then a length byte and that many bytes
 * for each record's body; noise: a length byte and that many bytes. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/journal.h"
#include "tests/unit/store/store_case.h"

#define BATCH_ROOM 8192u
#define UNITS      (FORMAT_JOURNAL_MIN / FORMAT_UNIT)
#define SEEN_MAX   4096u

static struct sim_case stage;
static struct codec_reader input;
static struct driveset *ds;
static struct journal *journal;

static struct {
    uint64_t count, crc, last;
} seen, before;

static unsigned durable;

static int apply(void *arg, const struct journal_record *r)
{
    (void)arg;
    CHECK(seen.count == 0 || r->lsn == seen.last + 1);
    CHECK(++seen.count <= SEEN_MAX);
    seen.last = r->lsn;
    seen.crc = crc32c((uint32_t)seen.crc, r->body, r->length);
    return 0;
}

static void on_durable(void *arg, struct journal_batch *b)
{
    (void)arg;
    durable += b->records;
    journal_batch_free(b);
}

static void on_broken(void *arg, int error)
{
    (void)arg;
    (void)error;
    check_fail(__FILE__, __LINE__, "no drive fails here");
}

/* ---- Filling the area ---- */

static void put(unsigned mirrors, unsigned unit, const void *p, size_t n)
{
    for (unsigned i = 0; i < 2; i++) {
        struct env_file *f;

        if (!(mirrors >> i & 1))
            continue;
        CHECK_OK(env_open(stage.env, store_case_paths(2)[i], 0, &f));
        CHECK_OK(env_pwrite(f, p, n, FORMAT_JOURNAL_OFF + (uint64_t)unit * FORMAT_UNIT, false));
        env_close(f);
    }
}

/* Records from the input, with checksums that fit; tweaked LSNs and lengths do not always. */
static size_t put_records(uint8_t *p, const struct format_batch *h, uint8_t tweak)
{
    size_t at = sizeof(*h);

    for (uint32_t i = 0; i < h->records; i++) {
        size_t n = codec_read_u8(&input);
        const uint8_t *body = codec_read_bytes(&input, n);
        struct format_record r = {.length = (uint32_t)n,
                                  .type = (uint16_t)i,
                                  .version = 1,
                                  .lsn = h->first_lsn + i + (tweak >> 7),
                                  .epoch = 1};

        if (!body || at + sizeof(r) + n + 8 > BATCH_ROOM)
            break;
        if (tweak & 1)
            r.length += 9;
        r.crc = crc32c(crc32c(0, &r, sizeof(r)), body, n);
        memcpy(p + at, &r, sizeof(r));
        memcpy(p + at + sizeof(r), body, n);
        at += sizeof(r) + ((n + 7) & ~(size_t)7);
    }
    return at;
}

static void put_batch(unsigned unit)
{
    unsigned mirrors = codec_read_u8(&input);
    struct format_batch h = {.magic = FORMAT_BATCH_MAGIC,
                             .version = FORMAT_VERSION,
                             .epoch = 1,
                             .store_id = codec_get_le64(ds->super.store_uuid)};
    uint8_t *p = mem_zalloc(BATCH_ROOM), tweak;

    h.seq = codec_read_u8(&input);
    h.first_lsn = codec_read_u8(&input);
    h.records = codec_read_u8(&input) % 8u;
    tweak = codec_read_u8(&input);
    h.length = (uint32_t)put_records(p, &h, tweak);
    h.payload_crc = crc32c(0, p + sizeof(h), h.length - sizeof(h));
    if (tweak & 2)
        h.length = UINT32_MAX;
    if (tweak & 4)
        h.length += 8;
    if (tweak & 8)
        h.store_id++;
    if (tweak & 16)
        h.records += 1u << 30;
    h.crc = crc32c(0, &h, sizeof(h));
    if (tweak & 32)
        h.crc++;
    memcpy(p, &h, sizeof(h));
    put(mirrors, unit, p, unit + 1 < UNITS ? BATCH_ROOM : FORMAT_UNIT);
    mem_free(p);
}

static void put_noise(unsigned unit)
{
    size_t n = codec_read_u8(&input);
    const uint8_t *bytes = codec_read_bytes(&input, n);

    if (bytes && n)
        put(3, unit, bytes, n);
}

/* ---- Replaying ---- */

static int replay(void)
{
    static const struct journal_ops ops = {on_durable, on_broken};
    struct journal_replay_stats stats;
    int rc;

    memset(&seen, 0, sizeof(seen));
    CHECK_OK(journal_open(ds, &ops, NULL, &journal));
    rc = journal_replay(journal, apply, NULL, &stats);
    CHECK(rc == 0 || rc == ERR_JOURNAL);
    if (rc == 0)
        CHECK(stats.records == seen.count && journal_next_lsn(journal) == 1 + seen.count);
    return rc;
}

/* Appends what the last replay saw one more of. */
static void write_on(void)
{
    struct iovec iov = {"more", 4};
    uint64_t lsn;

    CHECK_OK(journal_start(journal));
    CHECK_OK(journal_append(journal, 7, 1, &iov, 1, 0, &lsn));
    CHECK_OK(journal_stop(journal, false));
    CHECK(durable == 1 && lsn == 1 + seen.count);
    journal_free(journal);
    before = seen;
    CHECK_OK(replay());
    CHECK(seen.count == before.count + 1);
    CHECK(seen.crc == crc32c((uint32_t)before.crc, "more", 4));
}

static void fuzz_main(void *arg)
{
    (void)arg;
    CHECK_OK(store_case_format(&stage, 2, 1, 1, 1, FORMAT_JOURNAL_MIN));
    ds = store_case_open(&stage, 2);
    for (unsigned i = 0; i < 64 && codec_left(&input) > 2; i++) {
        unsigned kind = codec_read_u8(&input), unit = codec_read_u8(&input) % UNITS;

        if (kind % 8)
            put_batch(unit);
        else
            put_noise(unit);
    }
    durable = 0;
    if (replay() == 0)
        write_on();
    journal_free(journal);
    driveset_close(ds);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = codec_reader_on(data, size);
    sim_case_init(&stage, 1);
    sim_case_run(&stage, fuzz_main, NULL);
    sim_case_free(&stage);
    return 0;
}
