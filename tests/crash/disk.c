/* The recording drive; see disk.h. Its memory is the simulator's, handles and operations in flight
 * are the process's. */
#include "tests/crash/disk.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/mem.h"
#include "lib/rt/env_sim.h"

#define PAGES_AT_ONCE 256u

/* ---- Images ---- */

static uint64_t page_digest(const uint8_t *page, size_t i)
{
    static const uint8_t zeroes[CRASH_PAGE];

    if (!page || memcmp(page, zeroes, CRASH_PAGE) == 0)
        return 0;
    return hmap_mix(hmap_hash_bytes(page, CRASH_PAGE) + i);
}

static const uint8_t *image_look(const struct crash_image *img, size_t i)
{
    return i < img->page_count && img->pages[i] ? img->pages[i]->bytes : NULL;
}

static struct crash_page *free_pages; /* of the program's whole life */

static struct crash_page *page_new(const uint8_t *bytes)
{
    struct crash_page *page;

    if (!free_pages) {
        page = mem_calloc(PAGES_AT_ONCE, sizeof(*page));
        for (unsigned i = 0; i < PAGES_AT_ONCE - 1; i++)
            page[i].next = &page[i + 1];
        free_pages = page;
    }
    page = free_pages;
    free_pages = page->next;
    page->images = 1;
    page->bytes = bytes ? mem_memdup(bytes, CRASH_PAGE) : mem_zalloc(CRASH_PAGE);
    return page;
}

static void page_drop(struct crash_page *page)
{
    if (!page || --page->images)
        return;
    mem_free(page->bytes);
    page->next = free_pages;
    free_pages = page;
}

/* A page to write to, which is this image's alone. */
static uint8_t *image_page(struct crash_image *img, size_t i)
{
    struct crash_page *page;

    if (i >= img->page_count) {
        size_t n = 2 * i + 16;

        img->pages = mem_realloc(img->pages, n * sizeof(img->pages[0]));
        memset(img->pages + img->page_count, 0, (n - img->page_count) * sizeof(img->pages[0]));
        img->page_count = n;
    }
    page = img->pages[i];
    if (!page || page->images > 1) {
        img->pages[i] = page_new(page ? page->bytes : NULL);
        page_drop(page);
    }
    return img->pages[i]->bytes;
}

/* Zeroes where data is NULL. */
static void image_put(struct crash_image *img, const uint8_t *data, uint64_t len, uint64_t off)
{
    while (len) {
        size_t i = (size_t)(off / CRASH_PAGE), in = (size_t)(off % CRASH_PAGE);
        size_t n = len < CRASH_PAGE - in ? (size_t)len : CRASH_PAGE - in;

        if (data || image_look(img, i)) {
            uint8_t *page = image_page(img, i);

            img->digest -= page_digest(page, i);
            if (data)
                memcpy(page + in, data, n);
            else
                memset(page + in, 0, n);
            img->digest += page_digest(page, i);
        }
        data = data ? data + n : NULL;
        off += n;
        len -= n;
    }
}

static void image_read(const struct crash_image *img, uint8_t *buf, size_t len, uint64_t off)
{
    while (len) {
        size_t i = (size_t)(off / CRASH_PAGE), in = (size_t)(off % CRASH_PAGE);
        size_t n = len < CRASH_PAGE - in ? len : CRASH_PAGE - in;
        const uint8_t *page = image_look(img, i);

        if (page)
            memcpy(buf, page + in, n);
        else
            memset(buf, 0, n);
        buf += n;
        off += n;
        len -= n;
    }
}

static void image_resize(struct crash_image *img, uint64_t size)
{
    if (size < img->size)
        image_put(img, NULL, img->size - size, size);
    img->size = size;
}

static void image_free(struct crash_image *img)
{
    for (size_t i = 0; i < img->page_count; i++)
        page_drop(img->pages[i]);
    mem_free(img->pages);
    *img = (struct crash_image){0};
}

/* `leave`: what was there is left as it is, for the process ends soon. */
static void image_copy(struct crash_image *to, const struct crash_image *from, bool leave)
{
    struct crash_page **pages = mem_calloc(from->page_count, sizeof(pages[0]));

    for (size_t i = 0; i < from->page_count; i++) {
        pages[i] = from->pages[i];
        if (pages[i])
            pages[i]->images++;
    }
    if (!leave)
        image_free(to);
    *to = *from;
    to->pages = pages;
}

/* ---- Changes ---- */

