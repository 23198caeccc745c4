/* Which states a crash can leave, and trying each. See crash.h.
 *
 * With few changes pending all of their subsets are states. With many: none, all, each alone, all
 * but each, what was started up to each, and each drive behind or ahead of the others. Then the
 * last changes torn at borders of 512 bytes. Each with the KV store as of its last flush and as of
 * now (in full: every border between). A state that was tried before, with the same
 * acknowledgements, is not tried again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/hmap.h"
#include "lib/base/mem.h"
#include "tests/crash/crash.h"

#define CHANGES_MAX   256u
#define ALL_SUBSETS   5u /* changes of which all subsets are taken */
#define ALL_FULL      7u
#define TORN_LAST     2u /* of the changes, how many are torn */
#define TORN_FULL     8u
#define TORN_CUTS     3u
#define TORN_CUTS_MAX 64u
#define BORDERS_FULL  8u

struct changes {
    struct crash_change *at[CHANGES_MAX];
    unsigned count;
};

/* ---- The pending changes ---- */

static int change_compare(const void *x, const void *y)
{
    const struct crash_change *a = *(struct crash_change *const *)x;
    const struct crash_change *b = *(struct crash_change *const *)y;

    return (a->started > b->started) - (a->started < b->started);
}

static void gather(struct crash *c, struct changes *all)
{
    all->count = 0;
    for (unsigned i = 0; i < c->disks.count; i++)
        list_for_each (it, &c->disks.disk[i].changes) {
            struct crash_change *ch = LIST_ENTRY(it, struct crash_change, link);

            if (all->count == CHANGES_MAX)
                run_fail(&c->run, "more than %u changes are pending", CHANGES_MAX);
            all->at[all->count++] = ch;
        }
    if (all->count)
        qsort(all->at, all->count, sizeof(all->at[0]), change_compare);
}

static void state_add(struct crash_state *s, struct crash_change *ch, uint64_t from, uint64_t to)
{
    CHECK(s->count < CRASH_PARTS_MAX);
    s->parts[s->count++] = (struct crash_part){ch, from, to};
}

static void state_add_whole(struct crash_state *s, struct crash_change *ch)
{
    state_add(s, ch, 0, crash_change_sectors(ch));
}

/* ---- Trying one ---- */

static bool seen_before(struct crash *c, uint64_t digest)
{
    size_t i;

    if (2 * c->seen_count >= c->seen_room) {
        uint64_t *old = c->seen;
        size_t room = c->seen_room;

        c->seen_room = room ? 2 * room : 1024;
        c->seen = mem_calloc(c->seen_room, sizeof(c->seen[0]));
        c->seen_count = 0;
        for (i = 0; i < room; i++)
            if (old[i])
                (void)seen_before(c, old[i]);
        mem_free(old);
    }
    digest |= 1; /* 0 is an empty place */
    for (i = (size_t)digest & (c->seen_room - 1); c->seen[i]; i = (i + 1) & (c->seen_room - 1))
        if (c->seen[i] == digest)
            return true;
    c->seen[i] = digest;
    c->seen_count++;
    return false;
}

void crash_wait(struct crash *c, unsigned most)
{
    while (c->children > most) {
        int status = 0;

        if (wait(&status) < 0)
            return;
        c->children--;
        if (status == 0)
            continue;
        c->counts.failed++;
        if (WIFSIGNALED(status))
            fprintf(stderr, "  %s: a state ended by signal %d\n", c->workload->name,
                    WTERMSIG(status));
        c->stop = c->settings->stop || c->counts.failed >= 10;
    }
}

/* True in the child. */
static bool try_in_child(struct crash *c, const struct crash_state *s, enum crash_variant v)
{
    pid_t pid;

    crash_wait(c, c->settings->jobs - 1);
    if (c->stop)
        return false;
    fflush(NULL);
    pid = fork();
    if (pid > 0) {
        c->children++;
        c->counts.tried++;
        return false;
    }
    if (pid < 0)
        run_fail(&c->run, "cannot fork");
    c->crashed = c->cut = true;
    c->watching = false;
    c->variant = v;
    crash_disks_keep(s->parts, s->count);
    crash_disks_cut(&c->disks, true);
    crash_meta_cut(&c->meta, s->border);
    sim_litter(c->run.sim);
    sim_pause(c->run.sim);
    return true;
}

/* Every state is recovered from with all drives; with fewer, twice, and without the KV store, every
 * fifth is: a campaign does all with each. */
static bool try_variants(struct crash *c, const struct crash_state *s, uint64_t digest)
{
    bool chosen = c->settings->only || hmap_mix(digest) % c->settings->share == 0;

    for (unsigned v = 0; v < CRASH_VARIANTS && chosen; v++) {
        uint64_t state = c->counts.distinct * CRASH_VARIANTS + v + 1;

        /* To make a store takes all drives, and a KV store. */
        if ((v == CRASH_LESS || v == CRASH_KV_LOST) && !c->formatted)
            continue;
        if (!c->settings->full && v != CRASH_RECOVER && digest / 7 % 5 != v)
            continue;
        if (c->settings->only && c->settings->only != state)
            continue;
        c->state = state;
        if (try_in_child(c, s, (enum crash_variant)v))
            return true;
    }
    c->counts.distinct++;
    return false;
}

