/* One run: a store made from a seed, then lives of the engine on it, each ended cleanly or by a
 * kill, with drives that are lost or lie in and between them; at the end everything is deleted.
 */
#include "tests/sim/life.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/member.h"
#include "tests/sim/hang.h"
#include "tests/sim/run.h"

#define SLOTS_AMPLE (512u << 20)          /* of data: several times what clients store */
#define LIFE_MAX_NS (3600 * ENV_NS_PER_S) /* nothing takes that long, unless it hangs */

/* ---- Failing ---- */

static void print_fiber(void *arg, const char *name, const char *why)
{
    (void)arg;
    fprintf(stderr, "  fiber %s: %s\n", name, why ? why : "running");
}

void run_fail(struct run *r, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "seed %llu failed in life %u, %s, at %.3f ms, %u+%u on %u drives: ",
            (unsigned long long)r->seed, r->life, r->phase, (double)sim_now(r->sim) / 1e6, r->k,
            r->m, r->drives);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    fflush(stderr);
    _exit(1);
}

void run_trace(struct run *r, const char *fmt, ...)
{
    va_list ap;

    if (!r->options.trace)
        return;
    fprintf(stderr, "[%u %12.3f ms] ", r->life, (double)sim_now(r->sim) / 1e6);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
}

/* ---- Setting up ---- */

static void choose_geometry(struct run *r)
{
    static const char *const paths[RUN_DRIVES_MAX] = {"drive-0", "drive-1", "drive-2", "drive-3",
                                                      "drive-4", "drive-5", "drive-6", "drive-7",
                                                      "drive-8", "drive-9"};
    static const uint8_t counts[] = {6, 6, 6, 6, 5, 4, 4, 3, 2, 1};

    r->churn = run_chance(r, 15);
    /* Churn is to fill and empty many segments: few columns make small ones. */
    r->drives = r->churn && run_chance(r, 70) ? 1 + (unsigned)run_random(r, 3)
                                              : counts[run_random(r, sizeof(counts))];
    driveset_profile(r->drives, &r->k, &r->m);
    memcpy(r->paths, paths, sizeof(paths));
    memcpy(r->places, paths, sizeof(paths));
    r->place_count = RUN_DRIVES_MAX;
    r->member = (1u << r->drives) - 1;
    r->drives_change = run_chance(r, 40);
    r->slot_size =
        run_chance(r, 30) ? FORMAT_SLOT_SIZE : FORMAT_SLOT_MIN + run_random(r, 256) * FORMAT_UNIT;
    if (r->churn)
        r->slot_size = FORMAT_SLOT_MIN;
    /* Small ones are filled all the time; in the others it is wrong to say that they are full. */
    r->slot_count = run_chance(r, 40) ? MEMBER_SLOTS_MIN + run_random(r, run_chance(r, 50) ? 8 : 40)
                                      : SLOTS_AMPLE / (r->k * r->slot_size) + run_random(r, 100);
    r->journal_len = FORMAT_JOURNAL_MIN +
                     (run_chance(r, 60) ? run_random(r, 16) : run_random(r, 256)) * FORMAT_UNIT;
    r->partition.cache_bytes = run_chance(r, 60) ? 40000 + (size_t)run_random(r, 200000) : 0;
    r->partition.overlay_bytes = run_chance(r, 60) ? 1 + run_random(r, 2u << 20) : 0;
    r->partition.copy_at_once = run_chance(r, 50) ? 1 : 0;
    r->partition.ingest_bytes = (8u << 20) * (1 + run_random(r, 3));
    r->partition.on_conflict = run_chance(r, 50) ? PARTITION_REPLACE : PARTITION_REFUSE;
    r->partition.rebuild_delay_ns = run_chance(r, 40) ? 1 + run_random(r, 500 * ENV_NS_PER_MS) : 0;
    r->contents = (struct model_contents){.same = instance_same,
                                          .replace = r->partition.on_conflict == PARTITION_REPLACE};
    r->faults_on = r->m > 0 && run_chance(r, 65);
    r->damage_max = r->m;
    if (r->options.lost) {
        r->faults_on = true;
        r->damage_max += 1 + (unsigned)run_random(r, r->drives - r->m);
        r->harms = run_chance(r, 50);
    }
    r->host_fills = run_chance(r, 12);
    r->host_no_reserve = run_chance(r, 40);
    if (r->host_fills && !r->options.lost && run_chance(r, 50))
        r->faults_on = false; /* then nothing may happen to drives at all */
    r->storm = run_chance(r, 25);
    r->block_span = run_chance(r, 50) && !r->churn ? 64 : 8 + run_random(r, MODEL_BLOCKS - 8);
    r->slow_io_ns = run_chance(r, 80) ? 0 : 1 + run_random(r, 5 * ENV_NS_PER_MS);
    scrub_choose(r);
    hang_choose(r);
}

