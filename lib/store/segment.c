/* The segment table: slots, opening and freeing, the rows and the records that change them. */
#include "lib/store/segment.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/journal.h"
#include "lib/store/segment_priv.h"

#define SEGMENT_ROW_VERSION 1u
#define SEGMENT_STRIPE_GOOD (1u << 20)
#define SEGMENT_SWEEP_MAX   64u /* segments freed by one record */

int segments_new(struct driveset *ds, struct record_log *log, struct segments **ret_segments)
{
    struct segments *ss = mem_zalloc(sizeof(*ss));

    ss->ds = ds;
    ss->log = log;
    ss->next_id = 1;
    hmap_init(&ss->by_id);
    list_init(&ss->all);
    list_init(&ss->dirty);
    list_init(&ss->emptied);
    list_init(&ss->leaving);
    for (unsigned i = 0; i < SEGMENT_FILLS; i++)
        list_init(&ss->fills[i]);
    for (unsigned i = 0; i <= FORMAT_COLS_MAX; i++)
        list_init(&ss->parities[i]);
    for (unsigned i = 0; i < SEGMENT_STREAMS; i++)
        fiber_mutex_init(&ss->stream_lock[i]);
    for (unsigned i = 0; i < ds->count; i++)
        if (ds->drives[i].state != DRIVE_NONE)
            segment_take_drive(ss, i);
    metric_hist_init(&ss->stripe_time, METRIC_TIME);
    metric_hist_init(&ss->direct_time, METRIC_TIME);
    metric_hist_init(&ss->careful_time, METRIC_TIME);
    *ret_segments = ss;
    return 0;
}

void segments_observe(struct segments *ss, struct metrics *m)
{
    metrics_add_hist(m, "filmroom_stripe_write_seconds",
                     "Time to encode a stripe and write it to all of its drives, durable", NULL,
                     &ss->stripe_time);
    metrics_add_hist(m, "filmroom_segment_read_seconds",
                     "Time to read chunks from drives: direct, or careful where a drive is gone or "
                     "gave wrong bytes and other columns had to be read and decoded",
                     METRIC_LABELS("way", "direct"), &ss->direct_time);
    metrics_add_hist(m, "filmroom_segment_read_seconds",
                     "Time to read chunks from drives: direct, or careful where a drive is gone or "
                     "gave wrong bytes and other columns had to be read and decoded",
                     METRIC_LABELS("way", "careful"), &ss->careful_time);
}

void segments_free(struct segments *ss)
{
    if (!ss)
        return;
    for (struct list *it = list_pop_front(&ss->all); it; it = list_pop_front(&ss->all))
        mem_free(LIST_ENTRY(it, struct segment, link));
    hmap_free(&ss->by_id);
    for (unsigned i = 0; i < ss->ds->count; i++)
        mem_free(ss->slots[i]);
    for (unsigned k = 0; k <= FORMAT_COLS_MAX; k++)
        for (unsigned m = 0; m <= FORMAT_COLS_MAX; m++)
            ec_free(ss->codes[k][m]);
    mem_free(ss);
}

struct segment *segment_find(const struct segments *ss, uint64_t id)
{
    for (struct hmap_node *n = hmap_first(&ss->by_id, hmap_mix(id)); n; n = hmap_next(n)) {
        struct segment *s = HMAP_ENTRY(n, struct segment, node);

        if (s->id == id)
            return s;
    }
    return NULL;
}

const struct segment *segment_get(const struct segments *ss, uint64_t segment)
{
    return segment_find(ss, segment);
}

struct ec *segment_code(struct segments *ss, unsigned k, unsigned m)
{
    if (!ss->codes[k][m])
        ss->codes[k][m] = ec_new(k, m);
    return ss->codes[k][m];
}

size_t segment_stripe_good(const struct segments *ss)
{
    uint64_t half = ss->ds->super.slot_size / 2; /* the directory wants room too */

    return half < SEGMENT_STRIPE_GOOD ? (size_t)half : SEGMENT_STRIPE_GOOD;
}

/* ---- Slots ---- */

