/* What journal records say, for filmroom-dump. Bodies are described where they are encoded
 * (lib/store/record.h says where); a body that is shorter than that shows as far as it goes. */
#include <string.h>

#include "daemon/scrubber.h"
#include "dedup/chunkstore.h"
#include "lib/api/bucket.h"
#include "lib/base/codec.h"
#include "tools/dump.h"

const char *dump_record_name(unsigned type)
{
    switch ((enum record_type)type) {
    case RECORD_SEGMENT_OPEN:
        return "segment-open";
    case RECORD_SEGMENT_FREE:
        return "segment-free";
    case RECORD_SCRUB:
        return "scrub";
    case RECORD_CHUNK_MOVE:
        return "chunk-move";
    case RECORD_CHUNK_LOST:
        return "chunk-lost";
    case RECORD_VOLUME_CREATE:
        return "volume-create";
    case RECORD_VOLUME_RESIZE:
        return "volume-resize";
    case RECORD_VOLUME_DELETE:
        return "volume-delete";
    case RECORD_VOLUME_REAP:
        return "volume-reap";
    case RECORD_VOLUME_WRITE:
        return "volume-write";
    case RECORD_VOLUME_MAP:
        return "volume-map";
    case RECORD_VOLUME_ZERO:
        return "volume-zero";
    case RECORD_VOLUME_SNAPSHOT:
        return "volume-snapshot";
    case RECORD_VOLUME_SNAPSHOT_DELETE:
        return "volume-snapshot-delete";
    case RECORD_VOLUME_CLONE:
        return "volume-clone";
    case RECORD_VOLUME_ROLLBACK:
        return "volume-rollback";
    case RECORD_VOLUME_MERGE:
        return "volume-merge";
    case RECORD_OBJECT_PUT:
        return "object-put";
    case RECORD_OBJECT_DELETE:
        return "object-delete";
    case RECORD_BUCKET_CREATE:
        return "bucket-create";
    case RECORD_BUCKET_DELETE:
        return "bucket-delete";
    case RECORD_BUCKET_PUT:
        return "bucket-put";
    case RECORD_BUCKET_REMOVE:
        return "bucket-remove";
    case RECORD_BUCKET_REAP:
        return "bucket-reap";
    case RECORD_IMAGE:
        return "image";
    case RECORD_IMAGE_PIECE:
        return "image-piece";
    case RECORD_IMAGE_DROP:
        return "image-drop";
    }
    return "unknown";
}

static void set_uids(struct codec_reader *r, json_t *row)
{
    static const char *const names[] = {"study", "series", "instance"};

    for (unsigned i = 0; i < 3; i++) {
        uint8_t n = codec_read_u8(r);
        const uint8_t *p = codec_read_bytes(r, n);

        if (p)
            dump_set_text(row, names[i], (const char *)p, n);
    }
}

/* Steps over the list of chunks at the front of a body. */
static struct codec_reader skip_chunks(const struct journal_record *r, json_t *row)
{
    size_t used = 0;

    if (r->length >= 4 && chunk_list_length(r->body, r->length, &used) == 0)
        dump_set(row, "chunks_listed", codec_get_le32(r->body));
    return codec_reader_on(r->body + used, r->length - used);
}

static void set_segment(struct codec_reader *r, json_t *row)
{
    dump_set(row, "segment", codec_read_le64(r));
    dump_set(row, "stream", codec_read_u8(r));
    dump_set(row, "k", codec_read_u8(r));
    dump_set(row, "m", codec_read_u8(r));
}

static void set_freed(struct codec_reader *r, json_t *row)
{
    json_t *ids = json_array();

    for (uint32_t n = codec_read_le32(r); n > 0; n--) {
        uint64_t id = codec_read_le64(r);

        if (!codec_reader_ok(r))
            break;
        (void)json_array_append_new(ids, json_integer((json_int_t)id));
    }
    (void)json_object_set_new(row, "segments", ids);
}

