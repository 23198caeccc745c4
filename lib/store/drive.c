/* The drive set and its superblocks; see drive.h and format.h (F1, F2). */
#include "lib/store/drive.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/metric.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/drive_priv.h"

#define DRIVE_WIPE_PIECE (1u << 20)
#define DRIVE_WIPE_DEPTH 8u         /* pieces at once: somebody may wait for it */
#define DRIVE_SLOTS_MAX  (1u << 28) /* a petabyte: bounds the table of slots taken */

void driveset_profile(unsigned count, unsigned *ret_k, unsigned *ret_m)
{
    static const uint8_t k[] = {0, 1, 1, 2, 2, 2, 4}, m[] = {0, 0, 1, 1, 2, 2, 2};
    unsigned i = count < 6 ? count : 6;

    *ret_k = k[i];
    *ret_m = m[i];
}

bool drive_usable(const struct drive *d)
{
    return d->state == DRIVE_OK;
}

bool drive_takes(const struct drive *d)
{
    return drive_usable(d) && !d->transit && (!d->leaving || PLANTED(LEAVING_TAKES));
}

bool drive_readable(const struct drive *d)
{
    return d->file != NULL && !d->hung;
}

bool drive_doubtful(const struct drive *d)
{
    return !drive_usable(d) || d->health.state != HEALTH_OK;
}

unsigned driveset_members(const struct driveset *ds)
{
    unsigned n = 0;

    for (unsigned i = 0; i < ds->count; i++)
        n += ds->drives[i].state != DRIVE_NONE;
    return n;
}

unsigned driveset_healthy(const struct driveset *ds)
{
    unsigned n = 0;

    for (unsigned i = 0; i < ds->count; i++)
        n += drive_usable(&ds->drives[i]);
    return n;
}

/* ---- Superblocks ---- */

static uint32_t super_crc(const struct format_super *s)
{
    struct format_super copy = *s;

    copy.crc = 0;
    return crc32c(0, &copy, sizeof(copy));
}

static bool super_members_valid(const struct format_super *s)
{
    for (uint32_t i = 0; i < s->drive_count; i++)
        if (s->members[i].state != FORMAT_DRIVE_NONE &&
            (s->members[i].slot_count < 1 || s->members[i].slot_count > DRIVE_SLOTS_MAX))
            return false;
    return true;
}

static bool slot_size_valid(uint64_t size)
{
    return size % FORMAT_UNIT == 0 && size >= FORMAT_SLOT_MIN && size <= FORMAT_SLOT_MAX;
}

bool drive_super_valid(const struct format_super *s)
{
    uint64_t end;

    return s->magic == FORMAT_SUPER_MAGIC &&
           (s->version == FORMAT_VERSION || s->version == FORMAT_VERSION_MEMBERS) &&
           s->crc == super_crc(s) && s->drive_count >= 1 && s->drive_count <= FORMAT_DRIVES_MAX &&
           s->drive_index < s->drive_count && s->data_columns >= 1 &&
           s->data_columns + s->parity_columns <= FORMAT_COLS_MAX &&
           s->data_columns + s->parity_columns <= (int)s->drive_count &&
           slot_size_valid(s->slot_size) && s->journal_off == FORMAT_JOURNAL_OFF &&
           s->journal_len % FORMAT_UNIT == 0 && s->journal_len >= FORMAT_JOURNAL_MIN &&
           /* The point behind a batch that fills the area to its end is the end. */
           s->replay_off <= s->journal_len && s->replay_off % FORMAT_UNIT == 0 &&
           s->clean_off <= s->journal_len && s->clean_off % FORMAT_UNIT == 0 &&
           !__builtin_add_overflow(s->journal_off, s->journal_len, &end) && s->slots_off >= end &&
           s->slots_off % FORMAT_UNIT == 0 && s->slots_off <= INT64_MAX && super_members_valid(s);
}

/* Takes the superblock in `data` if it is valid and newer than what there is (magic 0: nothing). */
void drive_super_take(const void *data, struct format_super *super)
{
    struct format_super s;

    memcpy(&s, data, sizeof(s));
    if (drive_super_valid(&s) && (!super->magic || s.generation > super->generation))
        *super = s;
}

