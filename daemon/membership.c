/* Orders about drives, and the watch over them; see membership.h. */
#include "daemon/membership.h"

#include "daemon/image.h"
#include "daemon/partition_priv.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/plant.h"
#include "lib/base/size.h"

#define MEMBERSHIP_GO_AGAIN (2 * ENV_NS_PER_S)
#define MEMBERSHIP_SAMPLE   ENV_NS_PER_S /* of the rate */
#define MEMBERSHIP_SMOOTH   8u           /* samples that the average goes back, about */

static int refuse(struct strbuf *why, int error, const char *text)
{
    strbuf_adds(why, text);
    return error;
}

static struct drive *find(struct partition *p, uint32_t index)
{
    if (index >= p->ds->count || p->ds->drives[index].state == DRIVE_NONE)
        return NULL;
    return &p->ds->drives[index];
}

static int no_drive(struct strbuf *why)
{
    return refuse(why, ERR_NOENT, "there is no such drive: see `filmroom drive list`");
}

static void give_up(struct partition *p, unsigned index)
{
    if (segment_given_up(p->segments) >> index & 1)
        return;
    segment_give_up(p->segments, index);
    log_warn("membership", "drive is given up, its data is written again to others drive=%u",
             index);
}

/* ---- May it go? ---- */

static void say_bytes(struct strbuf *why, const char *before, uint64_t bytes, const char *after)
{
    char text[SIZE_TEXT_MAX];

    strbuf_addf(why, "%s%s%s", before, size_format(bytes, text), after);
}

/* Do the drives of `rest`, and one more of so many slots, do without this one? */
static int check_leaving(struct partition *p, const struct drive *d, uint64_t rest,
                         uint64_t extra_slots, struct strbuf *why)
{
    const struct format_super *super = &p->ds->super;
    unsigned left = (unsigned)__builtin_popcountll(rest) + (extra_slots > 0);
    unsigned columns = super->data_columns + super->parity_columns;
    unsigned least = drive_usable(d) ? columns : super->parity_columns + 1u;
    struct segment_space space;
    uint64_t capacity;

    if (left < least) {
        strbuf_addf(why,
                    "%u drives in service would be left, and the profile %u+%u needs %u: add a "
                    "drive first, or replace this one",
                    left, super->data_columns, super->parity_columns, least);
        return ERR_PERM;
    }
    if (left < columns)
        return 0; /* it is out: its data goes into narrower segments, as space allows */
    segment_get_space(p->segments, &space);
    capacity = segment_capacity_with(p->segments, rest, extra_slots);
    if (space.live + space.live / 16 + chunkstore_kept(p->chunks) > capacity) {
        say_bytes(why, "the other drives can hold ", capacity, ", and there are ");
        say_bytes(why, "", space.live, " of data, before parity: add drives or delete data first");
        return ERR_NOSPC;
    }
    return 0;
}

/* ---- Orders ---- */

static void changed(struct partition *p)
{
    partition_fit_space(p);
    journal_level(p->journal);
}

static int add_locked(struct partition *p, const struct member_add *add, struct strbuf *why,
                      uint32_t *ret_index)
{
    uint32_t index;
    int rc = member_add(p->ds, add, why, &index);

    if (rc < 0)
        return rc;
    segment_take_drive(p->segments, index);
    p->out_since[index] = 0;
    member_joined(p->ds, index);
    changed(p);
    log_info("membership", "drive added drive=%u path=%s slots=%llu", index, log_q(add->path),
             (unsigned long long)p->ds->drives[index].slot_count);
    *ret_index = index;
    return 0;
}

int partition_drive_add(struct partition *p, const struct member_add *add, struct strbuf *why,
                        uint32_t *ret_index)
{
    int rc;

    CHECK(add->replaces == MEMBER_NOBODY);
    fiber_mutex_lock(&p->membership.lock);
    rc = add_locked(p, add, why, ret_index);
    fiber_mutex_unlock(&p->membership.lock);
    return rc;
}

static void leaves(struct partition *p, uint32_t index)
{
    if (!drive_usable(&p->ds->drives[index]))
        give_up(p, index);
    log_info("membership", "drive is leaving, what is on it is written anew elsewhere drive=%u",
             index);
}

