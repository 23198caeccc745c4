/* What is in the KV store, for filmroom-dump: chunks, instances, volumes. Volume writes that are
 * still in the journal are not in the maps; "journal_clean" says whether there may be some. */
#include <string.h>

#include "daemon/catalog.h"
#include "daemon/leafmap.h"
#include "daemon/recipe.h"
#include "daemon/scrubber.h"
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

/* ---- Scrub ---- */

void dump_scrub(struct dump *d)
{
    MEM_AUTO void *value = NULL;
    size_t len;

    value = dump_get(d, KV_META, (struct kv_slice){SCRUB_KEY, strlen(SCRUB_KEY)}, &len);
    d->out = json_object();
    if (value)
        dump_set_scrub(d->out, value, len);
}

/* ---- Instances ---- */

json_t *dump_pieces(const struct recipe *r)
{
    json_t *pieces = json_array();

    for (uint32_t i = 0; i < r->piece_count; i++) {
        json_t *row = json_object();

        dump_set(row, "at", r->pieces[i].at);
        dump_set(row, "chunk", r->chunks[r->pieces[i].chunk].id);
        dump_set(row, "offset", r->pieces[i].off);
        dump_set(row, "length", r->pieces[i].len);
        (void)json_array_append_new(pieces, row);
    }
    return pieces;
}

static void instance_pieces(struct dump *d, const char *uid)
{
    MEM_AUTO void *value = NULL;
    struct recipe r;
    struct catalog_key k;
    size_t len;

    catalog_key_make(&k, 'R', uid, NULL, NULL);
    value = dump_get(d, KV_RECIPE, catalog_key_slice(&k), &len);
    if (!value || recipe_decode(value, len, &r) < 0) {
        dump_fail(d, "instance %s: its recipe is %s", uid, value ? "broken" : "not there");
        return;
    }
    (void)json_object_set_new(d->out, "pieces", dump_pieces(&r));
    recipe_free(&r);
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

struct find_volume {
    const char *name;
    struct volume_row row;
    bool found;
};

static bool volume_is(struct find_volume *f, const struct kv_row *row)
{
    return volume_row_decode(row->key, row->value, &f->row) == 0 && !f->row.deleting &&
           strcmp(f->row.info.name, f->name) == 0;
}

static void volume_find(struct dump *d, struct find_volume *f)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *row;
    int rc = 0;

    kv_walk_init(&w, d->o.kv, KV_VOLUME, (struct kv_slice){"", 1}, (struct kv_slice){"", 0},
                 DUMP_PAGE, 4u << 20);
    while (!f->found && (rc = kv_walk_next(&w, &row)) > 0)
        f->found = volume_is(f, row);
    if (rc < 0)
        dump_fail(d, "the metadata cannot be read: %s", err_text(rc));
    else if (!f->found)
        dump_fail(d, "volume %s: no such volume", f->name);
}

/* A volume's blocks are what its map says, and where that says nothing, the map upon which it lies,
 * and so on (daemon/volume_snap.c). The maps are walked side by side, leaf by leaf. */
#define LAYERS_MAX 1024u
struct layer {
    uint64_t map;
    struct kv_rows *page; /* leaves; NULL before the first */
    size_t at;
    uint64_t index; /* of the leaf at hand; UINT64_MAX after the last */
};

struct extents {
    json_t *rows;
    struct layer *layers; /* the volume's own map first */
    size_t count;
    uint64_t from, to;                       /* blocks */
    uint64_t block, blocks, chunk, sub, map; /* the run at hand */
};

/* Goes on to the layer's next leaf at or behind the index. */
static void layer_seek(struct dump *d, const struct extents *e, struct layer *l, uint64_t index)
{
    uint8_t from[16], to[16];
    int rc;

    if (l->page && l->at < l->page->count) {
        l->index = codec_get_be64((const uint8_t *)l->page->rows[l->at].key.data + 8);
        return; /* they are in order, and no layer is left behind */
    }
    kv_rows_free(l->page);
    l->page = NULL;
    l->at = 0;
    l->index = UINT64_MAX;
    if (index * LEAF_BLOCKS >= e->to)
        return;
    codec_put_be64(from, l->map);
    codec_put_be64(from + 8, index);
    codec_put_be64(to, l->map);
    codec_put_be64(to + 8, (e->to + LEAF_BLOCKS - 1) / LEAF_BLOCKS);
    rc = kv_scan(d->o.kv, KV_MAP, (struct kv_slice){from, 16}, (struct kv_slice){to, 16}, DUMP_PAGE,
                 4u << 20, 0, &l->page);
    if (rc < 0) {
        l->page = NULL;
        dump_fail(d, "the metadata cannot be read: %s", err_text(rc));
    } else if (l->page->count) {
        l->index = codec_get_be64((const uint8_t *)l->page->rows[0].key.data + 8);
    }
}

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
    dump_set(row, "map", e->map);
    (void)json_array_append_new(e->rows, row);
    e->blocks = 0;
}

