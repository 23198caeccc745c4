/* The models of volumes and instances; see model.h. */
#include "tests/sim/model.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/mem.h"
#include "lib/rt/env_sim.h"

#define MODEL_INSTANCE_CONTENTS 63 /* bits of `ghosts` */
/* In `ghosts`: reads settle nothing. */
#define INSTANCE_CHANGED (1ull << MODEL_INSTANCE_CONTENTS)

struct model_write {
    struct list link;
    struct model_volume *volume;
    uint64_t off, len, origin;
    uint8_t slots[]; /* per block: its place among the operations in flight */
};

/* ---- Values ---- */

static struct model_value *value_ref(struct model_value *v)
{
    v->refs++;
    return v;
}

static void value_unref(struct model *m, struct model_value *v)
{
    if (--v->refs)
        return;
    hmap_remove(&m->values, &v->node);
    mem_free(v);
}

/* The value with these bytes, with one reference for the caller. */
static struct model_value *value_of(struct model *m, const uint8_t *bytes, uint64_t origin)
{
    uint64_t hash = hmap_mix(crc32c(0, bytes, BLOCK_SIZE));
    struct model_value *v;

    for (struct hmap_node *n = hmap_first(&m->values, hash); n; n = hmap_next(n)) {
        v = HMAP_ENTRY(n, struct model_value, node);
        if (memcmp(v->bytes, bytes, BLOCK_SIZE) == 0)
            return value_ref(v);
    }
    v = mem_alloc(sizeof(*v));
    v->refs = 1;
    v->origin = origin;
    memcpy(v->bytes, bytes, BLOCK_SIZE);
    hmap_insert(&m->values, &v->node, hash);
    return v;
}

/* ---- Blocks ---- */

static bool block_has(const struct model_block *b, const struct model_value *v, uint8_t mask)
{
    for (uint32_t i = 0; i < b->count; i++)
        if (b->states[i].value == v && b->states[i].mask == mask)
            return true;
    return false;
}

/* Takes the caller's reference. */
static void block_add(struct model *m, struct model_block *b, struct model_value *v, uint8_t mask)
{
    if (block_has(b, v, mask)) {
        value_unref(m, v);
        return;
    }
    if (b->count == b->room) {
        b->room = b->room ? 2 * b->room : 2;
        b->states = mem_realloc(b->states, b->room * sizeof(b->states[0]));
    }
    b->states[b->count++] = (struct model_state){v, mask};
}

static void block_haunt(struct model_block *b, struct model_value *v)
{
    b->ghosts = mem_realloc(b->ghosts, (b->ghost_count + 1) * sizeof(b->ghosts[0]));
    b->ghosts[b->ghost_count++] = value_ref(v);
}

static void block_lay_ghosts(struct model *m, struct model_block *b)
{
    for (uint32_t i = 0; i < b->ghost_count; i++)
        value_unref(m, b->ghosts[i]);
    mem_free(b->ghosts);
    b->ghosts = NULL;
    b->ghost_count = 0;
}

static struct model_block *block_get(struct model *m, struct model_volume *v, uint64_t i)
{
    CHECK(i < MODEL_BLOCKS);
    if (!v->blocks[i]) {
        v->blocks[i] = mem_zalloc(sizeof(struct model_block));
        block_add(m, v->blocks[i], value_ref(m->zero), 0);
    }
    return v->blocks[i];
}

static void block_free(struct model *m, struct model_block *b)
{
    if (!b)
        return;
    for (uint32_t i = 0; i < b->count; i++)
        value_unref(m, b->states[i].value);
    block_lay_ghosts(m, b);
    mem_free(b->states);
    mem_free(b);
}

/* Leaves the states whose masks have all of `need` and none of `ban`, with `clear` taken out. */
static void block_filter(struct model *m, struct model_block *b, uint8_t need, uint8_t ban,
                         uint8_t clear)
{
    struct model_state *old = b->states;
    uint32_t n = b->count;

    b->states = NULL;
    b->count = b->room = 0;
    for (uint32_t i = 0; i < n; i++) {
        if ((old[i].mask & need) == need && !(old[i].mask & ban))
            block_add(m, b, value_ref(old[i].value), old[i].mask & (uint8_t)~clear);
        else if (b->readers)
            block_haunt(b, old[i].value);
    }
    for (uint32_t i = 0; i < n; i++)
        value_unref(m, old[i].value);
    mem_free(old);
    CHECK(b->count > 0);
}