static struct crash_change *change_of(struct list *it)
{
    return LIST_ENTRY(it, struct crash_change, link);
}

/* Sectors [from, to) of a change, as far as nothing later lies there. */
static void change_put(struct crash_image *img, const struct crash_change *c, uint64_t from,
                       uint64_t to)
{
    if (c->kind == ENV_RESIZE) {
        image_resize(img, c->off);
        return;
    }
    for (uint64_t s = from, end; s < to; s = end) {
        uint64_t at = s * CRASH_SECTOR, n;

        for (end = s; end < to && c->settled[end] == c->settled[s];)
            end++;
        n = (end * CRASH_SECTOR < c->len ? end * CRASH_SECTOR : c->len) - at;
        if (c->settled[s])
            continue;
        image_put(img, c->data ? c->data + at : NULL, n, c->off + at);
        if (c->kind == ENV_WRITE && c->off + at + n > img->size)
            img->size = c->off + at + n;
    }
}

static void change_put_all(struct crash_image *img, const struct crash_change *c)
{
    change_put(img, c, 0, crash_change_sectors(c));
}

static void change_free(struct crash_change *c)
{
    list_del(&c->link);
    mem_free(c->data);
    mem_free(c->settled);
    mem_free(c);
}

/* No drive brings back what was durably overwritten. A change that has the same sectors and was
 * started before `c` is cut there; so is, where `c` overtook it, one that is done. */
static void change_shadow(const struct crash_change *c)
{
    list_for_each (it, &c->disk->changes) {
        struct crash_change *o = change_of(it);
        uint64_t sectors = crash_change_sectors(o);

        if (o == c || o->kind == ENV_RESIZE || (o->started > c->started && !o->done))
            continue;
        for (uint64_t s = 0; s < sectors; s++) {
            uint64_t at = o->off + s * CRASH_SECTOR;

            if (at >= c->off && at < c->off + c->len)
                o->settled[s] = 1;
        }
    }
}

static void disk_know(struct crash_disk *d, uint64_t off, uint64_t len)
{
    size_t end = (size_t)((off + len + CRASH_PAGE - 1) / CRASH_PAGE);

    if (end > d->known_pages) {
        d->known = mem_realloc(d->known, 2 * end);
        memset(d->known + d->known_pages, 0, 2 * end - d->known_pages);
        d->known_pages = 2 * end;
    }
    memset(d->known + off / CRASH_PAGE, 1, end - (size_t)(off / CRASH_PAGE));
}

static bool disk_knows(const struct crash_disk *d, uint64_t off, uint64_t len)
{
    for (uint64_t i = off / CRASH_PAGE; i * CRASH_PAGE < off + len; i++)
        if (i >= d->known_pages || !d->known[i])
            return false;
    return true;
}

static void change_settle(struct crash_change *c)
{
    change_put_all(&c->disk->durable, c);
    if (c->kind == ENV_WRITE)
        disk_know(c->disk, c->off, c->len);
    if (c->kind != ENV_RESIZE)
        change_shadow(c);
    change_free(c);
}

/* Sizes are metadata: what becomes durable takes the resizes before it along. */
static void settle_resizes(struct crash_disk *d, uint64_t upto)
{
    list_for_each_safe (it, &d->changes)
        if (change_of(it)->kind == ENV_RESIZE && change_of(it)->done && change_of(it)->done < upto)
            change_settle(change_of(it));
}

/* All that was done on the drive before `upto`; of another drive only what lies where the file
 * system has nothing to remember. */
static void settle_done(struct crash_disk *d, uint64_t upto, bool another)
{
    list_for_each_safe (it, &d->changes) {
        struct crash_change *c = change_of(it);

        if (!c->done || c->done > upto)
            continue;
        if (another && (c->kind != ENV_WRITE || !disk_knows(d, c->off, c->len)))
            continue;
        change_settle(c);
    }
}

/* ---- Operations ---- */

struct crash_file {
    struct env_file base;
    struct env_file *under;
    struct crash_disk *disk;
    unsigned in_flight;
    bool forsaken; /* its last operation closes it */
};

struct crash_op {
    struct env_io under; /* an operation that only takes time */
    struct env_io *io;
    struct crash_change *change;
    uint64_t started;
};

static struct crash_change *change_new(struct crash_disk *d, const struct env_io *io)
{
    struct crash_change *c;
    void *saved;