static void slot_set(struct segments *ss, uint32_t drive, uint32_t slot, bool taken)
{
    uint8_t bit = (uint8_t)(1u << slot % 8), *byte = &ss->slots[drive][slot / 8];

    CHECK(!!(*byte & bit) != taken);
    *byte ^= bit;
    if (taken) {
        ss->slots_free[drive]--;
        ss->slots_taken++;
    } else {
        ss->slots_free[drive]++;
        ss->slots_taken--;
    }
}

static uint32_t slot_first_free(const struct segments *ss, unsigned drive)
{
    uint64_t count = ss->ds->drives[drive].slot_count;

    for (uint64_t i = 0; i < count; i++) {
        if (i % 8 == 0 && ss->slots[drive][i / 8] == 0xff)
            i += 7;
        else if (!(ss->slots[drive][i / 8] >> i % 8 & 1))
            return (uint32_t)i;
    }
    check_fail(__FILE__, __LINE__, "a free slot was counted but is not there");
    return 0;
}

static bool drive_has_slot(const struct segments *ss, unsigned i)
{
    return drive_takes(&ss->ds->drives[i]) && ss->slots_free[i] > 0;
}

void segment_geometry(const struct segments *ss, unsigned *ret_k, unsigned *ret_m)
{
    unsigned n = 0, k = ss->ds->super.data_columns, m = ss->ds->super.parity_columns;

    for (unsigned i = 0; i < ss->ds->count; i++)
        n += drive_takes(&ss->ds->drives[i]);
    if (n == 0) {
        *ret_k = *ret_m = 0;
        return;
    }
    if (m > n - 1)
        m = n - 1;
    *ret_k = k < n - m ? k : n - m;
    *ret_m = m;
}

/* The n drives with the most free slots, one each; false when fewer have any. */
static bool pick_drives(const struct segments *ss, unsigned n, uint32_t *drives)
{
    uint64_t taken = 0;

    for (unsigned c = 0; c < n; c++) {
        unsigned best = FORMAT_DRIVES_MAX;

        for (unsigned i = 0; i < ss->ds->count; i++) {
            /* Starting at another drive each time spreads parity over all of them. */
            unsigned d = (unsigned)((i + ss->next_id) % ss->ds->count);

            if (!(taken >> d & 1) && drive_has_slot(ss, d) &&
                (best == FORMAT_DRIVES_MAX || ss->slots_free[d] > ss->slots_free[best]))
                best = d;
        }
        if (best == FORMAT_DRIVES_MAX)
            return false;
        taken |= 1ull << best;
        drives[c] = best;
    }
    return true;
}

uint64_t segment_count_possible(const uint64_t *slots, unsigned drives, unsigned n)
{
    uint64_t low = 0, high = 0;

    for (unsigned i = 0; i < drives; i++)
        high += slots[i];
    high /= n;
    while (low < high) {
        uint64_t t = low + (high - low + 1) / 2, sum = 0;

        for (unsigned i = 0; i < drives; i++)
            sum += slots[i] < t ? slots[i] : t;
        if (sum >= n * t)
            low = t;
        else
            high = t - 1;
    }
    return low;
}

/* What so many chunks take in the directories of their stripes. Of small ones that is the most, and
 * to move them does not gain it. */
uint64_t segment_directory(uint64_t chunks)
{
    return chunks * sizeof(struct format_stripe_entry);
}

void segment_get_space(const struct segments *ss, struct segment_space *ret_space)
{
    uint64_t needed = ss->live + segment_directory(ss->chunks);
    struct segment_space sp = {
        .live = ss->live,
        .dead = ss->room > needed ? ss->room - needed : 0,
        .freed = ss->freed,
        .survivors = ss->survivors,
        .segments = ss->by_id.count,
    };
    uint64_t column = ss->ds->super.slot_size - FORMAT_UNIT;
    uint64_t all[FORMAT_DRIVES_MAX] = {0}, unused[FORMAT_DRIVES_MAX] = {0};
    unsigned n = ss->ds->count;

    segment_geometry(ss, &sp.k, &sp.m);
    for (unsigned i = 0; i < n; i++)
        if (drive_takes(&ss->ds->drives[i])) {
            all[i] = ss->ds->drives[i].slot_count;
            unused[i] = ss->slots_free[i];
        }
    sp.segment = sp.k * column;
    if (sp.k) {
        sp.free = segment_count_possible(unused, n, sp.k + sp.m) * sp.k * column;
        sp.total = segment_count_possible(all, n, sp.k + sp.m) * sp.k * column;
    }
    sp.physical = ss->slots_taken * ss->ds->super.slot_size;
    *ret_space = sp;
}

