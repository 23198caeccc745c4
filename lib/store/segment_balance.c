/* Segments and a changing set of drives: which are to be written anew because a drive leaves, or
 * because one has more than its fair share; see segment.h.
 *
 * New segments go to the drives with the most free slots, which for any mix of sizes makes the best
 * of them. What that would have led to from the start is the fair share: all drives have the same
 * number of slots free, apart from those that are too small, or too large to be filled with one
 * column of each segment. Since moving goes the way that new segments go, it comes nearer to the
 * shares with each step; the two thresholds and the limit of steps see to it that it ends.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/segment_priv.h"

#define EVEN_PARTS 1024u

bool segment_on(const struct segment *s, uint64_t drives)
{
    for (unsigned i = 0; drives && i < s->k + s->m; i++)
        if (drives >> s->drive[i] & 1)
            return true;
    return false;
}

uint64_t segment_leaving_drives(const struct segments *ss)
{
    uint64_t mask = 0;

    for (unsigned i = 0; i < ss->ds->count; i++)
        mask |= (uint64_t)ss->ds->drives[i].leaving << i;
    return mask;
}

uint64_t segment_taking_drives(const struct segments *ss)
{
    uint64_t mask = 0;

    for (unsigned i = 0; i < ss->ds->count; i++)
        mask |= (uint64_t)drive_takes(&ss->ds->drives[i]) << i;
    return mask;
}

/* ---- Coming and going ---- */

void segment_take_drive(struct segments *ss, unsigned drive)
{
    uint64_t slots = ss->ds->drives[drive].slot_count;

    CHECK(!ss->slots[drive]);
    ss->slots[drive] = mem_calloc((slots + 7) / 8, 1);
    ss->slots_free[drive] = slots;
    segment_file_drives(ss, ss->given_up & ~(1ull << drive), ss->leaving_drives);
}

bool segment_drive_empty(const struct segments *ss, unsigned drive)
{
    return ss->slots_free[drive] == ss->ds->drives[drive].slot_count;
}

void segment_forget_drive(struct segments *ss, unsigned drive)
{
    if (PLANTED(LEAVES_WITH_DATA))
        return; /* what is on it is to be missed by those who need it, not here */
    mem_free(ss->slots[drive]);
    ss->slots[drive] = NULL;
    ss->slots_free[drive] = 0;
    segment_file_drives(ss, ss->given_up & ~(1ull << drive), ss->leaving_drives);
}

uint64_t segment_given_up(const struct segments *ss)
{
    return ss->given_up;
}

uint64_t segment_capacity_with(const struct segments *ss, uint64_t drives, uint64_t extra_slots)
{
    const struct format_super *super = &ss->ds->super;
    unsigned k = super->data_columns, n = k + super->parity_columns;
    uint64_t slots[FORMAT_DRIVES_MAX + 1] = {extra_slots};

    for (unsigned i = 0; i < ss->ds->count; i++)
        if (drives >> i & 1)
            slots[i + 1] = ss->ds->drives[i].slot_count;
    return segment_count_possible(slots, FORMAT_DRIVES_MAX + 1, n) * k *
           (super->slot_size - FORMAT_UNIT);
}

bool segment_pick_leaving(struct segments *ss, uint64_t *ret_segment)
{
    segment_file_drives(ss, ss->given_up, segment_leaving_drives(ss));
    if (list_empty(&ss->leaving))
        return false;
    *ret_segment = LIST_ENTRY(ss->leaving.next, struct segment, leaves.link)->id;
    return true;
}

/* ---- What moving takes and gives ---- */

/* Of its room, what can be won by moving: not a tail that no stripe fitted into, unless it is so
 * large that the segment was sealed for another reason. */
static uint64_t segment_winnable(const struct segments *ss, const struct segment *s)
{
    uint64_t written = (uint64_t)(s->used - 1) * s->k * FORMAT_UNIT; /* the header apart */
    uint64_t tail = segment_stripe_good(ss) + SEGMENT_CHUNK_MAX, room = segment_room(ss, s);

    return room > tail && room - tail > written ? room - tail : written;
}

/* How many of its slots new segments could have. */
static unsigned segment_gives(const struct segments *ss, const struct segment *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < s->k + s->m; i++)
        n += (unsigned)(ss->taking_drives >> s->drive[i] & 1);
    return n;
}

/* Slots for slots: some of its may be on drives where nothing new is put, and while drives are
 * missing new segments are narrower and have more parity for each byte. That they may be wider now
 * is left out, or all old ones would be moved for little. */
