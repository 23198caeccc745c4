/* Reading chunks: rows first, then the stored bytes, then raw bytes into the reader's memory.
 *
 * Between the look-up of the rows (which may suspend) and the read the rows are pinned, so that
 * neither the rows nor the segments they point to can go. A chunk that was freed before the look-up
 * gives ERR_NOENT: its reader holds a stale map entry and looks again.
 *
 * Unpacking a few chunks is done in place; a lot of it goes to the cpu lane in parallel pieces.
 */
#include "dedup/chunkstore.h"

#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define UNPACK_INLINE (32u * 1024) /* raw bytes of compressed chunks unpacked on the loop */

struct unpack {
    const struct chunk_row *row;
    const struct segment_read *stored;
    struct chunk_read *first; /* the reads of this chunk are neighbours: first, first + 1, ... */
    size_t count;
};

struct unpack_job {
    struct unpack *units;
    size_t count;
    struct fiber_group *group;
};

static int unpack_range(const struct chunk_row *row, const uint8_t *raw, struct chunk_read *r)
{
    if (r->off > row->raw || r->len > row->raw - r->off)
        return ERR_FORMAT;
    memcpy(r->dst, raw + r->off, r->len);
    return 0;
}

static void unpack_one(struct unpack *u)
{
    const struct chunk_row *row = u->row;
    struct chunk_read *r = u->first;
    MEM_AUTO uint8_t *scratch = NULL;
    int rc;

    if (row->codec == COMPRESS_RAW) {
        for (size_t i = 0; i < u->count; i++)
            r[i].result = unpack_range(row, u->stored->data, &r[i]);
        return;
    }
    if (u->count == 1 && r->off == 0 && r->len == row->raw) {
        r->result = compress_unpack((enum compress_codec)row->codec, u->stored->data,
                                    row->loc.stored, r->dst, row->raw);
        return;
    }
    scratch = mem_alloc(row->raw);
    rc = compress_unpack((enum compress_codec)row->codec, u->stored->data, row->loc.stored, scratch,
                         row->raw);
    for (size_t i = 0; i < u->count; i++)
        r[i].result = rc < 0 ? rc : unpack_range(row, scratch, &r[i]);
}

static void unpack_job_run(void *arg)
{
    struct unpack_job *job = arg;

    for (size_t i = 0; i < job->count; i++)
        unpack_one(&job->units[i]);
}

static void unpack_job_done(void *arg)
{
    struct unpack_job *job = arg;

    fiber_group_done(job->group);
}

/* Unpacks all units, on the loop or spread over the lane's threads. */
static void unpack_all(struct chunkstore *cs, struct unpack *units, size_t n)
{
    unsigned width = env_lane_width(cs->env, ENV_LANE_CPU);
    struct unpack_job jobs[16];
    struct fiber_group group;
    size_t bytes = 0, piece;

    for (size_t i = 0; i < n; i++)
        if (units[i].row->codec != COMPRESS_RAW)
            bytes += units[i].row->raw;
    if (bytes <= UNPACK_INLINE) {
        unpack_job_run(&(struct unpack_job){.units = units, .count = n});
        return;
    }
    width = width > 16 ? 16 : width;
    piece = (n + width - 1) / width;
    fiber_group_init(&group);
    for (unsigned j = 0; j < width && j * piece < n; j++) {
        size_t left = n - j * piece;

        jobs[j] = (struct unpack_job){
            .units = units + j * piece, .count = left < piece ? left : piece, .group = &group};
        fiber_group_add(&group, 1);
        env_offload_start(cs->env, ENV_LANE_CPU, unpack_job_run, unpack_job_done, &jobs[j]);
    }
    fiber_group_wait(&group);
}

/* One unit per run of neighbouring reads of the same chunk; those without a row are answered. */
static size_t plan_units(struct chunk_read *reads, size_t n, struct chunk_row **rows,
                         struct unpack *units, struct segment_read *stored)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++) {
        if (!rows[i]) {
            reads[i].result = ERR_NOENT;
            continue;
        }
        if (count && i > 0 && rows[i] == rows[i - 1] && units[count - 1].row == rows[i]) {
            units[count - 1].count++;
            continue;
        }
        stored[count] = (struct segment_read){.loc = rows[i]->loc};
        units[count] = (struct unpack){
            .row = rows[i], .stored = &stored[count], .first = &reads[i], .count = 1};
        count++;
    }
    return count;
}