/* What the first layer that says something says of a block of this leaf. */
static uint64_t layers_entry(const struct extents *e, uint64_t index, unsigned i, uint64_t *ret_map)
{
    for (size_t n = 0; n < e->count; n++) {
        const struct layer *l = &e->layers[n];
        const struct kv_slice *leaf;
        uint64_t entry;

        if (l->index != index)
            continue;
        leaf = &l->page->rows[l->at].value;
        entry = leaf->len == LEAF_BLOCKS * 8
                    ? codec_get_le64((const uint8_t *)leaf->data + (size_t)8 * i)
                    : 0; /* broken: filmroom-fsck tells */
        *ret_map = l->map;
        if (entry)
            return LEAF_CHUNK(entry) ? entry : 0;
    }
    return 0;
}

static void extents_leaf(struct extents *e, uint64_t index)
{
    uint64_t first = index * LEAF_BLOCKS, map;

    for (unsigned i = 0; i < LEAF_BLOCKS; i++) {
        uint64_t entry = layers_entry(e, index, i, &map);

        if (!entry || first + i < e->from || first + i >= e->to)
            continue;
        if (e->blocks && e->block + e->blocks == first + i && e->chunk == LEAF_CHUNK(entry) &&
            e->sub + e->blocks == LEAF_SUB(entry) && e->map == map) {
            e->blocks++;
            continue;
        }
        extent_end(e);
        e->block = first + i;
        e->blocks = 1;
        e->chunk = LEAF_CHUNK(entry);
        e->sub = LEAF_SUB(entry);
        e->map = map;
    }
}

static void extents_walk(struct dump *d, struct extents *e)
{
    for (size_t n = 0; n < e->count; n++)
        layer_seek(d, e, &e->layers[n], e->from / LEAF_BLOCKS);
    for (;;) {
        uint64_t index = UINT64_MAX;

        for (size_t n = 0; n < e->count; n++)
            if (e->layers[n].index < index)
                index = e->layers[n].index;
        if (index == UINT64_MAX)
            break;
        extents_leaf(e, index);
        for (size_t n = 0; n < e->count; n++) {
            struct layer *l = &e->layers[n];

            if (l->index != index)
                continue;
            l->at++;
            layer_seek(d, e, l, index + 1);
        }
    }
    extent_end(e);
}

/* Adds the maps from the volume's own to the last; "mapped" is what is in all of them. */
static bool volume_layers(struct dump *d, const struct volume_row *v, struct extents *e,
                          uint64_t *ret_mapped)
{
    uint64_t mapped = 0;

    for (uint64_t id = v->map; id;) {
        struct volume_map_row row = volume_row_old_map(v);
        uint8_t key[VOLUME_MAP_KEY];
        MEM_AUTO void *value = NULL;
        size_t len;

        volume_map_key(id, key);
        value = dump_get(d, KV_VOLUME, (struct kv_slice){key, sizeof(key)}, &len);
        if (value ? volume_map_row_decode((struct kv_slice){key, sizeof(key)},
                                          (struct kv_slice){value, len}, &row) < 0
                  : !v->old || id != v->map) {
            dump_fail(d, "volume %s: the row of its map %llu is %s", v->info.name,
                      (unsigned long long)id, value ? "broken" : "not there");
            return false;
        }
        if (e->count == LAYERS_MAX) {
            dump_fail(d, "volume %s: its maps do not end: run filmroom-fsck", v->info.name);
            return false;
        }
        e->layers[e->count++] = (struct layer){.map = id};
        mapped += row.mapped * BLOCK_SIZE;
        id = row.parent;
    }
    *ret_mapped = mapped < v->info.size ? mapped : v->info.size;
    return true;
}

static void volume_out(struct dump *d, const struct volume_row *v, struct extents *e,
                       uint64_t mapped)
{
    json_t *maps = json_array();

    for (size_t n = 0; n < e->count; n++)
        (void)json_array_append_new(maps, json_integer((json_int_t)e->layers[n].map));
    d->out = json_object();
    dump_set_text(d->out, "name", v->info.name, strlen(v->info.name));
    dump_set(d->out, "id", v->info.id);
    if (v->of)
        dump_set(d->out, "snapshot_of", v->of);
    dump_set(d->out, "size", v->info.size);
    dump_set(d->out, "mapped", mapped);
    set_clean(d);
    (void)json_object_set_new(d->out, "maps", maps);
    (void)json_object_set_new(d->out, "extents", json_incref(e->rows));
}

void dump_volume(struct dump *d)
{
    struct find_volume f = {.name = d->args[0]};
    struct extents e = {.from = d->from / BLOCK_SIZE,
                        .to = d->to / BLOCK_SIZE + (d->to % BLOCK_SIZE != 0)};
    uint64_t mapped;

    volume_find(d, &f);
    if (!f.found)
        return;
    if (e.to > f.row.info.size / BLOCK_SIZE)
        e.to = f.row.info.size / BLOCK_SIZE; /* below a map may be more than shows */
    e.rows = json_array();
    e.layers = mem_zalloc(LAYERS_MAX * sizeof(*e.layers));
    if (volume_layers(d, &f.row, &e, &mapped)) {
        extents_walk(d, &e);
        volume_out(d, &f.row, &e, mapped);
    }
    for (size_t n = 0; n < e.count; n++)
        kv_rows_free(e.layers[n].page);
    mem_free(e.layers);
    json_decref(e.rows);
}
