/* mem_block: a sparse block store in memory, for tests. See mem_block.h. */
#include "tests/unit/nbd/mem_block.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/list.h"
#include "lib/base/mem.h"

#define PAGE BLOCK_SIZE

struct mem_block {
    struct block_store store;
    struct list volumes; /* in name order */
    struct mem_block_hooks hooks;
    struct mem_block_counts counts;
    uint64_t next_id;
};

struct mem_volume {
    struct list link;
    struct block_info info;
    uint8_t **pages;
};

struct mem_handle {
    struct block_volume volume;
    struct mem_block *m;
    struct mem_volume *v;
};

static struct mem_block *store_of(struct block_store *bs)
{
    return (struct mem_block *)(void *)bs;
}

static struct mem_handle *handle_of(struct block_volume *v)
{
    return (struct mem_handle *)(void *)v;
}

static struct mem_volume *find(struct mem_block *m, const char *name)
{
    list_for_each (it, &m->volumes) {
        struct mem_volume *v = LIST_ENTRY(it, struct mem_volume, link);

        if (strcmp(v->info.name, name) == 0)
            return v;
    }
    return NULL;
}

static int op_create(struct block_store *bs, const char *name, uint64_t size,
                     enum block_durability durability)
{
    struct mem_block *m = store_of(bs);
    struct list *at = &m->volumes;
    struct mem_volume *v;

    if (!name[0] || strlen(name) > BLOCK_NAME_MAX)
        return ERR_NAME;
    if (size == 0 || size % BLOCK_SIZE || size > BLOCK_VOLUME_MAX)
        return ERR_RANGE;
    if (find(m, name))
        return ERR_EXIST;
    v = mem_zalloc(sizeof(*v));
    memcpy(v->info.name, name, strlen(name));
    v->info.id = ++m->next_id;
    v->info.size = size;
    v->info.durability = durability;
    v->pages = mem_calloc(size / PAGE, sizeof(v->pages[0]));
    list_for_each (it, &m->volumes) {
        at = it;
        if (strcmp(LIST_ENTRY(it, struct mem_volume, link)->info.name, name) > 0)
            break;
        at = &m->volumes;
    }
    list_insert_before(at, &v->link);
    return 0;
}

