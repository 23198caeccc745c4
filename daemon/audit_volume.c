/* The audit of volumes: rows of volumes, snapshots and maps, how maps lie upon each other, and how
 * much is in each. What is in maps is counted by audit_leaf (audit_chunk.c).
 *
 * Counts are mended. Whose a map is and upon which it lies is said by nothing but its rows, so
 * where these are broken or contradict each other it is told and left. Maps that are nobody's are
 * nothing wrong: they are being given back, or others lie upon them (volume_snap.c).
 */
#include "daemon/audit_priv.h"
#include "lib/base/codec.h"
#include "lib/base/mem.h"

#define SHOWN_IN_MAX 8u /* volumes named in one finding */

static struct audit_map *map_add(struct audit *a, const struct volume_map_row *row)
{
    struct audit_map *m = audit_find(&a->maps, row->id);

    if (!m) {
        m = mem_zalloc(sizeof(*m));
        hmap_insert(&a->maps, &m->node, hmap_mix(row->id));
    }
    m->row = *row; /* instead of what an old row of its volume said */
    return m;
}

void audit_volume(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    struct volume_map_row map;
    struct audit_volume *v;
    struct volume_row row;

    if (volume_map_row_decode(key, value, &map) == 0) {
        (void)map_add(a, &map);
        return;
    }
    if (volume_row_decode(key, value, &row) < 0) {
        audit_leave(a, "volume-row", "%s row is broken",
                    key.len == VOLUME_MAP_KEY ? "a volume map's" : "a volume's");
        return;
    }
    if (row.old) {
        map = volume_row_old_map(&row);
        (void)map_add(a, &map);
    }
    if (row.deleting)
        return; /* there is only a map left of it */
    v = mem_zalloc(sizeof(*v));
    v->row = row;
    a->r.volumes++;
    hmap_insert(&a->volumes, &v->node, hmap_mix(row.info.id));
}

/* ---- What belongs together ---- */

static void volume_link(struct audit *a, const struct audit_volume *v)
{
    struct audit_map *m = audit_find(&a->maps, v->row.map);

    if (v->row.of && !audit_find(&a->volumes, v->row.of))
        audit_leave(a, "volume-map", "volume %s: a snapshot of volume %llu, which is not there",
                    v->row.info.name, (unsigned long long)v->row.of);
    if (!m)
        audit_leave(a, "volume-map", "volume %s: its map %llu is not there", v->row.info.name,
                    (unsigned long long)v->row.map);
    else if (m->holder)
        audit_leave(a, "volume-map", "volume %s: its map %llu is volume %s's too", v->row.info.name,
                    (unsigned long long)v->row.map, m->holder->row.info.name);
    else
        m->holder = v;
}

static void map_link(struct audit *a, const struct audit_map *m)
{
    uint64_t steps = 0;

    for (const struct audit_map *at = m; at->row.parent; steps++) {
        const struct audit_map *parent = audit_find(&a->maps, at->row.parent);

        if (!parent && at == m) /* others upon it would tell the same */
            audit_leave(a, "volume-map", "%s: map %llu lies upon map %llu, which is not there",
                        audit_map_who(a, audit_find(&a->maps, m->row.id)),
                        (unsigned long long)m->row.id, (unsigned long long)m->row.parent);
        if (!parent)
            return;
        if (steps > a->maps.count) {
            audit_leave(a, "volume-map", "map %llu lies upon itself, or upon maps that do",
                        (unsigned long long)m->row.id);
            return;
        }
        at = parent;
    }
}

void audit_volumes_link(struct audit *a)
{
    struct hmap_node *it;

    for (it = hmap_walk(&a->volumes, NULL); it; it = hmap_walk(&a->volumes, it))
        volume_link(a, HMAP_ENTRY(it, struct audit_volume, node));
    for (it = hmap_walk(&a->maps, NULL); it; it = hmap_walk(&a->maps, it))
        map_link(a, HMAP_ENTRY(it, struct audit_map, node));
}

/* ---- Whose a map is, in words ---- */

/* Does the volume look into the map, below its own? */
static bool looks_into(const struct audit *a, const struct audit_volume *v,
                       const struct audit_map *m)
{
    const struct audit_map *at = audit_find(&a->maps, v->row.map);

    for (uint64_t steps = 0; at && steps <= a->maps.count; steps++) {
        if (at == m)
            return v != m->holder;
        at = at->row.parent ? audit_find(&a->maps, at->row.parent) : NULL;
    }
    return false;
}

const char *audit_map_who(const struct audit *a, struct audit_map *m)
{
    struct strbuf s = STRBUF_INIT;
    unsigned n = 0;

    if (m->who)
        return m->who;
    if (m->holder)
        strbuf_addf(&s, "volume %s", m->holder->row.info.name);
    else
        strbuf_addf(&s, "map %llu", (unsigned long long)m->row.id);
    for (struct hmap_node *it = hmap_walk(&a->volumes, NULL); it && n <= SHOWN_IN_MAX;
         it = hmap_walk(&a->volumes, it)) {
        const struct audit_volume *v = HMAP_ENTRY(it, struct audit_volume, node);

        if (!looks_into(a, v, m))
            continue;
        strbuf_adds(&s, n ? ", " : m->holder ? " (and what shares it: " : " (what shows in: ");
        strbuf_adds(&s, n < SHOWN_IN_MAX ? v->row.info.name : "others");
        n++;
    }
    if (n)
        strbuf_addc(&s, ')');
    else if (!m->holder)
        strbuf_adds(&s, " (of nobody any more)");
    m->who = strbuf_take(&s);
    return m->who;
}

/* ---- Sums ---- */

static void map_sum(struct audit *a, struct audit_map *m)
{
    struct volume_map_row row = m->row;
    uint8_t key[VOLUME_MAP_KEY], value[VOLUME_MAP_ROW];

    if (row.mapped == m->mapped && row.holes == m->holes)
        return;
    if (m->doubtful) {
        audit_leave(a, "volume-count",
                    "%s: maps %llu blocks and %llu holes or more, its row says %llu and %llu; "
                    "left, as part of its map is broken",
                    audit_map_who(a, m), (unsigned long long)m->mapped,
                    (unsigned long long)m->holes, (unsigned long long)row.mapped,
                    (unsigned long long)row.holes);
        return;
    }
    audit_mend(a, "volume-count", "%s: maps %llu blocks and %llu holes, its row says %llu and %llu",
               audit_map_who(a, m), (unsigned long long)m->mapped, (unsigned long long)m->holes,
               (unsigned long long)row.mapped, (unsigned long long)row.holes);
    row.mapped = m->mapped;
    row.holes = m->holes;
    volume_map_key(row.id, key); /* a row of its own goes before an old row of the volume */
    volume_map_row_encode(&row, value);
    audit_put(a, KV_VOLUME, (struct kv_slice){key, sizeof(key)},
              (struct kv_slice){value, sizeof(value)});
}

void audit_volumes_sum(struct audit *a)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&a->maps, NULL); it; it = hmap_walk(&a->maps, it))
        map_sum(a, HMAP_ENTRY(it, struct audit_map, node));
    for (it = hmap_walk(&a->maps, NULL); it; it = next) {
        struct audit_map *m = HMAP_ENTRY(it, struct audit_map, node);

        next = hmap_walk(&a->maps, it);
        mem_free(m->who);
        mem_free(m);
    }
    hmap_free(&a->maps);
    for (it = hmap_walk(&a->volumes, NULL); it; it = next) {
        next = hmap_walk(&a->volumes, it);
        mem_free(HMAP_ENTRY(it, struct audit_volume, node));
    }
    hmap_free(&a->volumes);
}