int drive_super_read(struct env_file *file, struct format_super *ret_super)
{
    static const uint64_t offs[] = {FORMAT_SUPER_OFF_A, FORMAT_SUPER_OFF_B};
    struct buf *b = buf_new(FORMAT_UNIT);
    struct format_super s = {0};

    for (unsigned i = 0; i < 2; i++)
        if (env_pread(file, b->data, FORMAT_UNIT, offs[i]) == 0)
            drive_super_take(b->data, &s);
    buf_unref(b);
    if (!s.magic)
        return ERR_FORMAT;
    *ret_super = s;
    return 0;
}

/* Writes copy A (or B) to all drives that count; puts out those that fail. Returns whether all did.
 */
static bool super_write_copy(struct driveset *ds, struct buf **blocks, uint64_t off)
{
    struct drive_io ios[FORMAT_DRIVES_MAX];
    unsigned at[FORMAT_DRIVES_MAX], n = 0;
    bool all = true;

    for (unsigned i = 0; i < ds->count; i++) {
        if (!drive_usable(&ds->drives[i]))
            continue;
        drive_io_prepare(&ds->drives[i], &ios[n], ENV_WRITE, blocks[i], blocks[i]->data,
                         FORMAT_UNIT, off);
        ios[n].dsync = !PLANTED(SUPER_NOT_SYNCED);
        at[n++] = i;
    }
    drive_io_run(ios, n);
    for (unsigned j = 0; j < n; j++) {
        if (ios[j].result < 0) {
            driveset_put_out(ds, at[j], "superblock write failed");
            all = false;
        }
    }
    return all;
}

void drive_super_sign(const struct format_super *super, unsigned index, const uint8_t *uuid,
                      struct buf *b)
{
    struct format_super s = *super;

    s.drive_index = index;
    memcpy(s.drive_uuid, uuid, 16);
    s.crc = super_crc(&s);
    memset(b->data, 0, FORMAT_UNIT);
    memcpy(b->data, &s, sizeof(s));
}

/* A new block each time: the one of the round before may still be on its way to the drive. */
static struct buf *super_block(const struct driveset *ds, unsigned i)
{
    struct buf *b = buf_new(FORMAT_UNIT);

    drive_super_sign(&ds->super, i, ds->drives[i].uuid, b);
    return b;
}

/* Writes both copies, one after the other: one of them is whole at any time. */
static bool super_write(struct driveset *ds)
{
    struct buf *blocks[FORMAT_DRIVES_MAX];
    bool all;

    for (unsigned i = 0; i < ds->count; i++)
        blocks[i] = super_block(ds, i);
    all = super_write_copy(ds, blocks, FORMAT_SUPER_OFF_A);
    all &= super_write_copy(ds, blocks, FORMAT_SUPER_OFF_B);
    for (unsigned i = 0; i < ds->count; i++)
        buf_unref(blocks[i]);
    return all;
}

void driveset_set_members(struct driveset *ds)
{
    ds->super.drive_count = ds->count;
    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *d = &ds->drives[i];
        struct format_member *mb = &ds->super.members[i];

        *mb = (struct format_member){.state = d->state == DRIVE_NONE ? FORMAT_DRIVE_NONE
                                              : d->leaving           ? FORMAT_DRIVE_LEAVING
                                              : drive_usable(d)      ? FORMAT_DRIVE_OK
                                                                     : FORMAT_DRIVE_OUT,
                                     .out = d->state != DRIVE_NONE && !drive_usable(d),
                                     .class_ = d->class_,
                                     .slot_count = d->slot_count};
        memcpy(mb->uuid, d->uuid, 16);
    }
}

int driveset_commit_locked(struct driveset *ds, bool membership)
{
    bool again = true;
    int rc = ERR_LOST;

    while (again && driveset_healthy(ds) > 0) {
        ds->super.generation++;
        if (membership) {
            ds->super.epoch++;
            ds->uncommitted = false;
            driveset_set_members(ds);
        }
        again = !super_write(ds);
        membership |= again; /* a drive was put out: that must be told too */
        rc = again ? ERR_LOST : 0;
    }
    return rc;
}