/* Leaves only the units whose bytes were read; the others' reads get the error. What is lost is
 * noted, and what is back. */
static size_t drop_failed(struct chunkstore *cs, struct unpack *units, size_t n)
{
    size_t good = 0;

    for (size_t i = 0; i < n; i++) {
        if (units[i].stored->result == 0) {
            chunkstore_note_back(cs, units[i].row->id);
            units[good++] = units[i];
            continue;
        }
        if (units[i].stored->result == ERR_LOST &&
            chunk_row_lies_at(units[i].row, &units[i].stored->loc))
            chunkstore_note_lost(cs, units[i].row->id); /* and not renewed meanwhile */
        for (size_t j = 0; j < units[i].count; j++)
            units[i].first[j].result = units[i].stored->result;
    }
    return good;
}

/* Reads from rows that the caller has pinned (NULL: gone). */
static int read_rows(struct chunkstore *cs, struct chunk_read *reads, size_t n,
                     struct chunk_row **rows)
{
    struct unpack *units = mem_calloc(n, sizeof(*units));
    struct segment_read *stored = mem_calloc(n, sizeof(*stored));
    size_t count = plan_units(reads, n, rows, units, stored), good;
    int rc = 0;

    (void)segment_read(cs->segments, stored, count); /* results are looked at one by one */
    good = drop_failed(cs, units, count);
    unpack_all(cs, units, good);
    for (size_t i = 0; i < count; i++)
        buf_unref(stored[i].buf);
    for (size_t i = 0; i < n; i++)
        if (reads[i].result < 0 && rc == 0)
            rc = reads[i].result;
    mem_free(units);
    mem_free(stored);
    return rc;
}

int chunkstore_read(struct chunkstore *cs, struct chunk_read *reads, size_t n)
{
    uint64_t *ids = mem_calloc(n, sizeof(*ids));
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    int rc;

    for (size_t i = 0; i < n; i++)
        ids[i] = reads[i].id;
    rc = chunk_rows_get(cs, ids, n, rows);
    if (rc == 0) {
        rc = read_rows(cs, reads, n, rows);
        for (size_t i = 0; i < n; i++)
            chunk_row_unpin(cs, rows[i]);
    }
    mem_free(ids);
    mem_free(rows);
    return rc;
}

/* ---- Pins ---- */

struct chunk_pins {
    struct chunkstore *cs;
    size_t count;
    struct chunk_row *rows[];
};

int chunkstore_pin(struct chunkstore *cs, const uint64_t *ids, size_t n,
                   struct chunk_pins **ret_pins)
{
    struct chunk_pins *pins = mem_zalloc(sizeof(*pins) + n * sizeof(pins->rows[0]));
    int rc = chunk_rows_get(cs, ids, n, pins->rows);

    pins->cs = cs;
    if (rc < 0) {
        mem_free(pins); /* chunk_rows_get has unpinned what it had */
        return rc;
    }
    pins->count = n;
    for (size_t i = 0; i < n; i++)
        if (!pins->rows[i])
            rc = ERR_NOENT;
    if (rc < 0) {
        chunkstore_unpin(pins);
        return rc;
    }
    *ret_pins = pins;
    return 0;
}

void chunkstore_unpin(struct chunk_pins *pins)
{
    if (!pins)
        return;
    for (size_t i = 0; i < pins->count; i++)
        chunk_row_unpin(pins->cs, pins->rows[i]);
    mem_free(pins);
}

int chunkstore_read_pinned(struct chunk_pins *pins, struct chunk_read *reads, size_t n)
{
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    int rc;

    for (size_t i = 0; i < n; i++) {
        CHECK(reads[i].id < pins->count);
        rows[i] = pins->rows[reads[i].id];
    }
    rc = read_rows(pins->cs, reads, n, rows);
    mem_free(rows);
    return rc;
}
