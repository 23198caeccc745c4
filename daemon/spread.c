/* Volumes spread over partitions; see spread.h.
 *
 * Every call packs what it was given into a struct spread_call on its own stack, which a small
 * function unpacks on the other side; the caller is suspended meanwhile, so nothing is copied. The
 * table and the open handles are touched on the first loop only.
 */
#include "daemon/spread.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/list.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"

struct spread {
    struct block_store face; /* first */
    struct env *env;
    struct spread_part parts[SPREAD_PARTS_MAX];
    unsigned count;
    unsigned (*choose)(void *arg);
    void *arg;
    struct hmap names;
    struct list open;
};

/* A volume's name. It stands from before the volume is made until after it is gone, so that no two
 * partitions can come to have one name. */
struct spread_name {
    struct hmap_node node;
    unsigned part;
    bool made;
    char name[BLOCK_NAME_MAX + 1];
};

struct spread_volume {
    struct block_volume face; /* first */
    struct spread *s;
    unsigned part;
    struct block_volume *inner;
    struct block_info info;
    struct list link;
};

/* ---- Calls ---- */

struct spread_call {
    void (*run)(struct spread_call *c);
    int rc;
    struct block_store *bs;
    struct block_volume *v, **ret_volume;
    const char *name, *snapshot, *new_name;
    const char *const *names;
    size_t count;
    enum block_durability durability;
    uint64_t off, len;
    void *buf;
    const void *bytes;
    unsigned flags;
    struct block_info *info, **ret_infos;
    struct block_extent *extents;
    size_t *ret_count;
};

static void spread_call_fiber(void *arg)
{
    struct spread_call *c = arg;

    c->run(c);
}

static int spread_run(struct spread *s, unsigned part, struct spread_call *c)
{
    int rc;

    c->bs = s->parts[part].store;
    rc = env_remote(s->env, s->parts[part].env, "volume", spread_call_fiber, c);
    return rc < 0 ? rc : c->rc;
}

/* Says of what a part has told where it lies. */
static void spread_place(const struct spread *s, unsigned part, struct block_info *infos, size_t n)
{
    for (size_t i = 0; i < n; i++)
        infos[i].partition = s->parts[part].name;
}

/* ---- Names ---- */

static uint64_t name_hash(const char *name, size_t len)
{
    return hmap_hash_bytes(name, len);
}

/* The entry of a volume; of a snapshot's volume, when given VOLUME@SNAPSHOT. */
static struct spread_name *name_find(const struct spread *s, const char *name)
{
    size_t len = strcspn(name, "@");

    for (struct hmap_node *it = hmap_first(&s->names, name_hash(name, len)); it;
         it = hmap_next(it)) {
        struct spread_name *e = HMAP_ENTRY(it, struct spread_name, node);

        if (strlen(e->name) == len && memcmp(e->name, name, len) == 0)
            return e;
    }
    return NULL;
}

static struct spread_name *name_add(struct spread *s, const char *name, unsigned part)
{
    struct spread_name *e = mem_zalloc(sizeof(*e));
    size_t len = strlen(name);

    CHECK(len <= BLOCK_NAME_MAX);
    memcpy(e->name, name, len + 1);
    e->part = part;
    hmap_insert(&s->names, &e->node, name_hash(name, len));
    return e;
}

static void name_drop(struct spread *s, struct spread_name *e)
{
    hmap_remove(&s->names, &e->node);
    mem_free(e);
}

/* The part of a volume that is there. ERR_NOENT. */
static int name_part(const struct spread *s, const char *name, unsigned *ret_part)
{
    const struct spread_name *e = name_find(s, name);

    if (!e || !e->made)
        return ERR_NOENT;
    *ret_part = e->part;
    return 0;
}

/* ---- Volumes ---- */

static void run_create(struct spread_call *c)
{
    c->rc = block_create(c->bs, c->name, c->len, c->durability);
}

static void run_clone(struct spread_call *c)
{
    c->rc = block_clone(c->bs, c->name, c->snapshot, c->new_name);
}