int driveset_commit(struct driveset *ds, bool membership,
                    void (*change)(struct format_super *super, void *arg), void *arg)
{
    int rc;

    fiber_mutex_lock(&ds->super_lock);
    if (change)
        change(&ds->super, arg);
    rc = driveset_commit_locked(ds, membership);
    fiber_mutex_unlock(&ds->super_lock);
    return rc;
}

int driveset_tell(struct driveset *ds)
{
    int rc = 0;

    fiber_mutex_lock(&ds->super_lock);
    if (ds->uncommitted || driveset_healthy(ds) == 0)
        rc = driveset_commit_locked(ds, true);
    fiber_mutex_unlock(&ds->super_lock);
    return rc;
}

/* Is a copy of drive i's superblock the one that was written last? super_lock is held. */
static bool super_is_current(struct driveset *ds, unsigned i, uint64_t off, struct buf **b)
{
    struct format_super s;

    if (drive_pread(&ds->drives[i], b, FORMAT_UNIT, off) < 0)
        return false;
    memcpy(&s, (*b)->data, sizeof(s));
    return drive_super_valid(&s) && s.generation == ds->super.generation && s.drive_index == i &&
           memcmp(s.store_uuid, ds->super.store_uuid, 16) == 0 &&
           memcmp(s.drive_uuid, ds->drives[i].uuid, 16) == 0;
}

/* The block is used for nothing else: a drive that does not answer may write it any time later. */
static bool super_mend(struct driveset *ds, unsigned i, uint64_t off)
{
    struct buf *b = super_block(ds, i);
    bool right = drive_mend(ds, &ds->drives[i], off, b, b->data, FORMAT_UNIT);

    buf_unref(b);
    return right;
}

/* One copy at a time, so that a crash leaves the other as it was (F1). */
void driveset_mend_supers(struct driveset *ds, uint64_t *ret_bad, uint64_t *ret_mended,
                          bool *ret_failed)
{
    static const uint64_t offs[] = {FORMAT_SUPER_OFF_A, FORMAT_SUPER_OFF_B};
    struct buf *b = buf_new(FORMAT_UNIT);

    fiber_mutex_lock(&ds->super_lock);
    for (unsigned i = 0; i < 2 * ds->count; i++) {
        struct drive *d = &ds->drives[i / 2];

        if (!drive_usable(d))
            continue;
        d->scrub.bytes += FORMAT_UNIT;
        if (super_is_current(ds, i / 2, offs[i % 2], &b) || !drive_usable(d) || !drive_readable(d))
            continue; /* right, or not known: the drive does not answer */
        *ret_mended += super_mend(ds, i / 2, offs[i % 2]);
        ++*ret_bad;
        *ret_failed |= !drive_usable(d);
    }
    fiber_mutex_unlock(&ds->super_lock);
    buf_unref(b);
}

void driveset_put_out(struct driveset *ds, unsigned index, const char *reason)
{
    struct drive *d = &ds->drives[index];

    if (d->state != DRIVE_OK)
        return;
    d->state = DRIVE_FAILED;
    d->reason = d->hung ? "does not answer" : reason; /* rather than what that led to */
    ds->uncommitted = true;
    driveset_wait_again(ds);
}

bool drive_mend(struct driveset *ds, struct drive *d, uint64_t off, struct buf *b, void *bytes,
                size_t len)
{
    struct buf *again = buf_new(len);
    struct drive_io io = {.result = ERR_TIMEDOUT};
    bool right = false;

    if (drive_readable(d)) {
        drive_io_prepare(d, &io, ENV_WRITE, b, bytes, len, off);
        drive_io_run(&io, 1);
        if (io.result < 0 && io.result != ERR_NOSPC) /* that is no fault of the drive */
            driveset_put_out(ds, d->index, "repair by scrub failed");
    }
    if (io.result >= 0)
        right = drive_pread(d, &again, len, off) == 0 && memcmp(again->data, bytes, len) == 0;
    d->scrub.bad++;
    d->scrub.mended += right;
    d->scrub.unmended += !right;
    buf_unref(again);
    return right;
}

