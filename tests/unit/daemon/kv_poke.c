/* Damages the metadata of a store at rest, for tests/integration/fsck.py:
 *
 *   kv-poke KVDIR TABLE PREFIX OFFSET VALUE
 *
 * sets the 64-bit field at OFFSET of the first row of table TABLE (its number) whose key begins
 * with PREFIX; an OFFSET of -1 deletes the row.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/kv/kv.h"
#include "lib/rt/env_uring.h"

struct poke {
    struct env *env;
    char **argv;
    int rc;
};

static int poke_row(struct kv *kv, char **argv)
{
    enum kv_table t = (enum kv_table)strtoul(argv[2], NULL, 10);
    size_t n = strlen(argv[3]), off = strtoul(argv[4], NULL, 10);
    struct kv_batch *batch = kv_batch_new();
    struct kv_rows *rows;
    uint8_t *copy;
    int rc = kv_scan(kv, t, (struct kv_slice){argv[3], n ? n : 1}, (struct kv_slice){"", 0}, 1,
                     1u << 20, 0, &rows);

    if (rc < 0 || rows->count == 0)
        return rc < 0 ? rc : ERR_NOENT;
    copy = mem_memdup(rows->rows[0].value.data, rows->rows[0].value.len);
    if (strcmp(argv[4], "-1") == 0) {
        kv_batch_delete(batch, t, rows->rows[0].key);
    } else {
        codec_put_le64(copy + off, strtoull(argv[5], NULL, 10));
        kv_batch_put(batch, t, rows->rows[0].key, (struct kv_slice){copy, rows->rows[0].value.len});
    }
    rc = kv_write(kv, batch);
    kv_batch_free(batch);
    kv_rows_free(rows);
    mem_free(copy);
    return rc;
}

static void poke_main(void *arg)
{
    static const struct kv_rocks_options options;
    struct poke *p = arg;
    struct kv *kv;
    int closed;

    p->rc = kv_rocks_open(p->env, p->argv[1], &options, &kv);
    if (p->rc < 0)
        return;
    p->rc = poke_row(kv, p->argv);
    closed = kv_close(kv);
    if (p->rc == 0)
        p->rc = closed;
}

int main(int argc, char **argv)
{
    struct env_uring_options options = {.keep_signals = true};
    struct poke p = {.argv = argv};

    if (argc != 6 || env_uring_new(&options, &p.env) < 0)
        return 2;
    env_run(p.env, poke_main, &p);
    env_free(p.env);
    if (p.rc < 0)
        fprintf(stderr, "kv-poke: %s\n", err_name(p.rc));
    return p.rc < 0;
}