uint64_t segment_cost(const struct segments *ss, const struct segment *s, uint64_t bytes,
                      unsigned parts)
{
    uint64_t takes = (uint64_t)s->k * (ss->new_k + ss->new_m);
    uint64_t gives = (uint64_t)ss->new_k * segment_gives(ss, s);
    uint64_t winnable = segment_winnable(ss, s);

    if (winnable == 0)
        return 0;
    if (takes < gives || ss->new_k == 0)
        takes = gives = 1;
    return gives ? bytes * parts * takes / (winnable * gives) : UINT32_MAX;
}

/* How many new segments of n columns there are slots for, with those of a segment, if given. */
static uint64_t segments_possible(const struct segments *ss, const struct segment *with, unsigned n)
{
    uint64_t slots[FORMAT_DRIVES_MAX] = {0};

    for (unsigned i = 0; i < ss->ds->count; i++)
        if (ss->taking_drives >> i & 1)
            slots[i] = ss->slots_free[i] + (with && segment_on(with, 1ull << i));
    return segment_count_possible(slots, ss->ds->count, n);
}

bool segment_move_keeps_free(const struct segments *ss, uint64_t segment)
{
    const struct segment *s = segment_find(ss, segment);
    unsigned n = ss->new_k + ss->new_m;

    return s && ss->new_k &&
           s->live + segment_directory(s->chunks) <=
               ss->new_k * (ss->ds->super.slot_size - FORMAT_UNIT) &&
           segments_possible(ss, s, n) > segments_possible(ss, NULL, n);
}

/* Half of the rest: stripes are rounded up, and the last may not fit in what others have left. */
bool segment_move_opens_none(const struct segments *ss, uint64_t segment,
                             enum segment_stream stream)
{
    const struct segment *s = segment_find(ss, segment);

    return s && s->live + segment_directory(s->chunks) <= segment_open_rest(ss, stream) / 2;
}

/* ---- Evenness ---- */

/* How far each drive is from its fair share, in slots; more than 0: it has too much. */
struct shares {
    uint64_t drives; /* those that take: the others have none */
    int64_t off[FORMAT_DRIVES_MAX];
    uint64_t excess; /* the sum of what is too much */
};

static uint64_t share_of(uint64_t slots, uint64_t level, uint64_t segments)
{
    uint64_t share = slots > level ? slots - level : 0;

    return share < segments ? share : segments;
}

/* The most slots that every drive can have free when `taken` are to be put on them, one column of
 * each segment on a drive. */
static uint64_t share_level(const struct segments *ss, uint64_t drives, uint64_t taken,
                            uint64_t segments)
{
    uint64_t low = 0, high = 0;

    for (unsigned i = 0; i < ss->ds->count; i++)
        if ((drives >> i & 1) && ss->ds->drives[i].slot_count > high)
            high = ss->ds->drives[i].slot_count;
    while (low < high) {
        uint64_t level = low + (high - low + 1) / 2, sum = 0;

        for (unsigned i = 0; i < ss->ds->count; i++)
            if (drives >> i & 1)
                sum += share_of(ss->ds->drives[i].slot_count, level, segments);
        if (sum >= taken)
            low = level;
        else
            high = level - 1;
    }
    return low;
}

static void shares_get(const struct segments *ss, struct shares *sh)
{
    uint64_t taken = 0, level, segments;
    unsigned k, m;

    memset(sh, 0, sizeof(*sh));
    sh->drives = segment_taking_drives(ss);
    segment_geometry(ss, &k, &m);
    if (k == 0)
        return;
    for (unsigned i = 0; i < ss->ds->count; i++)
        if (sh->drives >> i & 1)
            taken += ss->ds->drives[i].slot_count - ss->slots_free[i];
    segments = (taken + k + m - 1) / (k + m);
    level = share_level(ss, sh->drives, taken, segments);
    for (unsigned i = 0; i < ss->ds->count; i++) {
        const struct drive *d = &ss->ds->drives[i];

        if (!(sh->drives >> i & 1))
            continue;
        sh->off[i] = (int64_t)(d->slot_count - ss->slots_free[i]) -
                     (int64_t)share_of(d->slot_count, level, segments);
        sh->excess += sh->off[i] > 0 ? (uint64_t)sh->off[i] : 0;
    }
}