/* ---- Writes ---- */

/* The part of block `i` that [off, off+len) covers. */
static void part_of(uint64_t off, uint64_t len, uint64_t i, uint32_t *ret_from, uint32_t *ret_to)
{
    uint64_t start = i * BLOCK_SIZE, end = start + BLOCK_SIZE;

    *ret_from = (uint32_t)(off > start ? off - start : 0);
    *ret_to = (uint32_t)((off + len < end ? off + len : end) - start);
}

/* What the operation makes of a value, with a reference. */
static struct model_value *op_apply(struct model *m, const struct model_op *op,
                                    const struct model_value *v)
{
    uint8_t merged[BLOCK_SIZE];

    if (op->from == 0 && op->to == BLOCK_SIZE)
        return value_ref(op->bytes);
    memcpy(merged, v->bytes, BLOCK_SIZE);
    memcpy(merged + op->from, op->bytes->bytes + op->from, op->to - op->from);
    return value_of(m, merged, op->bytes->origin);
}

/* Adds every state that operations in flight can still lead to. */
static void block_unfold(struct model *m, struct model_block *b)
{
    for (uint32_t s = 0; s < b->count; s++)
        for (unsigned slot = 0; slot < MODEL_OPS; slot++) {
            uint8_t bit = (uint8_t)(1u << slot);

            if ((b->busy & bit) && !(b->states[s].mask & bit))
                block_add(m, b, op_apply(m, &b->ops[slot], b->states[s].value),
                          b->states[s].mask | bit);
        }
}

static uint8_t block_begin(struct model *m, struct model_write *w, uint64_t i, const uint8_t *bytes)
{
    struct model_block *b = block_get(m, w->volume, i);
    uint8_t data[BLOCK_SIZE] = {0}, slot = 0;
    struct model_op op = {0};

    while (b->busy >> slot & 1)
        slot++;
    CHECK(slot < MODEL_OPS);
    part_of(w->off, w->len, i, &op.from, &op.to);
    if (bytes)
        memcpy(data + op.from, bytes + (i * BLOCK_SIZE + op.from - w->off), op.to - op.from);
    op.bytes = value_of(m, data, w->origin);
    b->ops[slot] = op;
    b->busy |= (uint8_t)(1u << slot);
    block_unfold(m, b);
    return slot;
}

static void block_end(struct model *m, struct model_block *b, uint8_t slot,
                      enum model_outcome outcome)
{
    uint8_t bit = (uint8_t)(1u << slot);

    b->busy &= (uint8_t)~bit;
    value_unref(m, b->ops[slot].bytes);
    /* Whether it happened was not settled before now: a read under way settles nothing. */
    if (outcome == MODEL_MAYBE && b->readers)
        for (uint32_t i = 0; i < b->count; i++)
            block_haunt(b, b->states[i].value);
    if (outcome == MODEL_NOT)
        block_filter(m, b, 0, bit, bit);
    else
        block_filter(m, b, outcome == MODEL_DONE ? bit : 0, 0, bit);
}

struct model_write *model_write_begin(struct model *m, struct model_volume *v, uint64_t off,
                                      uint64_t len, const uint8_t *bytes)
{
    uint64_t first = off / BLOCK_SIZE, last = (off + len - 1) / BLOCK_SIZE;
    struct model_write *w;
    void *saved;

    for (uint64_t i = first; i <= last; i++)
        if (v->blocks[i] && v->blocks[i]->busy == (1u << MODEL_OPS) - 1)
            return NULL;
    sim_outside_enter(&saved);
    w = mem_zalloc(sizeof(*w) + (size_t)(last - first + 1));
    w->volume = v;
    w->off = off;
    w->len = len;
    w->origin = ++m->next_origin;
    for (uint64_t i = first; i <= last; i++)
        w->slots[i - first] = block_begin(m, w, i, bytes);
    list_push_back(&m->writes, &w->link);
    sim_outside_leave(saved);
    return w;
}