int drive_wipe_journal(struct driveset *ds, struct drive *d)
{
    struct buf *zero = buf_new(DRIVE_WIPE_PIECE);
    uint64_t at = 0;
    int rc = 0;

    memset(zero->data, 0, DRIVE_WIPE_PIECE);
    while (rc == 0 && at < ds->super.journal_len) {
        struct drive_io ios[DRIVE_WIPE_DEPTH];
        unsigned n = 0;

        if (!drive_usable(d)) { /* put out meanwhile */
            rc = ERR_IO;
            break;
        }
        for (; n < DRIVE_WIPE_DEPTH && at < ds->super.journal_len; n++) {
            uint64_t left = ds->super.journal_len - at;
            size_t len = left < DRIVE_WIPE_PIECE ? (size_t)left : DRIVE_WIPE_PIECE;

            drive_io_prepare(d, &ios[n], ENV_WRITE, zero, zero->data, len,
                             ds->super.journal_off + at);
            ios[n].dsync = false;
            at += len;
        }
        drive_io_run(ios, n);
        for (unsigned i = 0; i < n && rc == 0; i++)
            rc = ios[i].result < 0 ? (int)ios[i].result : 0;
    }
    if (rc == 0)
        rc = drive_sync(d);
    buf_unref(zero);
    return rc;
}

/* ---- Making a store ---- */

bool drive_super_begun(const struct format_super *s, const uint8_t *uuid)
{
    return uuid && s->generation <= 1 && memcmp(s->store_uuid, uuid, 16) == 0;
}

/* Puts the store's UUID on every drive, before anything that a crash may tear (F10). */
static bool format_claim(struct driveset *ds)
{
    struct format_super claim = ds->super;
    struct buf *blocks[FORMAT_DRIVES_MAX];
    bool all;

    claim.generation = 0;
    memset(claim.members, 0, sizeof(claim.members));
    for (unsigned i = 0; i < ds->count; i++) {
        blocks[i] = buf_new(FORMAT_UNIT);
        drive_super_sign(&claim, i, ds->drives[i].uuid, blocks[i]);
    }
    all = super_write_copy(ds, blocks, FORMAT_SUPER_OFF_B);
    for (unsigned i = 0; i < ds->count; i++)
        buf_unref(blocks[i]);
    return all;
}

/* Not driveset_commit: where a drive fails there is to be no store without it, and no higher
 * generation. */
static int format_supers(struct driveset *ds)
{
    if (!format_claim(ds))
        return ERR_IO;
    ds->super.generation = 1;
    ds->super.epoch = 1;
    driveset_set_members(ds);
    return super_write(ds) ? 0 : ERR_IO;
}

static int format_one(struct driveset *ds, struct drive *d, const uint8_t *ours)
{
    struct format_super found;
    uint64_t size = drive_slot_off(ds, (uint32_t)d->slot_count), have;
    int rc =
        env_open(ds->env, d->path, ENV_OPEN_CREATE | ENV_OPEN_DIRECT | ENV_OPEN_LOCK, &d->file);

    if (rc < 0)
        return rc;
    rc = env_file_size(d->file, &have);
    if (rc == 0 && have >= FORMAT_JOURNAL_OFF && drive_super_read(d->file, &found) == 0 &&
        !drive_super_begun(&found, ours))
        return ERR_EXIST;
    if (rc == 0 && have < size)
        rc = env_resize(d->file, size); /* a block device too small says so here */
    /* Its size first: a file that is signed and too short is no drive, and not blank either. */
    if (rc == 0)
        rc = env_sync(d->file);
    if (rc == 0 && (ds->super.journal_mirrors >> d->index & 1))
        rc = drive_wipe_journal(ds, d);
    /* Any drive may have to become a mirror, and then on a file system that is full by now. */
    if (rc == 0 && env_reserve(d->file, ds->super.journal_off, ds->super.journal_len) == ERR_NOSPC)
        rc = ERR_NOSPC;
    return rc;
}