static int remove_locked(struct partition *p, uint32_t index, struct strbuf *why)
{
    struct drive *d = find(p, index);
    int rc;

    if (!d)
        return no_drive(why);
    if (d->leaving)
        return 0;
    rc = check_leaving(p, d, segment_taking_drives(p->segments) & ~(1ull << index), 0, why);
    if (rc == 0)
        rc = member_leave(p->ds, index, true);
    if (rc < 0)
        return rc;
    leaves(p, index);
    changed(p);
    return 0;
}

int partition_drive_remove(struct partition *p, uint32_t index, struct strbuf *why)
{
    int rc;

    fiber_mutex_lock(&p->membership.lock);
    rc = remove_locked(p, index, why);
    fiber_mutex_unlock(&p->membership.lock);
    return rc;
}

int partition_drive_keep(struct partition *p, uint32_t index, struct strbuf *why)
{
    int rc = 0;

    fiber_mutex_lock(&p->membership.lock);
    if (!find(p, index))
        rc = no_drive(why);
    else if (!p->ds->drives[index].leaving)
        rc = refuse(why, ERR_INVAL, "this drive is not leaving");
    if (rc == 0)
        rc = member_leave(p->ds, index, false);
    if (rc == 0) {
        changed(p);
        log_info("membership", "drive stays after all drive=%u", index);
    }
    fiber_mutex_unlock(&p->membership.lock);
    return rc;
}

static int replace_locked(struct partition *p, const struct member_add *add, struct strbuf *why,
                          uint32_t *ret_index)
{
    struct drive *d = find(p, add->replaces);
    uint64_t slots;
    int rc;

    if (!d)
        return no_drive(why);
    if (d->leaving)
        return refuse(why, ERR_INVAL, "this drive is leaving already: just add the new one");
    rc = member_measure(p->ds, add, &slots);
    /* Where there is nothing to be had, adding says so. */
    if (rc == 0 && slots > 0)
        rc = check_leaving(p, d, segment_taking_drives(p->segments) & ~(1ull << d->index), slots,
                           why);
    if (rc == 0)
        rc = add_locked(p, add, why, ret_index);
    if (rc == 0)
        leaves(p, add->replaces);
    return rc;
}

int partition_drive_replace(struct partition *p, const struct member_add *add, struct strbuf *why,
                            uint32_t *ret_index)
{
    int rc;

    fiber_mutex_lock(&p->membership.lock);
    rc = replace_locked(p, add, why, ret_index);
    fiber_mutex_unlock(&p->membership.lock);
    return rc;
}

int partition_drive_rebuild(struct partition *p, uint32_t index, struct strbuf *why)
{
    struct drive *d = find(p, index);

    if (!d)
        return no_drive(why);
    if (drive_usable(d))
        return refuse(why, ERR_INVAL,
                      "this drive is in service: remove or replace it to have it emptied");
    give_up(p, index);
    return 0;
}

int partition_drive_set_class(struct partition *p, uint32_t index, uint8_t class_,
                              struct strbuf *why)
{
    int rc;

    fiber_mutex_lock(&p->membership.lock);
    rc = find(p, index) ? member_set_class(p->ds, index, class_) : no_drive(why);
    if (rc == 0)
        journal_level(p->journal);
    fiber_mutex_unlock(&p->membership.lock);
    return rc;
}

/* ---- The watch ---- */

/* Gives up drives that are out: their data is then written again to the others. At once where a
 * drive failed, since it does not count again before the next start. One that a start did not find
 * may only be late, and has its data: it is waited for, but not where it is leaving. */
static void watch_out(struct partition *p)
{
    uint64_t now = env_now(p->env);

    for (unsigned i = 0; i < p->ds->count; i++) {
        const struct drive *d = &p->ds->drives[i];

        if (drive_usable(d) || d->state == DRIVE_NONE) {
            p->out_since[i] = 0;
            continue;
        }
        if (!p->out_since[i])
            p->out_since[i] = now;
        if (d->leaving || d->state == DRIVE_FAILED ||
            now - p->out_since[i] >= p->options.rebuild_delay_ns)
            give_up(p, i);
    }
}

static bool may_go(const struct partition *p, unsigned i)
{
    return p->ds->drives[i].leaving && !journal_on_drive(p->journal, i) &&
           (segment_drive_empty(p->segments, i) || PLANTED(LEAVES_WITH_DATA));
}

/* Brings the KV store, and the metadata's copy, to where neither they nor what is to be replayed
 * upon them name what is on no drive now. ERR_AGAIN: the copy could not be renewed. */
