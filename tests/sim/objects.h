/* Buckets and objects in the simulator: what clients do with them, and what must be there after. */
#pragma once

#include "lib/api/bucket.h"
#include "tests/sim/model.h"

struct run;

#define OBJECT_BUCKETS  2u
#define OBJECT_SIZE_MAX (512u << 10)
#define OBJECT_NAMES    8u /* in each bucket; puts under those with odd numbers want nobody there */

#define OBJECT_CONTENTS  6 /* numbered from 1 */
#define OBJECT_PAIRS_MAX 3u

/* Equal bytes have one etag, which is learned from the first who tells it. */
struct model_etag {
    bool known;
    uint8_t etag[BUCKET_ETAG];
};

struct model_bucket {
    char name[8];
    enum model_exists exists;
    bool admin;          /* somebody makes or deletes it */
    unsigned committing; /* puts that have been sent */
    uint64_t changes;    /* counts whatever made it absent or present */
    struct model_instance objects[OBJECT_NAMES];
};

void objects_init(struct model_bucket *buckets);
void objects_free(struct model_bucket *buckets);
void objects_crash(struct model_bucket *buckets); /* the process is dead */

/* One operation of a client, where `kind` (an enum op_kind) is about buckets. */
void objects_step(struct run *r, unsigned kind);

/* Everything in buckets against the model, nothing else at work; settles what a crash left open. */
void objects_verify(struct run *r);
/* Deletes all buckets; false when too many drives were lost for that. */
bool objects_delete_all(struct run *r);

/* What is told beside an object's bytes: it follows from name and content. The pairs point into it.
 */
struct object_labels {
    char type[32], names[OBJECT_PAIRS_MAX][8], values[OBJECT_PAIRS_MAX][32];
    struct bucket_pair pairs[OBJECT_PAIRS_MAX];
    size_t count;
};
void object_labels_make(unsigned name, int content, struct object_labels *l);