void drive_init(struct driveset *ds, unsigned index)
{
    struct drive *d = &ds->drives[index];

    *d = (struct drive){.index = index, .path = mem_strdup(""), .state = DRIVE_NONE, .reason = ""};
    ds->made_up &= ~(1ull << index);
    drive_io_attach(ds, d);
}

static struct driveset *driveset_alloc(struct env *env, const char *const *paths, unsigned count)
{
    struct driveset *ds = mem_zalloc(sizeof(*ds));

    ds->env = env;
    ds->count = count;
    fiber_mutex_init(&ds->super_lock);
    driveset_io_init(ds);
    for (unsigned i = 0; i < count; i++) {
        drive_init(ds, i);
        mem_free(ds->drives[i].path);
        ds->drives[i].path = mem_strdup(paths[i]);
        ds->drives[i].state = DRIVE_OK;
    }
    ds->patient = true;
    return ds;
}

int driveset_format(struct env *env, const struct driveset_params *p)
{
    uint64_t slot_size = p->slot_size ? p->slot_size : FORMAT_SLOT_SIZE;
    struct driveset *ds;
    int rc = 0;

    if (p->count < 1 || p->count > FORMAT_DRIVES_MAX || p->k < 1 || p->k + p->m > p->count ||
        p->k + p->m > FORMAT_COLS_MAX || p->journal_len % FORMAT_UNIT ||
        p->journal_len < FORMAT_JOURNAL_MIN || p->slot_count < 1 ||
        p->slot_count > DRIVE_SLOTS_MAX || !slot_size_valid(slot_size))
        return ERR_INVAL;
    ds = driveset_alloc(env, p->paths, p->count);
    ds->super = (struct format_super){.magic = FORMAT_SUPER_MAGIC,
                                      .version = FORMAT_VERSION,
                                      .drive_count = p->count,
                                      .data_columns = (uint8_t)p->k,
                                      .parity_columns = (uint8_t)p->m,
                                      .clean = 1,
                                      .journal_off = FORMAT_JOURNAL_OFF,
                                      .journal_len = p->journal_len,
                                      .slots_off = FORMAT_JOURNAL_OFF + p->journal_len,
                                      .slot_size = slot_size,
                                      .journal_mirrors = (1ull << (p->m + 1)) - 1,
                                      .replay_seq = 1,
                                      .replay_lsn = 1};
    if (p->uuid)
        memcpy(ds->super.store_uuid, p->uuid, 16);
    else
        env_random(env, ds->super.store_uuid, 16);
    for (unsigned i = 0; rc == 0 && i < p->count; i++) {
        ds->drives[i].slot_count = p->slot_count;
        env_random(env, ds->drives[i].uuid, 16);
        rc = format_one(ds, &ds->drives[i], p->uuid);
    }
    if (rc == 0)
        rc = format_supers(ds);
    driveset_close(ds);
    return rc;
}

/* ---- Opening a store ---- */

/* What is found under a path. */
struct candidate {
    const char *path;
    struct env_file *file;     /* ours, locked; NULL when it cannot be had */
    struct format_super super; /* magic 0: none that is whole */
    bool locked;               /* by another daemon; or by ourselves, under another path */
    bool taken;                /* a drive of ours */
    const char *reason;
};

/* Opens what is there. Who has a lock may be told by the superblock, which can be read all the
 * same. */
static void candidate_open(struct driveset *ds, struct candidate *c, struct drive_probe *probe)
{
    int rc = env_open(ds->env, c->path, ENV_OPEN_DIRECT | ENV_OPEN_LOCK, &c->file);

    c->reason = rc == ERR_NOENT ? "no such file or device" : "cannot be opened";
    probe->file = NULL;
    if (rc == 0) {
        probe->file = c->file;
        return;
    }
    c->file = NULL;
    c->locked = rc == ERR_LOCKED;
    if (c->locked &&
        env_open(ds->env, c->path, ENV_OPEN_DIRECT | ENV_OPEN_RDONLY, &probe->file) < 0)
        probe->file = NULL;
}

