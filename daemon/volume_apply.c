/* Volumes: the records that change them, and applying these.
 *
 *   CREATE: size u64, created u64, durability u32, name length u32, name
 *   RESIZE, DELETE: volume u64, size u64 (RESIZE)
 *   WRITE:  volume u64, first block u64, count u32, reserved u32, count x 4096 bytes
 *   MAP:    its chunks (chunk_batch_encode), count u32, reserved u32, count x volume_mapping
 *   ZERO:   volume u64, first block u64, count u32, reserved u32
 *
 * WRITE changes the overlay alone. MAP and ZERO change map and overlay together: a mapping drained
 * from the overlay takes effect only if its source is still the newest version there; any other
 * supersedes what the overlay holds of the block. Which is which depends on the overlay, and replay
 * rebuilds that from a point before every entry that could matter; so it comes out the same.
 *
 * In replay, records that the KV store has already are applied to the overlay only.
 */
#include <string.h>

#include "daemon/volume_priv.h"
#include "daemon/volume_row.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define VOLUME_PAGE 256u /* rows, at the start */

/* ---- Rows ---- */

void volume_put_row(const struct volume *v, struct kv_batch *batch)
{
    uint8_t key[8], row[VOLUME_ROW_MAX];
    struct volume_row r = {.info = v->info, .map = v->map->id, .of = v->of};
    size_t n = volume_row_encode(&r, row);

    codec_put_be64(key, v->info.id);
    kv_batch_put(batch, KV_VOLUME, (struct kv_slice){key, 8}, (struct kv_slice){row, n});
    volume_map_put_row(v->map, batch);
}

struct volume *volume_add(struct volumes *vs, uint64_t id)
{
    struct volume *v = mem_zalloc(sizeof(*v));

    v->owner = vs;
    v->info.id = id;
    list_init(&v->ranges);
    fiber_cond_init(&v->range_freed);
    hmap_insert(&vs->by_id, &v->node, hmap_mix(id));
    list_push_back(&vs->all, &v->link);
    vs->count++;
    return v;
}

/* What a row of version 1 says of the map, which may have no row of its own yet. */
static void load_old_map(struct volumes *vs, const struct volume_row *r)
{
    struct volume_map_row row = volume_row_old_map(r);

    CHECK(!volume_map_find(vs, row.id)); /* its own row comes later in the table */
    volume_map_load(vs, &row);
}

static int volume_load_row(struct volumes *vs, const struct kv_row *row)
{
    struct volume_row r;
    struct volume *v;
    int rc;

    if (row->key.len != 8)
        return volume_map_load_row(vs, row);
    rc = volume_row_decode(row->key, row->value, &r);
    if (rc < 0)
        return rc;
    if (r.old)
        load_old_map(vs, &r);
    if (r.deleting)
        return 0; /* its map is reaped, and the row with it */
    v = volume_add(vs, r.info.id);
    v->info = r.info;
    v->info.mapped = 0; /* the map's */
    v->info.readonly = r.of != 0;
    v->size_limit = r.info.size;
    v->map_id = r.map;
    v->of = r.of;
    return 0;
}

int volumes_load(struct volumes *vs)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *row;
    int rc;

    kv_walk_init(&w, vs->p->kv, KV_VOLUME, (struct kv_slice){"", 1}, (struct kv_slice){"", 0},
                 VOLUME_PAGE, VOLUME_PAGE * 512);
    while ((rc = kv_walk_next(&w, &row)) > 0) {
        rc = volume_load_row(vs, row);
        if (rc < 0)
            return rc;
    }
    return rc == 0 ? volume_maps_link(vs) : rc;
}

/* ---- CREATE, RESIZE, DELETE ---- */

static int apply_create(struct volumes *vs, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    uint64_t size = codec_read_le64(&r), created = codec_read_le64(&r);
    uint32_t durability = codec_read_le32(&r), n = codec_read_le32(&r);
    const uint8_t *name = codec_read_bytes(&r, n);
    char text[BLOCK_NAME_MAX + 1] = {0};
    struct volume *v;

    if (!name || n > BLOCK_NAME_MAX)
        return ERR_FORMAT;
    if (!a->kv)
        return 0; /* the row was loaded */
    memcpy(text, name, n);
    if (volume_find_name(vs, text))
        return ERR_EXIST; /* another one of that name came first */
    /* The LSN is a fine id: it never comes back. */
    v = volume_add(vs, a->lsn);
    v->info.size = v->size_limit = size;
    v->info.created_ns = created;
    v->info.durability = (enum block_durability)durability;
    memcpy(v->info.name, text, sizeof(text));
    v->map = volume_map_add(vs, a->lsn);
    v->map->volume = v->map->since = a->lsn;
    v->map->until = UINT64_MAX;
    v->map->holder = v;
    volume_put_row(v, a->kv);
    return 0;
}

