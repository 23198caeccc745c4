/* What is in the KV store, for filmroom-dump: chunks, instances, volumes. Volume writes that are
 * still in the journal are not in the maps; "journal_clean" says whether there may be some. */
#include <string.h>

#include "daemon/catalog.h"
#include "daemon/leafmap.h"
#include "daemon/recipe.h"
#include "daemon/volume_row.h"
#include "dedup/chunk_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tools/dump.h"

#define DUMP_PAGE 256u

static void set_clean(struct dump *d)
{
    (void)json_object_set_new(d->out, "journal_clean", json_boolean(d->o.drives->super.clean));
}

/* ---- Chunks ---- */

/* The columns of its segment that hold its bytes, and where. */
static json_t *chunk_columns(struct dump *d, const struct segment_loc *l)
{
    uint64_t column = (uint64_t)l->stripe.width * FORMAT_UNIT;
    json_t *rows = json_array();
    MEM_AUTO void *value = NULL;
    struct segment s;
    uint8_t key[8];
    size_t len;

    codec_put_be64(key, l->stripe.segment);
    value = dump_get(d, KV_SEGMENT, (struct kv_slice){key, 8}, &len);
    if (!value || segment_row_decode(value, len, &s) < 0 || column == 0)
        return rows;
    for (uint64_t at = l->position, end = at + l->stored; at < end && at / column < s.k;) {
        uint64_t inner = at % column, n = column - inner < end - at ? column - inner : end - at;
        unsigned c = (unsigned)(at / column);
        json_t *row = json_object();

        dump_set(row, "drive", s.drive[c]);
        dump_set(row, "offset",
                 d->o.drives->super.slots_off + s.slot[c] * d->o.drives->super.slot_size +
                     (uint64_t)l->stripe.offset * FORMAT_UNIT + inner);
        dump_set(row, "length", n);
        (void)json_array_append_new(rows, row);
        at += n;
    }
    return rows;
}

void dump_chunk(struct dump *d)
{
    static const char *const codecs[] = {"raw", "zstd", "delta16-zstd"};
    MEM_AUTO void *value = NULL;
    struct chunk_row c = {0};
    uint8_t key[8];
    size_t len;

    codec_put_be64(key, d->number);
    value = dump_get(d, KV_CHUNK, (struct kv_slice){key, 8}, &len);
    if (!value || chunk_row_decode(value, len, &c) < 0) {
        dump_fail(d, "chunk %s: %s", d->args[0], value ? "its row is broken" : "no such chunk");
        return;
    }
    d->out = json_object();
    dump_set(d->out, "id", d->number);
    dump_set(d->out, "references", c.refs);
    dump_set(d->out, "raw", c.raw);
    dump_set(d->out, "stored", c.loc.stored);
    (void)json_object_set_new(d->out, "codec", json_string(codecs[c.codec]));
    dump_set(d->out, "crc", c.loc.crc);
    dump_set(d->out, "segment", c.loc.stripe.segment);
    dump_set(d->out, "offset", c.loc.stripe.offset);
    dump_set(d->out, "width", c.loc.stripe.width);
    dump_set(d->out, "position", c.loc.position);
    dump_set_hex(d->out, "fingerprint", c.fp, sizeof(c.fp));
    (void)json_object_set_new(d->out, "columns", chunk_columns(d, &c.loc));
}

/* ---- Instances ---- */

static void instance_pieces(struct dump *d, const char *uid)
{
    json_t *pieces = json_array();
    MEM_AUTO void *value = NULL;
    struct recipe r;
    struct catalog_key k;
    size_t len;

    catalog_key_make(&k, 'R', uid, NULL, NULL);
    value = dump_get(d, KV_RECIPE, catalog_key_slice(&k), &len);
    if (!value || recipe_decode(value, len, &r) < 0) {
        json_decref(pieces);
        dump_fail(d, "instance %s: its recipe is %s", uid, value ? "broken" : "not there");
        return;
    }
    for (uint32_t i = 0; i < r.piece_count; i++) {
        json_t *row = json_object();

        dump_set(row, "at", r.pieces[i].at);
        dump_set(row, "chunk", r.chunks[r.pieces[i].chunk].id);
        dump_set(row, "offset", r.pieces[i].off);
        dump_set(row, "length", r.pieces[i].len);
        (void)json_array_append_new(pieces, row);
    }
    recipe_free(&r);
    (void)json_object_set_new(d->out, "pieces", pieces);
}

static void instance_row(struct dump *d, const char *uid, const struct catalog_uids *home)
{
    struct catalog_instance *i = mem_zalloc(sizeof(*i));
    MEM_AUTO void *value = NULL;
    struct catalog_key k;
    size_t len;

    catalog_key_make(&k, 'I', home->part[0], home->part[1], uid);
    value = dump_get(d, KV_CATALOG, catalog_key_slice(&k), &len);
    if (!value || catalog_instance_decode((struct kv_slice){value, len}, i) < 0) {
        dump_fail(d, "instance %s: its row is %s", uid, value ? "broken" : "not there");
    } else {
        dump_set(d->out, "bytes", i->bytes);
        dump_set(d->out, "dataset_offset", i->dataset_off);
        dump_set(d->out, "stored_ns", i->stored_ns);
        dump_set_text(d->out, "sop_class", i->sop_class, strlen(i->sop_class));
        dump_set_text(d->out, "transfer_syntax", i->transfer_syntax, strlen(i->transfer_syntax));
        dump_set_hex(d->out, "digest", i->digest, sizeof(i->digest));
    }
    mem_free(i);
}