/* What clients do is chosen for every life anew. */
static void choose_work(struct run *r)
{
    static const uint8_t usual[OP_COUNT] = {
        [OP_CREATE] = 6,      [OP_REMOVE] = 2,
        [OP_RESIZE] = 2,      [OP_WRITE] = 14,
        [OP_WRITE_PART] = 10, [OP_WRITE_BULK] = 8,
        [OP_ZERO] = 5,        [OP_READ] = 10,
        [OP_EXTENTS] = 3,     [OP_FLUSH] = 2,
        [OP_LIST] = 1,        [OP_PUT] = 10,
        [OP_PUT_BAD] = 2,     [OP_PUT_ABORT] = 2,
        [OP_OBJECT_READ] = 6, [OP_DELETE] = 5,
        [OP_QUERY] = 3,       [OP_SETTLE] = 1,
        [OP_COMPACT] = 2,     [OP_SNAPSHOT] = 4,
        [OP_BUCKET] = 2,      [OP_BUCKET_PUT] = 8,
        [OP_BUCKET_READ] = 4, [OP_BUCKET_REMOVE] = 3,
        [OP_BUCKET_LIST] = 2, [OP_SNAPSHOT_DELETE] = 3,
        [OP_CLONE] = 2,       [OP_ROLLBACK] = 2,
        [OP_SCRUB] = 2,       [OP_DRIVE] = 3,
    };

    r->weight_sum = 0;
    for (unsigned i = 0; i < OP_COUNT; i++) {
        bool off = (i != OP_CREATE && i != OP_BUCKET && run_chance(r, 25)) ||
                   (i == OP_DRIVE && !r->drives_change);

        r->weights[i] = off ? 0 : (unsigned)(usual[i] * (1 + run_random(r, 4)));
        if (r->churn && (i == OP_WRITE_BULK || i == OP_PUT || i == OP_DELETE || i == OP_COMPACT))
            r->weights[i] *= 4;
        r->weight_sum += r->weights[i];
    }
    r->clients = 1 + (unsigned)run_random(r, 8);
    r->ops_left = 10 + run_random(r, run_chance(r, 85) ? 120 : 500);
    if (r->churn)
        r->ops_left += 100 + run_random(r, 600);
    r->think_ns = r->storm || run_chance(r, 30) ? 0 : run_random(r, 10 * ENV_NS_PER_MS);
    if (run_chance(r, 10))
        r->think_ns = 200 * ENV_NS_PER_MS; /* time for background work */
}

/* ---- Processes ---- */

/* As in the daemon, but with much smaller sets, so that they change over all the time. */
static int life_open_kv(struct run *r)
{
    uint64_t dice;
    int rc = kv_mem_open(r->env, r->image, &r->kv);

    env_random(r->env, &dice, sizeof(dice));
    if (rc == 0)
        r->kv = kv_front_new(r->env, r->kv, (size_t)256 << dice % 9);
    return rc;
}

static void format_main(void *arg)
{
    struct run *r = arg;
    struct driveset_params params = {.count = r->drives,
                                     .paths = r->paths,
                                     .k = r->k,
                                     .m = r->m,
                                     .slot_count = r->slot_count,
                                     .slot_size = r->slot_size,
                                     .journal_len = r->journal_len,
                                     .uuid = (const uint8_t *)"the simulated 1"};
    bool exists = false;
    int rc = life_open_kv(r);

    if (rc == 0)
        rc = partition_exists(r->kv, &exists);
    if (rc == 0 && !exists)
        rc = partition_format(r->env, r->kv, &params);
    if (rc == 0)
        rc = kv_close(r->kv);
    if (rc < 0)
        run_fail(r, "format: %s", err_name(rc));
    r->opened = true;
}