void model_write_end(struct model *m, struct model_write *w, enum model_outcome outcome)
{
    uint64_t first = w->off / BLOCK_SIZE, last = (w->off + w->len - 1) / BLOCK_SIZE;
    void *saved;

    sim_outside_enter(&saved);
    for (uint64_t i = first; i <= last; i++)
        block_end(m, w->volume->blocks[i], w->slots[i - first], outcome);
    list_del(&w->link);
    mem_free(w);
    sim_outside_leave(saved);
}

uint64_t model_write_origin(const struct model_write *w)
{
    return w->origin;
}

/* ---- Reads ---- */

void model_read_begin(struct model *m, struct model_volume *v, uint64_t off, uint64_t len)
{
    void *saved;

    sim_outside_enter(&saved);
    for (uint64_t i = off / BLOCK_SIZE; i * BLOCK_SIZE < off + len; i++)
        block_get(m, v, i)->readers++;
    sim_outside_leave(saved);
}

static void block_unread(struct model *m, struct model_block *b)
{
    CHECK(b->readers > 0);
    if (--b->readers == 0)
        block_lay_ghosts(m, b);
}

void model_read_drop(struct model *m, struct model_volume *v, uint64_t off, uint64_t len)
{
    for (uint64_t i = off / BLOCK_SIZE; i * BLOCK_SIZE < off + len; i++)
        block_unread(m, v->blocks[i]);
}

static bool part_fits(const struct model_value *v, uint32_t from, uint32_t to, const uint8_t *p)
{
    return memcmp(v->bytes + from, p, to - from) == 0;
}

/* Nothing is in flight: only what was seen remains. */
static void block_narrow(struct model *m, struct model_block *b, uint32_t from, uint32_t to,
                         const uint8_t *p)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < b->count; i++) {
        if (part_fits(b->states[i].value, from, to, p))
            b->states[kept++] = b->states[i];
        else
            value_unref(m, b->states[i].value);
    }
    b->count = kept;
    CHECK(kept > 0);
}

static bool block_check(struct model *m, struct model_block *b, uint32_t from, uint32_t to,
                        const uint8_t *p)
{
    bool fits = false;

    for (uint32_t i = 0; i < b->count && !fits; i++)
        fits = part_fits(b->states[i].value, from, to, p);
    if (fits && !b->busy && b->ghost_count == 0)
        block_narrow(m, b, from, to, p);
    for (uint32_t i = 0; i < b->ghost_count && !fits; i++)
        fits = part_fits(b->ghosts[i], from, to, p);
    return fits;
}

/* What it was expected to be, and whose bytes these are. */
static void block_explain(const struct model *m, const struct model_block *b, uint32_t from,
                          uint32_t to, const uint8_t *p, char *why, size_t room)
{
    size_t n = 0;
    const char *sep = "expected the bytes of operation";

    for (uint32_t i = 0; i < b->count && n < room; i++, sep = ",")
        n += (size_t)snprintf(why + n, room - n, "%s %llu%s", sep,
                              (unsigned long long)b->states[i].value->origin,
                              b->states[i].mask ? " (in flight)" : "");
    sep = "; found those of";
    for (struct hmap_node *it = hmap_walk(&m->values, NULL); it && n < room;
         it = hmap_walk(&m->values, it)) {
        const struct model_value *v = HMAP_ENTRY(it, struct model_value, node);

        if (part_fits(v, from, to, p)) {
            n += (size_t)snprintf(why + n, room - n, "%s %llu", sep, (unsigned long long)v->origin);
            sep = ",";
        }
    }
    if (*sep == ';' && n < room)
        (void)snprintf(why + n, room - n, "; found unknown bytes %02x%02x%02x%02x%02x%02x%02x%02x",
                       p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]);
}