void volume_drop(struct volumes *vs, struct volume *v, struct kv_batch *batch)
{
    uint8_t key[8];

    codec_put_be64(key, v->info.id);
    kv_batch_delete(batch, KV_VOLUME, (struct kv_slice){key, 8});
    hmap_remove(&vs->by_id, &v->node);
    list_del(&v->link);
    vs->count--;
    mem_free(v);
}

static int apply_change(struct volumes *vs, uint16_t type, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    uint64_t id = codec_read_le64(&r), size = codec_read_le64(&r);
    struct volume *v = volume_find(vs, id);

    if (!codec_reader_ok(&r))
        return ERR_FORMAT;
    if (!a->kv) {
        if (type == RECORD_VOLUME_DELETE)
            volume_map_abandon(vs, volume_map_at(vs, id, a->lsn), a);
        return 0;
    }
    if (!v)
        return ERR_NOENT;
    if (type == RECORD_VOLUME_DELETE) {
        if (volume_has_snapshots(vs, id))
            return ERR_SNAPSHOTS;
        volume_map_abandon(vs, v->map, a);
        volume_drop(vs, v, a->kv);
        return 0;
    }
    if (v->size_limit == v->info.size)
        v->size_limit = size;
    v->info.size = size;
    volume_put_row(v, a->kv);
    return 0;
}

/* The map that takes what the record writes to a volume: its map at that moment, never the one at
 * submission; between the two a snapshot may have been taken. NULL: it is gone. */
static struct volume_map *apply_target(struct volumes *vs, const struct apply *a, uint64_t id)
{
    struct volume *v;

    if (!a->kv)
        return volume_map_at(vs, id, a->lsn);
    v = volume_find(vs, id);
    return v ? v->map : NULL;
}

/* ---- WRITE ---- */

static int apply_write(struct volumes *vs, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    uint64_t id = codec_read_le64(&r), first = codec_read_le64(&r);
    uint32_t n = codec_read_le32(&r);
    const uint8_t *bytes;
    struct volume_map *map = apply_target(vs, a, id);

    (void)codec_read_le32(&r);
    bytes = codec_read_bytes(&r, (size_t)n * BLOCK_SIZE);
    if (!bytes)
        return ERR_FORMAT;
    if (a->context)
        vs->overlay_incoming -= n;
    fiber_cond_signal(&vs->drain_work);
    if (!map)
        return 0; /* deleted by a record that the KV store has */
    for (uint32_t i = 0; i < n; i++)
        overlay_put(&vs->overlay, map->id, first + i, a->lsn, bytes + (size_t)i * BLOCK_SIZE,
                    &map->overlay);
    return 0;
}

/* ---- MAP and ZERO: both are lists of mappings ---- */

struct map_apply {
    struct volumes *vs;
    const struct apply *a;
    struct volume_mapping *mappings;
    size_t count;
    struct volume_map **maps; /* per mapping; NULL where it is gone */
    struct leaf **leaves;     /* per mapping, pinned; NULL where it has no effect */
    struct chunk_txn *txn;
    struct volume_map *zero_map;
    uint64_t zero_first, zero_count; /* ZERO: the range that the overlay loses too */
};

/* Does the mapping hold, against the overlay as it is? (Answers without changing anything.) */
static bool mapping_holds(const struct map_apply *m, size_t i)
{
    const struct volume_mapping *mp = &m->mappings[i];
    const struct overlay_entry *e;

    if (!m->maps[i])
        return false;
    if (mp->src_lsn == 0)
        return true;
    e = overlay_find(&m->vs->overlay, m->maps[i]->id, mp->block);
    return (e && e->lsn == mp->src_lsn) || (!e && PLANTED(DRAIN_REVIVES));
}

/* Pins the leaves of the mappings that hold and tells the transaction which chunks change.
 * Suspends. */
static int map_load(struct map_apply *m)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < m->count; i++) {
        const struct volume_mapping *mp = &m->mappings[i];
        uint64_t old;

        if (!mapping_holds(m, i))
            continue;
        rc = leafmap_get(&m->vs->leaves, m->maps[i]->id, mp->block / LEAF_BLOCKS, &m->leaves[i]);
        if (rc < 0)
            break;
        old = m->leaves[i]->entries[mp->block % LEAF_BLOCKS];
        if (LEAF_CHUNK(old))
            chunk_txn_need(m->txn, LEAF_CHUNK(old));
        if (mp->entry)
            chunk_txn_require(m->txn, LEAF_CHUNK(mp->entry));
    }
    return rc == 0 ? chunk_txn_load(m->txn) : rc;
}