static void life_close(struct run *r)
{
    struct partition_status status;
    bool may_lack;
    int rc;

    copy_look(r);
    partition_get_status(r->p, &status);
    may_lack = client_space_failed(r, ERR_NOSPC);
    r->compacted += status.chunks.compacted;
    r->moved += status.chunks.moved_bytes;
    if (status.chunks.stray_refs)
        run_fail(r, "%llu references went that nobody had counted",
                 (unsigned long long)status.chunks.stray_refs);
    r->phase = "closing";
    rc = partition_close(r->p);
    r->p = NULL;
    if (rc < 0 && !(rc == ERR_NOSPC && (may_lack || r->host_was_full)) && !client_lost(r, rc))
        run_fail(r, "close: %s", err_name(rc));
    r->phase = "recounting";
    recount_all(r);
    if (r->healing && !r->beyond)
        heal_check(r);
    if (r->converge)
        scrub_audit(r);
    rc = kv_close(r->kv);
    if (rc < 0)
        run_fail(r, "kv_close: %s", err_name(rc));
    r->phase = "ended";
}

static void life_work(struct run *r)
{
    r->phase = "working";
    fiber_group_init(&r->group);
    fiber_group_add(&r->group, r->clients);
    for (unsigned i = 0; i < r->clients; i++)
        fiber_spawn(r->env, "client", client_main, r);
    fiber_group_wait(&r->group);
}

/* The last life: all goes, and all space comes back. */
static void life_finish(struct run *r)
{
    struct partition_status s;
    int rc;

    partition_get_status(r->p, &s);
    r->phase = "waiting for drives";
    if (!r->beyond && s.free / 2 > s.stored)
        members_converge(r);
    r->phase = "deleting";
    if (!clients_delete_all(r))
        return;
    r->phase = "settling";
    for (unsigned i = 0; i < 3; i++) {
        rc = partition_settle(r->p);
        if (client_lost(r, rc))
            return;
        if (rc < 0)
            run_fail(r, "settle at the end: %s", err_name(rc));
        env_sleep(r->env, ENV_NS_PER_S);
    }
    verify_empty(r);
    r->phase = "waiting for drives";
    if (!r->beyond)
        members_converge(r);
}

static void life_main(void *arg)
{
    struct run *r = arg;
    struct partition_start start;
    int rc = life_open_kv(r);

    r->phase = "opening";
    if (rc == 0)
        rc = partition_open(r->env, r->kv, r->places, r->place_count, &r->partition, &start, &r->p);
    if (client_lost(r, rc)) {
        run_trace(r, "open: %s", err_name(rc));
        (void)kv_close(r->kv);
        return;
    }
    if (rc < 0)
        run_fail(r, "open: %s", err_name(rc));
    run_trace(r, "open, replayed %llu records", (unsigned long long)start.replay.records);
    members_look(r);
    members_recall(r);
    r->slots_off = partition_drives(r->p)->super.slots_off;
    r->opened = true;
    r->phase = "verifying";
    verify_all(r);
    if (r->beyond && r->options.ret_beyond)
        *r->options.ret_beyond = true;
    if (r->healing) {
        if (!r->beyond)
            heal_work(r);
    } else if (r->last) {
        life_finish(r);
    } else if (r->converge) {
        r->phase = "scrubbing";
        scrub_converge(r);
    } else {
        r->phase = "scrubbing";
        scrub_heal(r);
        life_work(r);
    }
    life_close(r);
}

/* ---- Damage ----
 *
 * A drive is harmed when its superblock or journal may be not what the store made of them: nobody
 * can tell the end of a journal from one that was cut off on all of its mirrors. So of drives that
 * are harmed there are never more than the profile bears, and where there are more lost ones, none
 * is harmed. What is in slots may be spoilt on all drives: its CRCs are in the metadata.
 */

static void noise(struct run *r, const char *path, uint64_t from)
{
    uint64_t size = sim_file_size(r->sim, path), off, len;

    if (size <= from)
        return;
    size -= from;
    if (run_chance(r, 15)) {
        off = 0;
        len = size;
    } else {
        /* Most of what there is lies at the front. */
        off = run_random(r, run_chance(r, 70) && size > (8u << 20) ? 8u << 20 : size);
        len = 1 + run_random(r, run_chance(r, 50) ? 4096 : 1u << 20);
    }
    if (len > size - off)
        len = size - off;
    off += from;
    run_trace(r, "noise on %s at %llu, %llu bytes", path, (unsigned long long)off,
              (unsigned long long)len);
    (void)sim_file_corrupt(r->sim, path, off, (size_t)len);
}

