/* What the parts of filmroom-dump share: dump.c is the command, dump_drives.c tells what is on
 * drives, dump_record.c what is in journal records, dump_rows.c and
 * dump_bucket.c what is in the KV store. */
#pragma once

#include <jansson.h>

#include "lib/store/journal.h"
#include "tools/offline.h"

/* Exit codes. */
enum { DUMP_OK = 0, DUMP_FAILED = 1, DUMP_USAGE = 2 };

struct dump {
    struct offline o;
    const char *args[3]; /* behind the subcommand's name */
    uint64_t number;     /* of the first, where it is to be one */
    uint64_t from, to;   /* LSNs from here on; a volume's range, bytes */
    bool json;
    json_t *out;
    bool anyway; /* `out` is shown even if something failed */
    int code;
};

/* Each fills d->out, or says what is wrong and sets d->code. Suspend. */
void dump_superblock(struct dump *d);
void dump_journal(struct dump *d);
void dump_segments(struct dump *d);
void dump_segment(struct dump *d);
void dump_chunk(struct dump *d);
void dump_scrub(struct dump *d);
void dump_instance(struct dump *d);
void dump_volume(struct dump *d);
void dump_buckets(struct dump *d);
void dump_object(struct dump *d);

/* "filmroom-dump: ..." and the code. */
void dump_fail(struct dump *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Row of a table, mem_free; NULL where there is none. Suspends. */
void *dump_get(struct dump *d, enum kv_table t, struct kv_slice key, size_t *ret_len);

/* A recipe's pieces. A new reference. */
struct recipe;
json_t *dump_pieces(const struct recipe *r);

/* What a record says, beyond its head, as fields of `row`. */
void dump_record(const struct journal_record *r, json_t *row);
const char *dump_record_name(unsigned type);

/* json_object_set_new of a number, a text (with what is not UTF-8 replaced), bytes as hex. */
void dump_set(json_t *o, const char *name, uint64_t value);
void dump_set_text(json_t *o, const char *name, const char *text, size_t len);
/* The fields of scrub's row or record; nothing when it is broken. */
void dump_set_scrub(json_t *o, const void *p, size_t len);
void dump_set_hex(json_t *o, const char *name, const uint8_t *p, size_t n);