/* Makes a volume of that name in the part by the call. */
static int spread_make(struct spread *s, const char *name, unsigned part, struct spread_call *c)
{
    struct spread_name *e;
    int rc;

    /* What is wrong with a bad name is for the partition to say. */
    if (strlen(name) > BLOCK_NAME_MAX || strchr(name, '@'))
        return spread_run(s, part, c);
    if (name_find(s, name))
        return ERR_EXIST;
    e = name_add(s, name, part);
    rc = spread_run(s, part, c);
    if (rc == 0)
        e->made = true;
    else
        name_drop(s, e);
    return rc;
}

static int spread_create(struct block_store *bs, const char *name, uint64_t size,
                         enum block_durability durability)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {.run = run_create, .name = name, .len = size, .durability = durability};
    unsigned part = s->choose(s->arg);

    CHECK(part < s->count);
    return spread_make(s, name, part, &c);
}

static int spread_clone(struct block_store *bs, const char *name, const char *snapshot,
                        const char *new_name)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {
        .run = run_clone, .name = name, .snapshot = snapshot, .new_name = new_name};
    unsigned part;
    int rc = name_part(s, name, &part);

    return rc == 0 ? spread_make(s, new_name, part, &c) : rc;
}

static void run_remove(struct spread_call *c)
{
    c->rc = block_remove(c->bs, c->name);
}

static int spread_remove(struct block_store *bs, const char *name)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {.run = run_remove, .name = name};
    unsigned part;
    int rc = name_part(s, name, &part);

    if (rc == 0)
        rc = spread_run(s, part, &c);
    if (rc == 0 && !strchr(name, '@'))
        name_drop(s, name_find(s, name));
    return rc;
}

static void run_stat(struct spread_call *c)
{
    c->rc = block_stat(c->bs, c->name, c->info);
}

static int spread_stat(struct block_store *bs, const char *name, struct block_info *ret_info)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {.run = run_stat, .name = name, .info = ret_info};
    unsigned part;
    int rc = name_part(s, name, &part);

    if (rc == 0)
        rc = spread_run(s, part, &c);
    if (rc == 0)
        spread_place(s, part, ret_info, 1);
    return rc;
}

static void run_resize(struct spread_call *c)
{
    c->rc = block_resize(c->bs, c->name, c->len);
}

static int spread_resize(struct block_store *bs, const char *name, uint64_t size)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {.run = run_resize, .name = name, .len = size};
    unsigned part;
    int rc = name_part(s, name, &part);

    if (rc == 0)
        rc = spread_run(s, part, &c);
    if (rc < 0)
        return rc;
    list_for_each (it, &s->open) {
        struct spread_volume *v = LIST_ENTRY(it, struct spread_volume, link);

        if (strcmp(v->info.name, name) == 0)
            v->info.size = size;
    }
    return 0;
}

/* ---- Lists ---- */

static void run_list(struct spread_call *c)
{
    c->rc = block_list(c->bs, c->ret_infos, c->ret_count);
}

static void run_snapshots(struct spread_call *c)
{
    c->rc = block_snapshots(c->bs, c->name, c->ret_infos, c->ret_count);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct block_info *)a)->name, ((const struct block_info *)b)->name);
}

/* What every part gives, in name order. */
static int spread_gather(struct spread *s, void (*run)(struct spread_call *c),
                         struct block_info **ret_infos, size_t *ret_count)
{
    struct block_info *all = NULL;
    size_t total = 0;

    for (unsigned i = 0; i < s->count; i++) {
        struct block_info *infos = NULL;
        size_t n = 0;
        struct spread_call c = {.run = run, .ret_infos = &infos, .ret_count = &n};
        int rc = spread_run(s, i, &c);

        if (rc < 0) {
            mem_free(all);
            return rc;
        }
        all = mem_realloc(all, (total + n + 1) * sizeof(*all));
        if (n)
            memcpy(all + total, infos, n * sizeof(*all));
        spread_place(s, i, all + total, n);
        mem_free(infos);
        total += n;
    }
    qsort(all, total, sizeof(*all), by_name);
    *ret_infos = all;
    *ret_count = total;
    return 0;
}

static int spread_list(struct block_store *bs, struct block_info **ret_infos, size_t *ret_count)
{
    return spread_gather((struct spread *)bs, run_list, ret_infos, ret_count);
}

/* ---- Snapshots ---- */

static void run_snapshot(struct spread_call *c)
{
    c->rc = block_snapshot(c->bs, c->names, c->count, c->snapshot);
}