/* The drive lies, or (if `passing`) only returns errors. */
static void lie(struct run *r, const char *path, bool passing)
{
    static const uint32_t rates[] = {0, 0, 3000, 30000, 200000};
    struct sim_faults f = {.read_eio = rates[run_random(r, 5)],
                           .write_eio = rates[run_random(r, 5)] / (passing ? 1 : 4)};

    if (!passing) {
        f.bit_flip = rates[run_random(r, 5)];
        f.lost_write = rates[run_random(r, 5)];
        f.misdirected_write = rates[run_random(r, 5)] / 2;
    }
    run_trace(r, "faults on %s: read_eio %u write_eio %u flip %u lost %u misdirected %u", path,
              f.read_eio, f.write_eio, f.bit_flip, f.lost_write, f.misdirected_write);
    sim_set_file_faults(r->sim, path, &f);
}

/* Which drive it shall be: one more, as long as the profile bears it. */
static unsigned damage_pick(struct run *r)
{
    unsigned d = (unsigned)run_random(r, RUN_DRIVES_MAX);
    bool full = (unsigned)__builtin_popcount(r->damaged) >= r->damage_max;

    while (!((full ? r->damaged : r->member) >> d & 1))
        d = (d + 1) % RUN_DRIVES_MAX;
    return d;
}

static void damage_lies(struct run *r, unsigned d, bool passing)
{
    uint32_t bit = 1u << d;

    hang_over(r, d);
    lie(r, r->paths[d], passing);
    r->faulty |= bit;
    r->faulty_in_life |= bit;
    if (!passing) {
        r->passing &= ~bit;
        r->spoilt |= bit;
    }
}

static void damage_delete(struct run *r, unsigned d)
{
    run_trace(r, "lost %s", r->paths[d]);
    (void)sim_file_delete(r->sim, r->paths[d]);
    r->deleted |= 1u << d;
    r->passing &= ~(1u << d);
}

static void damage_any(struct run *r, unsigned d)
{
    uint32_t bit = 1u << d;

    r->harmed |= bit;
    if (!r->options.lost && hang_damage(r, d)) {
        r->faulty |= bit;
        r->faulty_in_life |= bit;
    } else if (run_chance(r, 15)) {
        damage_delete(r, d);
    } else if (run_chance(r, 30) && stale_restore(r, d)) {
        r->passing &= ~bit;
        r->spoilt |= bit;
    } else if (run_chance(r, 35)) {
        noise(r, r->paths[d], 0);
        r->passing &= ~bit;
        r->spoilt |= bit;
    } else {
        damage_lies(r, d, (r->passing & bit) && run_chance(r, 60));
    }
}

/* Of more drives than the profile bears. */
static void damage_beyond(struct run *r, unsigned d)
{
    if (!r->harms && run_chance(r, 35)) {
        damage_delete(r, d);
    } else if (r->slots_off && run_chance(r, 70)) {
        noise(r, r->paths[d], r->slots_off);
        r->passing &= ~(1u << d);
        r->spoilt |= 1u << d;
    } else {
        damage_lies(r, d, true);
    }
}

/* May the drive be harmed, or not at all? */
static bool may_harm(const struct run *r, unsigned d)
{
    return r->harms && (unsigned)__builtin_popcount(r->harmed | 1u << d) <= r->m;
}

static void damage(struct run *r)
{
    unsigned d;
    uint32_t bit;

    if (!r->faults_on)
        return;
    r->damages++;
    r->damage_life = r->life;
    if (r->env && r->opened && r->p && !sim_process_ended(r->env))
        members_look(r);
    d = damage_pick(r);
    bit = 1u << d;
    if ((r->deleted | r->spared | r->owed) & bit)
        return;
    if (r->faulty & bit && run_chance(r, 50)) {
        run_trace(r, "no more faults on %s", r->paths[d]);
        sim_set_file_faults(r->sim, r->paths[d], NULL);
        hang_over(r, d);
        r->faulty &= ~bit;
        return;
    }
    if (!(r->damaged & bit))
        r->passing |= bit;
    r->damaged |= bit;
    r->ever_damaged |= bit;
    r->beyond |= (unsigned)__builtin_popcount(r->damaged) > r->m;
    if (r->options.lost && !may_harm(r, d))
        damage_beyond(r, d);
    else
        damage_any(r, d);
}