bool model_read_end(struct model *m, struct model_volume *v, uint64_t off, uint64_t len,
                    const uint8_t *bytes, uint64_t *ret_at, char *why, size_t room)
{
    for (uint64_t i = off / BLOCK_SIZE; i * BLOCK_SIZE < off + len; i++) {
        struct model_block *b = v->blocks[i];
        uint32_t from, to;
        const uint8_t *p;

        part_of(off, len, i, &from, &to);
        p = bytes + (i * BLOCK_SIZE + from - off);
        if (!block_check(m, b, from, to, p)) {
            *ret_at = i * BLOCK_SIZE + from;
            block_explain(m, b, from, to, p, why, room);
            return false;
        }
        block_unread(m, b);
    }
    return true;
}

bool model_block_surely(const struct model *m, const struct model_volume *v, uint64_t block,
                        bool zero)
{
    const struct model_block *b = v->blocks[block];

    if (!b)
        return zero;
    for (uint32_t i = 0; i < b->count; i++)
        if ((b->states[i].value == m->zero) != zero)
            return false;
    for (uint32_t i = 0; i < b->ghost_count; i++)
        if ((b->ghosts[i] == m->zero) != zero)
            return false;
    return true;
}

static uint64_t blocks_of(const struct model *m, const struct model_volume *v)
{
    uint64_t n = 0;

    for (uint64_t i = 0; v->exists != MODEL_ABSENT && i < MODEL_BLOCKS; i++)
        n += v->blocks[i] && !model_block_surely(m, v, i, true);
    return n;
}

uint64_t model_volume_blocks(const struct model *m)
{
    const struct model_volume *snaps = &m->snaps[0][0];
    uint64_t n = 0;

    for (unsigned i = 0; i < MODEL_VOLUMES; i++)
        n += blocks_of(m, &m->volumes[i]);
    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++)
        n += blocks_of(m, &snaps[i]);
    return n;
}

void model_volume_cut(struct model *m, struct model_volume *v, uint64_t size)
{
    for (uint64_t i = size / BLOCK_SIZE; i < MODEL_BLOCKS; i++) {
        if (!v->blocks[i])
            continue;
        CHECK(!v->blocks[i]->busy && !v->blocks[i]->readers);
        block_free(m, v->blocks[i]);
        v->blocks[i] = NULL;
    }
}

/* ---- Snapshots ---- */

static void block_add_all(struct model *m, struct model_block *to, const struct model_block *from)
{
    if (!from)
        block_add(m, to, value_ref(m->zero), 0);
    for (uint32_t i = 0; from && i < from->count; i++)
        block_add(m, to, value_ref(from->states[i].value), 0);
    for (uint32_t i = 0; from && i < from->ghost_count; i++)
        block_add(m, to, value_ref(from->ghosts[i]), 0);
}

void model_volume_copy(struct model *m, struct model_volume *to, const struct model_volume *from,
                       bool surely)
{
    void *saved;

    sim_outside_enter(&saved);
    if (surely)
        model_volume_cut(m, to, 0);
    for (uint64_t i = 0; i < MODEL_BLOCKS; i++) {
        if (!from->blocks[i] && !to->blocks[i])
            continue;
        if (surely)
            to->blocks[i] = mem_zalloc(sizeof(struct model_block));
        block_add_all(m, block_get(m, to, i), from->blocks[i]);
    }
    sim_outside_leave(saved);
}

void model_snapshot_begin(struct model *m, struct model_volume *snap)
{
    snap->size = snap->other_size = snap->of->size;
    snap->taking = true;
    model_read_begin(m, snap->of, 0, snap->size);
}

void model_snapshot_end(struct model *m, struct model_volume *snap)
{
    model_volume_copy(m, snap, snap->of, true);
    model_volume_cut(m, snap, snap->size);
    model_read_drop(m, snap->of, 0, snap->size);
    snap->taking = false;
}

/* ---- Life ---- */