/* Volumes, or snapshots: those with an '@' in their names. */
static int list_some(struct mem_block *m, bool snapshots, struct block_info **ret_infos,
                     size_t *ret_count)
{
    struct block_info *infos;
    size_t n = 0;

    list_for_each (it, &m->volumes)
        n++;
    infos = mem_calloc(n ? n : 1, sizeof(*infos));
    n = 0;
    list_for_each (it, &m->volumes) {
        const struct mem_volume *v = LIST_ENTRY(it, struct mem_volume, link);

        if ((strchr(v->info.name, '@') != NULL) == snapshots)
            infos[n++] = v->info;
    }
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

static int op_list(struct block_store *bs, struct block_info **ret_infos, size_t *ret_count)
{
    return list_some(store_of(bs), false, ret_infos, ret_count);
}

static int op_snapshots(struct block_store *bs, const char *name, struct block_info **ret_infos,
                        size_t *ret_count)
{
    (void)name; /* NBD asks for all */
    return list_some(store_of(bs), true, ret_infos, ret_count);
}

static int op_stat(struct block_store *bs, const char *name, struct block_info *ret_info)
{
    struct mem_volume *v = find(store_of(bs), name);

    if (!v)
        return ERR_NOENT;
    *ret_info = v->info;
    return 0;
}

static void drop_page(struct mem_volume *v, uint64_t page)
{
    if (!v->pages[page])
        return;
    mem_free(v->pages[page]);
    v->pages[page] = NULL;
    v->info.mapped -= PAGE;
}

static int op_resize(struct block_store *bs, const char *name, uint64_t size)
{
    struct mem_volume *v = find(store_of(bs), name);
    uint64_t old;

    if (!v)
        return ERR_NOENT;
    if (size == 0 || size % BLOCK_SIZE)
        return ERR_RANGE;
    old = v->info.size / PAGE;
    for (uint64_t i = size / PAGE; i < old; i++)
        drop_page(v, i);
    v->pages = mem_realloc(v->pages, (size_t)(size / PAGE) * sizeof(v->pages[0]));
    for (uint64_t i = old; i < size / PAGE; i++)
        v->pages[i] = NULL;
    v->info.size = size;
    return 0;
}

static void free_volume(struct mem_volume *v)
{
    CHECK(v->info.openers == 0);
    for (uint64_t i = 0; i < v->info.size / PAGE; i++)
        mem_free(v->pages[i]);
    mem_free(v->pages);
    list_del(&v->link);
    mem_free(v);
}

static int op_remove(struct block_store *bs, const char *name)
{
    struct mem_volume *v = find(store_of(bs), name);

    if (!v)
        return ERR_NOENT;
    if (v->info.openers)
        return ERR_BUSY;
    free_volume(v);
    return 0;
}

static const struct block_ops mem_ops;

static int op_open(struct block_store *bs, const char *name, struct block_volume **ret_volume)
{
    struct mem_volume *v = find(store_of(bs), name);
    struct mem_handle *h;

    if (!v)
        return ERR_NOENT;
    h = mem_zalloc(sizeof(*h));
    h->volume.ops = &mem_ops;
    h->m = store_of(bs);
    h->v = v;
    v->info.openers++;
    *ret_volume = &h->volume;
    return 0;
}

static void op_close(struct block_volume *volume)
{
    struct mem_handle *h = handle_of(volume);

    h->v->info.openers--;
    mem_free(h);
}

static void op_info(struct block_volume *volume, struct block_info *ret_info)
{
    *ret_info = handle_of(volume)->v->info;
}

static int before(struct mem_handle *h, char op, uint64_t off, uint64_t len, bool writes)
{
    int err = h->m->hooks.before ? h->m->hooks.before(h->m->hooks.arg, op, off, len) : 0;

    if (err < 0)
        return err;
    if (off > h->v->info.size || len > h->v->info.size - off)
        return ERR_RANGE;
    return writes && h->v->info.readonly ? ERR_READONLY : 0;
}

/* Bytes from off to the end of its page, at most len. */
static size_t page_part(uint64_t off, uint64_t len)
{
    uint64_t part = PAGE - off % PAGE;

    return (size_t)(part < len ? part : len);
}

static int op_read(struct block_volume *volume, uint64_t off, void *buf, size_t len)
{
    struct mem_handle *h = handle_of(volume);
    uint8_t *to = buf;
    int err = before(h, 'r', off, len, false);

    CHECK(len > 0 && len <= BLOCK_IO_MAX);
    h->m->counts.reads++;
    while (err == 0 && len > 0) {
        const uint8_t *page = h->v->pages[off / PAGE];
        size_t n = page_part(off, len);

        if (page)
            memcpy(to, page + off % PAGE, n);
        else
            memset(to, 0, n);
        to += n;
        off += n;
        len -= n;
    }
    return err;
}

static int op_write(struct block_volume *volume, uint64_t off, const void *buf, size_t len,
                    unsigned flags)
{
    struct mem_handle *h = handle_of(volume);
    const uint8_t *from = buf;
    int err = before(h, 'w', off, len, true);

    CHECK(len > 0 && len <= BLOCK_IO_MAX);
    h->m->counts.writes++;
    h->m->counts.fuas += flags & BLOCK_FUA ? 1 : 0;
    while (err == 0 && len > 0) {
        uint8_t **page = &h->v->pages[off / PAGE];
        size_t n = page_part(off, len);

        if (!*page) {
            *page = n == PAGE ? mem_alloc(PAGE) : mem_zalloc(PAGE);
            h->v->info.mapped += PAGE;
        }
        memcpy(*page + off % PAGE, from, n);
        from += n;
        off += n;
        len -= n;
    }
    return err;
}

static int op_flush(struct block_volume *volume)
{
    struct mem_handle *h = handle_of(volume);

    h->m->counts.flushes++;
    return before(h, 'f', 0, 0, false);
}

static void clear(struct mem_volume *v, uint64_t off, uint64_t len)
{
    while (len > 0) {
        size_t n = page_part(off, len);

        if (n == PAGE)
            drop_page(v, off / PAGE);
        else if (v->pages[off / PAGE])
            memset(v->pages[off / PAGE] + off % PAGE, 0, n);
        off += n;
        len -= n;
    }
}

static int op_discard(struct block_volume *volume, uint64_t off, uint64_t len, unsigned flags)
{
    struct mem_handle *h = handle_of(volume);
    int err = before(h, 'd', off, len, true);

    h->m->counts.discards++;
    h->m->counts.fuas += flags & BLOCK_FUA ? 1 : 0;
    if (err == 0)
        clear(h->v, off, len);
    return err;
}

static int op_zero(struct block_volume *volume, uint64_t off, uint64_t len, unsigned flags)
{
    struct mem_handle *h = handle_of(volume);
    int err = before(h, 'z', off, len, true);

    h->m->counts.zeroes++;
    h->m->counts.fuas += flags & BLOCK_FUA ? 1 : 0;
    if (err == 0)
        clear(h->v, off, len);
    return err;
}

static int op_extents(struct block_volume *volume, uint64_t off, uint64_t len,
                      struct block_extent *extents, size_t max, size_t *ret_count)
{
    struct mem_handle *h = handle_of(volume);
    int err = before(h, 'e', off, len, false);
    size_t count = 0;

    h->m->counts.extents++;
    if (err < 0)
        return err;
    while (len > 0) {
        bool hole = !h->v->pages[off / PAGE];
        size_t n = page_part(off, len);

        if (count > 0 && extents[count - 1].hole == hole)
            extents[count - 1].length += n;
        else if (count == max)
            break;
        else
            extents[count++] = (struct block_extent){.length = n, .hole = hole};
        off += n;
        len -= n;
    }
    *ret_count = count;
    return 0;
}

static const struct block_ops mem_ops = {
    .create = op_create,
    .list = op_list,
    .snapshots = op_snapshots,
    .stat = op_stat,
    .resize = op_resize,
    .remove = op_remove,
    .open = op_open,
    .close = op_close,
    .info = op_info,
    .read = op_read,
    .write = op_write,
    .flush = op_flush,
    .discard = op_discard,
    .zero = op_zero,
    .extents = op_extents,
};

struct mem_block *mem_block_new(void)
{
    struct mem_block *m = mem_zalloc(sizeof(*m));

    m->store.ops = &mem_ops;
    list_init(&m->volumes);
    return m;
}

void mem_block_free(struct mem_block *m)
{
    list_for_each_safe (it, &m->volumes)
        free_volume(LIST_ENTRY(it, struct mem_volume, link));
    mem_free(m);
}

struct block_store *mem_block_store(struct mem_block *m)
{
    return &m->store;
}

void mem_block_set_hooks(struct mem_block *m, const struct mem_block_hooks *hooks)
{
    m->hooks = *hooks;
}

void mem_block_set_readonly(struct mem_block *m, const char *name, bool readonly)
{
    struct mem_volume *v = find(m, name);

    CHECK(v);
    v->info.readonly = readonly;
}

struct mem_block_counts mem_block_get_counts(const struct mem_block *m)
{
    return m->counts;
}