    sim_outside_enter(&saved);
    c = mem_zalloc(sizeof(*c));
    c->disk = d;
    c->started = ++d->all->clock;
    c->kind = io->kind;
    c->off = io->off;
    c->len = io->kind == ENV_RESIZE ? 0 : io->len;
    if (io->kind == ENV_WRITE)
        c->data = mem_memdup(io->buf, io->len);
    c->settled = mem_zalloc((size_t)crash_change_sectors(c));
    list_push_back(&d->changes, &c->link);
    sim_outside_leave(saved);
    return c;
}

static int64_t op_read(struct crash_disk *d, const struct env_io *io)
{
    size_t n = io->len;

    if (io->off >= d->now.size)
        return 0;
    if (n > d->now.size - io->off)
        n = (size_t)(d->now.size - io->off);
    image_read(&d->now, io->buf, n, io->off);
    return (int64_t)n;
}

static void op_change(struct crash_disk *d, struct crash_op *op)
{
    struct crash_change *c = op->change;
    bool dsync = op->io->kind == ENV_WRITE && op->io->dsync;

    if (c->data) /* the buffer has to stay as it was */
        CHECK(memcmp(c->data, op->io->buf, c->len) == 0);
    change_put_all(&d->now, c);
    c->done = ++d->all->clock;
    if (!dsync)
        return;
    settle_resizes(d, c->done);
    change_settle(c);
}

static void op_sync(struct crash_disk *d, const struct crash_op *op)
{
    settle_done(d, op->started, false);
    for (unsigned i = 0; d->all->one_cache && i < d->all->count; i++)
        if (i != d->index)
            settle_done(&d->all->disk[i], op->started, true);
}

/* Does the operation make anything durable? */
static bool op_settles(const struct crash_op *op)
{
    return op->io->kind == ENV_SYNC || (op->io->kind == ENV_WRITE && op->io->dsync);
}

static void op_happens(struct crash_disk *d, struct crash_op *op)
{
    struct env_io *io = op->io;
    void *saved;

    sim_outside_enter(&saved);
    io->result = io->kind == ENV_WRITE ? (int64_t)io->len : 0;
    if (d->failing) {
        io->result = ERR_IO;
        if (op->change)
            change_free(op->change);
    } else if (io->kind == ENV_READ) {
        io->result = op_read(d, io);
    } else if (io->kind == ENV_SYNC) {
        op_sync(d, op);
    } else if (op->change) {
        op_change(d, op);
    }
    sim_outside_leave(saved);
}

static void file_close(struct env_file *file)
{
    struct crash_file *f = (struct crash_file *)file;

    f->under->ops->close(f->under);
    mem_free(f);
}

static void file_forsake(struct env_file *file)
{
    struct crash_file *f = (struct crash_file *)file;

    if (f->in_flight == 0)
        file_close(file);
    else
        f->forsaken = true;
}

static void op_done(struct env_io *under)
{
    struct crash_op *op = (struct crash_op *)under;
    struct crash_file *f = (struct crash_file *)op->io->file;
    struct crash_disk *d = f->disk;
    struct env_io *io = op->io;
    bool last;

    if (!d->failing && op_settles(op) && d->all->on_durable && d->all->on_durable(d->all->arg))
        return;
    op_happens(d, op);
    mem_free(op);
    last = --f->in_flight == 0 && f->forsaken;
    io->done(io);
    if (last)
        file_close(&f->base);
}

static void file_start(struct env_file *file, struct env_io *io)
{
    struct crash_file *f = (struct crash_file *)file;
    struct crash_op *op = mem_zalloc(sizeof(*op));

    op->under = (struct env_io){.kind = ENV_RESERVE, .file = f->under, .done = op_done};
    op->io = io;
    if (io->kind == ENV_WRITE || io->kind == ENV_TRIM || io->kind == ENV_RESIZE)
        op->change = change_new(f->disk, io);
    op->started = ++f->disk->all->clock;
    f->in_flight++;
    f->under->ops->start(f->under, &op->under);
}

static int file_size(struct env_file *file, uint64_t *ret_size)
{
    *ret_size = ((struct crash_file *)file)->disk->now.size;
    return 0;
}

static uint64_t file_cache(struct env_file *file)
{
    return ((struct crash_file *)file)->disk->all->one_cache;
}

static const struct env_file_ops file_ops = {.start = file_start,
                                             .size = file_size,
                                             .close = file_close,
                                             .cache = file_cache,
                                             .forsake = file_forsake};

static struct env_file *disks_wrap(void *arg, const char *path, struct env_file *under)
{
    struct crash_disks *ds = arg;
    struct crash_file *f;
    unsigned i;