uint64_t segment_drive_used(const struct segments *ss, unsigned drive)
{
    return (ss->ds->drives[drive].slot_count - ss->slots_free[drive]) * ss->ds->super.slot_size;
}

/* ---- Filing: sealed segments are on lists by what is to be done with them, so that none of those
 * who ask, again and again, for the next one has to look for it ---- */

uint64_t segment_room(const struct segments *ss, const struct segment *s)
{
    return s->k * (ss->ds->super.slot_size - FORMAT_UNIT);
}

unsigned segment_parity(const struct segment *s, uint64_t gone)
{
    unsigned lost = 0;

    if (s->ailing)
        return 0;
    for (unsigned i = 0; gone && i < s->k + s->m; i++)
        lost += (unsigned)(gone >> s->drive[i] & 1);
    return lost < s->m ? s->m - lost : 0;
}

/* How much of what moving it gives back is taken again for what is alive, in sixteenths.
 * Directories and ends of the stripes that the survivors would make are: who counted these as gain
 * would move tiny chunks again and again. */
static unsigned segment_fill(const struct segments *ss, const struct segment *s)
{
    uint64_t ends = s->chunks / SEGMENT_MOVE_MAX * s->k * FORMAT_UNIT;
    uint64_t alive = s->live + segment_directory(s->chunks) + ends;
    uint64_t fill = segment_cost(ss, s, alive, SEGMENT_FILLS);

    return fill < SEGMENT_FILLS ? (unsigned)fill : SEGMENT_FILLS - 1;
}

/* Who is on the right list already keeps the place there. */
static void filed_move(struct segment_filed *f, struct list *to)
{
    if (f->list == to)
        return;
    if (f->list)
        list_del(&f->link);
    if (to)
        list_push_back(to, &f->link);
    f->list = to;
}

/* Puts a segment on the lists where it belongs. */
static void segment_file(struct segments *ss, struct segment *s)
{
    bool sealed = s->state == SEGMENT_SEALED, alive = sealed && s->chunks > 0;
    bool moves = alive && s->tries < SEGMENT_TRIES;
    unsigned parity = segment_parity(s, PLANTED(REBUILD_SKIPS_GONE) ? 0 : ss->given_up);

    filed_move(&s->fill, alive ? &ss->fills[segment_fill(ss, s)] : sealed ? &ss->emptied : NULL);
    filed_move(&s->parity, moves ? &ss->parities[parity] : NULL);
    filed_move(&s->leaves, moves && segment_on(s, ss->leaving_drives) ? &ss->leaving : NULL);
}

static void segment_unfile(struct segment *s)
{
    filed_move(&s->fill, NULL);
    filed_move(&s->parity, NULL);
    filed_move(&s->leaves, NULL);
}

void segment_file_drives(struct segments *ss, uint64_t given_up, uint64_t leaving)
{
    uint64_t taking = segment_taking_drives(ss);

    if (given_up == ss->given_up && leaving == ss->leaving_drives && taking == ss->taking_drives)
        return;
    ss->given_up = given_up;
    ss->leaving_drives = leaving;
    ss->taking_drives = taking;
    segment_geometry(ss, &ss->new_k, &ss->new_m);
    list_for_each (it, &ss->all)
        segment_file(ss, LIST_ENTRY(it, struct segment, link));
}

bool segment_pick_sparse(const struct segments *ss, unsigned below, uint64_t *ret_segment)
{
    for (unsigned i = 0; i < below && i < SEGMENT_FILLS; i++)
        list_for_each (it, &ss->fills[i]) {
            const struct segment *s = LIST_ENTRY(it, struct segment, fill.link);

            if (s->tries >= SEGMENT_TRIES)
                continue;
            *ret_segment = s->id;
            return true;
        }
    return false;
}

void segment_give_up(struct segments *ss, unsigned drive)
{
    segment_file_drives(ss, ss->given_up | 1ull << drive, ss->leaving_drives);
}

