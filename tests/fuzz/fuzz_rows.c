/* What the engine reads back from its own media and tables: rows of the KV store, bodies of
 * records, superblocks. Checksums stand before most of them; here they have been passed. What is
 * accepted must hold together and, encoded again, be accepted again. Input: a byte that says what,
 * the bytes. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "daemon/bucket_row.h"
#include "daemon/catalog.h"
#include "daemon/recipe.h"
#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/mem.h"
#include "lib/store/drive.h"
#include "tests/unit/store/store_case.h"

/* ---- Catalogue and recipes ---- */

static void check_attrs(const struct catalog_attrs *a)
{
    CHECK(a->count <= CATALOG_ATTRS_MAX);
    for (size_t i = 0; i < a->count; i++)
        CHECK(a->attrs[i].value[a->attrs[i].len] == 0);
}

#define AGAIN(type, in)                                                                      \
    do {                                                                                     \
        struct catalog_##type *row_ = mem_zalloc(sizeof(*row_));                             \
        STRBUF_AUTO struct strbuf out_ = STRBUF_INIT;                                        \
        if (catalog_##type##_decode(in, row_) == 0) {                                        \
            check_attrs(&row_->attrs);                                                       \
            catalog_##type##_encode(row_, &out_);                                            \
            CHECK_OK(catalog_##type##_decode((struct kv_slice){out_.data, out_.len}, row_)); \
        }                                                                                    \
        mem_free(row_);                                                                      \
    } while (0)

static void try_uids(struct kv_slice in)
{
    struct catalog_uids uids;

    for (unsigned n = 1; n <= 3; n++)
        if (catalog_uids_split(in, n, &uids) == 0)
            for (unsigned i = 0; i < n; i++)
                CHECK(strlen(uids.part[i]) < sizeof(uids.store));
}

static void try_recipe(struct kv_slice in)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct recipe r;

    if (recipe_decode(in.data, in.len, &r) < 0)
        return;
    recipe_encode(&r, &out);
    CHECK(out.len == in.len && memcmp(out.data, in.data, in.len) == 0);
    for (uint64_t at = 0, step = r.size / 50 + 1; at < r.size; at += step) {
        const struct recipe_piece *pc = &r.pieces[recipe_find(&r, at)];

        CHECK(pc->at <= at && at - pc->at < pc->len);
    }
    recipe_free(&r);
}

/* ---- Buckets ---- */

static void try_bucket(struct kv_slice in)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct bucket_row row;

    if (bucket_row_decode(in, &row) < 0)
        return;
    CHECK(bucket_name_valid(row.name));
    bucket_row_encode(&row, &out);
    CHECK(out.len == in.len && memcmp(out.data, in.data, in.len) == 0);
}

static void try_object(struct kv_slice in)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct bucket_object_row row;

    if (bucket_object_decode(in, &row) < 0)
        return;
    CHECK(row.pair_count <= BUCKET_PAIRS_MAX && strlen(row.type) <= BUCKET_TYPE_MAX);
    bucket_object_encode(&row, &out);
    CHECK(out.len == in.len && memcmp(out.data, in.data, in.len) == 0);
}

/* A recipe's owner, which is also the body of REMOVE, and the body of PUT. */
static void try_bucket_record(struct kv_slice in)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct bucket_put_record *rec = mem_zalloc(sizeof(*rec));
    char name[BUCKET_KEY_MAX + 1];
    uint64_t bucket;
    size_t used;

    if (bucket_owner_decode(in, &bucket, name, &used) == 0) {
        CHECK(bucket_key_valid(name) && used <= in.len && used == bucket_owner_length(name));
        bucket_owner_encode(bucket, name, &out);
        CHECK(out.len == used && memcmp(out.data, in.data, used) == 0);
    }
    strbuf_reset(&out);
    if (bucket_put_decode(in, rec) == 0) {
        bucket_put_encode(rec, &out);
        strbuf_add(&out, rec->recipe.data, rec->recipe.len);
        CHECK(out.len == in.len && memcmp(out.data, in.data, in.len) == 0);
        try_recipe(rec->recipe);
    }
    mem_free(rec);
}

/* ---- Chunks ---- */

static void check_chunk(const struct chunk_row *r)
{
    CHECK(r->raw > 0 && r->raw <= CHUNK_MAX && r->loc.stored > 0 && r->loc.stored <= r->raw);
    CHECK(r->codec == COMPRESS_RAW ? r->loc.stored == r->raw : r->codec < COMPRESS_CODECS);
}

static void try_chunk_row(struct kv_slice in)
{
    uint8_t bytes[CHUNK_ROW_SIZE];
    struct chunk_row r = {0}, again = {0};

    if (chunk_row_decode(in.data, in.len, &r) < 0)
        return;
    check_chunk(&r);
    chunk_row_encode(&r, bytes);
    CHECK_OK(chunk_row_decode(bytes, sizeof(bytes), &again));
    CHECK(memcmp(&again.loc, &r.loc, sizeof(r.loc)) == 0 && again.refs == r.refs);
}

static void try_chunk_list(struct kv_slice in)
{
    struct chunkstore nothing = {0}; /* taking a list asks nothing of it */
    struct chunk_txn *t = chunk_txn_begin(&nothing);
    size_t used = 0, length = 0;
    int rc = chunk_list_length(in.data, in.len, &length);

    if (rc == 0)
        CHECK(length >= 4 && length <= in.len);
    if (chunk_txn_take(t, in.data, in.len, &used) == 0)
        CHECK(rc == 0 && used == length);
    chunk_txn_abort(t);
}