static void set_name(struct codec_reader *r, json_t *row, uint32_t n)
{
    const uint8_t *name = codec_read_bytes(r, n);

    if (name)
        dump_set_text(row, "name", (const char *)name, n);
}

static void set_created(struct codec_reader *r, json_t *row)
{
    dump_set(row, "size", codec_read_le64(r));
    (void)codec_read_le64(r);
    (void)codec_read_le32(r);
    set_name(r, row, codec_read_le32(r));
}

static void set_snapshot(struct codec_reader *r, json_t *row)
{
    json_t *ids = json_array();
    uint32_t count, len;

    (void)codec_read_le64(r);
    count = codec_read_le32(r);
    len = codec_read_le32(r);
    for (; count > 0; count--) {
        uint64_t id = codec_read_le64(r);

        if (!codec_reader_ok(r))
            break;
        (void)json_array_append_new(ids, json_integer((json_int_t)id));
    }
    (void)json_object_set_new(row, "volumes", ids);
    set_name(r, row, len);
}

static void set_clone(struct codec_reader *r, json_t *row)
{
    (void)codec_read_le64(r);
    dump_set(row, "snapshot", codec_read_le64(r));
    (void)codec_read_le32(r);
    set_name(r, row, codec_read_le32(r));
}

/* What snapshots are made of; see daemon/volume_snap.c. */
static void set_snapshots(unsigned type, struct codec_reader *r, json_t *row)
{
    switch (type) {
    case RECORD_VOLUME_SNAPSHOT:
        set_snapshot(r, row);
        break;
    case RECORD_VOLUME_CLONE:
        set_clone(r, row);
        break;
    case RECORD_VOLUME_SNAPSHOT_DELETE:
        dump_set(row, "snapshot", codec_read_le64(r));
        break;
    case RECORD_VOLUME_ROLLBACK:
        dump_set(row, "volume", codec_read_le64(r));
        dump_set(row, "snapshot", codec_read_le64(r));
        break;
    default: /* MERGE, REAP */
        dump_set(row, "map", codec_read_le64(r));
        break;
    }
}

/* A bucket's number and an object's name: u16 length, the bytes. */
static void set_object(struct codec_reader *r, json_t *row)
{
    uint16_t n;

    dump_set(row, "bucket", codec_read_le64(r));
    n = codec_read_le16(r);
    set_name(r, row, n);
}

static void set_bucket(const struct journal_record *rec, struct codec_reader *r, json_t *row)
{
    static const char *const conditions[] = {"always", "if-absent", "if-etag"};
    uint8_t condition;

    switch ((enum record_type)rec->type) {
    case RECORD_BUCKET_CREATE:
        (void)codec_read_le64(r); /* the time */
        set_name(r, row, (uint32_t)codec_left(r));
        break;
    case RECORD_BUCKET_PUT:
        *r = skip_chunks(rec, row);
        condition = codec_read_u8(r);
        if (condition < 3)
            dump_set_text(row, "condition", conditions[condition], strlen(conditions[condition]));
        (void)codec_read_bytes(r, BUCKET_ETAG);
        set_object(r, row);
        break;
    case RECORD_BUCKET_REMOVE:
        set_object(r, row);
        break;
    default: /* DELETE, REAP */
        dump_set(row, "bucket", codec_read_le64(r));
        break;
    }
}

static json_t *scrub_pass(const struct scrub_pass *p)
{
    json_t *o = json_object();

    dump_set(o, "start_ns", p->start_ns);
    dump_set(o, "end_ns", p->end_ns);
    dump_set(o, "took_ns", p->took_ns);
    dump_set(o, "bytes", p->bytes);
    dump_set(o, "found", p->found);
    dump_set(o, "mended", p->mended);
    dump_set(o, "lost", p->lost);
    dump_set(o, "skipped", p->skipped);
    return o;
}

