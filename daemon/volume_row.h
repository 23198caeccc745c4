/* Rows of KV_VOLUME: volumes as they stand in the KV store.
 *
 * id (be64) -> version u8, deleting u8, durability u8, reserved u8, size u64, created u64, mapped
 * u64, name
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/block.h"
#include "lib/kv/kv.h"

#define VOLUME_ROW_MAX (28u + BLOCK_NAME_MAX)

struct volume_row {
    struct block_info info; /* openers and readonly are not in the row */
    bool deleting;          /* gone for users; what it maps is being freed */
};

size_t volume_row_encode(const struct volume_row *r, uint8_t out[VOLUME_ROW_MAX]);
int volume_row_decode(struct kv_slice key, struct kv_slice value, struct volume_row *ret_row);