/* Takes what was read of it. */
static void candidate_probed(struct candidate *c, const struct drive_probe *probe)
{
    c->super = probe->super;
    if (!probe->file)
        return;
    c->reason = probe->silent        ? "does not answer"
                : probe->super.magic ? "belongs to another store or place"
                                     : "its superblock is damaged or not Filmroom's";
    if (probe->silent)
        env_forsake(probe->file);
    else if (c->locked)
        env_close(probe->file);
    if (probe->silent) {
        c->file = NULL;
        c->super.magic = 0;
    }
}

/* A drive that was lost and the one that took its place have the same path. Opened again it would
 * be locked, by ourselves; if then the first could not be read, and this one could, it would seem
 * that somebody else has it. */
static bool candidate_again(const struct candidate *c, unsigned i)
{
    for (unsigned j = 0; j < i; j++)
        if (strcmp(c[i].path, c[j].path) == 0)
            return true;
    return false;
}

static void candidates_look(struct driveset *ds, struct candidate *c, unsigned n)
{
    struct drive_probe *probes = mem_calloc(n, sizeof(*probes));

    for (unsigned i = 0; i < n; i++)
        if (candidate_again(c, i))
            c[i].reason = "the path of another drive too";
        else
            candidate_open(ds, &c[i], &probes[i]);
    drive_probe(ds->env, probes, n);
    for (unsigned i = 0; i < n; i++)
        candidate_probed(&c[i], &probes[i]);
    mem_free(probes);
}

static bool same_drive(const struct format_super *a, const struct format_super *b)
{
    return a->magic && b->magic && memcmp(a->store_uuid, b->store_uuid, 16) == 0 &&
           memcmp(a->drive_uuid, b->drive_uuid, 16) == 0;
}

/* Of two paths to one drive, or a drive and its copy, the first with the newest state counts. */
static void candidates_single(struct candidate *c, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        for (unsigned j = 0; j < n; j++)
            if (i != j && same_drive(&c[i].super, &c[j].super) && !c[i].locked &&
                (c[j].locked || c[j].super.generation < c[i].super.generation ||
                 (c[j].super.generation == c[i].super.generation && j > i))) {
                c[j].super.magic = 0;
                c[j].locked = false;
                c[j].reason = "the same drive is under another path too";
            }
}

static bool newer(const struct format_super *a, const struct format_super *b)
{
    if (PLANTED(OLDEST_ELECTED))
        return a->epoch < b->epoch;
    return a->epoch != b->epoch ? a->epoch > b->epoch : a->generation > b->generation;
}

/* A drive that a store was to be made on has no say yet, and nothing to say (F10). */
static bool super_is_claim(const struct format_super *s)
{
    for (uint32_t i = 0; i < s->drive_count; i++)
        if (s->members[i].state != FORMAT_DRIVE_NONE)
            return false;
    return true;
}

/* Which store this is: the one that most drives belong to, in its newest state (F2). A drive of
 * another store may have seen more epochs than ours. */
static int elect_among(struct driveset *ds, const struct candidate *c, unsigned n)
{
    const struct format_super *best = NULL;
    unsigned best_votes = 0;
    bool tie = false;

    for (unsigned i = 0; i < n; i++) {
        const struct format_super *s = &c[i].super;
        unsigned votes = 0;

        if (!s->magic || super_is_claim(s))
            continue;
        for (unsigned j = 0; j < n; j++)
            votes += c[j].super.magic && memcmp(c[j].super.store_uuid, s->store_uuid, 16) == 0;
        if (best && memcmp(s->store_uuid, best->store_uuid, 16) == 0) {
            if (newer(s, best))
                best = s;
        } else if (!best || votes >= best_votes) {
            tie = best && votes == best_votes;
            best = s;
            best_votes = votes;
        }
    }
    if (!best)
        return ERR_LOST;
    if (tie)
        return ERR_CONFIG;
    ds->super = *best;
    return 0;
}

/* Under the further paths there may well be drives of another store by now: they choose only where
 * there is nothing else. */
