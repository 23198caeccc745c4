/* A bucket store in memory, for the admin API's tests. */
#pragma once

#include "lib/api/bucket.h"

#define FAKE_BUCKETS 4u
#define FAKE_OBJECTS 32u

struct fake_object {
    bool used;
    unsigned bucket;
    char name[BUCKET_KEY_MAX + 1], type[BUCKET_TYPE_MAX + 1];
    char pair_name[BUCKET_PAIR_NAME_MAX + 1], pair_value[100]; /* the first pair; "": none */
    uint8_t bytes[4096];
    size_t size;
    uint8_t etag[BUCKET_ETAG]; /* all of the first byte, or of 0 */
};

struct fake_buckets {
    struct bucket_store face; /* first */
    char names[FAKE_BUCKETS][BUCKET_NAME_MAX + 1];
    struct fake_object objects[FAKE_OBJECTS];
    size_t puts; /* begun and not ended */
};

/* One bucket, "b", and the reserved one. */
void fake_buckets_init(struct fake_buckets *f);
