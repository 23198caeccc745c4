/* Reference-counted buffers, aligned for direct I/O.
 *
 * A buf is one allocation, 4096-aligned, shared by counting. Counts are atomic, so a reference may
 * be dropped on a lane's thread; the bytes themselves follow the rule of the code that shares them:
 * written by one owner before it is shared, then constant.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define BUF_ALIGN 4096u

struct buf {
    uint8_t *data;
    size_t size; /* bytes allocated at data, as asked for */
    uint32_t refs_;
};

struct buf *buf_new(size_t size);   /* one reference, contents undefined */
struct buf *buf_ref(struct buf *b); /* returns b */
void buf_unref(struct buf *b);      /* NULL is fine */
