/* Everything the engine puts on a drive: versioned little-endian structs and the rules they keep.
 *
 *   drive:    | superblock A | superblock B | ... | journal area | slot 0 | slot 1 | ...
 *   slot:     | fragment header | columns of stripes 0, 1, 2 ... of one segment
 *   stripe:   k data columns of L bytes (one per drive) and m parity columns; the data columns,
 *             read in order, are | stripe header | directory | chunks ... | zero padding |
 *
 * All offsets and lengths on a drive are multiples of 4096 (FORMAT_UNIT). Structs are laid out
 * without holes; the hosts we run on are little-endian (codec.h asserts it). CRCs are CRC-32C. A
 * struct's `crc` covers all its bytes with `crc` taken as zero.
 *
 * Invariants, each leaned on elsewhere by its number:
 *  F1. A superblock is valid when magic, version and crc fit. Of a drive's two copies the valid one
 *      of higher generation counts. They are written one after the other, so that one is whole.
 *  F2. Membership (which drives count, which mirror the journal) changes only with a higher epoch,
 *      written to every drive that still counts before anything relies on it. A start leaves one
 *      epoch out: a drive that is away may have that of a change that was cut short, and batches of
 *      it, and must not be believed when it is back.
 *  F3. Journal batches have consecutive sequence numbers, and batch s+1 is written only when s is
 *      durable on every mirror. Hence at most the last batch can be missing on some or all of them.
 *  F4. A batch never crosses the end of the area: it lies directly behind its predecessor, or at
 *      offset 0 when it does not fit there.
 *  F5. A stripe is durable on all of its k+m drives before a journal record names a chunk in it.
 *      Space behind the last stripe so named is free to be written again.
 *      Once named it is written again only where a column is bad, with the bytes that the others
 *      prove (segment_mend.c).
 *  F6. A slot is written by another segment only after the record that freed the former one is
 *      durable.
 *  F7. A start of the store that found the journal to end before batch s sets the fence: a batch of
 *      number s or later, and of an epoch before that start's, never counts. So what was found
 *      missing (it was torn, or its drive did not answer) cannot come back beside what took its
 *      place.
 *  F8. A place is given up (FORMAT_DRIVE_NONE) only when no segment has a column there, and the KV
 *      store and the metadata's copy have durably forgotten those that had: then no row names it,
 *      nor a record to be replayed upon either.
 *  F9. Nothing is put on a drive that was added before all drives that count know of it.
 * F10. A store is made in generation 1; a start writes a higher one before anything is
 *      stored. Each drive is claimed first: copy B in generation 0, without members, so that only
 *      its first sector is other than zero, and it is there whole or not at all. So a drive whose
 *      making was cut short is blank or has a valid superblock.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FORMAT_UNIT       4096u
#define FORMAT_DRIVES_MAX 32u
#define FORMAT_COLS_MAX   24u /* k + m */
#define FORMAT_VERSION    1u
/* Of a superblock once drives have come or gone: a version that knows nothing of that keeps off. */
#define FORMAT_VERSION_MEMBERS 2u

#define FORMAT_SUPER_MAGIC 0x726570757346u /* "Fsuper" */
#define FORMAT_SUPER_OFF_A 0u
#define FORMAT_SUPER_OFF_B (64u * 1024)
#define FORMAT_JOURNAL_OFF (1u << 20)
#define FORMAT_SLOT_SIZE   (4u << 20)
#define FORMAT_SLOT_MIN    (640u << 10) /* the largest chunk fits into half, even with one column */
#define FORMAT_SLOT_MAX    (1u << 30)

/* What the store knows of one drive. */
enum format_drive_state {
    FORMAT_DRIVE_NONE = 0, /* no drive has this place; the next one added may */
    FORMAT_DRIVE_OK = 1,
    FORMAT_DRIVE_OUT = 2,     /* missing or failed: not written; what is on it may still be read */
    FORMAT_DRIVE_LEAVING = 3, /* takes nothing new, and goes once nothing is on it (F8) */
};

struct format_member {
    uint8_t uuid[16];
    uint8_t state;  /* enum format_drive_state */
    uint8_t class_; /* 0 disk, 1 nvme */
    uint8_t out;    /* of one that is leaving, too: 1 as in FORMAT_DRIVE_OUT */
    uint8_t reserved[5];
    uint64_t slot_count;
};
_Static_assert(sizeof(struct format_member) == 32, "on media");