void model_init(struct model *m)
{
    static const uint8_t zeroes[BLOCK_SIZE];

    memset(m, 0, sizeof(*m));
    hmap_init(&m->values);
    list_init(&m->writes);
    m->zero = value_of(m, zeroes, 0);
    for (unsigned i = 0; i < MODEL_VOLUMES; i++)
        (void)snprintf(m->volumes[i].name, sizeof(m->volumes[i].name), "volume-%u", i);
    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++) {
        struct model_volume *s = &m->snaps[i / MODEL_SNAPS][i % MODEL_SNAPS];

        s->of = &m->volumes[i / MODEL_SNAPS];
        (void)snprintf(s->name, sizeof(s->name), "volume-%u@s%u", i / MODEL_SNAPS, i % MODEL_SNAPS);
    }
}

static void crash_volume(struct model *m, struct model_volume *v)
{
    v->admin = false;
    v->users = 0;
    for (uint64_t b = 0; b < MODEL_BLOCKS; b++)
        if (v->blocks[b]) {
            v->blocks[b]->readers = 0;
            block_lay_ghosts(m, v->blocks[b]);
        }
}

void model_crash(struct model *m)
{
    struct model_volume *snaps = &m->snaps[0][0];

    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++)
        if (snaps[i].taking)
            model_snapshot_end(m, &snaps[i]); /* if it came to be, it is one of these */
    while (!list_empty(&m->writes))
        model_write_end(m, LIST_ENTRY(m->writes.next, struct model_write, link), MODEL_MAYBE);
    for (unsigned i = 0; i < MODEL_VOLUMES; i++)
        crash_volume(m, &m->volumes[i]);
    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++)
        crash_volume(m, &snaps[i]);
}

void model_free(struct model *m)
{
    model_crash(m);
    for (unsigned i = 0; i < MODEL_VOLUMES; i++)
        model_volume_cut(m, &m->volumes[i], 0);
    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++)
        model_volume_cut(m, &m->snaps[i / MODEL_SNAPS][i % MODEL_SNAPS], 0);
    value_unref(m, m->zero);
    CHECK(m->values.count == 0);
    hmap_free(&m->values);
}

/* ---- Instances ---- */

static bool instance_has(const struct model_instance *in, const struct model_istate *s)
{
    for (uint32_t i = 0; i < in->count; i++)
        if (in->states[i].value == s->value && in->states[i].mask == s->mask &&
            memcmp(in->states[i].results, s->results, sizeof(s->results)) == 0)
            return true;
    return false;
}

static void instance_add(struct model_instance *in, const struct model_istate *s)
{
    if (instance_has(in, s))
        return;
    if (in->count == in->room) {
        void *saved;

        sim_outside_enter(&saved);
        in->room = in->room ? 2 * in->room : 4;
        in->states = mem_realloc(in->states, in->room * sizeof(in->states[0]));
        sim_outside_leave(saved);
    }
    in->states[in->count++] = *s;
}

void model_instance_init(struct model_instance *in)
{
    memset(in, 0, sizeof(*in));
    instance_add(in, &(struct model_istate){.value = MODEL_INSTANCE_ABSENT});
}

void model_instance_free(struct model_instance *in)
{
    mem_free(in->states);
}

/* What an operation makes of a content, and what it then answers. */
static int instance_apply(int before, int op, const struct model_contents *c, uint8_t *ret_result)
{
    if (op == MODEL_INSTANCE_ABSENT) {
        *ret_result = before == MODEL_INSTANCE_ABSENT ? MODEL_DELETED_NOTHING : MODEL_DELETED;
        return MODEL_INSTANCE_ABSENT;
    }
    if (before == MODEL_INSTANCE_ABSENT) {
        *ret_result = MODEL_PUT_STORED;
        return op;
    }
    if (c->same(before, op)) {
        *ret_result = MODEL_PUT_SAME;
        return before;
    }
    *ret_result = c->replace ? MODEL_PUT_REPLACED : MODEL_PUT_REFUSED;
    return c->replace ? op : before;
}