static bool try_state(struct crash *c, const struct crash_state *s)
{
    uint64_t digest;

    if (c->stop)
        return false;
    c->counts.states++;
    digest = crash_disks_digest(&c->disks, s->parts, s->count);
    digest = hmap_mix(digest + hmap_mix(s->border) + hmap_mix(~c->version));
    if (seen_before(c, digest))
        return false;
    return try_variants(c, s, digest);
}

/* With every border of the KV store that a crash may leave. */
static bool try_borders(struct crash *c, struct crash_state *s)
{
    uint64_t from = c->meta.flushed, to = c->meta.written;
    uint64_t step = c->settings->full ? (to - from) / BORDERS_FULL + 1 : to - from;

    for (s->border = from; s->border < to; s->border += step)
        if (try_state(c, s))
            return true;
    s->border = to;
    return try_state(c, s);
}

/* ---- Subsets ---- */

static bool try_all_subsets(struct crash *c, const struct changes *all)
{
    for (uint32_t mask = 0; mask < 1u << all->count; mask++) {
        struct crash_state s = {.count = 0};

        for (unsigned i = 0; i < all->count; i++)
            if (mask >> i & 1)
                state_add_whole(&s, all->at[i]);
        if (try_borders(c, &s))
            return true;
    }
    return false;
}

/* What some subsets have in common: a change `at` that is different from the others. */
enum rule { ONLY, ALL_BUT, UP_TO, DRIVE_BEHIND, DRIVE_AHEAD, RULES };

static bool rule_keeps(enum rule rule, const struct changes *all, unsigned at, unsigned i)
{
    bool same = all->at[i]->disk == all->at[at]->disk;

    switch (rule) {
    case ONLY:
        return i == at;
    case ALL_BUT:
        return i != at;
    case UP_TO:
        return i <= at;
    case DRIVE_BEHIND:
        return !same || i < at;
    case DRIVE_AHEAD:
        return same && i <= at;
    case RULES:
        break;
    }
    return false;
}

static bool try_some_subsets(struct crash *c, const struct changes *all)
{
    struct crash_state none = {.count = 0};

    if (try_borders(c, &none))
        return true;
    for (unsigned rule = 0; rule < RULES; rule++)
        for (unsigned at = 0; at < all->count; at++) {
            struct crash_state s = {.count = 0};

            for (unsigned i = 0; i < all->count; i++)
                if (rule_keeps((enum rule)rule, all, at, i))
                    state_add_whole(&s, all->at[i]);
            if (try_borders(c, &s))
                return true;
        }
    return false;
}

/* ---- Torn changes ---- */

/* One change up to, or from, a sector; the others whole or not at all. */
static bool try_torn(struct crash *c, const struct changes *all, unsigned at, uint64_t sector)
{
    uint64_t sectors = crash_change_sectors(all->at[at]);

    for (unsigned how = 0; how < 4; how++) {
        struct crash_state s = {.count = 0};

        for (unsigned i = 0; i < all->count; i++) {
            if (i == at)
                state_add(&s, all->at[i], how & 1 ? sector : 0, how & 1 ? sectors : sector);
            else if (how & 2)
                state_add_whole(&s, all->at[i]);
        }
        if (try_borders(c, &s))
            return true;
    }
    return false;
}

static bool try_all_torn(struct crash *c, const struct changes *all)
{
    unsigned last = c->settings->full ? TORN_FULL : TORN_LAST;

    for (unsigned i = all->count > last ? all->count - last : 0; i < all->count; i++) {
        uint64_t sectors = crash_change_sectors(all->at[i]);
        uint64_t cuts = c->settings->full ? TORN_CUTS_MAX : TORN_CUTS, before = 0;

        for (uint64_t j = 1; j <= cuts; j++) {
            /* The first sector, the last, and borders between. */
            uint64_t at = j == 1 ? 1 : j == cuts ? sectors - 1 : sectors * j / (cuts + 1);

            if (sectors < 2 || at <= before || at >= sectors)
                continue;
            before = at;
            if (try_torn(c, all, i, at))
                return true;
        }
    }
    return false;
}

bool crash_point(void *arg)
{
    struct crash *c = arg;
    struct changes all;
    void *saved;
    bool child;

    if (!c->watching || c->stop)
        return false;
    sim_outside_enter(&saved);
    c->counts.points++;
    gather(c, &all);
    child = all.count <= (c->settings->full ? ALL_FULL : ALL_SUBSETS) ? try_all_subsets(c, &all)
                                                                      : try_some_subsets(c, &all);
    child = child || try_all_torn(c, &all);
    sim_outside_leave(saved);
    return child;
}
