/* Room: which writes a store that is nearly full takes, and which wait.
 *
 * Some space is kept for internal writes (chunkstore_set_kept, chunkstore_keep): users' writes are
 * taken while there is more than that. The others wait while compaction gains something, in the
 * order in which they came: a write has to find room beside all that wait in front of it, or a
 * large one would wait for as long as there are small ones. Two sums say what is in front of it,
 * the bytes that ever joined the queue before it did and the bytes that ever left it. That is right
 * when they leave in order; when one leaves earlier, by giving up, others go before their turn.
 *
 * Waiting must end. Compaction says when it has nothing left to move (chunkstore_room_changed); and
 * it may go on and on without any gain, since what it moves takes some room of its own: its
 * directories, the ends of stripes, and the ends of segments that no stripe fitted in. And what it
 * does changes rows, which are copied (daemon/image.c), and old copies are freed. So the measure is
 * the balance, what segments freed had room for less what those have that were opened for survivors
 * and for the copy. It is not the free space, which others may eat up as fast as it grows: the
 * overlay's drain, with what it had promised before.
 *
 * Pace. A store that takes writes at full speed until nothing is left, and then none until
 * something was gained, stands still several times a second. So when little is left, and compaction
 * could gain more, writes are let in one after the other, the slower the less is left; compaction
 * works without pause meanwhile. The two find the level at which as much is written as is gained,
 * whatever the drives can do.
 */
#include "dedup/chunk_priv.h"
#include "dedup/chunkstore.h"
#include "lib/base/check.h"
#include "lib/base/err.h"

#define ROOM_TRIES 32u /* looks at a balance that does not grow, before giving up */

#define PACE_PART  32u         /* little is this part of all space ... */
#define PACE_MAX   (1u << 30)  /* ... or this many bytes */
#define PACE_SPEED (64u << 20) /* bytes per second when half of that is left */
#define PACE_LEAST (1u << 20)
#define PACE_NAP   (5 * ENV_NS_PER_MS)

/* Segments of what is kept that a move may use. Those who keep it (partition_fit_space) count one
 * for each stream; the last is left to the stream of survivors, so that emptying goes on. And they
 * count what the overlay may hold: its drain fills the open segment of volumes first. */
#define MOVE_SLACK (SEGMENT_STREAMS - 1u)

struct room_waiter {
    uint64_t bytes;
    uint64_t joined; /* all that wanted room before it */
};

void chunkstore_set_kept(struct chunkstore *cs, uint64_t space_kept)
{
    cs->options.space_kept = space_kept;
}

void chunkstore_keep(struct chunkstore *cs, uint64_t bytes)
{
    cs->kept = bytes;
}

uint64_t chunkstore_kept(const struct chunkstore *cs)
{
    return cs->options.space_kept + cs->kept;
}

/* Is there room beside what others want who came first? */
static int room_ask(const struct chunkstore *cs, const struct room_waiter *w)
{
    uint64_t kept = chunkstore_kept(cs) + cs->reserved;
    struct segment_space sp;

    kept += w->joined > cs->room_left ? w->joined - cs->room_left : 0;
    segment_get_space(cs->segments, &sp);
    return sp.free < kept || sp.free - kept < w->bytes ? ERR_NOSPC : 0;
}

int chunkstore_admit(const struct chunkstore *cs, uint64_t bytes)
{
    return room_ask(cs, &(struct room_waiter){bytes, cs->room_joined});
}

int chunkstore_admit_ever(const struct chunkstore *cs, uint64_t bytes)
{
    uint64_t kept = chunkstore_kept(cs), most;
    struct segment_space sp;

    segment_get_space(cs->segments, &sp);
    most = sp.free + sp.dead;
    return most < kept || most - kept < bytes ? ERR_NOSPC : 0;
}

static int64_t room_balance(const struct chunkstore *cs)
{
    struct segment_space sp;

    segment_get_space(cs->segments, &sp);
    return (int64_t)sp.freed - (int64_t)sp.survivors;
}