void dump_set_scrub(json_t *o, const void *p, size_t len)
{
    static const char *const phases[] = {"idle", "running", "stopped"};
    struct scrub_state st;

    if (scrub_state_decode(p, len, &st) < 0)
        return;
    (void)json_object_set_new(o, "phase", json_string(phases[st.phase]));
    dump_set(o, "next_segment", st.next);
    dump_set(o, "end_segment", st.end);
    dump_set(o, "walked", st.walked);
    (void)json_object_set_new(o, "pass", scrub_pass(&st.now));
    (void)json_object_set_new(o, "last", scrub_pass(&st.last));
}

/* What the metadata's copy consists of; see daemon/image_form.h. */
static void set_image(struct codec_reader *r, json_t *row)
{
    (void)codec_read_le64(r);
    dump_set(row, "settled", codec_read_le64(r));
    dump_set(row, "upto", codec_read_le64(r));
    (void)codec_read_le64(r);
    dump_set(row, "runs", codec_read_le32(r));
}

static void set_image_piece(struct codec_reader r, json_t *row)
{
    dump_set(row, "run", codec_read_le64(&r));
    dump_set(row, "piece", codec_read_le32(&r));
    dump_set(row, "chunks", codec_read_le32(&r));
}

void dump_record(const struct journal_record *rec, json_t *row)
{
    struct codec_reader r = codec_reader_on(rec->body, rec->length);

    switch ((enum record_type)rec->type) {
    case RECORD_SEGMENT_OPEN:
        set_segment(&r, row);
        break;
    case RECORD_SEGMENT_FREE:
        set_freed(&r, row);
        break;
    case RECORD_SCRUB:
        dump_set_scrub(row, rec->body, rec->length);
        break;
    case RECORD_VOLUME_CREATE:
        set_created(&r, row);
        break;
    case RECORD_VOLUME_RESIZE:
        dump_set(row, "volume", codec_read_le64(&r));
        dump_set(row, "size", codec_read_le64(&r));
        break;
    case RECORD_VOLUME_DELETE:
        dump_set(row, "volume", codec_read_le64(&r));
        break;
    case RECORD_VOLUME_WRITE:
    case RECORD_VOLUME_ZERO:
        dump_set(row, "volume", codec_read_le64(&r));
        dump_set(row, "block", codec_read_le64(&r));
        dump_set(row, "blocks", codec_read_le32(&r));
        break;
    case RECORD_VOLUME_MAP:
        r = skip_chunks(rec, row);
        dump_set(row, "mappings", codec_read_le32(&r));
        break;
    case RECORD_OBJECT_PUT:
        r = skip_chunks(rec, row);
        (void)codec_read_u8(&r); /* the policy */
        set_uids(&r, row);
        break;
    case RECORD_OBJECT_DELETE:
        set_uids(&r, row);
        break;
    case RECORD_VOLUME_SNAPSHOT:
    case RECORD_VOLUME_SNAPSHOT_DELETE:
    case RECORD_VOLUME_CLONE:
    case RECORD_VOLUME_ROLLBACK:
    case RECORD_VOLUME_MERGE:
    case RECORD_VOLUME_REAP:
        set_snapshots(rec->type, &r, row);
        break;
    case RECORD_BUCKET_CREATE:
    case RECORD_BUCKET_DELETE:
    case RECORD_BUCKET_PUT:
    case RECORD_BUCKET_REMOVE:
    case RECORD_BUCKET_REAP:
        set_bucket(rec, &r, row);
        break;
    case RECORD_IMAGE:
        set_image(&r, row);
        break;
    case RECORD_IMAGE_PIECE:
        set_image_piece(skip_chunks(rec, row), row);
        break;
    case RECORD_IMAGE_DROP:
        set_image_piece(r, row);
        break;
    case RECORD_CHUNK_MOVE:
    case RECORD_CHUNK_LOST:
        break;
    }
}