/* Moves map entries and references. Does not suspend. */
static void map_change(struct map_apply *m)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct volume_mapping *mp = &m->mappings[i];
        struct leaf *l = m->leaves[i];
        struct volume_map *map = m->maps[i];
        unsigned at = (unsigned)(mp->block % LEAF_BLOCKS);
        uint64_t old, new = mp->entry;

        if (!l)
            continue;
        old = l->entries[at];
        if (!new && map->parent && !PLANTED(HOLE_INHERITS))
            new = LEAF_HOLE; /* not what the parent has */
        if (LEAF_CHUNK(new))
            chunk_txn_ref(m->txn, LEAF_CHUNK(new), 1);
        if (LEAF_CHUNK(old))
            chunk_txn_ref(m->txn, LEAF_CHUNK(old), -1);
        if (old != new)
            volume_map_set(m->vs, map, l, at, new);
    }
}

/* Takes out of the overlay what the mappings supersede, and a zeroed range as a whole. Never before
 * the map has changed: a read in between would find what both have replaced. Does not suspend. */
static void map_settle_overlay(struct map_apply *m)
{
    if (m->zero_map)
        overlay_remove_range(&m->vs->overlay, m->zero_map->id, m->zero_first, m->zero_count);
    for (size_t i = 0; i < m->count; i++) {
        const struct volume_mapping *mp = &m->mappings[i];
        struct overlay_entry *e =
            m->maps[i] ? overlay_find(&m->vs->overlay, m->maps[i]->id, mp->block) : NULL;

        if (PLANTED(BULK_UNDER_OVERLAY) && mp->src_lsn == 0)
            continue;
        if (e && (mp->src_lsn == 0 ? e->lsn < m->a->lsn : e->lsn == mp->src_lsn))
            overlay_remove(&m->vs->overlay, e);
    }
    fiber_cond_broadcast(&m->vs->overlay_room);
}

static void map_put_rows(struct map_apply *m)
{
    const struct volume_map *last = NULL;

    chunk_txn_commit(m->txn, m->a->kv);
    m->txn = NULL;
    for (size_t i = 0; i < m->count; i++) {
        if (!m->leaves[i])
            continue;
        leafmap_flush(&m->vs->leaves, m->leaves[i], m->a->kv);
        if (m->maps[i] != last)
            volume_map_put_row(m->maps[i], m->a->kv);
        last = m->maps[i];
    }
}

/* Applies the mappings; body[0, used) holds the new chunks (NULL: none). Suspends. */
static int map_apply(struct map_apply *m, const uint8_t *chunks, size_t len)
{
    size_t used;
    int rc = 0;

    if (!m->a->kv) {
        map_settle_overlay(m);
        return 0;
    }
    m->leaves = mem_calloc(m->count, sizeof(struct leaf *));
    m->txn = chunk_txn_begin(m->vs->p->chunks);
    if (chunks)
        rc = chunk_txn_take(m->txn, chunks, len, &used);
    if (rc == 0)
        rc = map_load(m);
    if (rc == 0) {
        map_change(m);
        map_put_rows(m);
        map_settle_overlay(m);
    }
    chunk_txn_abort(m->txn);
    for (size_t i = 0; i < m->count; i++)
        leafmap_put(&m->vs->leaves, m->leaves[i]);
    mem_free(m->leaves);
    return rc;
}

static int apply_map(struct volumes *vs, const struct apply *a)
{
    struct map_apply m = {.vs = vs, .a = a};
    struct codec_reader r;
    size_t used = 0;
    uint32_t n;
    int rc = chunk_list_length(a->body, a->length, &used);

    if (rc < 0)
        return rc;
    r = codec_reader_on(a->body + used, a->length - used);
    n = codec_read_le32(&r);
    (void)codec_read_le32(&r);
    if (n > VOLUME_MAPPINGS_MAX || codec_left(&r) != (size_t)n * VOLUME_MAPPING_SIZE)
        return ERR_FORMAT;
    m.mappings = mem_calloc(n, sizeof(*m.mappings));
    m.maps = mem_calloc(n, sizeof(struct volume_map *));
    for (m.count = 0; m.count < n; m.count++) {
        struct volume_mapping *mp = &m.mappings[m.count];

        mp->volume = codec_read_le64(&r);
        mp->block = codec_read_le64(&r);
        mp->src_lsn = codec_read_le64(&r);
        mp->entry = codec_read_le64(&r);
        m.maps[m.count] =
            mp->src_lsn ? volume_map_find(vs, mp->volume) : apply_target(vs, a, mp->volume);
    }
    rc = map_apply(&m, a->body, a->length);
    mem_free(m.mappings);
    mem_free(m.maps);
    return rc;
}

/* The blocks that are to become holes: those mapped, and where there is a parent, all that are not
 * holes by themselves. Suspends. */
