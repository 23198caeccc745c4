/* Volumes' rows as bytes; see volume_row.h. */
#include "daemon/volume_row.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"

#define VOLUME_ROW_VERSION 1u

size_t volume_row_encode(const struct volume_row *r, uint8_t out[VOLUME_ROW_MAX])
{
    uint8_t row[VOLUME_ROW_MAX]; /* gcc 12 cannot tell the size of `out` */
    struct codec_writer w = codec_writer_on(row, sizeof(row));

    codec_write_u8(&w, VOLUME_ROW_VERSION);
    codec_write_u8(&w, r->deleting);
    codec_write_u8(&w, (uint8_t)r->info.durability);
    codec_write_u8(&w, 0);
    codec_write_le64(&w, r->info.size);
    codec_write_le64(&w, r->info.created_ns);
    codec_write_le64(&w, r->info.mapped);
    codec_write_bytes(&w, r->info.name, strlen(r->info.name));
    CHECK(codec_writer_ok(&w));
    memcpy(out, row, codec_written(&w));
    return codec_written(&w);
}

int volume_row_decode(struct kv_slice key, struct kv_slice value, struct volume_row *ret_row)
{
    struct codec_reader r = codec_reader_on(value.data, value.len);
    struct volume_row row = {0};
    size_t n;

    if (key.len != 8 || codec_read_u8(&r) != VOLUME_ROW_VERSION)
        return ERR_FORMAT;
    row.info.id = codec_get_be64(key.data);
    row.deleting = codec_read_u8(&r);
    row.info.durability = (enum block_durability)codec_read_u8(&r);
    (void)codec_read_u8(&r);
    row.info.size = codec_read_le64(&r);
    row.info.created_ns = codec_read_le64(&r);
    row.info.mapped = codec_read_le64(&r);
    n = codec_left(&r);
    if (!codec_reader_ok(&r) || n > BLOCK_NAME_MAX)
        return ERR_FORMAT;
    memcpy(row.info.name, codec_read_bytes(&r, n), n);
    *ret_row = row;
    return 0;
}
