/* A recording drive: keeps what is durable and what is not apart, write by write, so that every
 * state in which a power cut could leave it can be made.
 *
 * It is stacked on a file of the simulator, which gives it time and the order of completions; the
 * bytes are its own and outlive processes. Three things are kept: what a reader sees (`now`), what
 * is surely on the medium (`durable`), and the list of changes between the two, in the order in
 * which they were started, those in flight included. When a dsync write or a SYNC completes, the
 * changes that it covers go from the list to `durable`. Nothing else ever shortens the list: a
 * power cut may keep any part of it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/list.h"
#include "lib/rt/env_ops.h"

#define CRASH_DRIVES_MAX 7u /* with spares */
#define CRASH_SECTOR     512u
#define CRASH_PAGE       4096u

/* A page, and how many images share it. Most of a recovery's time would go to pages that a child
 * has to copy: so these lie close together, and counting does not touch the bytes. */
struct crash_page {
    unsigned images;
    uint8_t *bytes;
    struct crash_page *next; /* of those that are free */
};

/* The bytes of a drive: pages, NULL where all is zero. */
struct crash_image {
    uint64_t size;
    size_t page_count;
    struct crash_page **pages;
    uint64_t digest; /* of the bytes: a sum over pages */
};

/* A change that is not surely on the medium. */
struct crash_change {
    struct list link; /* of its drive's list */
    struct crash_disk *disk;
    uint64_t started, done; /* numbers in one order over all drives; done is 0 in flight */
    enum env_io_kind kind;  /* WRITE, TRIM or RESIZE */
    uint64_t off, len;
    uint8_t *data;    /* NULL: zeroes */
    uint8_t *settled; /* per sector: something later is durable there */
};

struct crash_disk {
    struct crash_disks *all;
    unsigned index;
    bool failing; /* every operation fails */
    struct crash_image now, durable;
    struct list changes;
    uint8_t *known; /* per page: a write to it has been made durable once */
    size_t known_pages;
};

/* The drives of one store. */
struct crash_disks {
    struct crash_disk disk[CRASH_DRIVES_MAX];
    unsigned count;
    bool one_cache; /* the drives are files on one device: see env_file_cache */
    uint64_t clock;
    /* Called just before something becomes durable: the moment with the most that a power cut may
     * take or leave. True: the power is cut now, nothing is to happen any more. */
    bool (*on_durable)(void *arg);
    void *arg;
};

void crash_disks_init(struct crash_disks *ds, unsigned count);
void crash_disks_free(struct crash_disks *ds);

/* Has the files "drive-N" that `env` opens from now on stacked under these drives. */
void crash_disks_attach(struct crash_disks *ds, struct env *env);

/* A part of a change that a power cut kept: sectors [from, to) of it. */
struct crash_part {
    struct crash_change *change;
    uint64_t from, to;
};
static inline uint64_t crash_change_sectors(const struct crash_change *c)
{
    return c->kind == ENV_RESIZE ? 1 : (c->len + CRASH_SECTOR - 1) / CRASH_SECTOR;
}

/* Puts the parts on the medium (`durable`), in their order. */
void crash_disks_keep(const struct crash_part *parts, size_t n);
/* What the digest of all media would be after crash_disks_keep. */
uint64_t crash_disks_digest(struct crash_disks *ds, const struct crash_part *parts, size_t n);

/* The power was cut, or comes on: what is on the medium is all there is. In a child, which ends
 * soon, what was else is left where it is. */
void crash_disks_cut(struct crash_disks *ds, bool in_child);
/* Flips a byte of each page of the range that anything is on. */
void crash_disk_spoil(struct crash_disk *d, uint64_t from, uint64_t to);
/* The process is gone and the power is not: what was in flight has happened, or not at all. */
void crash_disks_orphan(struct crash_disks *ds, bool happened);
