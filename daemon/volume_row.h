/* Rows of KV_VOLUME: volumes, snapshots and their maps as they stand in the KV store; see
 * volume_snap.c for what maps are for.
 *
 * id (be64) -> version u8 (2), reserved u8, durability u8, reserved u8, size u64, created u64, map
 * u64, of u64, name
 *
 * id (be64), 'm' -> version u8 (1), parent u64 (0: none), volume u64, since u64, until u64, mapped
 * u64, holes u64
 *
 * Before there were snapshots, volumes had rows of version 1: version u8, deleting u8, durability
 * u8, reserved u8, size u64, created u64, mapped u64, name. The map had the volume's id and no row.
 * Where it has got one since, that is right and not what the volume's row says of it; it comes
 * later in the table.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/block.h"
#include "lib/kv/kv.h"

#define VOLUME_ROW_MAX (36u + BLOCK_NAME_MAX)
#define VOLUME_MAP_KEY 9u
#define VOLUME_MAP_ROW 49u

struct volume_row {
    /* Openers and readonly are not in the row; mapped (bytes) only in those of version 1. */
    struct block_info info;
    uint64_t map;  /* its map's id */
    uint64_t of;   /* a snapshot's volume; 0: this is a volume */
    bool old;      /* read of version 1 */
    bool deleting; /* of version 1: there is no volume any more; what it maps is being freed */
};

struct volume_map_row {
    uint64_t id;
    uint64_t parent;               /* what is looked at where this one says nothing; 0: none */
    uint64_t volume, since, until; /* what the volume wrote with since < LSN <= until is here */
    uint64_t mapped, holes;        /* entries: of chunks, and LEAF_HOLE */
};

/* Returns the length. Writes version 2. */
size_t volume_row_encode(const struct volume_row *r, uint8_t out[VOLUME_ROW_MAX]);
/* ERR_FORMAT: the row is none of a volume. */
int volume_row_decode(struct kv_slice key, struct kv_slice value, struct volume_row *ret_row);

void volume_map_key(uint64_t id, uint8_t out[VOLUME_MAP_KEY]);
void volume_map_row_encode(const struct volume_map_row *r, uint8_t out[VOLUME_MAP_ROW]);
/* ERR_FORMAT: the row is none of a map. */
int volume_map_row_decode(struct kv_slice key, struct kv_slice value,
                          struct volume_map_row *ret_row);
/* The map's row as it would be, as a volume's row of version 1 tells of it. */
struct volume_map_row volume_row_old_map(const struct volume_row *r);
