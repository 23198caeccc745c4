/* Buckets and objects as they stand in the KV store and in records.
 *
 * KV_BUCKET: 'B' id              -> struct bucket_row
 *            'O' bucket id, name -> struct bucket_object_row
 * KV_RECIPE: 'C' content id      -> bucket id, u16 length and name of the object; its recipe
 *
 * Ids are 64 bits, big-endian in keys. A bucket's is the LSN of the record that made it, a
 * content's that of the record that put it: never used twice. Since each put has a recipe row of
 * its own, a reader who has seen an object's row finds the recipe of that very object, or none.
 *
 *   CREATE: created u64, name
 *   DELETE: id u64, with objects u8
 *   PUT:    list of chunks, condition u8, etag, bucket id u64, name u16 and bytes, row u32 and
 *           bytes (its content id is settled when it is applied), recipe
 *   REMOVE: bucket id u64, name
 *   REAP:   bucket id u64
 *
 * Decoded rows point into the bytes they were decoded from.
 */
#pragma once

#include "lib/api/bucket.h"
#include "lib/base/codec.h"
#include "lib/base/strbuf.h"
#include "lib/kv/kv.h"

struct bucket_row {
    uint64_t created_ns, objects, bytes;
    bool going; /* deleted with what is in it: its name is free, and the reaper is at it */
    char name[BUCKET_NAME_MAX + 1];
};

struct bucket_object_row {
    uint64_t content, size, stored_ns;
    uint8_t etag[BUCKET_ETAG];
    const char *type;
    size_t pair_count;
    struct bucket_pair pairs[BUCKET_PAIRS_MAX];
};

#define BUCKET_ROW_KEY_MAX (9u + BUCKET_KEY_MAX)
_Static_assert(BUCKET_ROW_KEY_MAX <= KV_KEY_MAX, "the KV store takes the longest name");

struct bucket_key {
    uint8_t bytes[BUCKET_ROW_KEY_MAX + 1]; /* and a NUL behind, for who goes on after it */
    size_t len;
};
/* 'B' or 'O' or 'C', the id, and (of an object) its name; NULL: the beginning of all names. */
void bucket_key_make(struct bucket_key *k, char kind, uint64_t id, const char *name);
static inline struct kv_slice bucket_key_slice(const struct bucket_key *k)
{
    return (struct kv_slice){k->bytes, k->len};
}

/* Encoding appends; decoding gives ERR_FORMAT. */
void bucket_row_encode(const struct bucket_row *r, struct strbuf *out);
int bucket_row_decode(struct kv_slice value, struct bucket_row *ret_row);
void bucket_object_encode(const struct bucket_object_row *r, struct strbuf *out);
int bucket_object_decode(struct kv_slice value, struct bucket_object_row *ret_row);

/* A bucket and the name of an object: whose a recipe is, or the body of REMOVE. Decoding: *ret_used
 * is where they end. */
void bucket_owner_encode(uint64_t bucket, const char *name, struct strbuf *out);
size_t bucket_owner_length(const char *name);
int bucket_owner_decode(struct kv_slice value, uint64_t *ret_bucket,
                        char ret_name[BUCKET_KEY_MAX + 1], size_t *ret_used);

/* Body of PUT behind the list of chunks. */
struct bucket_put_record {
    enum bucket_condition condition;
    uint8_t etag[BUCKET_ETAG];
    uint64_t bucket;
    char name[BUCKET_KEY_MAX + 1];
    struct bucket_object_row row;
    struct kv_slice recipe; /* to encode: NULL, it is appended by who has it */
};
void bucket_put_encode(const struct bucket_put_record *r, struct strbuf *out);
int bucket_put_decode(struct kv_slice body, struct bucket_put_record *ret_record);

/* ---- What users may say ---- */

bool bucket_name_valid(const char *name);
bool bucket_key_valid(const char *name); /* of an object */
/* Type and metadata. ERR_INVAL, ERR_TOOBIG. */
int bucket_metadata_check(const char *type, const struct bucket_pair *pairs, size_t count);

/* Does the condition hold for what is there (NULL: nothing)? */
bool bucket_condition_holds(enum bucket_condition condition, const uint8_t etag[BUCKET_ETAG],
                            const struct bucket_object_row *there);