static int elect(struct driveset *ds, const struct candidate *c, unsigned n)
{
    unsigned first = n < FORMAT_DRIVES_MAX ? n : FORMAT_DRIVES_MAX;
    int rc = elect_among(ds, c, first);

    if (rc == ERR_LOST)
        rc = elect_among(ds, c, n);
    for (unsigned i = first; rc == 0 && i < n; i++) {
        const struct format_super *s = &c[i].super;

        if (s->magic && memcmp(s->store_uuid, ds->super.store_uuid, 16) == 0 &&
            !super_is_claim(s) && newer(s, &ds->super))
            ds->super = *s;
    }
    return rc;
}

static bool drive_large_enough(const struct driveset *ds, const struct drive *d)
{
    uint64_t size;

    return env_file_size(d->file, &size) == 0 &&
           size >= drive_slot_off(ds, (uint32_t)d->slot_count);
}

/* Is this superblock's drive the member that the store's best superblock expects there? */
static bool member_matches(const struct driveset *ds, unsigned i, const struct format_super *s)
{
    return s->magic && s->drive_index == i &&
           memcmp(s->store_uuid, ds->super.store_uuid, 16) == 0 &&
           memcmp(s->drive_uuid, ds->super.members[i].uuid, 16) == 0;
}

static void drive_attach(struct driveset *ds, struct drive *d, struct candidate *c)
{
    c->taken = true;
    mem_free(d->path);
    d->path = mem_strdup(c->path);
    d->file = c->file;
    d->reason = c->reason;
    if (d->file)
        d->cache = env_file_cache(d->file);
    if (!c->super.magic)
        return; /* fragments on it may still be read */
    d->reason = "is smaller than it was";
    if (drive_large_enough(ds, d)) {
        d->state = DRIVE_OK;
        d->reason = "";
    }
}

/* It is out, and a process has it: one that is gone, but for a write that the drive has not
 * answered. The others can do without it; a daemon that lives would have these too. */
static void drive_is_busy(struct drive *d, struct candidate *c)
{
    c->taken = true;
    d->reason = "is busy yet with what an earlier process wrote to it";
}

/* Finds each member's drive. */
static int admit(struct driveset *ds, struct candidate *c, unsigned n)
{
    for (unsigned i = 0; i < ds->count; i++) {
        const struct format_member *mb = &ds->super.members[i];
        struct drive *d = &ds->drives[i];

        memcpy(d->uuid, mb->uuid, 16);
        d->slot_count = mb->slot_count;
        d->class_ = mb->class_;
        d->leaving = mb->state == FORMAT_DRIVE_LEAVING;
        d->state = mb->state == FORMAT_DRIVE_NONE ? DRIVE_NONE : DRIVE_MISSING;
        d->reason = d->state == DRIVE_NONE ? "" : "not found under any path known";
        for (unsigned j = 0; j < n && d->state == DRIVE_MISSING && !d->file; j++) {
            if (!member_matches(ds, i, &c[j].super))
                continue;
            if (!c[j].locked)
                drive_attach(ds, d, &c[j]);
            else if (mb->state == FORMAT_DRIVE_OUT || mb->out)
                drive_is_busy(d, &c[j]);
            else
                return ERR_LOCKED;
        }
    }
    return 0;
}

/* What is said of members that were not found is what is under the path where they were expected;
 * what has no superblock there is kept open, as it may be the drive, with that damaged. */
static void admit_missing(struct driveset *ds, struct candidate *c, unsigned n)
{
    for (unsigned i = 0; i < ds->count && i < n; i++) {
        struct drive *d = &ds->drives[i];

        if (d->state != DRIVE_MISSING || d->file || c[i].taken)
            continue;
        if (!c[i].super.magic) {
            drive_attach(ds, d, &c[i]);
        } else {
            d->reason = c[i].reason;
            mem_free(d->path);
            d->path = mem_strdup(c[i].path);
        }
    }
}

