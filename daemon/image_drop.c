/* Dropping runs of the metadata's copy; see image.c.
 *
 * A run is as large as the metadata, so it is dropped piece by piece, and each piece's row says
 * what to let go of. Which runs are to be dropped need not be journaled: it is those that nothing
 * names, and a start can tell.
 */
#include <string.h>

#include "daemon/image_priv.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define DROP_PAGE 16u

static void leaving_add(struct image *im, uint64_t number)
{
    for (uint32_t i = 0; i < im->leaving_count; i++)
        if (im->leaving[i] == number)
            return;
    im->leaving = mem_realloc(im->leaving, (im->leaving_count + 1) * sizeof(*im->leaving));
    im->leaving[im->leaving_count++] = number;
}

void image_leave(struct image *im, struct image_run *run)
{
    if (run->pieces)
        leaving_add(im, run->number);
    if (!image_form_find(&im->named, run->number))
        im->unnamed -= run->bytes < im->unnamed ? run->bytes : im->unnamed;
    mem_free(run->index);
    *run = (struct image_run){0};
    fiber_cond_signal(&im->work);
}

int image_find_left(struct image *im)
{
    uint64_t number = 0;
    uint8_t from[IMAGE_PIECE_LEN];
    uint32_t piece;
    int rc = 0;

    im->leaving_count = 0; /* replay knows less */
    for (size_t n = 1; rc == 0 && n; number++) {
        struct kv_rows *rows;

        image_piece_key(number, 0, from);
        rc = kv_scan(im->p->kv, KV_META, (struct kv_slice){from, sizeof(from)}, image_pieces_to(),
                     1, 1 << 16, 0, &rows);
        if (rc < 0)
            return rc;
        n = rows->count;
        if (n && !image_piece_is(rows->rows[0].key, &number, &piece))
            rc = ERR_FORMAT;
        else if (n && !image_form_find(&im->named, number))
            leaving_add(im, number);
        kv_rows_free(rows);
    }
    return rc;
}

/* Drops what one row refers to. Suspends. */
static int drop_piece(struct image *im, const struct kv_row *row)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct image_piece piece;
    struct iovec iov;
    int rc = image_piece_from_row(row, &piece);

    if (rc < 0)
        return rc;
    rc = chunkstore_warm(im->p->chunks, piece.ids, piece.count);
    image_piece_encode(&piece, &body);
    iov = (struct iovec){body.data, body.len};
    if (rc == 0)
        rc = record_submit(&im->p->log, RECORD_IMAGE_DROP, &iov, 1, 0, NULL);
    mem_free(piece.ids);
    return rc;
}

static int drop_run(struct image *im, uint64_t number)
{
    uint8_t from[IMAGE_PIECE_LEN], to[IMAGE_PIECE_LEN];
    size_t n = 1;
    int rc = 0;

    image_piece_key(number, 0, from);
    image_piece_key(number + 1, 0, to);
    while (rc == 0 && n) {
        struct kv_rows *rows;

        rc = kv_scan(im->p->kv, KV_META, (struct kv_slice){from, sizeof(from)},
                     (struct kv_slice){to, sizeof(to)}, DROP_PAGE, 1 << 20, 0, &rows);
        if (rc < 0)
            return rc;
        n = rows->count;
        for (size_t i = 0; rc == 0 && i < n; i++)
            rc = im->p->stopping ? ERR_SHUTDOWN : drop_piece(im, &rows->rows[i]);
        kv_rows_free(rows);
    }
    return rc;
}

int image_drop_left(struct image *im)
{
    int rc = 0;

    while (rc == 0 && im->leaving_count) {
        uint64_t number = im->leaving[0];

        rc = drop_run(im, number);
        if (rc == 0) /* others may have joined behind it */
            memmove(im->leaving, im->leaving + 1, --im->leaving_count * sizeof(*im->leaving));
    }
    return rc;
}
