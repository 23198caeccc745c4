/* A partition of the node and its loop; see node_part.h.
 *
 * DIR/formatting is there only while the store is being made, and has the UUID that it is to have:
 * "store UUID". After a crash a start goes on with that. Names of devices may have changed since,
 * so every drive is looked at anew, and taken only if it is blank or its superblock has that UUID
 * (F10). Without a UUID that can be read there the file says nothing.
 */
#include "daemon/node_part.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/env_uring.h"
#include "lib/store/blank.h"

/* Added to the capacity so that users get all of it, and can go on to write over it when it is all
 * taken: what internal writes keep for themselves, with a segment for each stream beside it; and a
 * part of all for the metadata's copy (blocks of 4 KiB that do not compress: 1%, and room for four
 * times that) and for the dead bytes that compaction lives on. The less of these there are the more
 * it has to move for each byte it gains. */
#define PART_SPARE      (80u << 20)
#define PART_SPARE_PART 8u

/* Drives have no more slots than this, as far as large ones help: the table of segments is in
 * memory and read at every start, so it must not grow with the drives. */
#define PART_SLOTS_GOOD (128u << 10)
#define PART_SLOT_MAX   (256u << 20)

#define PART_BEGUN "store " /* of DIR/formatting, in front of the UUID */

/* ---- Making and opening it ---- */

/* Bytes of the smallest drive that exists already (a block device); 0 when all are to be made. */
static uint64_t part_smallest_drive(struct node_part *n)
{
    uint64_t least = UINT64_MAX;

    for (unsigned i = 0; i < n->place.count; i++) {
        struct env_file *f;
        uint64_t size;

        if (env_open(n->env, n->place.drives[i], ENV_OPEN_RDONLY, &f) < 0)
            continue;
        if (env_file_size(f, &size) == 0 && size > 0 && size < least)
            least = size;
        env_close(f);
    }
    return least == UINT64_MAX ? 0 : least;
}

/* Slots for each of so many drives, of p->slot_size, that hold the capacity. */
static uint64_t part_slots(const struct driveset_params *p, uint64_t capacity)
{
    uint64_t segment = p->k * (p->slot_size - FORMAT_UNIT), segments;

    capacity += capacity / PART_SPARE_PART + PART_SPARE;
    segments = (capacity + segment - 1) / segment + SEGMENT_STREAMS;
    return (segments * (p->k + p->m) + p->count - 1) / p->count;
}

static int part_plan(struct node_part *n, struct driveset_params *p)
{
    const struct config *c = n->config;
    uint64_t least = part_smallest_drive(n), head;

    *p = (struct driveset_params){.count = c->store.drives,
                                  .paths = (const char *const *)n->place.drives,
                                  .slot_size = FORMAT_SLOT_SIZE,
                                  .journal_len =
                                      c->store.journal_size & ~(uint64_t)(FORMAT_UNIT - 1)};
    driveset_profile(p->count, &p->k, &p->m);
    if (c->store.data_columns) {
        p->k = c->store.data_columns;
        p->m = c->store.parity_columns;
    }
    while (part_slots(p, c->store.capacity) > PART_SLOTS_GOOD && p->slot_size < PART_SLOT_MAX)
        p->slot_size *= 2;
    p->slot_count = part_slots(p, c->store.capacity);
    if (!least)
        return 0;
    head = FORMAT_JOURNAL_OFF + p->journal_len;
    if (least < head + 8 * p->slot_size)
        return ERR_NOSPC;
    if ((least - head) / p->slot_size < p->slot_count)
        p->slot_count = (least - head) / p->slot_size;
    return 0;
}

/* Nothing that anybody may want is overwritten. `ours`: as for blank_look. Suspends. */
static int part_look(struct node_part *n, const struct driveset_params *p, const uint8_t *ours)
{
    for (unsigned i = 0; i < p->count; i++) {
        const char *what = NULL;
        int rc = blank_look(n->env, p->paths[i], ours, &what);

        if (rc == ERR_EXIST)
            what = "a drive of a store that was made before";
        if (rc < 0) {
            log_error("node", "a drive cannot be taken into a new store path=%s holds=%s error=%s",
                      log_q(p->paths[i]), log_q(what ? what : ""), err_name(rc));
            return rc;
        }
    }
    return 0;
}

/* The UUID in the file of an unfinished store; false when there is none that can be read. */
static bool part_begun(struct node_part *n, uint8_t uuid[16])
{
    static const char digits[] = "0123456789abcdef";
    MEM_AUTO char *text = place_text(n->env, n->config, "formatting");
    const char *hex;

    if (!text || strncmp(text, PART_BEGUN, strlen(PART_BEGUN)) != 0)
        return false;
    hex = text + strlen(PART_BEGUN);
    if (strspn(hex, digits) != 32 || strcmp(hex + 32, "\n") != 0)
        return false;
    for (unsigned i = 0; i < 16; i++)
        uuid[i] = (uint8_t)((strchr(digits, hex[2 * i]) - digits) << 4 |
                            (strchr(digits, hex[2 * i + 1]) - digits));
    return true;
}