    if (strncmp(path, "drive-", 6) != 0)
        return under;
    i = (unsigned)atoi(path + 6);
    CHECK(i < ds->count);
    f = mem_zalloc(sizeof(*f));
    f->base = (struct env_file){.ops = &file_ops, .env = under->env};
    f->under = under;
    f->disk = &ds->disk[i];
    return &f->base;
}

void crash_disks_attach(struct crash_disks *ds, struct env *env)
{
    env_wrap_files(env, disks_wrap, ds);
}

/* ---- All drives ---- */

void crash_disks_init(struct crash_disks *ds, unsigned count)
{
    memset(ds, 0, sizeof(*ds));
    ds->count = count;
    for (unsigned i = 0; i < count; i++) {
        ds->disk[i].all = ds;
        ds->disk[i].index = i;
        list_init(&ds->disk[i].changes);
    }
}

static void disk_forget(struct crash_disk *d)
{
    while (!list_empty(&d->changes))
        change_free(change_of(d->changes.next));
}

void crash_disks_free(struct crash_disks *ds)
{
    for (unsigned i = 0; i < ds->count; i++) {
        disk_forget(&ds->disk[i]);
        image_free(&ds->disk[i].now);
        image_free(&ds->disk[i].durable);
        mem_free(ds->disk[i].known);
    }
}

void crash_disks_keep(const struct crash_part *parts, size_t n)
{
    for (size_t i = 0; i < n; i++)
        change_put(&parts[i].change->disk->durable, parts[i].change, parts[i].from, parts[i].to);
}

/* Puts the parts on a copy of the pages that they touch. */
static void digest_part(struct crash_image *scratch, const struct crash_image *img,
                        const struct crash_part *p)
{
    const struct crash_change *c = p->change;
    uint64_t off = c->off + p->from * CRASH_SECTOR, end = c->off + p->to * CRASH_SECTOR;

    if (c->kind == ENV_RESIZE) {
        scratch->size = c->off;
        return;
    }
    for (size_t i = (size_t)(off / CRASH_PAGE); i * (uint64_t)CRASH_PAGE < end; i++)
        if (image_look(img, i) && !image_look(scratch, i))
            memcpy(image_page(scratch, i), image_look(img, i), CRASH_PAGE);
    change_put(scratch, c, p->from, p->to);
}

uint64_t crash_disks_digest(struct crash_disks *ds, const struct crash_part *parts, size_t n)
{
    uint64_t sum = 0;

    for (unsigned d = 0; d < ds->count; d++) {
        const struct crash_image *img = &ds->disk[d].durable;
        struct crash_image scratch = {.size = img->size, .digest = img->digest};

        for (size_t i = 0; i < n; i++)
            if (parts[i].change->disk == &ds->disk[d])
                digest_part(&scratch, img, &parts[i]);
        sum = hmap_mix(sum + hmap_mix(scratch.digest + d) + scratch.size);
        image_free(&scratch);
    }
    return sum;
}

void crash_disks_cut(struct crash_disks *ds, bool in_child)
{
    for (unsigned i = 0; i < ds->count; i++) {
        struct crash_disk *d = &ds->disk[i];

        if (in_child)
            list_init(&d->changes);
        else
            disk_forget(d);
        image_copy(&d->now, &d->durable, in_child);
    }
}

static void image_spoil(struct crash_image *img, uint64_t from, uint64_t to)
{
    for (size_t i = (size_t)(from / CRASH_PAGE); i < img->page_count && i < to / CRASH_PAGE; i++) {
        uint8_t *page;

        if (!image_look(img, i))
            continue;
        page = image_page(img, i);
        img->digest -= page_digest(page, i);
        page[i % CRASH_PAGE] ^= 0x10;
        img->digest += page_digest(page, i);
    }
}

void crash_disk_spoil(struct crash_disk *d, uint64_t from, uint64_t to)
{
    void *saved;

    sim_outside_enter(&saved);
    image_spoil(&d->now, from, to);
    image_spoil(&d->durable, from, to);
    sim_outside_leave(saved);
}

void crash_disks_orphan(struct crash_disks *ds, bool happened)
{
    for (unsigned i = 0; i < ds->count; i++)
        list_for_each_safe (it, &ds->disk[i].changes) {
            struct crash_change *c = change_of(it);

            if (c->done)
                continue;
            if (!happened) {
                change_free(c);
                continue;
            }
            change_put_all(&ds->disk[i].now, c);
            c->done = ++ds->clock;
        }
}
