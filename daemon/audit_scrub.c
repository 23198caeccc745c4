/* The audit of what scrub has noted of itself, and of chunks that are lost. Nothing else depends on
 * it: a note that is broken, or of no chunk, is taken away. */
#include <string.h>

#include "daemon/audit_priv.h"
#include "daemon/scrubber.h"
#include "dedup/chunkstore.h"
#include "lib/base/mem.h"

static void audit_lost(struct audit *a, void *arg, const struct kv_row *row)
{
    uint64_t id;

    (void)arg;
    if (chunk_lost_id(row->key, &id) && audit_chunk_find(a, id)) {
        a->r.known_lost++;
        return;
    }
    if (a->chunks_doubtful)
        return;
    audit_mend(a, "lost-row", "a chunk that is not there is said to be lost");
    audit_delete(a, KV_META, row->key);
}

void audit_scrub(struct audit *a)
{
    uint8_t from[CHUNK_LOST_KEY], to[CHUNK_LOST_KEY];
    const struct kv_slice key = {SCRUB_KEY, strlen(SCRUB_KEY)};
    MEM_AUTO void *value = NULL;
    struct scrub_state st;
    size_t len;

    chunk_lost_key(0, from);
    chunk_lost_key(UINT64_MAX, to);
    audit_walk_range(a, KV_META, (struct kv_slice){from, sizeof(from)},
                     (struct kv_slice){to, sizeof(to)}, audit_lost, NULL);
    value = audit_get(a, KV_META, key, &len);
    if (!value || scrub_state_decode(value, len, &st) == 0)
        return;
    audit_mend(a, "scrub-row", "the note of where scrub is, is broken");
    audit_delete(a, KV_META, key);
}