bool segment_pick_thin(const struct segments *ss, uint64_t *ret_segment)
{
    unsigned k, m;

    segment_geometry(ss, &k, &m);
    for (unsigned i = 0; i < m && !PLANTED(REBUILD_FORGETS); i++)
        if (!list_empty(&ss->parities[i])) {
            *ret_segment = LIST_ENTRY(ss->parities[i].next, struct segment, parity.link)->id;
            return true;
        }
    return false;
}

void segment_ails(struct segments *ss, uint64_t segment)
{
    struct segment *s = segment_find(ss, segment);

    if (!s)
        return;
    s->ailing = true;
    segment_file(ss, s);
}

static int ids_compare(const void *x, const void *y)
{
    uint64_t a, b;

    memcpy(&a, x, sizeof(a));
    memcpy(&b, y, sizeof(b));
    return (a > b) - (a < b);
}

size_t segments_list(const struct segments *ss, uint64_t from, uint64_t to, uint64_t **ret_ids)
{
    uint64_t *ids = mem_calloc(ss->by_id.count + 1, sizeof(*ids));
    size_t n = 0;

    list_for_each (it, &ss->all) {
        const struct segment *s = LIST_ENTRY(it, struct segment, link);

        if (s->id >= from && s->id <= to)
            ids[n++] = s->id;
    }
    if (n)
        qsort(ids, n, sizeof(*ids), ids_compare);
    *ret_ids = ids;
    return n;
}

uint64_t segment_columns_bytes(const struct segment *s)
{
    return s->chunks ? (uint64_t)(s->used - 1) * (s->k + s->m) * FORMAT_UNIT : 0;
}

uint64_t segments_columns_bytes(const struct segments *ss, uint64_t from, uint64_t to)
{
    uint64_t sum = 0;

    list_for_each (it, &ss->all) {
        const struct segment *s = LIST_ENTRY(it, struct segment, link);

        sum += s->id >= from && s->id <= to ? segment_columns_bytes(s) : 0;
    }
    return sum;
}

uint64_t segment_count_thin(const struct segments *ss)
{
    uint64_t out = 0, n = 0;

    for (unsigned i = 0; i < ss->ds->count; i++)
        if (!drive_usable(&ss->ds->drives[i]))
            out |= 1ull << i;
    list_for_each (it, &ss->all) {
        const struct segment *s = LIST_ENTRY(it, struct segment, link);

        n += (s->chunks || s->holds) && segment_parity(s, out) < ss->ds->super.parity_columns;
    }
    return n;
}

bool segment_can_gain(const struct segments *ss, unsigned below)
{
    uint64_t segment;

    return !list_empty(&ss->emptied) || segment_pick_sparse(ss, below, &segment) ||
           segment_pick_uneven(ss, &segment) || segment_renew_due(ss);
}

void segment_compact_failed(struct segments *ss, uint64_t segment, bool lost)
{
    struct segment *s = segment_find(ss, segment);

    if (!s || s->tries == SEGMENT_TRIES)
        return;
    s->tries = lost ? SEGMENT_TRIES : (uint8_t)(s->tries + 1);
    segment_file(ss, s);
}

/* ---- Records ----
 * OPEN: segment u64, stream u8, k u8, m u8, reserved u8, then k+m times drive u32, slot u32.
 * FREE: count u32, then as often segment u64. */

static void segment_mark(struct segments *ss, struct segment *s)
{
    if (s->dirty)
        return;
    s->dirty = true;
    list_push_back(&ss->dirty, &s->dirty_link);
}

static bool segment_decode_open(struct codec_reader *r, struct segment *s)
{
    s->id = codec_read_le64(r);
    s->stream = (enum segment_stream)codec_read_u8(r);
    s->k = codec_read_u8(r);
    s->m = codec_read_u8(r);
    (void)codec_read_u8(r);
    if (!codec_reader_ok(r) || s->stream >= SEGMENT_STREAMS || s->k < 1 ||
        s->k + s->m > FORMAT_COLS_MAX)
        return false;
    for (unsigned i = 0; i < s->k + s->m; i++) {
        s->drive[i] = codec_read_le32(r);
        s->slot[i] = codec_read_le32(r);
    }
    s->used = s->next = 1; /* the fragment header */
    return codec_reader_ok(r);
}