static int spread_snapshot(struct block_store *bs, const char *const *names, size_t count,
                           const char *snapshot)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {
        .run = run_snapshot, .names = names, .count = count, .snapshot = snapshot};
    unsigned part = 0, other;

    for (size_t i = 0; i < count; i++) {
        int rc = name_part(s, names[i], &other);

        if (rc < 0)
            return rc;
        if (i > 0 && other != part)
            return ERR_SPREAD;
        part = other;
    }
    return spread_run(s, part, &c);
}

static int spread_snapshots(struct block_store *bs, const char *name, struct block_info **ret_infos,
                            size_t *ret_count)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {
        .run = run_snapshots, .name = name, .ret_infos = ret_infos, .ret_count = ret_count};
    unsigned part;
    int rc;

    if (!name)
        return spread_gather(s, run_snapshots, ret_infos, ret_count);
    rc = name_part(s, name, &part);
    if (rc == 0)
        rc = spread_run(s, part, &c);
    if (rc == 0)
        spread_place(s, part, *ret_infos, *ret_count);
    return rc;
}

static void run_snapshot_remove(struct spread_call *c)
{
    c->rc = block_snapshot_remove(c->bs, c->name, c->snapshot);
}

static void run_rollback(struct spread_call *c)
{
    c->rc = block_rollback(c->bs, c->name, c->snapshot);
}

static int spread_at_snapshot(struct block_store *bs, void (*run)(struct spread_call *c),
                              const char *name, const char *snapshot)
{
    struct spread *s = (struct spread *)bs;
    struct spread_call c = {.run = run, .name = name, .snapshot = snapshot};
    unsigned part;
    int rc = name_part(s, name, &part);

    return rc == 0 ? spread_run(s, part, &c) : rc;
}

static int spread_snapshot_remove(struct block_store *bs, const char *name, const char *snapshot)
{
    return spread_at_snapshot(bs, run_snapshot_remove, name, snapshot);
}

static int spread_rollback(struct block_store *bs, const char *name, const char *snapshot)
{
    return spread_at_snapshot(bs, run_rollback, name, snapshot);
}

/* ---- Open volumes ---- */

static void run_open(struct spread_call *c)
{
    c->rc = block_open(c->bs, c->name, c->ret_volume);
    if (c->rc == 0)
        block_get_info(*c->ret_volume, c->info);
}

static int spread_open(struct block_store *bs, const char *name, struct block_volume **ret_volume)
{
    struct spread *s = (struct spread *)bs;
    struct spread_volume *v = mem_zalloc(sizeof(*v));
    struct spread_call c = {
        .run = run_open, .name = name, .ret_volume = &v->inner, .info = &v->info};
    int rc = name_part(s, name, &v->part);

    if (rc == 0)
        rc = spread_run(s, v->part, &c);
    if (rc < 0) {
        mem_free(v);
        return rc;
    }
    spread_place(s, v->part, &v->info, 1);
    v->face.ops = s->face.ops;
    v->s = s;
    list_push_back(&s->open, &v->link);
    *ret_volume = &v->face;
    return 0;
}

static void run_close(struct spread_call *c)
{
    block_close(c->v);
}

static void spread_close(struct block_volume *bv)
{
    struct spread_volume *v = (struct spread_volume *)bv;
    struct spread_call c = {.run = run_close, .v = v->inner};

    CHECK_OK(spread_run(v->s, v->part, &c)); /* its loop ends after the last handle */
    list_del(&v->link);
    mem_free(v);
}

static void spread_info(struct block_volume *bv, struct block_info *ret_info)
{
    *ret_info = ((struct spread_volume *)bv)->info;
}

static int spread_io(struct block_volume *bv, struct spread_call *c)
{
    struct spread_volume *v = (struct spread_volume *)bv;

    c->v = v->inner;
    return spread_run(v->s, v->part, c);
}

static void run_read(struct spread_call *c)
{
    c->rc = block_read(c->v, c->off, c->buf, c->len);
}

static int spread_read(struct block_volume *v, uint64_t off, void *buf, size_t len)
{
    return spread_io(v, &(struct spread_call){.run = run_read, .off = off, .buf = buf, .len = len});
}

static void run_write(struct spread_call *c)
{
    c->rc = block_write(c->v, c->off, c->bytes, c->len, c->flags);
}