static int open_drives(struct driveset *ds, struct candidate *c, unsigned n)
{
    int rc;

    candidates_look(ds, c, n);
    candidates_single(c, n);
    rc = elect(ds, c, n);
    for (unsigned i = 0; rc == ERR_LOST && i < n; i++)
        if (c[i].locked)
            rc = ERR_LOCKED;
    if (rc < 0)
        return rc;
    ds->count = ds->super.drive_count;
    for (unsigned i = 0; i < ds->count; i++)
        drive_init(ds, i);
    rc = admit(ds, c, n);
    if (rc == 0)
        admit_missing(ds, c, n);
    return rc;
}

int driveset_open(struct env *env, const char *const *paths, unsigned count,
                  struct driveset **ret_set)
{
    struct driveset *ds;
    struct candidate *c;
    int rc;

    if (count < 1 || count > DRIVESET_PATHS_MAX)
        return ERR_INVAL;
    ds = driveset_alloc(env, NULL, 0);
    c = mem_calloc(count, sizeof(*c));
    for (unsigned i = 0; i < count; i++)
        c[i].path = paths[i];
    rc = open_drives(ds, c, count);
    for (unsigned i = 0; i < count; i++)
        if (!c[i].taken)
            env_close(c[i].file);
    mem_free(c);
    ds->patient = false;
    if (rc < 0) {
        driveset_close(ds);
        return rc;
    }
    *ret_set = ds;
    return 0;
}

void driveset_close(struct driveset *ds)
{
    if (!ds)
        return;
    driveset_io_close(ds);
    for (unsigned i = 0; i < ds->count; i++)
        mem_free(ds->drives[i].path);
    mem_free(ds);
}

/* ---- Metrics ---- */

void drive_observe(const struct drive *d, struct metrics *m)
{
    const struct {
        const char *name, *help;
        const uint64_t *value;
    } rows[] = {
        {"filmroom_drive_reads_total", "Reads from a drive", &d->reads},
        {"filmroom_drive_writes_total", "Writes to a drive", &d->writes},
        {"filmroom_drive_read_bytes_total", "Bytes read from a drive", &d->read_bytes},
        {"filmroom_drive_written_bytes_total", "Bytes written to a drive", &d->write_bytes},
        {"filmroom_drive_read_errors_total", "Reads from a drive that failed", &d->read_errors},
        {"filmroom_drive_write_errors_total", "Writes to a drive that failed", &d->write_errors},
        {"filmroom_drive_timeouts_total",
         "Operations that a drive did not answer in time and that were given up", &d->timeouts},
        {"filmroom_drive_corruptions_total",
         "Reads of a drive that gave wrong bytes, found by their checksum and mended",
         &d->corruptions},
        {"filmroom_drive_scrubbed_bytes_total", "Bytes of a drive that scrub verified",
         &d->scrub.bytes},
        {"filmroom_drive_scrub_bad_total",
         "Columns of stripes, headers and superblocks that scrub found wrong or unreadable",
         &d->scrub.bad},
        {"filmroom_drive_scrub_repaired_total", "Of these, those written again and right",
         &d->scrub.mended},
        {"filmroom_drive_scrub_unrepaired_total", "Of these, those still wrong",
         &d->scrub.unmended},
    };
    char index[12];

    (void)snprintf(index, sizeof(index), "%u", d->index);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, rows[i].name, rows[i].help,
                          METRIC_LABELS("drive", index), rows[i].value);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, "filmroom_drive_stuck",
                      "Operations given up that the drive has still not answered",
                      METRIC_LABELS("drive", index), &d->stuck);
}

void driveset_observe(struct driveset *ds, struct metrics *m)
{
    const struct {
        const char *op;
        struct metric_hist *time;
    } times[] = {{"read", &ds->read_time}, {"write", &ds->write_time}, {"sync", &ds->sync_time}};

    for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++)
        metrics_add_hist(m, "filmroom_drive_io_seconds", "Time until a drive answered",
                         METRIC_LABELS("op", times[i].op), times[i].time);
    for (unsigned i = 0; i < ds->count; i++)
        drive_observe(&ds->drives[i], m);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_hedged_reads_total",
                      "Reads that other drives were asked for as well, because one was late", NULL,
                      &ds->hedged);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_hedged_reads_won_total",
                      "Hedged reads that the other drives answered first", NULL, &ds->hedges_won);
}