static bool slot_taken(const struct segments *ss, uint32_t drive, uint32_t slot)
{
    return ss->slots[drive][slot / 8] >> slot % 8 & 1;
}

/* Each column on a drive of its own that we have. */
static bool columns_sane(const struct segments *ss, const struct segment *s)
{
    uint64_t seen = 0;

    for (unsigned i = 0; i < s->k + s->m; i++) {
        if (s->drive[i] >= ss->ds->count || s->slot[i] >= ss->ds->drives[s->drive[i]].slot_count ||
            (seen >> s->drive[i] & 1))
            return false;
        seen |= 1ull << s->drive[i];
    }
    return s->used >= 1 && s->used <= ss->ds->super.slot_size / FORMAT_UNIT;
}

static void segment_insert(struct segments *ss, struct segment *s)
{
    hmap_insert(&ss->by_id, &s->node, hmap_mix(s->id));
    list_push_back(&ss->all, &s->link);
    list_init(&s->dirty_link);
    segment_file(ss, s);
    ss->live += s->live;
    ss->chunks += s->chunks;
    ss->room += segment_room(ss, s);
    if (s->id >= ss->next_id)
        ss->next_id = s->id + 1;
}

/* Puts a segment into the table; its slots are free, or `reserved` for it already. */
static int segment_add(struct segments *ss, struct segment *s, bool reserved)
{
    if (!columns_sane(ss, s))
        return ERR_FORMAT;
    for (unsigned i = 0; i < s->k + s->m; i++)
        if (slot_taken(ss, s->drive[i], s->slot[i]) != reserved)
            return ERR_FORMAT;
    for (unsigned i = 0; !reserved && i < s->k + s->m; i++)
        slot_set(ss, s->drive[i], s->slot[i], true);
    segment_insert(ss, s);
    return 0;
}

/* Slots count for nothing here: a header whose segment was freed may name some that others have by
 * now, and it is not known which of them were. */
int segment_adopt(struct segments *ss, const struct format_fragment *f)
{
    struct segment s = {.id = f->segment, .state = SEGMENT_SEALED};

    if (!segment_fragment_valid(f) || segment_find(ss, f->segment))
        return ERR_FORMAT;
    s.k = f->data_columns;
    s.m = f->parity_columns;
    s.used = s.next = (uint32_t)(ss->ds->super.slot_size / FORMAT_UNIT);
    for (unsigned i = 0; i < s.k + s.m; i++) {
        s.drive[i] = f->columns[i].drive;
        s.slot[i] = f->columns[i].slot;
    }
    if (!columns_sane(ss, &s))
        return ERR_FORMAT;
    segment_insert(ss, mem_memdup(&s, sizeof(s)));
    return 0;
}

int segment_apply_open(struct segments *ss, const uint8_t *body, size_t len, void *context)
{
    struct codec_reader r = codec_reader_on(body, len);
    struct segment *s = mem_zalloc(sizeof(*s));
    int rc = ERR_FORMAT;

    if (segment_decode_open(&r, s) && !segment_find(ss, s->id))
        rc = segment_add(ss, s, context != NULL);
    if (rc < 0) {
        mem_free(s);
        return rc;
    }
    if (ss->open[s->stream]) {
        struct segment *old = ss->open[s->stream];

        old->state = SEGMENT_SEALED;
        segment_file(ss, old);
        segment_mark(ss, old);
    }
    ss->open[s->stream] = s;
    if (s->stream != SEGMENT_VOLUMES && s->stream != SEGMENT_STUDIES)
        ss->survivors += segment_room(ss, s);
    segment_mark(ss, s);
    return 0;
}

static void segment_drop(struct segments *ss, struct segment *s)
{
    CHECK(s->chunks == 0 && s->live == 0 && s->readers == 0);
    CHECK(s->holds == 0 || PLANTED(SWEEP_IGNORES_HOLDS));
    for (unsigned i = 0; i < s->k + s->m; i++)
        slot_set(ss, s->drive[i], s->slot[i], false);
    hmap_remove(&ss->by_id, &s->node);
    list_del(&s->link);
    list_del(&s->dirty_link);
    segment_unfile(s);
    ss->room -= segment_room(ss, s);
    ss->freed += segment_room(ss, s);
    mem_free(s);
}

