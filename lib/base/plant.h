/* Planted bugs: to see whether the simulator would find them.
 *
 * A test that finds nothing says nothing unless it is known what it would find. So the engine's
 * sources hold a few deliberate mistakes, each behind PLANTED(NAME), of the kinds that have lost
 * people's data elsewhere. In production PLANTED is the constant 0 and nothing of them is compiled.
 * The simulator test builds the same sources with FILMROOM_PLANTS, where it asks a variable, and
 * switches one on at a time (docs/TESTING.md, "The simulator").
 */
#pragma once

/*        name                     what goes wrong                                               */
#define PLANT_TABLE(X)                                                                         \
    X(JOURNAL_NOT_SYNCED, "the journal hands batches on that are written and not durable")     \
    X(STRIPE_NOT_SYNCED, "a record names stripes that are written and not durable")            \
    X(SUPER_NOT_SYNCED, "a superblock is relied on that is written and not durable")           \
    X(REPLAY_NOT_SYNCED, "replay goes on from batches that may not be durable")                \
    X(REPLAY_NOT_REPAIRED, "replay leaves mirrors without batches that others have")           \
    X(PARITY_SWAPPED, "parity is computed with two columns exchanged")                         \
    X(READ_UNVERIFIED, "what was read from a drive is served without its CRC")                 \
    X(SWEEP_IGNORES_HOLDS, "a segment is freed under those who still want a chunk in it")      \
    X(REPLAY_TWICE, "replay applies records that the KV store has already")                    \
    X(TRIM_TOO_EARLY, "the journal is trimmed past writes that are not drained")               \
    X(TRIM_RACES_FLUSH, "what is drained while the KV store is flushed is trimmed away")       \
    X(TRIM_UNFLUSHED, "the journal is trimmed without a flush of the KV store")                \
    X(DRAIN_REVIVES, "draining brings back blocks that were zeroed meanwhile")                 \
    X(BULK_UNDER_OVERLAY, "a bulk write leaves older small writes in the overlay")             \
    X(CHUNK_FREED_REFERENCED, "a chunk goes with its last reference but one")                  \
    X(FOUND_NOT_LISTED, "a record does not say where a chunk lies that was found")             \
    X(SHRINK_KEEPS_TAIL, "a volume that shrank and grew shows what it held before")            \
    X(PARTIAL_WRITES_RACE, "two writes to parts of one block overwrite each other")            \
    X(REPLACED_KEEPS_CHUNKS, "the chunks of a replaced instance are never given back")         \
    X(OBJECT_KEEPS_CHUNKS, "the chunks of a replaced object are never given back")             \
    X(BUCKET_DELETED_FULL, "a bucket goes as empty that was given an object meanwhile")        \
    X(COMPACT_NOT_SYNCED, "compaction switches to copies that are written and not durable")    \
    X(MOVE_COUNTED_TWICE, "a moved chunk is still counted where it was")                       \
    X(HOLE_INHERITS, "a block zeroed after a snapshot shows what the snapshot has")            \
    X(MERGE_OVERRIDES, "a deleted snapshot's blocks replace those written after it")           \
    X(MERGE_UNDRAINED, "a deleted snapshot is gone before its small writes are drained")       \
    X(GROUP_APART, "each snapshot of a group is a record of its own")                          \
    X(CLONE_UNCOUNTED, "a clone does not count as a child of its snapshot's map")              \
    X(REBUILD_SKIPS_GONE, "what has columns on a drive that is given up is not rebuilt")       \
    X(REBUILD_SKIPS_OPEN, "segments that are still open are not rebuilt")                      \
    X(FULL_PUTS_OUT, "a drive is put out because the file system under it is full")            \
    X(OLDEST_ELECTED, "of the drives' superblocks the oldest is believed")                     \
    X(SCRUB_TRUSTS_DATA, "scrub makes parity fit the data columns, whatever they hold")        \
    X(SCRUB_WRONG_COLUMN, "scrub writes a column over the one beside it")                      \
    X(STUCK_BUF_REUSED, "the buffer of a write that hangs is used again")                      \
    X(HANG_WAITED, "a drive that hangs is waited for")                                         \
    X(LEAVES_WITH_DATA, "a leaving drive is let go with data on it")                           \
    X(LEAVES_UNFLUSHED, "a leaving drive is let go before the KV store has forgotten it")      \
    X(LEAVING_TAKES, "new segments are put on a drive that is leaving")                        \
    X(MIRROR_NOT_COPIED, "the journal goes to another mirror without what it holds")           \
    X(REBUILD_FORGETS, "a rebuild takes a segment for done that has a column on a lost drive") \
    X(IMAGE_SKIPPED, "the journal is trimmed without a copy of the metadata, untold")          \
    X(IMAGE_NOT_SYNCED, "the metadata's copy is named before it is durable")                   \
    X(IMAGE_TRIMMED_PAST, "the journal is trimmed past what the metadata's copy has")          \
    X(IMAGE_KEEPS_DELETED, "the metadata's copy does not learn of deleted rows")               \
    X(IMAGE_FORGETS, "after a start the metadata's copy lacks what changed before")            \
    X(IMAGE_BASE_TORN, "rows that change while the copy's base is written are lost to it")     \
    X(IMAGE_PIECE_FORGOTTEN, "the index of a run of the copy lacks its second piece")

enum plant {
    PLANT_NONE,
#define PLANT_ROW_(name, text) PLANT_##name,
    PLANT_TABLE(PLANT_ROW_)
#undef PLANT_ROW_
        PLANT_COUNT
};

#ifdef FILMROOM_PLANTS
extern enum plant plant_active; /* the test's */
#define PLANTED(name) (plant_active == PLANT_##name)
#else
#define PLANTED(name) 0
#endif