/* Is a drive further from its share than so many percent of its slots, and so many slots? */
static bool shares_exceed(const struct segments *ss, const struct shares *sh, unsigned percent,
                          uint64_t slots)
{
    for (unsigned i = 0; i < ss->ds->count; i++) {
        uint64_t off = (uint64_t)(sh->off[i] < 0 ? -sh->off[i] : sh->off[i]);

        if (off > slots && off * 100 > percent * ss->ds->drives[i].slot_count)
            return true;
    }
    return false;
}

void segment_watch_even(struct segments *ss)
{
    uint64_t segment;
    struct shares sh;

    shares_get(ss, &sh);
    if (ss->even_rest && ss->even_rest != sh.drives)
        ss->even_rest = 0; /* other drives: a new chance */
    if (!ss->evening) {
        ss->evening = !ss->even_rest && shares_exceed(ss, &sh, 5, 3);
        ss->even_left = 2 * sh.excess + 8;
    } else if (!shares_exceed(ss, &sh, 2, 2)) {
        ss->evening = false;
    } else if (!segment_pick_uneven(ss, &segment)) {
        segment_moved_uneven(ss, true);
    }
}

/* Evenness is no reason to use up space: where that is short, moving for it must not be what ends
 * it. */
static bool segment_gives_back(const struct segments *ss, const struct segment *s)
{
    return segment_cost(ss, s, s->live + segment_directory(s->chunks), EVEN_PARTS) <= EVEN_PARTS;
}

/* The drives with the most too much and too little, as parts of their size. */
static bool shares_ends(const struct segments *ss, const struct shares *sh, unsigned *ret_over,
                        unsigned *ret_under)
{
    bool over = false, under = false;

    for (unsigned i = 0; i < ss->ds->count; i++) {
        int64_t slots = (int64_t)ss->ds->drives[i].slot_count;

        if (sh->off[i] > 0 && (!over || sh->off[i] * (int64_t)ss->ds->drives[*ret_over].slot_count >
                                            sh->off[*ret_over] * slots)) {
            *ret_over = i;
            over = true;
        }
        if (sh->off[i] < 0 &&
            (!under || sh->off[i] * (int64_t)ss->ds->drives[*ret_under].slot_count <
                           sh->off[*ret_under] * slots)) {
            *ret_under = i;
            under = true;
        }
    }
    return over && under;
}

bool segment_pick_uneven(const struct segments *ss, uint64_t *ret_segment)
{
    unsigned over = 0, under = 0;
    struct shares sh;

    if (!ss->evening || ss->even_left == 0)
        return false;
    shares_get(ss, &sh);
    if (!shares_exceed(ss, &sh, 2, 2) || !shares_ends(ss, &sh, &over, &under))
        return false;
    for (unsigned i = 0; i < SEGMENT_FILLS; i++)
        list_for_each (it, &ss->fills[i]) {
            const struct segment *s = LIST_ENTRY(it, struct segment, fill.link);

            if (s->tries >= SEGMENT_TRIES || !segment_on(s, 1ull << over) ||
                segment_on(s, 1ull << under) || !segment_gives_back(ss, s))
                continue;
            *ret_segment = s->id;
            return true;
        }
    return false;
}

void segment_moved_uneven(struct segments *ss, bool stuck)
{
    if (ss->even_left > 0)
        ss->even_left--;
    if (!stuck && ss->even_left > 0)
        return;
    ss->evening = false;
    ss->even_rest = segment_taking_drives(ss);
}

/* ---- What there is to do ---- */

void segment_get_moves(const struct segments *ss, struct segment_moves *ret_moves)
{
    uint64_t leaving = segment_leaving_drives(ss), sealed = 0, live = 0;
    struct segment_moves mv = {0};
    struct shares sh;
    unsigned k, m;

    segment_geometry(ss, &k, &m);
    list_for_each (it, &ss->all) {
        const struct segment *s = LIST_ENTRY(it, struct segment, link);
        bool thin, goes;

        if (!s->chunks)
            continue;
        thin = segment_parity(s, ss->given_up) < m;
        goes = segment_on(s, leaving);
        mv.rebuild += thin ? s->live : 0;
        mv.leaving += goes && !thin ? s->live : 0;
        mv.stuck += (thin || goes) && s->tries >= SEGMENT_TRIES;
        for (unsigned i = 0; goes && i < s->k + s->m; i++)
            if (leaving >> s->drive[i] & 1)
                mv.on_drive[s->drive[i]] += s->live;
        live += s->live;
        sealed++;
    }
    shares_get(ss, &sh);
    if (ss->evening && sealed)
        mv.uneven = sh.excess * (live / sealed);
    *ret_moves = mv;
}
