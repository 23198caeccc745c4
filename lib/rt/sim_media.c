/* The medium of a simulated file: what a reader sees, what is durable, and what lies between.
 *
 * Two sparse images of 64 KiB pages (shared between the images until one of them is written), and
 * the list of changes that are in `now` and not yet in `durable`, in the order in which they were
 * done. A sync moves changes from the list to `durable`. A power cut decides for each change on the
 * list whether it was kept, lost, or torn at 512-byte borders, and makes `durable` what readers
 * see.
 *
 * A change that becomes durable before an older one that touches the same bytes (a dsync write
 * after a plain one) cuts those bytes out of the older: no drive brings back what was durably
 * overwritten. Sizes are metadata with an order of their own: whatever becomes durable takes all
 * older resizes, and what is before them, along.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/rt/env_priv.h"
#include "lib/rt/env_sim.h"

#define MEDIA_PAGE     65536u
#define MEDIA_PAGE_MAX ((size_t)1 << 24) /* files of at most 1 TiB */
#define SECTOR         512u
#define PENDING_MAX    1024u /* beyond, the oldest are written back, as a page cache would */

struct sim_page {
    unsigned refs;
    uint8_t data[MEDIA_PAGE];
};

struct sim_pending {
    struct list link;
    uint64_t seq;
    enum env_io_kind kind;
    uint64_t off, len;
    uint8_t *data; /* NULL: zeroes */
    uint32_t process;
    bool lie;
};

/* ---- Images
 * --------------------------------------------------------------------------------------- */

static void page_drop(struct sim_page *page)
{
    if (page && --page->refs == 0)
        mem_free(page);
}

static void image_free(struct sim_image *img)
{
    for (size_t i = 0; i < img->page_count; i++)
        page_drop(img->pages[i]);
    mem_free(img->pages);
    *img = (struct sim_image){0};
}

static void image_copy(struct sim_image *to, const struct sim_image *from)
{
    image_free(to);
    to->size = from->size;
    to->page_count = from->page_count;
    to->pages = mem_calloc(from->page_count, sizeof(to->pages[0]));
    for (size_t i = 0; i < from->page_count; i++)
        if ((to->pages[i] = from->pages[i]) != NULL)
            to->pages[i]->refs++;
}

/* Where the page is, or would be. */
static struct sim_page **image_place(struct sim_image *img, size_t i)
{
    if (i >= img->page_count) {
        size_t n = img->page_count * 2 > i ? img->page_count * 2 : i + 16;

        CHECK(i < MEDIA_PAGE_MAX);
        img->pages = mem_realloc(img->pages, n * sizeof(img->pages[0]));
        memset(img->pages + img->page_count, 0, (n - img->page_count) * sizeof(img->pages[0]));
        img->page_count = n;
    }
    return &img->pages[i];
}

/* The page, for writing: there, and in this image alone. */
static struct sim_page *image_page(struct sim_image *img, size_t i)
{
    struct sim_page **place = image_place(img, i), *page = *place;

    if (page && page->refs == 1)
        return page;
    *place = page ? mem_memdup(page, sizeof(*page)) : mem_zalloc(sizeof(*page));
    (*place)->refs = 1;
    page_drop(page);
    return *place;
}

static void image_read(const struct sim_image *img, uint8_t *buf, size_t len, uint64_t off)
{
    while (len) {
        size_t i = (size_t)(off / MEDIA_PAGE), in = (size_t)(off % MEDIA_PAGE);
        size_t n = len < MEDIA_PAGE - in ? len : MEDIA_PAGE - in;

        if (i < img->page_count && img->pages[i])
            memcpy(buf, img->pages[i]->data + in, n);
        else
            memset(buf, 0, n);
        buf += n;
        off += n;
        len -= n;
    }
}

/* Zeroes where data is NULL. Does not change the size. */
static void image_put(struct sim_image *img, const uint8_t *data, uint64_t len, uint64_t off)
{
    while (len) {
        size_t i = (size_t)(off / MEDIA_PAGE), in = (size_t)(off % MEDIA_PAGE);
        size_t n = len < MEDIA_PAGE - in ? (size_t)len : MEDIA_PAGE - in;

        if (data) {
            memcpy(image_page(img, i)->data + in, data, n);
            data += n;
        } else if (i >= img->page_count) {
            return; /* and so is all that follows */
        } else if (n == MEDIA_PAGE) {
            page_drop(img->pages[i]);
            img->pages[i] = NULL;
        } else if (img->pages[i]) {
            memset(image_page(img, i)->data + in, 0, n);
        }
        off += n;
        len -= n;
    }
}

