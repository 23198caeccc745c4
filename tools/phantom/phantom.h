/* filmroom-phantom makes DICOM series that look, weigh and compress like real ones, without any
 * DICOM library, so that tests have known input that no part of Filmroom had a hand in.
 *
 * The same options give the same bytes, on any machine: all numbers come from the seed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

#define PHANTOM_UID_MAX  64 /* PS3.5 section 9.1 */
#define PHANTOM_SIDE_MAX 4096
#define PHANTOM_MAKER    "FILMROOM_PHANTOM" /* implementation version name, 16 characters at most */

/* ---- Numbers: numbers.c ------------------------------------------------------------------------
 */

struct rng {
    uint64_t state;
};

/* A stream of its own for every (seed, topic, index). */
struct rng rng_for(uint64_t seed, const char *topic, uint64_t index);
uint64_t rng_next(struct rng *r);
double rng_unit(struct rng *r); /* 0 <= x < 1 */

/* A UID under 2.25 (PS3.5 annex B.2) made from the next 128 bits of r. */
void rng_uid(struct rng *r, char ret_uid[PHANTOM_UID_MAX + 1]);

/* The 64-bit FNV-1a hash of n bytes, continued from h (start with HASH_START). */
#define HASH_START 0xcbf29ce484222325ull
uint64_t hash_bytes(uint64_t h, const void *p, size_t n);

/* ---- Pictures: image.c -------------------------------------------------------------------------
 */

enum modality { MODALITY_CT, MODALITY_MR };

struct image_spec {
    enum modality modality;
    uint32_t rows, columns; /* 1..PHANTOM_SIDE_MAX */
    uint32_t slices;
    uint64_t seed; /* of the study: one body per seed */
};

/* Draws slice `index` into rows * columns samples of 12 bits. */
void image_draw(const struct image_spec *spec, uint32_t index, uint16_t *pixels);

/* ---- Part 10 files: part10.c
 * --------------------------------------------------------------------- */

/* What a slice's header says. Texts are ASCII and at most 64 characters. */
struct slice {
    const struct image_spec *image;
    uint32_t index;
    const char *patient_id, *patient_name, *accession;
    char study_date[9], study_time[7];
    char study_uid[PHANTOM_UID_MAX + 1], series_uid[PHANTOM_UID_MAX + 1];
    char instance_uid[PHANTOM_UID_MAX + 1], frame_uid[PHANTOM_UID_MAX + 1];
};

/* Appends the whole file: preamble, meta, data set in explicit VR little endian, with the pixels.
 */
void part10_write(const struct slice *s, const uint16_t *pixels, struct strbuf *out);

/* Appends one explicit VR little endian element (PS3.5 section 7.1.2), padded to even length. */
void part10_element(struct strbuf *out, uint32_t tag, const char vr[2], const void *value,
                    size_t n);

/* Appends preamble, prefix and group 2 (PS3.10 section 7.1). */
void part10_head(struct strbuf *out, const char *sop_class, const char *instance_uid);

/* ---- The same pixels under other names: reheader.c ----------------------------------------------
 */

/* Re-issues an explicit VR little endian file, as another patient's: new patient id, name and
 * accession number, new study, series, frame of reference and instance UIDs made from the old ones
 * and `salt`, so that files of one study stay together. Everything else, the pixels above all, is
 * copied byte for byte. False when the input is no such file. */
bool reheader(const uint8_t *in, size_t n, const char *patient_id, uint64_t salt,
              struct strbuf *out, char ret_instance_uid[PHANTOM_UID_MAX + 1]);