/* A drive that only ever returned errors, and does not any more, is whole once the store has been
 * opened with it, and what was written without it has been given its parity: another one may
 * be damaged in its place. */
static void damage_passes(struct run *r)
{
    uint32_t whole = r->passing & ~r->faulty_in_life;
    struct partition_status status;

    if (!whole || !r->p || sim_process_ended(r->env))
        return;
    partition_get_status(r->p, &status);
    if (status.thin_segments)
        return;
    r->damaged &= ~whole;
    r->passing &= ~whole;
}

static void heal(struct run *r)
{
    for (unsigned d = 0; d < RUN_DRIVES_MAX; d++)
        sim_set_file_faults(r->sim, r->paths[d], NULL);
    r->faulty = 0;
    host_set_full(r, false);
    r->faulty = r->hanging = 0;
}

/* ---- Lives ---- */

static void life_started(struct run *r, const char *name, fiber_fn fn)
{
    r->opened = false;
    r->faulty_in_life = r->faulty;
    r->host_was_full = r->host_full;
    r->p = NULL;
    r->env = sim_process(r->sim, name, fn, r);
}

static void life_over(struct run *r, bool power)
{
    bool ended = sim_process_ended(r->env);

    copy_look(r);
    copy_life_over(r);
    if (ended && sim_process_memory(r->env))
        run_fail(r, "%zu bytes leaked", sim_process_memory(r->env));
    if (!ended) {
        r->kills++;
        run_trace(r, "killed while %s, power %d", r->phase, power);
    }
    sim_kill(r->env, power);
    r->env = NULL;
    model_crash(&r->model);
    for (unsigned i = 0; i < INSTANCES; i++)
        model_instance_crash(&r->instances[i]);
    objects_crash(r->buckets);
}

static void life_hangs(struct run *r)
{
    fiber_list(r->env, print_fiber, NULL);
    run_fail(r, "it hangs");
}

/* Runs the process for a while, with things happening to drives. */
static void life_run(struct run *r, uint64_t ns)
{
    uint64_t end = sim_now(r->sim) + ns;

    while (!sim_process_ended(r->env) && sim_now(r->sim) < end) {
        uint64_t at = end;

        if ((r->faults_on || r->host_fills) && run_chance(r, 70)) {
            at = sim_now(r->sim) + run_random(r, ns < ENV_NS_PER_S ? ns : ENV_NS_PER_S);
            if (at > end)
                at = end;
        }
        if (r->host_fills) /* not for long: who waits for the journal waits until it ends */
            host_set_full(r, at < end && run_chance(r, 40));
        if (sim_run(r->sim, at) && !sim_process_ended(r->env))
            life_hangs(r);
        if (r->opened) {
            copy_look(r);
            damage_passes(r);
            host_check(r);
        }
        if (at < end && !sim_process_ended(r->env) && run_chance(r, 40))
            damage(r);
    }
}

static uint64_t kill_time(struct run *r)
{
    if (r->storm && run_chance(r, 80)) /* opening takes 2 to 4 ms */
        return run_random(r, 10 * ENV_NS_PER_MS);
    if (run_chance(r, 35)) /* while it opens */
        return run_random(r, run_chance(r, 50) ? 4 * ENV_NS_PER_MS : 20 * ENV_NS_PER_MS);
    return run_random(r, run_chance(r, 50) ? 300 * ENV_NS_PER_MS : 2 * ENV_NS_PER_S);
}

static void live(struct run *r, bool to_the_end)
{
    choose_work(r);
    life_started(r, "engine", life_main);
    life_run(r, to_the_end ? LIFE_MAX_NS : kill_time(r) + hang_time(r));
    if (to_the_end && !sim_process_ended(r->env))
        life_hangs(r);
    life_over(r, run_chance(r, 50));
}

/* The KV store is lost, and made anew from the drives. Where they have no copy of it, it turns up
 * again: there would be nothing to go on with. */