int segment_apply_free(struct segments *ss, const uint8_t *body, size_t len,
                       void (*gone)(void *arg, uint64_t segment), void *arg)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r);

    if (n > SEGMENT_SWEEP_MAX)
        return ERR_FORMAT;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t id = codec_read_le64(&r);
        struct segment *s = segment_find(ss, id);

        if (!codec_reader_ok(&r) || (s && (s->chunks || s->state != SEGMENT_SEALED)))
            return ERR_FORMAT;
        if (!s)
            continue; /* its row was lost before the record came to be applied */
        segment_drop(ss, s);
        gone(arg, id);
    }
    return 0;
}

void segment_account(struct segments *ss, const struct segment_loc *loc, bool add)
{
    struct segment *s = segment_find(ss, loc->stripe.segment);
    uint32_t end = loc->stripe.offset + loc->stripe.width;

    if (!s)
        return;
    if (add) {
        s->live += loc->stored;
        s->chunks++;
        ss->live += loc->stored;
        ss->chunks++;
        if (end > s->used)
            s->used = end;
        if (end > s->next)
            s->next = end; /* replay */
    } else {
        CHECK(s->chunks > 0 && s->live >= loc->stored);
        s->live -= loc->stored;
        s->chunks--;
        ss->live -= loc->stored;
        ss->chunks--;
    }
    segment_file(ss, s);
    segment_mark(ss, s);
}

/* ---- Rows: version u8, state u8, used u32, live u64, chunks u64, then as OPEN ---- */

static void segment_encode_open(const struct segment *s, struct strbuf *out)
{
    uint8_t bytes[12 + 8 * FORMAT_COLS_MAX];
    struct codec_writer w = codec_writer_on(bytes, sizeof(bytes));

    codec_write_le64(&w, s->id);
    codec_write_u8(&w, (uint8_t)s->stream);
    codec_write_u8(&w, s->k);
    codec_write_u8(&w, s->m);
    codec_write_u8(&w, 0);
    for (unsigned i = 0; i < s->k + s->m; i++) {
        codec_write_le32(&w, s->drive[i]);
        codec_write_le32(&w, s->slot[i]);
    }
    CHECK(codec_writer_ok(&w));
    strbuf_add(out, bytes, codec_written(&w));
}

void segment_row_encode(const struct segment *s, struct strbuf *out)
{
    uint8_t head[22];
    struct codec_writer w = codec_writer_on(head, sizeof(head));

    codec_write_u8(&w, SEGMENT_ROW_VERSION);
    codec_write_u8(&w, (uint8_t)s->state);
    codec_write_le32(&w, s->used);
    codec_write_le64(&w, s->live);
    codec_write_le64(&w, s->chunks);
    strbuf_add(out, head, codec_written(&w));
    segment_encode_open(s, out);
}

int segment_row_decode(const void *value, size_t len, struct segment *ret_segment)
{
    struct codec_reader r = codec_reader_on(value, len);
    uint8_t version = codec_read_u8(&r), state = codec_read_u8(&r);
    uint32_t used = codec_read_le32(&r);
    uint64_t live = codec_read_le64(&r), chunks = codec_read_le64(&r);
    struct segment s = {0};

    if (!codec_reader_ok(&r) || version != SEGMENT_ROW_VERSION || state > SEGMENT_SEALED ||
        !segment_decode_open(&r, &s))
        return ERR_FORMAT;
    s.state = (enum segment_state)state;
    s.used = s.next = used;
    s.live = live;
    s.chunks = chunks;
    *ret_segment = s;
    return 0;
}

void segment_take_dirty(struct segments *ss,
                        void (*row)(void *arg, uint64_t segment, const struct strbuf *value),
                        void *arg)
{
    STRBUF_AUTO struct strbuf value = STRBUF_INIT;

    for (struct list *it = list_pop_front(&ss->dirty); it; it = list_pop_front(&ss->dirty)) {
        struct segment *s = LIST_ENTRY(it, struct segment, dirty_link);

        s->dirty = false;
        strbuf_reset(&value);
        segment_row_encode(s, &value);
        row(arg, s->id, &value);
    }
}