static int spread_write(struct block_volume *v, uint64_t off, const void *buf, size_t len,
                        unsigned flags)
{
    return spread_io(v,
                     &(struct spread_call){
                         .run = run_write, .off = off, .bytes = buf, .len = len, .flags = flags});
}

static void run_flush(struct spread_call *c)
{
    c->rc = block_flush(c->v);
}

static int spread_flush(struct block_volume *v)
{
    return spread_io(v, &(struct spread_call){.run = run_flush});
}

static void run_discard(struct spread_call *c)
{
    c->rc = block_discard(c->v, c->off, c->len, c->flags);
}

static int spread_discard(struct block_volume *v, uint64_t off, uint64_t len, unsigned flags)
{
    return spread_io(
        v, &(struct spread_call){.run = run_discard, .off = off, .len = len, .flags = flags});
}

static void run_zero(struct spread_call *c)
{
    c->rc = block_zero(c->v, c->off, c->len, c->flags);
}

static int spread_zero(struct block_volume *v, uint64_t off, uint64_t len, unsigned flags)
{
    return spread_io(
        v, &(struct spread_call){.run = run_zero, .off = off, .len = len, .flags = flags});
}

static void run_extents(struct spread_call *c)
{
    c->rc = block_extents(c->v, c->off, c->len, c->extents, c->count, c->ret_count);
}

static int spread_extents(struct block_volume *v, uint64_t off, uint64_t len,
                          struct block_extent *extents, size_t max, size_t *ret_count)
{
    return spread_io(v, &(struct spread_call){.run = run_extents,
                                              .off = off,
                                              .len = len,
                                              .extents = extents,
                                              .count = max,
                                              .ret_count = ret_count});
}

/* ---- Life ---- */

static const struct block_ops spread_ops = {
    .create = spread_create,
    .list = spread_list,
    .stat = spread_stat,
    .resize = spread_resize,
    .remove = spread_remove,
    .open = spread_open,
    .snapshot = spread_snapshot,
    .snapshots = spread_snapshots,
    .snapshot_remove = spread_snapshot_remove,
    .clone = spread_clone,
    .rollback = spread_rollback,
    .close = spread_close,
    .info = spread_info,
    .read = spread_read,
    .write = spread_write,
    .flush = spread_flush,
    .discard = spread_discard,
    .zero = spread_zero,
    .extents = spread_extents,
};

static int spread_load(struct spread *s, unsigned part, char *clash)
{
    struct block_info *infos = NULL;
    size_t n = 0;
    struct spread_call c = {.run = run_list, .ret_infos = &infos, .ret_count = &n};
    int rc = spread_run(s, part, &c);

    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (name_find(s, infos[i].name)) {
            memcpy(clash, infos[i].name, sizeof(infos[i].name));
            rc = ERR_EXIST;
        } else {
            name_add(s, infos[i].name, part)->made = true;
        }
    }
    mem_free(infos);
    return rc;
}

int spread_new(struct env *env, const struct spread_part *parts, unsigned count,
               unsigned (*choose)(void *arg), void *arg, char *clash, struct spread **ret_spread)
{
    struct spread *s = mem_zalloc(sizeof(*s));
    int rc = 0;

    CHECK(count > 0 && count <= SPREAD_PARTS_MAX);
    s->face.ops = &spread_ops;
    s->env = env;
    memcpy(s->parts, parts, count * sizeof(parts[0]));
    s->count = count;
    s->choose = choose;
    s->arg = arg;
    hmap_init(&s->names);
    list_init(&s->open);
    for (unsigned i = 0; rc == 0 && i < count; i++)
        rc = spread_load(s, i, clash);
    if (rc < 0)
        spread_free(s);
    else
        *ret_spread = s;
    return rc;
}

void spread_free(struct spread *s)
{
    struct hmap_node *it, *next;

    if (!s)
        return;
    CHECK(list_empty(&s->open));
    for (it = hmap_walk(&s->names, NULL); it; it = next) {
        next = hmap_walk(&s->names, it);
        name_drop(s, HMAP_ENTRY(it, struct spread_name, node));
    }
    hmap_free(&s->names);
    mem_free(s);
}

struct block_store *spread_blocks(struct spread *s)
{
    return &s->face;
}