static int room_wait(struct chunkstore *cs, const struct room_waiter *w)
{
    uint64_t failed = cs->room_failures;
    int64_t best = room_balance(cs);
    unsigned vain = 0;
    int rc;

    while ((rc = room_ask(cs, w)) == ERR_NOSPC && !cs->closing && cs->room_failures == failed &&
           vain < ROOM_TRIES && segment_can_gain(cs->segments, COMPACT_FILL_MAX)) {
        int64_t now;

        cs->room_waiters++;
        fiber_cond_signal(&cs->room_wanted);
        fiber_cond_wait(&cs->room_changed);
        now = room_balance(cs);
        vain = now > best ? 0 : vain + 1;
        best = now > best ? now : best;
    }
    return rc;
}

/* Bytes per second at which writes are let in now; 0: as they come. */
static uint64_t pace_speed(const struct chunkstore *cs)
{
    uint64_t kept = chunkstore_kept(cs) + cs->reserved, low, left, speed;
    struct segment_space sp;

    segment_get_space(cs->segments, &sp);
    low = sp.total / PACE_PART < PACE_MAX ? sp.total / PACE_PART : PACE_MAX;
    left = sp.free > kept ? sp.free - kept : 0;
    if (left >= low || cs->closing || !segment_can_gain(cs->segments, COMPACT_FILL_MAX))
        return 0;
    speed = left * PACE_SPEED / (low - left);
    return speed > PACE_LEAST ? speed : PACE_LEAST;
}

/* Lets a write in at its time. What it may take grows with time, but not while nobody wants it. */
static void pace_await(struct chunkstore *cs, uint64_t bytes)
{
    uint64_t speed = pace_speed(cs);

    if (speed == 0)
        return;
    cs->paced++;
    fiber_cond_signal(&cs->room_wanted);
    fiber_mutex_lock(&cs->pace);
    for (; cs->pace_credit < bytes && (speed = pace_speed(cs)) > 0;) {
        uint64_t begin = env_now(cs->env);
        uint64_t nap = (bytes - cs->pace_credit) * ENV_NS_PER_S / speed + 1;

        env_sleep(cs->env, nap < PACE_NAP ? nap : PACE_NAP);
        cs->pace_credit += (env_now(cs->env) - begin) * speed / ENV_NS_PER_S;
    }
    cs->pace_credit -= cs->pace_credit < bytes ? cs->pace_credit : bytes;
    fiber_mutex_unlock(&cs->pace);
    cs->paced--;
}

int chunkstore_await_room(struct chunkstore *cs, uint64_t bytes)
{
    struct room_waiter w;
    int rc;

    pace_await(cs, bytes);
    w = (struct room_waiter){bytes, cs->room_joined};
    rc = room_ask(cs, &w);
    if (rc == 0)
        return 0;
    cs->room_joined += bytes;
    rc = room_wait(cs, &w);
    cs->room_left += bytes;
    return rc;
}

int chunkstore_reserve(struct chunkstore *cs, uint64_t bytes)
{
    int rc = chunkstore_await_room(cs, bytes);

    if (rc == 0)
        cs->reserved += bytes;
    return rc;
}

void chunkstore_unreserve(struct chunkstore *cs, uint64_t bytes)
{
    CHECK(cs->reserved >= bytes);
    cs->reserved -= bytes;
}

/* ---- Compaction's side ---- */

bool chunkstore_moves_have_room(const struct chunkstore *cs, bool begun)
{
    struct segment_space sp;
    uint64_t slack = 0;

    segment_get_space(cs->segments, &sp);
    if (begun)
        slack = MOVE_SLACK * sp.segment + segment_open_rest(cs->segments, SEGMENT_VOLUMES);
    return sp.free + slack > chunkstore_kept(cs) + cs->reserved;
}

bool chunkstore_room_wanted(const struct chunkstore *cs)
{
    return cs->room_waiters > 0;
}

void chunkstore_room_changed(struct chunkstore *cs, bool gained)
{
    cs->room_failures += !gained;
    cs->room_waiters = 0; /* they look again, and come back if they must */
    fiber_cond_broadcast(&cs->room_changed);
}

void chunkstore_wait_wanted(struct chunkstore *cs, uint64_t deadline)
{
    if (cs->room_waiters == 0 && !cs->closing)
        (void)fiber_cond_wait_until(cs->env, &cs->room_wanted, deadline);
}

void chunkstore_stop(struct chunkstore *cs)
{
    cs->closing = true;
    cs->room_waiters = 0;
    fiber_cond_broadcast(&cs->room_changed);
    fiber_cond_broadcast(&cs->room_wanted);
}