int segment_load(struct segments *ss, uint64_t segment, const void *value, size_t len)
{
    struct segment *s = mem_zalloc(sizeof(*s));
    int rc = segment_row_decode(value, len, s);

    if (rc == 0)
        rc =
            s->id == segment && !segment_find(ss, segment) ? segment_add(ss, s, false) : ERR_FORMAT;
    if (rc < 0) {
        mem_free(s);
        return rc;
    }
    if (s->state == SEGMENT_OPEN)
        ss->open[s->stream] = s;
    return 0;
}

void segment_skip_ids(struct segments *ss, uint64_t next)
{
    if (next > ss->next_id)
        ss->next_id = next;
}

/* ---- Opening and freeing ---- */

void segment_fragment_header(const struct segments *ss, const struct segment *s, unsigned column,
                             struct buf *b)
{
    struct format_fragment f = {.magic = FORMAT_FRAGMENT_MAGIC,
                                .version = FORMAT_VERSION,
                                .segment = s->id,
                                .data_columns = s->k,
                                .parity_columns = s->m,
                                .column = (uint8_t)column,
                                .stream = (uint8_t)(s->stream + 1),
                                .slot_size = ss->ds->super.slot_size};

    memcpy(f.store_uuid, ss->ds->super.store_uuid, 16);
    for (unsigned i = 0; i < s->k + s->m; i++) {
        f.columns[i].drive = s->drive[i];
        f.columns[i].slot = s->slot[i];
    }
    f.crc = crc32c(0, &f, sizeof(f));
    memcpy(b->data, &f, sizeof(f));
}

/* Has the file systems under file-backed drives find the slots' space: a durable write into a hole
 * would wait for their journals, each time. */
static int fragments_reserve(struct segments *ss, const struct segment *s)
{
    struct drive_io ios[FORMAT_COLS_MAX];
    unsigned n = s->k + s->m;

    for (unsigned i = 0; i < n; i++)
        drive_io_prepare(&ss->ds->drives[s->drive[i]], &ios[i], ENV_RESERVE, NULL, NULL,
                         ss->ds->super.slot_size, segment_column_off(ss, s, i));
    drive_io_run(ios, n); /* only a lack of space matters here; other errors come back on write */
    for (unsigned i = 0; i < n; i++)
        if (ios[i].result == ERR_NOSPC)
            return ERR_NOSPC;
    return 0;
}

/* Writes the headers of all fragments; puts out drives that fail. */
static int fragments_write(struct segments *ss, const struct segment *s)
{
    struct drive_io ios[FORMAT_COLS_MAX];
    struct buf *bufs[FORMAT_COLS_MAX];
    unsigned n = s->k + s->m;
    int rc = fragments_reserve(ss, s);

    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < n; i++)
        if (!drive_usable(&ss->ds->drives[s->drive[i]]))
            return ERR_IO; /* put out meanwhile: it is not written any more */
    for (unsigned i = 0; i < n; i++) {
        bufs[i] = buf_new(FORMAT_UNIT);
        segment_fragment_header(ss, s, i, bufs[i]);
        drive_io_prepare(&ss->ds->drives[s->drive[i]], &ios[i], ENV_WRITE, bufs[i], bufs[i]->data,
                         FORMAT_UNIT, segment_column_off(ss, s, i));
    }
    drive_io_run(ios, n);
    rc = segment_columns_written(ss, s, ios);
    for (unsigned i = 0; i < n; i++)
        buf_unref(bufs[i]);
    return rc;
}

/* Are there slots for one more segment only? */
static bool slots_for_one(const struct segments *ss, unsigned n)
{
    uint64_t unused[FORMAT_DRIVES_MAX] = {0};

    for (unsigned i = 0; i < ss->ds->count; i++)
        if (drive_has_slot(ss, i))
            unused[i] = ss->slots_free[i];
    return segment_count_possible(unused, ss->ds->count, n) < 2;
}

int segment_open_new(struct segments *ss, enum segment_stream stream, bool last,
                     struct segment **ret_segment)
{
    struct segment s = {.id = ss->next_id++, .stream = stream};
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    unsigned k, m;
    int rc;