static void image_change(struct sim_image *img, enum env_io_kind kind, const uint8_t *data,
                         uint64_t len, uint64_t off)
{
    switch (kind) {
    case ENV_WRITE:
        image_put(img, data, len, off);
        if (len && off + len > img->size)
            img->size = off + len;
        break;
    case ENV_TRIM:
        image_put(img, NULL, len, off);
        break;
    case ENV_RESIZE:
        if (off < img->size)
            image_put(img, NULL, img->size - off, off);
        img->size = off;
        break;
    case ENV_READ:
    case ENV_SYNC:
    case ENV_RESERVE:
        check_fail(__FILE__, __LINE__, "not a change");
    }
}

/* ---- Pending changes
 * ------------------------------------------------------------------------------ */

static struct sim_pending *pending_of(struct list *it)
{
    return LIST_ENTRY(it, struct sim_pending, link);
}

static void pending_free(struct sim_file *f, struct sim_pending *p)
{
    list_del(&p->link);
    f->pending_count--;
    mem_free(p->data);
    mem_free(p);
}

/* A new change like `like`, of a part of its bytes, before `at`. */
static struct sim_pending *pending_add(struct sim_file *f, struct list *at,
                                       const struct sim_pending *like, uint64_t off, uint64_t len)
{
    struct sim_pending *p = mem_memdup(like, sizeof(*like));

    p->off = off;
    p->len = len;
    if (like->data)
        p->data = mem_memdup(like->data + (off - like->off), (size_t)len);
    list_insert_before(at, &p->link);
    f->pending_count++;
    return p;
}

/* Takes the bytes [off, end) out of all that is pending. */
static void pending_cut(struct sim_file *f, uint64_t off, uint64_t end)
{
    list_for_each_safe (it, &f->pending) {
        struct sim_pending *p = pending_of(it);
        uint64_t p_end = p->off + p->len;

        if (p->kind == ENV_RESIZE || p_end <= off || p->off >= end)
            continue;
        if (p->off < off)
            pending_add(f, it, p, p->off, off - p->off);
        if (p_end > end)
            pending_add(f, it, p, end, p_end - end);
        pending_free(f, p);
    }
}

static void pending_settle(struct sim_file *f, struct sim_pending *p)
{
    image_change(&f->durable, p->kind, p->data, p->len, p->off);
    pending_free(f, p);
}

/* Makes durable what is pending up to a change; lies stay where they are. */
static void pending_settle_upto(struct sim_file *f, uint64_t seq)
{
    list_for_each_safe (it, &f->pending) {
        struct sim_pending *p = pending_of(it);

        if (p->seq > seq)
            break;
        if (!p->lie)
            pending_settle(f, p);
    }
}

/* Called by what becomes durable out of its turn. */
static void pending_settle_resizes(struct sim_file *f)
{
    uint64_t seq = 0;

    list_for_each (it, &f->pending)
        if (pending_of(it)->kind == ENV_RESIZE && !pending_of(it)->lie)
            seq = pending_of(it)->seq;
    pending_settle_upto(f, seq);
}

/* ---- Torn changes
 * --------------------------------------------------------------------------------- */

enum fate { FATE_KEPT, FATE_LOST, FATE_PREFIX, FATE_SECTORS, FATE_COUNT };

struct tear {
    enum fate fate;
    uint64_t prefix_end;
};

static struct tear tear_choose(struct sim *sim, enum env_io_kind kind, uint64_t off, uint64_t len)
{
    /* A resize is metadata: it happened or it did not. */
    struct tear t = {(enum fate)sim_random(sim, kind == ENV_RESIZE ? 2 : FATE_COUNT), 0};

    if (t.fate == FATE_PREFIX)
        t.prefix_end = (off + sim_random(sim, len + 1)) / SECTOR * SECTOR;
    return t;
}