static int forget_what_was(struct partition *p)
{
    uint64_t lsn = p->processed_lsn;
    struct image_stats copy;
    int rc = partition_checkpoint(p);

    image_get_stats(p->image, &copy);
    if (rc == 0 && copy.settled < lsn)
        rc = ERR_AGAIN;
    return rc;
}

/* F8: the segments that were on it must be forgotten before its place is given up; no new one can
 * come, since it takes none. Asked again after that: its leaving may have been taken back. */
static int let_go(struct partition *p, unsigned i, bool *ret_gone)
{
    int rc = PLANTED(LEAVES_UNFLUSHED) ? 0 : forget_what_was(p);

    p->membership.go_at = env_now(p->env) + (rc < 0 ? MEMBERSHIP_GO_AGAIN : 0);
    if (rc < 0 || !may_go(p, i))
        return rc;
    rc = member_let_go(p->ds, i);
    if (rc < 0)
        return rc;
    segment_forget_drive(p->segments, i);
    p->out_since[i] = 0;
    changed(p);
    log_info("membership", "drive has left drive=%u", i);
    *ret_gone = true;
    return 0;
}

static void watch_leaving(struct partition *p)
{
    bool left = false;

    /* An order may wait for a drive that does not answer; the background work does not. */
    if (!fiber_mutex_try(&p->membership.lock))
        return;
    for (unsigned i = 0; i < p->ds->count && !p->broken; i++) {
        int rc = may_go(p, i) ? let_go(p, i, &left) : 0;

        if (rc < 0 && rc != ERR_SHUTDOWN && rc != ERR_AGAIN)
            log_warn("membership", "drive cannot be let go, will try again drive=%u error=%s", i,
                     err_name(rc));
    }
    fiber_mutex_unlock(&p->membership.lock);
    if (left && p->options.drives_changed)
        p->options.drives_changed(p->options.drives_arg);
}

static void watch_rate(struct partition *p)
{
    struct membership *ms = &p->membership;
    uint64_t now = env_now(p->env), took = now - ms->sampled_at, rate;
    struct chunkstore_stats stats;

    if (ms->sampled_at && took < MEMBERSHIP_SAMPLE)
        return;
    chunkstore_get_stats(p->chunks, &stats);
    rate = ms->sampled_at ? (uint64_t)((double)(stats.rehomed_bytes - ms->moved_before) *
                                       ENV_NS_PER_S / (double)took)
                          : 0;
    if (ms->rate == 0)
        ms->rate = rate;
    else
        ms->rate = (ms->rate * (MEMBERSHIP_SMOOTH - 1) + rate) / MEMBERSHIP_SMOOTH;
    ms->moved_before = stats.rehomed_bytes;
    ms->sampled_at = now;
}

void membership_watch(struct partition *p)
{
    watch_out(p);
    if (segment_leaving_drives(p->segments) && env_now(p->env) >= p->membership.go_at)
        watch_leaving(p);
    journal_level(p->journal);
    segment_watch_even(p->segments);
    watch_rate(p);
}

/* ---- Progress ---- */

static struct partition_work work(uint64_t bytes, uint64_t before, uint64_t rate)
{
    struct partition_work w = {.bytes = bytes};

    if (bytes && rate)
        w.eta_s = (before + bytes) / rate + 1;
    return w;
}

void membership_get_progress(struct partition *p, struct partition_moves *ret_moves)
{
    uint64_t rate = p->membership.rate;
    struct chunkstore_stats stats;
    struct segment_moves mv;

    segment_get_moves(p->segments, &mv);
    chunkstore_get_stats(p->chunks, &stats);
    *ret_moves =
        (struct partition_moves){.rebuild = work(mv.rebuild, 0, rate),
                                 .leaving = work(mv.leaving, mv.rebuild, rate),
                                 .rebalance = work(mv.uneven, mv.rebuild + mv.leaving, rate),
                                 .rate = rate,
                                 .moved = stats.rehomed_bytes,
                                 .stuck = mv.stuck,
                                 .waits = chunkstore_moves_wait(p->chunks),
                                 .given_up = segment_given_up(p->segments)};
    for (unsigned i = 0; i < p->ds->count; i++)
        ret_moves->drives[i] = work(mv.on_drive[i], mv.rebuild, rate);
}