    segment_geometry(ss, &k, &m);
    s.k = (uint8_t)k;
    s.m = (uint8_t)m;
    if (k == 0)
        return ERR_IO;
    if ((!last && slots_for_one(ss, k + m)) || !pick_drives(ss, k + m, s.drive))
        return ERR_NOSPC;
    /* The slots are reserved from here on; the record makes it so in the table. */
    for (unsigned i = 0; i < k + m; i++) {
        s.slot[i] = slot_first_free(ss, s.drive[i]);
        slot_set(ss, s.drive[i], s.slot[i], true);
    }
    rc = fragments_write(ss, &s);
    if (rc == 0) {
        segment_encode_open(&s, &body);
        struct iovec iov = {body.data, body.len};

        rc = record_submit(ss->log, RECORD_SEGMENT_OPEN, &iov, 1,
                           stream == SEGMENT_VOLUMES ? JOURNAL_DRAIN : JOURNAL_LAST, ss);
    }
    if (rc < 0) {
        /* Where only its rows could not be written it is in the table, and the slots are its. */
        bool applied = segment_find(ss, s.id) != NULL;

        for (unsigned i = 0; i < k + m && !applied; i++)
            slot_set(ss, s.drive[i], s.slot[i], false);
        return rc;
    }
    *ret_segment = segment_find(ss, s.id);
    CHECK(*ret_segment != NULL);
    return 0;
}

/* Is the open segment of a stream one that nothing should be written to any more? */
static bool open_is_thin(const struct segments *ss, unsigned stream)
{
    const struct segment *s = ss->open[stream];
    unsigned k, m;

    if (!s)
        return false;
    segment_geometry(ss, &k, &m);
    return (segment_parity(s, ss->given_up) < m && !PLANTED(REBUILD_SKIPS_OPEN)) ||
           segment_on(s, segment_leaving_drives(ss));
}

bool segment_renew_due(const struct segments *ss)
{
    for (unsigned i = 0; i < SEGMENT_STREAMS; i++)
        if (open_is_thin(ss, i))
            return true;
    return false;
}

int segment_renew_thin(struct segments *ss)
{
    bool done = false;
    int rc = 0;

    for (unsigned i = 0; rc == 0 && !done && i < SEGMENT_STREAMS; i++) {
        struct segment *s;

        fiber_mutex_lock(&ss->stream_lock[i]);
        done = open_is_thin(ss, i);
        if (done)
            rc = segment_open_new(ss, (enum segment_stream)i, false, &s);
        fiber_mutex_unlock(&ss->stream_lock[i]);
    }
    return rc;
}

bool segment_sweep_due(const struct segments *ss)
{
    return !list_empty(&ss->emptied);
}

/* Is nobody at it? */
static bool segment_sweepable(const struct segment *s)
{
    return !s->readers && (!s->holds || PLANTED(SWEEP_IGNORES_HOLDS)) && !s->freeing;
}

/* They stay, those that are there still: the record may be applied, and only its rows not written.
 */
static void sweep_undo(struct segments *ss, const uint64_t *ids, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct segment *s = segment_find(ss, ids[i]);

        if (s)
            s->freeing = false;
    }
}

int segment_sweep(struct segments *ss, unsigned *ret_freed)
{
    uint8_t body[4 + 8 * SEGMENT_SWEEP_MAX];
    uint64_t picked[SEGMENT_SWEEP_MAX];
    struct iovec iov = {body, 0};
    unsigned n = 0;
    int rc = 0;

    list_for_each (it, &ss->emptied) {
        struct segment *s = LIST_ENTRY(it, struct segment, fill.link);

        if (n == SEGMENT_SWEEP_MAX)
            break;
        if (!segment_sweepable(s))
            continue;
        s->freeing = true;
        codec_put_le64(body + 4 + 8 * n, s->id);
        picked[n++] = s->id;
    }
    codec_put_le32(body, n);
    iov.iov_len = 4 + 8 * n;
    if (n)
        rc = record_submit(ss->log, RECORD_SEGMENT_FREE, &iov, 1, JOURNAL_DRAIN, NULL);
    if (rc < 0) {
        sweep_undo(ss, picked, n);
        return rc;
    }
    *ret_freed = n;
    return 0;
}