static int zero_collect(struct map_apply *m)
{
    uint64_t end = m->zero_first + m->zero_count, id = m->zero_map->id;

    for (uint64_t block = m->zero_first; block < end;) {
        uint64_t stop = (block / LEAF_BLOCKS + 1) * LEAF_BLOCKS;
        struct leaf *l;
        int rc = leafmap_get(&m->vs->leaves, id, block / LEAF_BLOCKS, &l);

        if (rc < 0)
            return rc;
        for (; block < stop && block < end; block++) {
            uint64_t entry = l->entries[block % LEAF_BLOCKS];

            if (m->zero_map->parent ? entry == LEAF_HOLE : entry == 0)
                continue;
            m->maps[m->count] = m->zero_map;
            m->mappings[m->count++] = (struct volume_mapping){.volume = id, .block = block};
        }
        leafmap_put(&m->vs->leaves, l);
    }
    return 0;
}

/* Holes for every block of the range that is mapped, with that the overlay loses the range.
 * Suspends. */
static int apply_zero(struct volumes *vs, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    uint64_t id = codec_read_le64(&r), first = codec_read_le64(&r);
    uint32_t n = codec_read_le32(&r);
    struct map_apply m = {.vs = vs, .a = a};
    int rc = 0;

    (void)codec_read_le32(&r);
    if (!codec_reader_ok(&r) || n > VOLUME_ZERO_BLOCKS)
        return ERR_FORMAT;
    m.zero_map = apply_target(vs, a, id);
    m.zero_first = first;
    m.zero_count = n;
    if (!m.zero_map)
        return 0;
    m.mappings = mem_calloc(n, sizeof(*m.mappings));
    m.maps = mem_calloc(n, sizeof(struct volume_map *));
    if (a->kv)
        rc = zero_collect(&m);
    if (rc == 0 && m.count)
        rc = map_apply(&m, NULL, 0);
    else if (rc == 0)
        map_settle_overlay(&m);
    mem_free(m.mappings);
    mem_free(m.maps);
    return rc;
}

int volumes_apply(struct volumes *vs, uint16_t type, const struct apply *a)
{
    switch (type) {
    case RECORD_VOLUME_CREATE:
        return apply_create(vs, a);
    case RECORD_VOLUME_WRITE:
        return apply_write(vs, a);
    case RECORD_VOLUME_MAP:
        return apply_map(vs, a);
    case RECORD_VOLUME_ZERO:
        return apply_zero(vs, a);
    case RECORD_VOLUME_RESIZE:
    case RECORD_VOLUME_DELETE:
        return apply_change(vs, type, a);
    default:
        return volume_snap_apply(vs, type, a);
    }
}

/* ---- Submitting ---- */

/* Brings what applying the mappings will need into the caches. Records are applied one at a time,
 * each acknowledged after those before it: one that waits for the KV store holds up all. Here
 * only the submitter waits. Suspends. */
static int map_warm(struct volumes *vs, const struct volume_mapping *mappings, size_t n)
{
    uint64_t *ids = mem_calloc(n, sizeof(*ids));
    size_t count = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n; i++) {
        const struct volume_mapping *mp = &mappings[i];
        const struct volume *v = mp->src_lsn ? NULL : volume_find(vs, mp->volume);
        struct leaf *l = NULL;

        rc = leafmap_get(&vs->leaves, v ? v->map->id : mp->volume, mp->block / LEAF_BLOCKS, &l);
        if (rc == 0 && LEAF_CHUNK(l->entries[mp->block % LEAF_BLOCKS]))
            ids[count++] = LEAF_CHUNK(l->entries[mp->block % LEAF_BLOCKS]);
        leafmap_put(&vs->leaves, l);
    }
    if (rc == 0)
        rc = chunkstore_warm(vs->p->chunks, ids, count);
    mem_free(ids);
    return rc;
}

int volume_submit_map(struct volumes *vs, const struct chunk_batch *batch,
                      const struct volume_mapping *mappings, size_t n, unsigned flags)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    uint8_t bytes[VOLUME_MAPPING_SIZE] = {0};
    struct iovec iov;
    int rc = map_warm(vs, mappings, n);

    CHECK(n <= VOLUME_MAPPINGS_MAX);
    if (rc < 0)
        return rc;
    if (batch)
        chunk_batch_encode(batch, &body);
    else
        strbuf_add(&body, bytes, 4); /* no new chunks */
    codec_put_le32(bytes, (uint32_t)n);
    strbuf_add(&body, bytes, 8);
    for (size_t i = 0; i < n; i++) {
        codec_put_le64(bytes, mappings[i].volume);
        codec_put_le64(bytes + 8, mappings[i].block);
        codec_put_le64(bytes + 16, mappings[i].src_lsn);
        codec_put_le64(bytes + 24, mappings[i].entry);
        strbuf_add(&body, bytes, sizeof(bytes));
    }
    iov = (struct iovec){body.data, body.len};
    return record_submit(&vs->p->log, RECORD_VOLUME_MAP, &iov, 1, flags, NULL);
}