/* The next run of bytes at or after *off that happened; false when there is none before end. */
static bool tear_next(struct sim *sim, const struct tear *t, uint64_t *off, uint64_t end,
                      uint64_t *ret_end)
{
    if (t->fate == FATE_PREFIX && t->prefix_end < end)
        end = t->prefix_end;
    if (t->fate == FATE_LOST || *off >= end)
        return false;
    if (t->fate != FATE_SECTORS) {
        *ret_end = end;
        return true;
    }
    for (; *off < end; *off = (*off / SECTOR + 1) * SECTOR) {
        if (sim_random(sim, 2))
            continue;
        *ret_end = (*off / SECTOR + 1) * SECTOR;
        if (*ret_end > end)
            *ret_end = end;
        return true;
    }
    return false;
}

/* ---- What the file operations do
 * ------------------------------------------------------------------ */

void sim_media_init(struct sim_file *f)
{
    list_init(&f->pending);
}

void sim_media_free(struct sim_file *f)
{
    while (!list_empty(&f->pending))
        pending_free(f, pending_of(f->pending.next));
    image_free(&f->now);
    image_free(&f->durable);
    image_free(&f->kept);
    mem_free(f->reserved);
}

size_t sim_media_read(struct sim_file *f, void *buf, size_t len, uint64_t off)
{
    uint64_t left = off < f->now.size ? f->now.size - off : 0;

    if (len > left)
        len = (size_t)left;
    image_read(&f->now, buf, len, off);
    return len;
}

static void media_write_back(struct sim_file *f)
{
    list_for_each_safe (it, &f->pending) {
        if (f->pending_count <= PENDING_MAX)
            break;
        if (!pending_of(it)->lie)
            pending_settle(f, pending_of(it));
    }
}

void sim_media_change(struct sim_file *f, const struct sim_change *c)
{
    struct sim_pending like = {
        .seq = ++f->last_seq,
        .kind = c->kind,
        .off = c->off,
        .len = c->len,
        .data = (uint8_t *)(uintptr_t)c->data,
        .process = c->process,
        .lie = c->lie,
    };

    image_change(&f->now, c->kind, c->data, c->len, c->off);
    if (!c->dsync || c->lie) {
        pending_add(f, &f->pending, &like, c->off, c->len);
        media_write_back(f);
        return;
    }
    pending_settle_resizes(f);
    pending_cut(f, c->off, c->off + c->len);
    image_change(&f->durable, c->kind, c->data, c->len, c->off);
}

void sim_media_change_torn(struct sim_file *f, const struct sim_change *c)
{
    struct tear t = tear_choose(f->sim, c->kind, c->off, c->len);
    struct sim_change part = *c;
    uint64_t off = c->off, run_end;

    part.dsync = false;
    if (c->kind == ENV_RESIZE) {
        if (t.fate == FATE_KEPT)
            sim_media_change(f, &part);
        return;
    }
    for (; tear_next(f->sim, &t, &off, c->off + c->len, &run_end); off = run_end) {
        part.off = off;
        part.len = run_end - off;
        part.data = c->data ? (const uint8_t *)c->data + (off - c->off) : NULL;
        sim_media_change(f, &part);
    }
}

void sim_media_sync(struct sim_file *f, uint64_t upto_seq)
{
    pending_settle_upto(f, upto_seq);
}

/* A kernel may forget what it could not write, and report it once. */
void sim_media_sync_failed(struct sim_file *f, uint64_t upto_seq)
{
    list_for_each (it, &f->pending)
        if (pending_of(it)->seq <= upto_seq && sim_random(f->sim, 2))
            pending_of(it)->lie = true;
}

static void image_xor(struct sim_image *img, uint64_t off, uint8_t bits)
{
    uint8_t byte;

    if (off >= img->size)
        return;
    image_read(img, &byte, 1, off);
    byte ^= bits;
    image_put(img, &byte, 1, off);
}

void sim_media_xor(struct sim_file *f, uint64_t off, uint8_t bits)
{
    image_xor(&f->now, off, bits);
    image_xor(&f->durable, off, bits);
    list_for_each (it, &f->pending) {
        struct sim_pending *p = pending_of(it);

        if (p->data && off >= p->off && off < p->off + p->len)
            p->data[off - p->off] ^= bits;
    }
}

/* Noise for a page's worth of bytes; none of them is zero, so what it falls on does not stay. */
static struct sim_page *noise_page(struct sim *sim)
{
    struct sim_page *noise = mem_alloc(sizeof(*noise));