static void lose_kv(struct run *r)
{
    struct kv_mem_image *old = r->image;

    r->image = kv_mem_image_new();
    for (bool done = false; !done;) {
        life_started(r, "rebuild", rebuild_main);
        life_run(r, run_chance(r, 20) ? run_random(r, 10 * ENV_NS_PER_MS) : LIFE_MAX_NS);
        done = r->opened;
        life_over(r, run_chance(r, 50));
    }
    r->rebuilds++;
    r->rebuilds_missing += !r->rebuilt;
    kv_mem_image_free(r->rebuilt ? old : r->image);
    if (!r->rebuilt)
        r->image = old;
}

static void make_store(struct run *r)
{
    r->phase = "formatting";
    for (bool done = false; !done; r->life++) {
        life_started(r, "format", format_main);
        life_run(r, r->life == 0 && run_chance(r, 10) ? run_random(r, 10 * ENV_NS_PER_MS)
                                                      : LIFE_MAX_NS);
        done = r->opened;
        life_over(r, true);
    }
}

static void run_init(struct run *r, uint64_t seed, const struct run_options *options)
{
    struct sim_faults faults = {0};

    memset(r, 0, sizeof(*r));
    r->seed = seed;
    r->options = *options;
    r->sim = sim_new(seed);
    r->image = kv_mem_image_new();
    r->phase = "starting";
    model_init(&r->model);
    for (unsigned i = 0; i < INSTANCES; i++)
        model_instance_init(&r->instances[i]);
    objects_init(r->buckets);
    choose_geometry(r);
    faults.io_max_ns = r->slow_io_ns;
    sim_set_faults(r->sim, &faults);
    run_trace(r,
              "seed %llu: %u drives %u+%u, %llu slots, journal %llu, cache %zu, overlay %llu, %s",
              (unsigned long long)seed, r->drives, r->k, r->m, (unsigned long long)r->slot_count,
              (unsigned long long)r->journal_len, r->partition.cache_bytes,
              (unsigned long long)r->partition.overlay_bytes,
              r->faults_on ? "with damage" : "drives stay whole");
}

static void run_free(struct run *r)
{
    sim_free(r->sim);
    kv_mem_image_free(r->image);
    for (unsigned i = 0; i < INSTANCES; i++)
        model_instance_free(&r->instances[i]);
    objects_free(r->buckets);
    model_free(&r->model);
    mem_free(r);
}

uint64_t run_seed(uint64_t seed, const struct run_options *options)
{
    struct run *r = mem_alloc(sizeof(*r));
    uint64_t digest;
    bool faults_on, host_fills;

    run_init(r, seed, options);
    faults_on = r->faults_on;
    host_fills = r->host_fills;
    r->faults_on = r->host_fills = false; /* a store is made on sound drives */
    make_store(r);
    r->faults_on = faults_on;
    r->host_fills = host_fills;
    for (uint64_t lives = r->storm ? 4 + run_random(r, 12) : 1 + run_random(r, 6); lives > 0;
         lives--, r->life++) {
        if (r->faults_on)
            stale_keep(r);
        live(r, run_chance(r, r->storm ? 5 : 35));
        if (run_chance(r, r->storm ? 20 : 50))
            for (uint64_t n = r->options.lost ? 1 + run_random(r, 4) : 1; n > 0; n--)
                damage(r);
        if (run_chance(r, 35) && !r->beyond)
            lose_kv(r);
    }
    heal(r);
    r->faults_on = r->host_fills = false;
    r->healing = true;
    r->partition.rebuild_delay_ns = 1;
    live(r, true);
    r->life++;
    r->healing = false;
    r->converge = true;
    live(r, true);
    r->life++;
    r->converge = false;
    r->last = true;
    live(r, true);
    digest = sim_digest(r->sim);
    run_trace(
        r,
        "ended well: %llu operations, %llu without space, %llu kills, %llu bytes moved out of "
        "%llu segments, %llu rebuilds, %llu without a copy, %llu times too many drives lost",
        (unsigned long long)r->ops, (unsigned long long)r->nospc, (unsigned long long)r->kills,
        (unsigned long long)r->moved, (unsigned long long)r->compacted,
        (unsigned long long)r->rebuilds, (unsigned long long)r->rebuilds_missing,
        (unsigned long long)r->errors);
    run_free(r);
    return digest;
}