void dump_instance(struct dump *d)
{
    const char *uid = d->args[0];
    MEM_AUTO void *value = NULL;
    struct catalog_uids home;
    struct catalog_key k;
    size_t len;

    if (strlen(uid) <= OBJECT_UID_MAX) {
        catalog_key_make(&k, 'U', uid, NULL, NULL);
        value = dump_get(d, KV_INDEX, catalog_key_slice(&k), &len);
    }
    if (!value || catalog_uids_split((struct kv_slice){value, len}, 2, &home) < 0 ||
        strlen(home.part[0]) > OBJECT_UID_MAX || strlen(home.part[1]) > OBJECT_UID_MAX) {
        dump_fail(d, "instance %s: %s", uid,
                  value ? "its index row is broken" : "no such instance");
        return;
    }
    d->out = json_object();
    dump_set_text(d->out, "instance", uid, strlen(uid));
    dump_set_text(d->out, "study", home.part[0], strlen(home.part[0]));
    dump_set_text(d->out, "series", home.part[1], strlen(home.part[1]));
    instance_row(d, uid, &home);
    instance_pieces(d, uid);
}

/* ---- Volumes ---- */

/* Calls `row` for the rows from <= key < to; it returns false to end. */
static void walk(struct dump *d, enum kv_table t, const uint8_t *from, size_t len,
                 const uint8_t *to, size_t to_len, bool (*row)(void *arg, const struct kv_row *row),
                 void *arg)
{
    uint8_t at[17];
    size_t n = 1;
    bool more = true;

    memcpy(at, from, len);
    while (more && n) {
        struct kv_rows *rows;
        int rc = kv_scan(d->o.kv, t, (struct kv_slice){at, len}, (struct kv_slice){to, to_len},
                         DUMP_PAGE, 4u << 20, 0, &rows);

        if (rc < 0) {
            dump_fail(d, "the metadata cannot be read: %s", err_text(rc));
            return;
        }
        n = rows->count;
        for (size_t i = 0; more && i < n; i++)
            more = rows->rows[i].key.len < sizeof(at) && row(arg, &rows->rows[i]);
        if (n && more) {
            len = rows->rows[n - 1].key.len;
            memcpy(at, rows->rows[n - 1].key.data, len);
            at[len++] = 0;
        }
        kv_rows_free(rows);
    }
}

struct find_volume {
    const char *name;
    struct volume_row row;
    bool found;
};

static bool volume_is(void *arg, const struct kv_row *row)
{
    struct find_volume *f = arg;

    f->found = volume_row_decode(row->key, row->value, &f->row) == 0 && !f->row.deleting &&
               strcmp(f->row.info.name, f->name) == 0;
    return !f->found;
}

struct extents {
    json_t *rows;
    uint64_t from, to;                  /* blocks */
    uint64_t block, blocks, chunk, sub; /* the run at hand */
};

static void extent_end(struct extents *e)
{
    json_t *row;

    if (e->blocks == 0)
        return;
    row = json_object();
    dump_set(row, "offset", e->block * BLOCK_SIZE);
    dump_set(row, "length", e->blocks * BLOCK_SIZE);
    dump_set(row, "chunk", e->chunk);
    dump_set(row, "chunk_offset", e->sub * BLOCK_SIZE);
    (void)json_array_append_new(e->rows, row);
    e->blocks = 0;
}

static bool extent_leaf(void *arg, const struct kv_row *row)
{
    struct extents *e = arg;
    uint64_t first;

    if (row->key.len != 16 || row->value.len != LEAF_BLOCKS * 8)
        return true;
    first = codec_get_be64((const uint8_t *)row->key.data + 8) * LEAF_BLOCKS;
    for (unsigned i = 0; i < LEAF_BLOCKS; i++) {
        uint64_t entry = codec_get_le64((const uint8_t *)row->value.data + 8 * i);

        if (!entry || first + i < e->from || first + i >= e->to)
            continue;
        if (e->blocks && e->block + e->blocks == first + i && e->chunk == LEAF_CHUNK(entry) &&
            e->sub + e->blocks == LEAF_SUB(entry)) {
            e->blocks++;
            continue;
        }
        extent_end(e);
        e->block = first + i;
        e->blocks = 1;
        e->chunk = LEAF_CHUNK(entry);
        e->sub = LEAF_SUB(entry);
    }
    return true;
}

void dump_volume(struct dump *d)
{
    struct find_volume f = {.name = d->args[0]};
    struct extents e = {.from = d->from / BLOCK_SIZE,
                        .to = d->to / BLOCK_SIZE + (d->to % BLOCK_SIZE != 0)};
    uint8_t from[16], to[16];

    walk(d, KV_VOLUME, (const uint8_t *)"", 1, (const uint8_t *)"", 0, volume_is, &f);
    if (!f.found) {
        dump_fail(d, "volume %s: no such volume", d->args[0]);
        return;
    }
    e.rows = json_array();
    codec_put_be64(from, f.row.info.id);
    codec_put_be64(from + 8, e.from / LEAF_BLOCKS);
    codec_put_be64(to, f.row.info.id);
    codec_put_be64(to + 8, e.to / LEAF_BLOCKS + 1);
    walk(d, KV_MAP, from, sizeof(from), to, sizeof(to), extent_leaf, &e);
    extent_end(&e);
    d->out = json_object();
    dump_set_text(d->out, "name", f.row.info.name, strlen(f.row.info.name));
    dump_set(d->out, "id", f.row.info.id);
    dump_set(d->out, "size", f.row.info.size);
    dump_set(d->out, "mapped", f.row.info.mapped);
    set_clean(d);
    (void)json_object_set_new(d->out, "extents", e.rows);
}