static void instance_unfold(struct model_instance *in)
{
    for (uint32_t i = 0; i < in->count; i++)
        for (unsigned slot = 0; slot < MODEL_OPS; slot++) {
            struct model_istate s = in->states[i];

            /* A delete goes on until it finds nothing: it may strike again. */
            if (!(in->busy >> slot & 1) ||
                ((s.mask >> slot & 1) &&
                 (in->ops[slot] != MODEL_INSTANCE_ABSENT || s.value == MODEL_INSTANCE_ABSENT)))
                continue;
            s.mask |= (uint8_t)(1u << slot);
            if (in->wants[slot] && s.value != in->wants[slot])
                s.results[slot] = MODEL_PUT_REFUSED;
            else
                s.value = instance_apply(s.value, in->ops[slot], &in->contents, &s.results[slot]);
            instance_add(in, &s);
            in->ghosts |= 1ull << s.value;
        }
}

int model_instance_begin(struct model_instance *in, int value, const struct model_contents *c)
{
    return model_instance_begin_if(in, value, c, 0);
}

int model_instance_begin_if(struct model_instance *in, int value, const struct model_contents *c,
                            int wants)
{
    int slot = 0;

    CHECK(value < MODEL_INSTANCE_CONTENTS);
    while (slot < (int)MODEL_OPS && (in->busy >> slot & 1))
        slot++;
    if (slot == (int)MODEL_OPS)
        return -1;
    in->contents = *c;
    in->ops[slot] = value;
    in->wants[slot] = wants;
    in->busy |= (uint8_t)(1u << slot);
    in->ghosts |= INSTANCE_CHANGED;
    instance_unfold(in);
    return slot;
}

static bool istate_stays(const struct model_istate *s, int slot, enum model_put_result result,
                         enum model_outcome outcome)
{
    bool applied = s->mask >> slot & 1;

    if (outcome == MODEL_MAYBE)
        return true;
    if (outcome == MODEL_NOT)
        return !applied;
    return applied && (result == MODEL_PUT_NONE || s->results[slot] == result);
}

bool model_instance_end(struct model_instance *in, int slot, enum model_put_result result,
                        enum model_outcome outcome)
{
    struct model_istate *old = in->states;
    uint32_t n = in->count;

    in->states = NULL;
    in->count = in->room = 0;
    in->busy &= (uint8_t) ~(1u << slot);
    in->ghosts |= INSTANCE_CHANGED;
    for (uint32_t i = 0; i < n; i++) {
        struct model_istate s = old[i];

        if (!istate_stays(&s, slot, result, outcome))
            continue;
        s.mask &= (uint8_t) ~(1u << slot);
        s.results[slot] = 0;
        instance_add(in, &s);
    }
    mem_free(old);
    return in->count > 0;
}

void model_instance_crash(struct model_instance *in)
{
    for (int slot = 0; slot < (int)MODEL_OPS; slot++)
        if (in->busy >> slot & 1)
            (void)model_instance_end(in, slot, MODEL_PUT_NONE, MODEL_MAYBE);
    in->readers = 0;
}

void model_instance_read_begin(struct model_instance *in)
{
    if (in->readers++ == 0)
        in->ghosts = in->busy ? INSTANCE_CHANGED : 0;
    for (uint32_t i = 0; i < in->count; i++)
        in->ghosts |= 1ull << in->states[i].value;
}

bool model_instance_read_end(struct model_instance *in, int value)
{
    bool fits = in->ghosts >> value & 1;
    uint32_t kept = 0;

    in->readers--;
    if (!fits || (in->ghosts & INSTANCE_CHANGED))
        return fits;
    /* Nothing was in flight meanwhile: what was uncertain is now settled. */
    for (uint32_t i = 0; i < in->count; i++)
        if (in->states[i].value == value)
            in->states[kept++] = in->states[i];
    in->count = kept;
    return true;
}

bool model_instance_may(const struct model_instance *in, int value)
{
    for (uint32_t i = 0; i < in->count; i++)
        if (in->states[i].value == value)
            return true;
    return false;
}

uint64_t model_instance_may_be(const struct model_instance *in)
{
    uint64_t values = 0;

    for (uint32_t i = 0; i < in->count; i++)
        if (in->states[i].value != MODEL_INSTANCE_ABSENT)
            values |= 1ull << in->states[i].value;
    return (uint64_t)__builtin_popcountll(values);
}

bool model_instance_surely_present(const struct model_instance *in)
{
    return !in->busy && !model_instance_may(in, MODEL_INSTANCE_ABSENT);
}