/* Chooses the UUID and has it on media before any drive has it. Suspends. */
static int part_begin(struct node_part *n, const char *marker, uint8_t uuid[16])
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;

    env_random(n->env, uuid, 16);
    strbuf_adds(&text, PART_BEGUN);
    for (unsigned i = 0; i < 16; i++)
        strbuf_addf(&text, "%02x", uuid[i]);
    strbuf_adds(&text, "\n");
    return place_save_text(n->env, marker, &text);
}

/* Makes the store, or goes on with that. */
static int part_format(struct node_part *n)
{
    MEM_AUTO char *marker = place_path(n->config, "formatting");
    uint8_t uuid[16];
    bool begun = part_begun(n, uuid);
    struct driveset_params params;
    int rc = part_plan(n, &params);

    params.uuid = uuid;
    if (rc == 0)
        rc = part_look(n, &params, begun ? uuid : NULL);
    if (rc == 0 && !begun)
        rc = part_begin(n, marker, uuid);
    if (rc == 0)
        rc = partition_format(n->env, n->kv, &params);
    if (rc == 0)
        rc = env_unlink(n->env, marker);
    if (rc == 0)
        log_info("node", "made a new store drives=%u profile=%u+%u dir=%s", params.count, params.k,
                 params.m, log_q(n->config->store.data));
    return rc;
}

/* A crash may have left the file behind a store that was made. Were the metadata lost before any
 * start has used the drives, they would be taken for an unfinished store's. */
static int part_unmark(struct node_part *n)
{
    MEM_AUTO char *marker = place_path(n->config, "formatting");
    int rc = env_unlink(n->env, marker);

    if (rc == 0 || rc == ERR_NOENT)
        return 0;
    log_error("node",
              "a file is left from making the store, and might let a later start overwrite its "
              "drives: remove it path=%s error=%s",
              log_q(marker), err_name(rc));
    return rc;
}

/* A drive has left, or was found elsewhere. */
static void part_drives_changed(void *arg)
{
    struct node_part *n = arg;

    if (n->partition && node_part_save_paths(n) < 0) /* else it is about to be open */
        log_warn("node", "cannot write the list of drives' paths dir=%s",
                 log_q(n->config->store.data));
}

struct part_opening {
    struct node_part *n;
    const struct partition_options *options;
    struct partition_start start;
};

static int part_open_try(void *arg)
{
    struct part_opening *o = arg;
    struct node_part *n = o->n;

    return partition_open(n->env, n->kv, (const char *const *)n->place.drives, n->place.count,
                          o->options, &o->start, &n->partition);
}

static int part_open_partition(struct node_part *n)
{
    struct partition_options options = {
        .drives_changed = part_drives_changed,
        .drives_arg = n,
        .cache_bytes = n->config->store.cache_size / 2,
        .rebuild_delay_ns = n->config->store.rebuild_after * ENV_NS_PER_S,
        .scrub_rate = n->config->store.scrub_rate,
        .scrub_every_ns = n->config->store.scrub_every * 86400 * ENV_NS_PER_S,
        .on_conflict =
            n->config->on_conflict == CONFIG_REPLACE ? PARTITION_REPLACE : PARTITION_REFUSE};
    struct part_opening o = {.n = n, .options = &options};
    const struct partition_start *start = &o.start;
    int rc;

    place_load_paths(n->env, n->config, &n->place);
    rc = place_await_lock(n->env, part_open_try, &o);
    if (rc == 0)
        part_drives_changed(n);
    if (rc == 0)
        log_info("node",
                 "store open ms=%llu replayed_records=%llu replayed_bytes=%llu replay_ms=%llu",
                 (unsigned long long)(start->total_ns / ENV_NS_PER_MS),
                 (unsigned long long)start->replay.records, (unsigned long long)start->replay.bytes,
                 (unsigned long long)(start->replay.ns / ENV_NS_PER_MS));
    return rc;
}

/* place_open_kv would make it as well, but what fails then may be something else. */
static int part_make_data(struct node_part *n)
{
    const char *dir = n->config->store.data;
    int rc = env_mkdir(n->env, dir);

    if (rc < 0)
        log_error("node", "cannot make the data directory: %s error=%s dir=%s",
                  rc == ERR_EXIST   ? "what is there is not a directory: give another one"
                  : rc == ERR_NOENT ? "the directory it is to lie in is not there: make that first"
                                    : err_text(rc),
                  err_name(rc), log_q(dir));
    return rc;
}

