/* What the audit's parts share: walking and telling (audit.c), chunks and who refers to them
 * (audit_chunk.c), volumes (audit_volume.c), buckets (audit_bucket.c), the catalogue
 * (audit_catalog.c), the drives (audit_deep.c). */
#pragma once

#include "daemon/audit.h"
#include "daemon/volume_row.h"
#include "lib/base/hmap.h"

#define AUDIT_PAGE 512u

/* Of chunks only what is needed to count; in the order of ids, as the KV store has them. */
struct audit_chunk {
    uint64_t id;
    uint64_t fp;   /* what the fingerprint index knows it by */
    uint64_t refs; /* counted; with AUDIT_LOST when its bytes cannot be had */
};
#define AUDIT_LOST (1ull << 63)

struct audit_segment {
    struct hmap_node node;
    struct segment row;
    uint64_t live, chunks; /* counted */
    uint32_t end;          /* of what is alive, units */
    bool reopened;         /* it says it is open, and so does a later one of its stream */
};

struct audit_volume {
    struct hmap_node node;
    struct volume_row row;
};

struct audit_map {
    struct hmap_node node;
    struct volume_map_row row;
    const struct audit_volume *holder; /* the volume or snapshot that is this; NULL: hidden */
    uint64_t mapped, holes;            /* counted */
    bool doubtful;                     /* a leaf could not be read */
    char *who;                         /* in words, once asked for */
};

struct audit {
    const struct audit_params *p;
    struct audit_result r;
    int rc; /* the first error of the KV store: everything ends */
    struct audit_chunk *chunks;
    size_t chunk_count, chunk_room;
    struct hmap segments, volumes, maps, buckets;
    struct audit_segment *open[SEGMENT_STREAMS];
    uint8_t *slots[FORMAT_DRIVES_MAX]; /* bitmaps, as far as segments reach */
    uint64_t slots_room[FORMAT_DRIVES_MAX];
    bool refs_doubtful;    /* a row that may refer to chunks could not be read */
    bool chunks_doubtful;  /* a chunk's row could not be read */
    bool catalog_doubtful; /* an instance's row could not be read, or is not there */
    bool buckets_doubtful; /* a bucket's or an object's row could not be read */
    uint64_t raw, stored, referenced, bytes;
    uint64_t max_id;      /* the highest of a chunk, also of one that is only referred to */
    uint64_t max_segment; /* of a segment that is not there, and chunks say they lie in it */
};

/* ---- audit.c ---- */

/* Calls `row` for each row, until there is an error. `row` may change rows. */
void audit_walk(struct audit *a, enum kv_table t, const char *what,
                void (*row)(struct audit *a, struct kv_slice key, struct kv_slice value));
/* As audit_walk, for the rows from <= key < to. */
void audit_walk_range(struct audit *a, enum kv_table t, struct kv_slice from, struct kv_slice to,
                      void (*row)(struct audit *a, void *arg, const struct kv_row *row), void *arg);
/* A row's value (the caller frees), or NULL: not there, or an error that ends everything. */
void *audit_get(struct audit *a, enum kv_table t, struct kv_slice key, size_t *ret_len);

/* Tells of a finding: one that is mended here, or one that is not. */
void audit_mend(struct audit *a, const char *kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void audit_leave(struct audit *a, const char *kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Changes a row where the audit repairs; otherwise nothing. */
void audit_put(struct audit *a, enum kv_table t, struct kv_slice key, struct kv_slice value);
void audit_delete(struct audit *a, enum kv_table t, struct kv_slice key);

static inline void *audit_find(const struct hmap *m, uint64_t id)
{
    return hmap_first(m, hmap_mix(id)); /* the mix is one to one; the node comes first */
}

/* ---- audit_chunk.c ---- */
struct audit_chunk *audit_chunk_find(struct audit *a, uint64_t id);
void audit_chunk_first(struct audit *a, struct kv_slice key, struct kv_slice value);
void audit_chunk_second(struct audit *a, struct kv_slice key, struct kv_slice value);
void audit_leaf(struct audit *a, struct kv_slice key, struct kv_slice value);
void audit_recipe(struct audit *a, struct kv_slice key, struct kv_slice value);
/* Counts references from a recipe. NULL, or what is wrong with the first chunk that cannot be had.
 */
struct recipe;
const char *audit_refer(struct audit *a, const struct recipe *r, uint64_t *ret_chunk);
void audit_image(struct audit *a);
void audit_fprint(struct audit *a, struct kv_slice key, struct kv_slice value);
void audit_totals(struct audit *a);

/* ---- audit_volume.c ---- */
void audit_volume(struct audit *a, struct kv_slice key, struct kv_slice value);
void audit_volumes_link(struct audit *a); /* once all are read */
void audit_volumes_sum(struct audit *a);  /* frees them too */
/* The map's volume, and those that look into it. Belongs to the map. */
const char *audit_map_who(const struct audit *a, struct audit_map *m);

/* ---- audit_bucket.c ---- */
void audit_buckets(struct audit *a);
void audit_object_recipe(struct audit *a, struct kv_slice key, struct kv_slice value);
void audit_buckets_free(struct audit *a);

/* ---- audit_catalog.c ---- */
void audit_instances(struct audit *a);
void audit_catalog(struct audit *a); /* what stands above instances, and what leads to them */

/* ---- audit_scrub.c ---- */
void audit_scrub(struct audit *a);

/* ---- audit_deep.c: marks the chunks that are lost ---- */
void audit_deep(struct audit *a);