    noise->refs = 1;
    for (size_t at = 0; at < MEDIA_PAGE; at += sizeof(uint64_t)) {
        uint64_t word = sim_random(sim, UINT64_MAX) | 0x0101010101010101u;

        memcpy(noise->data + at, &word, sizeof(word));
    }
    return noise;
}

static void image_noise(struct sim_image *img, struct sim_page *noise, uint64_t off, uint64_t end)
{
    if (end > img->size)
        end = img->size;
    while (off < end) {
        size_t i = (size_t)(off / MEDIA_PAGE), in = (size_t)(off % MEDIA_PAGE);
        size_t n = end - off < MEDIA_PAGE - in ? (size_t)(end - off) : MEDIA_PAGE - in;
        struct sim_page **place = image_place(img, i), *page;

        off += n;
        if (n == MEDIA_PAGE && !*place) { /* zeroes, as most of a large drive */
            *place = noise;
            noise->refs++;
            continue;
        }
        page = image_page(img, i);
        for (size_t b = in; b < in + n; b++)
            page->data[b] ^= noise->data[b];
    }
}

/* The same page of noise over and over: it is to be large and wrong, nobody looks at it closer. */
void sim_media_noise(struct sim_file *f, uint64_t off, uint64_t len)
{
    struct sim_page *noise = noise_page(f->sim);
    uint64_t end = off + len;

    image_noise(&f->now, noise, off, end);
    image_noise(&f->durable, noise, off, end);
    list_for_each (it, &f->pending) {
        struct sim_pending *p = pending_of(it);
        uint64_t from = off > p->off ? off : p->off;
        uint64_t to = end < p->off + p->len ? end : p->off + p->len;

        for (uint64_t at = from; p->data && at < to; at++)
            p->data[at - p->off] ^= noise->data[at % MEDIA_PAGE];
    }
    page_drop(noise);
}

bool sim_media_pending_of(const struct sim_file *f, uint32_t process)
{
    list_for_each (it, &f->pending)
        if (pending_of(it)->process == process)
            return true;
    return false;
}

static void media_cut_one(struct sim_file *f, const struct sim_pending *p)
{
    struct tear t = tear_choose(f->sim, p->kind, p->off, p->len);
    uint64_t off = p->off, run_end;

    sim_digest_add(f->sim, p->seq << 2 | t.fate);
    if (p->kind == ENV_RESIZE) {
        if (t.fate == FATE_KEPT)
            image_change(&f->durable, p->kind, NULL, 0, p->off);
        return;
    }
    for (; tear_next(f->sim, &t, &off, p->off + p->len, &run_end); off = run_end)
        image_change(&f->durable, p->kind, p->data ? p->data + (off - p->off) : NULL, run_end - off,
                     off);
}

void sim_media_power_cut(struct sim_file *f)
{
    sim_digest_add(f->sim, f->id);
    while (!list_empty(&f->pending)) {
        struct sim_pending *p = pending_of(f->pending.next);

        if (!p->lie)
            media_cut_one(f, p);
        pending_free(f, p);
    }
    image_copy(&f->now, &f->durable);
}

/* ---- Space, and old copies ---- */

bool sim_media_has_space(const struct sim_file *f, uint64_t off, uint64_t len)
{
    for (uint64_t i = off / MEDIA_PAGE; i * MEDIA_PAGE < off + len; i++)
        if (!(i < f->reserved_pages && f->reserved[i]) &&
            !(i < f->now.page_count && f->now.pages[i]))
            return false;
    return true;
}

void sim_media_reserve(struct sim_file *f, uint64_t off, uint64_t len)
{
    size_t end = (size_t)((off + len + MEDIA_PAGE - 1) / MEDIA_PAGE);

    if (end > f->reserved_pages) {
        f->reserved = mem_realloc(f->reserved, end);
        memset(f->reserved + f->reserved_pages, 0, end - f->reserved_pages);
        f->reserved_pages = end;
    }
    for (size_t i = (size_t)(off / MEDIA_PAGE); i < end; i++)
        f->reserved[i] = 1;
}

void sim_media_keep(struct sim_file *f)
{
    image_copy(&f->kept, &f->durable);
    f->has_kept = true;
}

void sim_media_restore(struct sim_file *f)
{
    while (!list_empty(&f->pending))
        pending_free(f, pending_of(f->pending.next));
    image_copy(&f->durable, &f->kept);
    image_copy(&f->now, &f->kept);
}