static int part_open_store(struct node_part *n)
{
    bool exists = false;
    int rc = place_open_kv(n->env, n->config, &n->place, PLACE_MAKE, &n->kv);

    if (rc == 0)
        rc = partition_exists(n->kv, &exists);
    if (rc == 0)
        rc = exists ? part_unmark(n) : part_format(n);
    if (rc == 0)
        rc = part_open_partition(n);
    if (rc < 0) {
        MEM_AUTO char *advice = place_advice(&n->place, rc);

        log_error("node", "cannot open the store: %s error=%s dir=%s", advice, err_name(rc),
                  log_q(n->config->store.data));
    }
    return rc;
}

static void part_open(void *arg)
{
    struct node_part *p = arg;

    p->rc = part_make_data(p);
    if (p->rc == 0)
        p->rc = part_open_store(p);
}

static void part_close(void *arg)
{
    struct node_part *p = arg;
    int closed;

    p->rc = partition_close(p->partition);
    if (p->rc < 0)
        log_error("node",
                  "the store was not closed cleanly, the next start will replay error=%s dir=%s",
                  err_name(p->rc), log_q(p->config->store.data));
    closed = kv_close(p->kv);
    if (p->rc == 0)
        p->rc = closed;
}

/* ---- Its loop ---- */

static void part_main(void *arg)
{
    struct node_part *p = arg;

    while (!p->stopping)
        fiber_cond_wait(&p->stop);
}

static void part_stop_main(void *arg)
{
    struct node_part *p = arg;

    p->stopping = true;
    fiber_cond_signal(&p->stop);
}

static void part_loop_over(void *arg)
{
    struct node_part *p = arg;

    p->over = true;
    fiber_cond_signal(&p->ended);
}

static void part_thread(void *arg)
{
    struct node_part *p = arg;

    env_run(p->env, part_main, p);
    CHECK_OK(env_post(p->first, "partition-over", part_loop_over, p)); /* somebody waits for it */
}

/* The folder that partitions lie in; what is wrong with it, opening the store in it will tell. */
static void part_make_folder(struct env *env, const struct config *config)
{
    MEM_AUTO char *path = place_path(config, "partitions");

    (void)env_mkdir(env, path);
}

static int part_start_loop(struct node_part *p)
{
    const struct env_uring_options options = {.keep_signals = true};
    int rc = env_uring_new(&options, &p->env);

    if (rc < 0) {
        p->env = NULL;
        return rc;
    }
    fiber_cond_init(&p->stop);
    fiber_cond_init(&p->ended);
    rc = env_thread(p->first, "partition", part_thread, p);
    if (rc < 0) {
        env_free(p->env);
        p->env = NULL;
    }
    return rc;
}

static void part_stop_loop(struct node_part *p)
{
    CHECK_OK(env_remote(p->first, p->env, "stop", part_stop_main, p));
    while (!p->over)
        fiber_cond_wait(&p->ended);
    env_free(p->env);
}

/* ---- Life ---- */

int node_part_start(struct env *first, const struct config *config, unsigned index,
                    struct node_part *p)
{
    int rc = 0;

    memset(p, 0, sizeof(*p));
    p->name = index ? config->partitions[index - 1].name : "";
    p->first = first;
    config_for_partition(config, index, &p->settings);
    p->config = &p->settings;
    fiber_mutex_init(&p->paths_lock);
    fiber_mutex_init(&p->orders_lock);
    place_init(&p->place, p->config);
    if (index == 0) {
        p->env = first;
    } else {
        part_make_folder(first, config);
        rc = part_start_loop(p);
    }
    if (rc < 0)
        log_error("node", "cannot start a partition's loop error=%s name=%s", err_name(rc),
                  log_q(p->name));
    else
        rc = node_part_call(p, part_open, p);
    return rc < 0 ? rc : p->rc;
}

static void part_end_soon(void *arg)
{
    struct node_part *p = arg;

    if (p->partition)
        partition_end_soon(p->partition);
    if (p->kv)
        kv_front_end_soon(p->kv); /* whom the doors wait for may wait for space */
}

void node_part_end_soon(struct node_part *p)
{
    if (p->env) /* else it never had a loop */
        (void)node_part_call(p, part_end_soon, p);
}

int node_part_stop(struct node_part *p)
{
    int rc = 0;

    if (!p->first)
        return 0;
    if (p->env)
        rc = node_part_call(p, part_close, p);
    if (rc == 0)
        rc = p->rc;
    if (p->env && p->env != p->first)
        part_stop_loop(p);
    place_free(&p->place);
    return rc;
}

int node_part_save_paths(struct node_part *p)
{
    int rc;

    fiber_mutex_lock(&p->paths_lock);
    rc = place_save_paths(p->env, p->config, partition_drives(p->partition), p->adding);
    fiber_mutex_unlock(&p->paths_lock);
    return rc;
}

int node_part_call(struct node_part *p, fiber_fn fn, void *arg)
{
    return env_remote(p->first, p->env, "node", fn, arg);
}
