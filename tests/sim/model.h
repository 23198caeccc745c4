/* What the store must hold, kept beside it in the simulator's memory: volumes by block, instances
 * by content, each as the set of states that are possible.
 *
 * An operation that was issued may take effect at any moment until it returns, and once returned
 * has taken effect. So each block (each instance) has states: a value, and which of the operations
 * in flight on it have taken effect in it. Issuing an operation adds the states in which it has;
 * its return drops those in which it has not; a crash or an error that leaves open what happened
 * keeps all. What a read finds when nothing is in flight leaves only the states that fit: what was
 * uncertain after a crash may be either, but stays what it once was seen to be.
 *
 * All of it belongs to the simulator's side: it outlives killed processes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/block.h"
#include "lib/base/hmap.h"
#include "lib/base/list.h"

#define MODEL_OPS     4u /* operations in flight on one block or instance */
#define MODEL_VOLUMES 4u
#define MODEL_SNAPS   3u    /* of a volume */
#define MODEL_BLOCKS  4096u /* of a volume: 16 MiB */

enum model_outcome { MODEL_DONE, MODEL_MAYBE, MODEL_NOT };

/* ---- Volumes ---- */

/* One content of a block; equal contents are one value. */
struct model_value {
    struct hmap_node node;
    uint32_t refs;
    uint64_t origin; /* the operation that first wrote it */
    uint8_t bytes[BLOCK_SIZE];
};

struct model_state {
    struct model_value *value;
    uint8_t mask; /* operations in flight that have taken effect */
};

/* An operation in flight on a block: the bytes [from, to) become those of `bytes`. */
struct model_op {
    struct model_value *bytes;
    uint32_t from, to;
};

struct model_block {
    struct model_op ops[MODEL_OPS];
    struct model_state *states;
    uint32_t count, room;
    uint8_t busy; /* operations in flight */
    uint32_t readers;
    struct model_value **ghosts; /* values that went while somebody was reading */
    uint32_t ghost_count;
};

enum model_exists { MODEL_ABSENT, MODEL_PRESENT, MODEL_UNSURE };

struct model_volume {
    char name[16];
    enum model_exists exists;
    uint64_t size, other_size; /* they differ while a resize is in flight or its end unknown */
    uint32_t resizes;          /* begun and ended */
    bool admin;                /* somebody creates, resizes or removes it */
    uint32_t users;            /* operations that have it open */
    struct model_volume *of;   /* a snapshot's volume */
    bool taking;               /* the snapshot is being taken */
    uint64_t group;            /* with others of that number, all or none; 0 once that is settled */
    struct model_block *blocks[MODEL_BLOCKS];
};

struct model {
    struct hmap values;
    struct model_value *zero;
    struct model_volume volumes[MODEL_VOLUMES], snaps[MODEL_VOLUMES][MODEL_SNAPS];
    struct list writes; /* in flight */
    uint64_t next_origin;
};

void model_init(struct model *m);
void model_free(struct model *m);

/* A write (bytes NULL: of zeroes) in flight; NULL when too much is in flight on a block of it. The
 * bytes are copied. */
struct model_write;
struct model_write *model_write_begin(struct model *m, struct model_volume *v, uint64_t off,
                                      uint64_t len, const uint8_t *bytes);
void model_write_end(struct model *m, struct model_write *w, enum model_outcome outcome);
uint64_t model_write_origin(const struct model_write *w);

/* A read: between begin and end values that leave are remembered. The end returns false when the
 * bytes are none that the range may have had; *ret_at is the offset of the first wrong block's part
 * and `why` (of `room` bytes) gets what is known of it. */
void model_read_begin(struct model *m, struct model_volume *v, uint64_t off, uint64_t len);
bool model_read_end(struct model *m, struct model_volume *v, uint64_t off, uint64_t len,
                    const uint8_t *bytes, uint64_t *ret_at, char *why, size_t room);
/* Ends a read that failed. */
void model_read_drop(struct model *m, struct model_volume *v, uint64_t off, uint64_t len);

/* Is the block surely zero, surely not, or neither? Surely: in every possible state. */
bool model_block_surely(const struct model *m, const struct model_volume *v, uint64_t block,
                        bool zero);

/* Blocks that may be other than zero, of all volumes and snapshots together. */
uint64_t model_volume_blocks(const struct model *m);

/* Everything beyond `size` is gone. No operation is in flight there. */
void model_volume_cut(struct model *m, struct model_volume *v, uint64_t size);

/* A snapshot is taken between begin and end: of each block it has a value that was possible at some
 * moment of these. The volume's size stays the same meanwhile. */
void model_snapshot_begin(struct model *m, struct model_volume *snap);
void model_snapshot_end(struct model *m, struct model_volume *snap);
/* The blocks of `to`, on which nothing is in flight, may be (or, `surely`, are) those of `from`. */
void model_volume_copy(struct model *m, struct model_volume *to, const struct model_volume *from,
                       bool surely);

/* Nothing is in flight any more: the process is dead. */
void model_crash(struct model *m);

/* ---- Instances ---- */

#define MODEL_INSTANCE_ABSENT 0

enum model_put_result {
    MODEL_PUT_NONE,
    MODEL_PUT_STORED,
    MODEL_PUT_SAME,
    MODEL_PUT_REPLACED,
    MODEL_PUT_REFUSED,
    MODEL_DELETED,
    MODEL_DELETED_NOTHING
};

struct model_istate {
    int value; /* MODEL_INSTANCE_ABSENT, or which content */
    uint8_t mask;
    uint8_t results[MODEL_OPS]; /* enum model_put_result of those in the mask */
};

/* How contents relate: the same data set under another head is the same. */
struct model_contents {
    bool (*same)(int a, int b);
    bool replace; /* the policy */
};

/* Operations on an instance are puts of a content and (ABSENT) deletes. */
struct model_instance {
    struct model_contents contents;
    int ops[MODEL_OPS];
    int wants[MODEL_OPS]; /* the put is refused where another content is; 0: it takes any */
    struct model_istate *states;
    uint32_t count, room;
    uint8_t busy;
    uint32_t readers;
    uint64_t ghosts; /* bit per value that was possible while somebody reads */
};

void model_instance_init(struct model_instance *i);
void model_instance_free(struct model_instance *i);
/* Slot of the operation, or -1 when too many are in flight. */
int model_instance_begin(struct model_instance *i, int value, const struct model_contents *c);
/* A put that replaces the content `wants` and is refused otherwise. */
int model_instance_begin_if(struct model_instance *i, int value, const struct model_contents *c,
                            int wants);
/* It returned with a result (NONE: what it did is not known). False: no possible state fits that.
 */
bool model_instance_end(struct model_instance *i, int slot, enum model_put_result result,
                        enum model_outcome outcome);
void model_instance_crash(struct model_instance *i);
void model_instance_read_begin(struct model_instance *i);
/* Was the value (ABSENT: none) possible at some moment of the read? */
bool model_instance_read_end(struct model_instance *i, int value);
bool model_instance_may(const struct model_instance *i, int value);
/* How many contents it may have, or may be given by what is in flight. */
uint64_t model_instance_may_be(const struct model_instance *i);
bool model_instance_surely_present(const struct model_instance *i);
