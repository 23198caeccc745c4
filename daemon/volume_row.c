/* Rows of volumes and maps as bytes; see volume_row.h. */
#include "daemon/volume_row.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"

#define VOLUME_ROW_OLD     1u
#define VOLUME_ROW_VERSION 2u
#define MAP_ROW_VERSION    1u

/* ---- Volumes ---- */

size_t volume_row_encode(const struct volume_row *r, uint8_t out[VOLUME_ROW_MAX])
{
    uint8_t row[VOLUME_ROW_MAX]; /* gcc 12 cannot tell the size of `out` */
    struct codec_writer w = codec_writer_on(row, sizeof(row));

    codec_write_u8(&w, VOLUME_ROW_VERSION);
    codec_write_u8(&w, 0);
    codec_write_u8(&w, (uint8_t)r->info.durability);
    codec_write_u8(&w, 0);
    codec_write_le64(&w, r->info.size);
    codec_write_le64(&w, r->info.created_ns);
    codec_write_le64(&w, r->map);
    codec_write_le64(&w, r->of);
    codec_write_bytes(&w, r->info.name, strlen(r->info.name));
    CHECK(codec_writer_ok(&w));
    memcpy(out, row, codec_written(&w));
    return codec_written(&w);
}

int volume_row_decode(struct kv_slice key, struct kv_slice value, struct volume_row *ret_row)
{
    struct codec_reader r = codec_reader_on(value.data, value.len);
    uint8_t version = codec_read_u8(&r);
    struct volume_row row = {.old = version == VOLUME_ROW_OLD};
    size_t n;

    if (key.len != 8 || (!row.old && version != VOLUME_ROW_VERSION))
        return ERR_FORMAT;
    row.info.id = codec_get_be64(key.data);
    row.deleting = codec_read_u8(&r) && row.old;
    row.info.durability = (enum block_durability)codec_read_u8(&r);
    (void)codec_read_u8(&r);
    row.info.size = codec_read_le64(&r);
    row.info.created_ns = codec_read_le64(&r);
    if (row.old) {
        row.map = row.info.id;
        row.info.mapped = codec_read_le64(&r);
    } else {
        row.map = codec_read_le64(&r);
        row.of = codec_read_le64(&r);
    }
    n = codec_left(&r);
    if (!codec_reader_ok(&r) || n > BLOCK_NAME_MAX)
        return ERR_FORMAT;
    memcpy(row.info.name, codec_read_bytes(&r, n), n);
    *ret_row = row;
    return 0;
}

/* ---- Maps ---- */

void volume_map_key(uint64_t id, uint8_t out[VOLUME_MAP_KEY])
{
    codec_put_be64(out, id);
    out[8] = 'm';
}

void volume_map_row_encode(const struct volume_map_row *r, uint8_t out[VOLUME_MAP_ROW])
{
    uint8_t row[VOLUME_MAP_ROW];
    struct codec_writer w = codec_writer_on(row, sizeof(row));

    codec_write_u8(&w, MAP_ROW_VERSION);
    codec_write_le64(&w, r->parent);
    codec_write_le64(&w, r->volume);
    codec_write_le64(&w, r->since);
    codec_write_le64(&w, r->until);
    codec_write_le64(&w, r->mapped);
    codec_write_le64(&w, r->holes);
    CHECK(codec_writer_ok(&w) && codec_written(&w) == VOLUME_MAP_ROW);
    memcpy(out, row, sizeof(row));
}

int volume_map_row_decode(struct kv_slice key, struct kv_slice value,
                          struct volume_map_row *ret_row)
{
    struct codec_reader r = codec_reader_on(value.data, value.len);
    const uint8_t *k = key.data;

    if (key.len != VOLUME_MAP_KEY || k[8] != 'm' || value.len != VOLUME_MAP_ROW ||
        codec_read_u8(&r) != MAP_ROW_VERSION)
        return ERR_FORMAT;
    ret_row->id = codec_get_be64(k);
    ret_row->parent = codec_read_le64(&r);
    ret_row->volume = codec_read_le64(&r);
    ret_row->since = codec_read_le64(&r);
    ret_row->until = codec_read_le64(&r);
    ret_row->mapped = codec_read_le64(&r);
    ret_row->holes = codec_read_le64(&r);
    return 0;
}

struct volume_map_row volume_row_old_map(const struct volume_row *r)
{
    return (struct volume_map_row){.id = r->info.id,
                                   .volume = r->info.id,
                                   .since = r->info.id,
                                   .until = UINT64_MAX,
                                   .mapped = r->info.mapped / BLOCK_SIZE};
}
