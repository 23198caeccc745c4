/* What is on drives, for filmroom-dump: superblocks, the journal, segments. All of it works without
 * the KV store; where there is one, segments are compared with its table. */
#include <stdlib.h>
#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/segment.h"
#include "tools/dump.h"

/* ---- Superblocks ---- */

static json_t *super_members(const struct format_super *s)
{
    static const char *const states[] = {"none", "ok", "out", "leaving"};
    json_t *rows = json_array();

    for (uint32_t i = 0; i < s->drive_count; i++) {
        const struct format_member *m = &s->members[i];
        json_t *row = json_object();

        dump_set(row, "index", i);
        dump_set_hex(row, "uuid", m->uuid, sizeof(m->uuid));
        (void)json_object_set_new(row, "state",
                                  json_string(m->state < 4 ? states[m->state] : "unknown"));
        (void)json_object_set_new(row, "class", json_string(m->class_ ? "nvme" : "disk"));
        dump_set(row, "slots", m->slot_count);
        (void)json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *super_copy(const struct format_super *s, uint64_t off, const char *error)
{
    json_t *o = json_object();
    bool valid = !*error && drive_super_valid(s);

    dump_set(o, "offset", off);
    (void)json_object_set_new(o, "valid", json_boolean(valid));
    if (*error)
        (void)json_object_set_new(o, "error", json_string(error));
    if (!valid)
        return o;
    dump_set(o, "version", s->version);
    dump_set_hex(o, "store", s->store_uuid, sizeof(s->store_uuid));
    dump_set_hex(o, "drive", s->drive_uuid, sizeof(s->drive_uuid));
    dump_set(o, "drive_index", s->drive_index);
    dump_set(o, "drive_count", s->drive_count);
    dump_set(o, "generation", s->generation);
    dump_set(o, "epoch", s->epoch);
    dump_set(o, "data_columns", s->data_columns);
    dump_set(o, "parity_columns", s->parity_columns);
    dump_set(o, "clean", s->clean);
    dump_set(o, "journal_off", s->journal_off);
    dump_set(o, "journal_len", s->journal_len);
    dump_set(o, "slots_off", s->slots_off);
    dump_set(o, "slot_size", s->slot_size);
    dump_set(o, "journal_mirrors", s->journal_mirrors);
    dump_set(o, "replay_seq", s->replay_seq);
    dump_set(o, "replay_off", s->replay_off);
    dump_set(o, "replay_lsn", s->replay_lsn);
    dump_set(o, "fence_seq", s->fence_seq);
    dump_set(o, "fence_epoch", s->fence_epoch);
    (void)json_object_set_new(o, "members", super_members(s));
    return o;
}

/* Counts copies that are valid. */
static json_t *super_drive(struct dump *d, unsigned i, unsigned *valid)
{
    static const uint64_t offs[] = {FORMAT_SUPER_OFF_A, FORMAT_SUPER_OFF_B};
    json_t *row = json_object(), *copies = json_array();
    struct buf *b = buf_new(FORMAT_UNIT);
    struct env_file *file = NULL;
    int opened = env_open(d->o.env, d->o.place.drives[i], ENV_OPEN_RDONLY, &file);

    dump_set(row, "index", i);
    dump_set_text(row, "path", d->o.place.drives[i], strlen(d->o.place.drives[i]));
    for (unsigned c = 0; c < 2; c++) {
        struct format_super s = {0};
        int rc = opened;

        if (rc == 0)
            rc = env_pread(file, b->data, FORMAT_UNIT, offs[c]);
        if (rc == 0)
            memcpy(&s, b->data, sizeof(s));
        *valid += rc == 0 && drive_super_valid(&s);
        (void)json_array_append_new(copies, super_copy(&s, offs[c], rc < 0 ? err_name(rc) : ""));
    }
    (void)json_object_set_new(row, "copies", copies);
    env_close(file);
    buf_unref(b);
    return row;
}

void dump_superblock(struct dump *d)
{
    json_t *rows = json_array();
    unsigned valid = 0;

    d->out = json_pack("{s:o}", "drives", rows);
    if (d->args[0] && d->number >= d->o.place.count) {
        offline_say(&d->o, "there are %u drives", d->o.place.count);
        d->code = DUMP_USAGE;
        return;
    }
    for (unsigned i = 0; i < d->o.place.count; i++)
        if (!d->args[0] || d->number == i)
            (void)json_array_append_new(rows, super_drive(d, i, &valid));
    d->anyway = true; /* what is wrong with each */
    if (!valid)
        dump_fail(d, "%s a valid superblock: check --data and the drives' paths",
                  d->args[0] ? "the drive has no" : "no drive has");
}

/* ---- The journal ---- */

static json_t *mirrors_of(uint64_t mask)
{
    json_t *a = json_array();

    for (unsigned i = 0; i < FORMAT_DRIVES_MAX; i++)
        if (mask >> i & 1)
            (void)json_array_append_new(a, json_integer((json_int_t)i));
    return a;
}

static void journal_records(struct dump *d, struct journal *j, const struct journal_seen *seen,
                            bool live, json_t *records)
{
    struct journal_batch *batch;
    struct journal_record r;
    size_t pos = 0;

    if (journal_survey_read(j, seen, &batch) < 0)
        return; /* it was whole a moment ago: the drive has failed since */
    while (journal_batch_next(batch, &pos, &r)) {
        json_t *row;

        if (r.lsn < d->from)
            continue;
        row = json_object();
        dump_set(row, "lsn", r.lsn);
        dump_set(row, "batch", seen->seq);
        (void)json_object_set_new(row, "live", json_boolean(live));
        (void)json_object_set_new(row, "type", json_string(dump_record_name(r.type)));
        dump_set(row, "version", r.version);
        dump_set(row, "length", r.length);
        dump_record(&r, row);
        (void)json_array_append_new(records, row);
    }
    journal_batch_free(batch);
}

static void journal_tell(struct dump *d, struct journal *j, const struct journal_seen *seen,
                         size_t n)
{
    const struct format_super *s = &d->o.drives->super;
    json_t *batches = json_array(), *records = json_array();

    for (size_t i = 0; i < n; i++) {
        bool live = seen[i].seq >= s->replay_seq;
        json_t *row;

        if (seen[i].first_lsn + seen[i].records <= d->from)
            continue;
        row = json_object();
        dump_set(row, "seq", seen[i].seq);
        dump_set(row, "epoch", seen[i].epoch);
        dump_set(row, "first_lsn", seen[i].first_lsn);
        dump_set(row, "records", seen[i].records);
        dump_set(row, "length", seen[i].length);
        dump_set(row, "offset", seen[i].off);
        (void)json_object_set_new(row, "live", json_boolean(live));
        (void)json_object_set_new(row, "drives", mirrors_of(seen[i].mirrors));
        (void)json_array_append_new(batches, row);
        journal_records(d, j, &seen[i], live, records);
    }
    d->out = json_object();
    (void)json_object_set_new(d->out, "clean", json_boolean(s->clean));
    dump_set(d->out, "size", s->journal_len);
    dump_set(d->out, "replay_seq", s->replay_seq);
    dump_set(d->out, "replay_lsn", s->replay_lsn);
    (void)json_object_set_new(d->out, "mirrors", mirrors_of(s->journal_mirrors));
    (void)json_object_set_new(d->out, "batches", batches);
    (void)json_object_set_new(d->out, "records", records);
}

void dump_journal(struct dump *d)
{
    struct journal *j;
    struct journal_seen *seen = NULL;
    size_t n;
    int rc = journal_open(d->o.drives, NULL, NULL, &j);

    if (rc == 0) {
        rc = journal_survey(j, &seen, &n);
        if (rc == 0)
            journal_tell(d, j, seen, n);
        journal_free(j);
    }
    mem_free(seen);
    if (rc < 0)
        dump_fail(d, "the journal cannot be read: %s", err_text(rc));
}

/* ---- Segments ---- */

struct found_segment {
    struct format_fragment fragment;
    uint32_t columns; /* bit per column whose fragment is in its place */
};

struct found {
    struct found_segment *rows;
    size_t count, room;
    uint64_t only;
};

static void found_add(struct found *f, const struct format_fragment *fr)
{
    for (size_t i = 0; i < f->count; i++) {
        if (f->rows[i].fragment.segment != fr->segment)
            continue;
        f->rows[i].columns |= 1u << fr->column;
        return;
    }
    if (f->count == f->room) {
        f->room = f->room ? 2 * f->room : 64;
        f->rows = mem_realloc(f->rows, f->room * sizeof(*f->rows));
    }
    f->rows[f->count++] = (struct found_segment){*fr, 1u << fr->column};
}

static void found_fragment(void *arg, const struct format_fragment *fr)
{
    struct found *f = arg;

    if (!f->only || fr->segment == f->only)
        found_add(f, fr);
}

/* Looks at the front of every slot of every drive; `only` is 0 or the segment that is wanted. */
static void find_segments(struct dump *d, uint64_t only, struct found *f)
{
    f->only = only;
    segment_walk_fragments(d->o.drives, found_fragment, f);
}

static int found_compare(const void *x, const void *y)
{
    const struct found_segment *a = x, *b = y;

    return (a->fragment.segment > b->fragment.segment) -
           (a->fragment.segment < b->fragment.segment);
}

/* The segment's row in the table; mem_free. */
static void *segment_row(struct dump *d, uint64_t id, size_t *ret_len)
{
    uint8_t key[8];

    codec_put_be64(key, id);
    return d->o.kv ? dump_get(d, KV_SEGMENT, (struct kv_slice){key, 8}, ret_len) : NULL;
}

static json_t *segment_tell(struct dump *d, const struct found_segment *f)
{
    const struct format_fragment *fr = &f->fragment;
    MEM_AUTO void *value = NULL;
    json_t *row = json_object(), *columns = json_array();
    struct segment s;
    size_t len;

    dump_set(row, "id", fr->segment);
    dump_set(row, "k", fr->data_columns);
    dump_set(row, "m", fr->parity_columns);
    for (unsigned i = 0; i < fr->data_columns + fr->parity_columns; i++)
        (void)json_array_append_new(
            columns, json_pack("{s:i, s:i, s:b}", "drive", (int)fr->columns[i].drive, "slot",
                               (int)fr->columns[i].slot, "header", (int)(f->columns >> i & 1)));
    value = segment_row(d, fr->segment, &len);
    if (!d->o.kv)
        (void)json_object_set_new(row, "table", json_null());
    else
        (void)json_object_set_new(row, "table", json_boolean(value != NULL));
    if (value && segment_row_decode(value, len, &s) == 0) {
        (void)json_object_set_new(row, "state",
                                  json_string(s.state == SEGMENT_OPEN ? "open" : "sealed"));
        dump_set(row, "stream", s.stream);
        dump_set(row, "used", s.used);
        dump_set(row, "chunks_alive", s.chunks);
        dump_set(row, "bytes_alive", s.live);
    }
    (void)json_object_set_new(row, "columns", columns);
    return row;
}

void dump_segments(struct dump *d)
{
    struct found f = {0};
    json_t *rows = json_array();

    find_segments(d, 0, &f);
    if (f.count)
        qsort(f.rows, f.count, sizeof(*f.rows), found_compare);
    for (size_t i = 0; i < f.count; i++)
        (void)json_array_append_new(rows, segment_tell(d, &f.rows[i]));
    mem_free(f.rows);
    d->out = json_pack("{s:o}", "segments", rows);
}

/* ---- One segment ---- */

static json_t *entry_tell(struct dump *d, const struct segment_entry *e)
{
    json_t *row = json_object();
    MEM_AUTO void *value = NULL;
    struct chunk_row c = {0};
    uint8_t key[8];
    size_t len;

    dump_set(row, "id", e->id);
    dump_set(row, "position", e->loc.position);
    dump_set(row, "stored", e->loc.stored);
    dump_set(row, "raw", e->raw);
    dump_set(row, "crc", e->loc.crc);
    dump_set(row, "codec", e->codec);
    dump_set_hex(row, "fingerprint", e->fingerprint, sizeof(e->fingerprint));
    if (!d->o.kv)
        return row;
    codec_put_be64(key, e->id);
    value = dump_get(d, KV_CHUNK, (struct kv_slice){key, 8}, &len);
    (void)json_object_set_new(
        row, "alive",
        json_boolean(value && chunk_row_decode(value, len, &c) == 0 &&
                     memcmp(&c.loc.stripe, &e->loc.stripe, sizeof(c.loc.stripe)) == 0 &&
                     c.loc.position == e->loc.position));
    return row;
}

static json_t *stripes_tell(struct dump *d, struct segments *ss, uint64_t id)
{
    json_t *stripes = json_array();
    struct segment_entry *entries;
    uint32_t at = 0;
    size_t n;

    while (segment_next_stripe(ss, id, &at, &entries, &n) == 0) {
        json_t *stripe = json_object(), *chunks = json_array();

        dump_set(stripe, "offset", entries[0].loc.stripe.offset);
        dump_set(stripe, "width", entries[0].loc.stripe.width);
        for (size_t i = 0; i < n; i++)
            (void)json_array_append_new(chunks, entry_tell(d, &entries[i]));
        (void)json_object_set_new(stripe, "chunks", chunks);
        (void)json_array_append_new(stripes, stripe);
        mem_free(entries);
    }
    return stripes;
}

/* By the table's row where there is one, else by a fragment. */
static int segment_take(struct dump *d, struct segments *ss, const struct found *f)
{
    MEM_AUTO void *value = NULL;
    size_t len;

    value = segment_row(d, d->number, &len);
    if (value)
        return segment_load(ss, d->number, value, len);
    return f->count ? segment_adopt(ss, &f->rows[0].fragment) : ERR_NOENT;
}

void dump_segment(struct dump *d)
{
    struct found f = {0};
    struct segments *ss;
    int rc = segments_new(d->o.drives, NULL, &ss);

    if (rc < 0)
        return;
    find_segments(d, d->number, &f);
    rc = segment_take(d, ss, &f);
    if (rc == 0) {
        segment_hold(ss, d->number);
        d->out = f.count ? segment_tell(d, &f.rows[0]) : json_object();
        dump_set(d->out, "id", d->number);
        (void)json_object_set_new(d->out, "stripes", stripes_tell(d, ss, d->number));
        segment_release(ss, d->number);
    } else {
        dump_fail(d, "segment %s: %s", d->args[0],
                  rc == ERR_NOENT ? "no fragment of it is on the drives" : err_text(rc));
    }
    mem_free(f.rows);
    segments_free(ss);
}