struct format_super {
    uint64_t magic;
    uint32_t version;
    uint32_t crc;
    uint8_t store_uuid[16];
    uint8_t drive_uuid[16];
    uint64_t generation; /* grows with every superblock written anywhere in the store */
    uint64_t epoch;      /* F2 */
    uint32_t drive_index, drive_count;
    uint8_t data_columns, parity_columns; /* the profile k+m */
    uint8_t clean;                        /* the journal holds nothing that the KV store lacks */
    uint8_t reserved0[5];
    uint64_t journal_off, journal_len;
    uint64_t slots_off, slot_size;
    uint64_t journal_mirrors; /* bit i: drive i mirrors the journal */
    /* Replay begins here: the batch of this sequence number, at this offset of the area. */
    uint64_t replay_seq, replay_off, replay_lsn;
    uint64_t fence_seq, fence_epoch; /* F7 */
    /* A clean stop's end of the journal, as the replay point may stay before it; lsn 0: it is the
     * replay point. Only for a start that finds no mirror any more. */
    uint64_t clean_seq, clean_off, clean_lsn;
    uint8_t reserved1[FORMAT_UNIT - 184 - FORMAT_DRIVES_MAX * sizeof(struct format_member)];
    struct format_member members[FORMAT_DRIVES_MAX];
};
_Static_assert(sizeof(struct format_super) == FORMAT_UNIT, "on media");
_Static_assert(offsetof(struct format_super, reserved1) == 184, "no holes");
_Static_assert(offsetof(struct format_super, reserved1) <= 512, "a claim fits into a sector (F10)");

#define FORMAT_BATCH_MAGIC 0x42724c46u /* "FLrB" */

struct format_batch {
    uint32_t magic;
    uint16_t version;
    uint16_t reserved0;
    uint32_t crc;         /* of this header */
    uint32_t payload_crc; /* of the records */
    uint64_t seq;         /* F3 */
    uint64_t epoch;
    uint64_t
        store_id; /* the first 8 bytes of the store's UUID: another store's leavings do not count */
    uint64_t first_lsn;
    uint32_t length; /* header and records; on the medium padded with zeroes to FORMAT_UNIT */
    uint32_t records;
    uint64_t reserved1;
};
_Static_assert(sizeof(struct format_batch) == 64, "on media");

struct format_record {
    uint32_t length; /* of the body; the next record starts at the next multiple of 8 */
    uint16_t type;
    uint16_t version;
    uint32_t crc; /* of this header and the body */
    uint32_t reserved;
    uint64_t lsn; /* consecutive */
    uint64_t epoch;
};
_Static_assert(sizeof(struct format_record) == 32, "on media");

/* All bytes of a batch; a journal smaller than 8 of these has an eighth of itself as its limit. */
#define FORMAT_BATCH_MAX   (6u << 20)
#define FORMAT_JOURNAL_MIN (512u * 1024)

#define FORMAT_FRAGMENT_MAGIC 0x6d67617246u /* "Fragm" */

/* The first unit of a slot in use: whose fragment this is. It serves recovery from the drives
 * alone; reads go by the segment table. */
struct format_fragment {
    uint64_t magic;
    uint32_t version;
    uint32_t crc;
    uint8_t store_uuid[16];
    uint64_t segment;
    uint8_t data_columns, parity_columns, column;
    uint8_t stream; /* segment_stream + 1; 0: not known. For who looks for some of them only */
    uint8_t reserved0[4];
    uint64_t slot_size;
    struct {
        uint32_t drive, slot;
    } columns[FORMAT_COLS_MAX];
    uint8_t reserved1[FORMAT_UNIT - 56 - FORMAT_COLS_MAX * 8];
};
_Static_assert(sizeof(struct format_fragment) == FORMAT_UNIT, "on media");

#define FORMAT_STRIPE_MAGIC 0x70727453u /* "Strp" */

/* At the front of a stripe's data: what is in it, so that segments describe themselves. */
struct format_stripe {
    uint32_t magic;
    uint16_t version;
    uint16_t reserved0;
    uint32_t crc;     /* of this header and the directory */
    uint32_t entries; /* format_stripe_entry structs that follow */
    uint64_t segment;
    uint32_t offset; /* of the stripe in its columns, in units */
    uint32_t width;  /* L, in units */
    uint64_t reserved1[4];
};
_Static_assert(sizeof(struct format_stripe) == 64, "on media");

struct format_stripe_entry {
    uint64_t chunk;
    uint32_t position; /* in the stripe's data, bytes */
    uint32_t stored, raw;
    uint32_t crc; /* of the stored bytes */
    uint8_t codec, fingerprint_algorithm;
    uint8_t reserved[6];
    uint8_t fingerprint[32];
};
_Static_assert(sizeof(struct format_stripe_entry) == 64, "on media");