/* ---- Segments ---- */

static struct driveset *fuzz_drives(void)
{
    struct driveset *ds = mem_zalloc(sizeof(*ds));

    ds->count = 4;
    for (unsigned i = 0; i < ds->count; i++) {
        ds->drives[i].index = i;
        ds->drives[i].slot_count = 9;
    }
    ds->super.slot_size = FORMAT_SLOT_SIZE;
    ds->super.data_columns = ds->super.parity_columns = 2;
    return ds;
}

static void take_row(void *arg, uint64_t segment, const struct strbuf *value)
{
    CHECK_OK(segment_load(arg, segment, value->data, value->len));
}

static void gone(void *arg, uint64_t segment)
{
    (void)arg;
    (void)segment;
}

/* Rows and records, as many as the input has: a length byte, a byte that says what, the bytes. */
static void try_segments(const uint8_t *p, size_t n)
{
    struct driveset *ds = fuzz_drives();
    struct segments *ss, *again;
    struct segment_space a, b;

    CHECK_OK(segments_new(ds, NULL, &ss));
    CHECK_OK(segments_new(ds, NULL, &again));
    while (n >= 10) {
        size_t len = p[0] < n - 2 ? p[0] : n - 2;
        uint8_t *copy = mem_memdup(p + 2, len);

        if (p[1] % 4 == 0)
            (void)segment_apply_open(ss, copy, len, NULL);
        else if (p[1] % 4 == 1)
            (void)segment_apply_free(ss, copy, len, gone, NULL);
        else if (len >= 30) /* under the id that the row says, often */
            (void)segment_load(ss, p[1] % 4 == 2 ? codec_get_le64(copy + 22) : 1, copy, len);
        mem_free(copy);
        p += 2 + len;
        n -= 2 + len;
    }
    segment_get_space(ss, &a);
    CHECK(a.segments <= 36 && a.physical <= 36ull * FORMAT_SLOT_SIZE);
    segment_take_dirty(ss, take_row, again); /* what opened can be loaded */
    segment_get_space(again, &b);
    CHECK(b.segments <= a.segments && b.physical <= a.physical);
    segments_free(ss);
    segments_free(again);
    mem_free(ds);
}

/* ---- Superblocks ---- */

static struct sim_case fuzz_case;
static const uint8_t *fuzz_p;
static size_t fuzz_n;

/* A sound superblock with the input laid over it somewhere, signed again. */
static void super_patch(unsigned drive)
{
    const char *path = store_case_paths(2)[drive];
    struct format_super s;
    struct env_file *f;
    size_t at, n;

    CHECK_OK(sim_file_read(fuzz_case.sim, path, &s, sizeof(s), 0));
    if (fuzz_n >= 2) {
        at = codec_get_le16(fuzz_p) % 400u;
        if (at >= 144) /* past the fields: the members */
            at = FORMAT_UNIT - 1024 + (at - 144);
        n = fuzz_n - 2 < sizeof(s) - at ? fuzz_n - 2 : sizeof(s) - at;
        memcpy((uint8_t *)&s + at, fuzz_p + 2, n);
    }
    s.magic = FORMAT_SUPER_MAGIC;
    s.version = FORMAT_VERSION;
    s.crc = 0;
    s.crc = crc32c(0, &s, sizeof(s));
    CHECK_OK(env_open(fuzz_case.env, path, 0, &f));
    CHECK_OK(env_pwrite(f, &s, sizeof(s), FORMAT_SUPER_OFF_A, true));
    CHECK_OK(env_pwrite(f, &s, sizeof(s), FORMAT_SUPER_OFF_B, true));
    env_close(f);
}

static void super_main(void *arg)
{
    struct driveset *ds;
    struct segments *ss;

    (void)arg;
    CHECK_OK(store_case_format(&fuzz_case, 2, 1, 1, 2, FORMAT_JOURNAL_MIN));
    super_patch(0);
    if (fuzz_n % 2)
        super_patch(1);
    if (driveset_open(fuzz_case.env, store_case_paths(2), 2, &ds) < 0)
        return;
    CHECK(ds->super.replay_off <= ds->super.journal_len);
    CHECK_OK(segments_new(ds, NULL, &ss)); /* sized by what the superblock says */
    segments_free(ss);
    (void)driveset_commit(ds, true, NULL, NULL);
    driveset_close(ds);
}

static void try_super(const uint8_t *p, size_t n)
{
    fuzz_p = p;
    fuzz_n = n;
    sim_case_init(&fuzz_case, 1);
    sim_case_run(&fuzz_case, super_main, NULL);
    sim_case_free(&fuzz_case);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kv_slice in = {data + 1, size - 1};

    if (size < 1)
        return 0;
    switch (data[0] < 0xf0 ? data[0] % 10 : data[0]) {
    case 0:
        AGAIN(study, in);
        break;
    case 1:
        AGAIN(series, in);
        break;
    case 2:
        AGAIN(instance, in);
        break;
    case 3:
        try_uids(in);
        break;
    case 4:
        try_recipe(in);
        break;
    case 5:
        try_chunk_row(in);
        break;
    case 6:
        try_chunk_list(in);
        break;
    case 7:
        try_segments(in.data, in.len);
        break;
    case 9:
        AGAIN(patient, in);
        break;
    case 0xf0:
        try_bucket(in);
        break;
    case 0xf1:
        try_object(in);
        break;
    case 0xf2:
        try_bucket_record(in);
        break;
    default:
        try_super(in.data, in.len);
        break;
    }
    return 0;
}
