/* DICOM data sets, by DCMTK, behind a C face.
 *
 * The .cc files of this folder are the project's only C++: no C++ type or exception crosses this
 * header. Nothing here touches an env: parsing is work for the cpu lane or a protocol thread, and
 * all functions are thread-safe on distinct objects. Inputs are untrusted: any byte string gives a
 * result or an error, never a crash.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/object.h"
#include "lib/base/strbuf.h"

#define DCM_UID_MAX 64

/* Starts DCMTK's globals (dictionary, logging turned down). Once, before anything else; any thread
 * that does not matter. ERR_DICOM when the data dictionary cannot be loaded. */
int dcm_init(void);

/* The file that dcm_init reads, for the message when it fails. */
const char *dcm_dictionary_path(void);

/* ---- The Part 10 head (PS3.10 section 7.1) ---------------------------------------------- */

struct dcm_head {
    size_t dataset_off; /* preamble, prefix and file meta information: bytes before the data set */
    char transfer_syntax[DCM_UID_MAX + 1];
    char sop_class[DCM_UID_MAX + 1],
        sop_instance[DCM_UID_MAX + 1]; /* as the meta says; may be "" */
};

/* Parses the head from the first n bytes of a stream. ERR_AGAIN: more bytes are needed; ERR_DICOM:
 * not a Part 10 stream (no "DICM" at 128, broken or oversized meta, no transfer syntax). Written in
 * C over the checked codec: it runs on every ingested byte stream before DCMTK sees it. */
int dcm_head_parse(const void *p, size_t n, struct dcm_head *ret_head);

/* Makes the head for a bare data set received over the network: preamble, prefix, and group 2 with
 * version, SOP class and instance, transfer syntax, implementation class UID and version name, and
 * the sender's AE title (0002,0016), in explicit VR little endian. The same input gives the same
 * bytes. ERR_DICOM_UID when a UID is not valid. */
int dcm_head_make(const char *sop_class, const char *sop_instance, const char *transfer_syntax,
                  const char *sender_aet, struct strbuf *out);

/* Is the text a valid UID: 1..64 of digits and dots, no empty component (PS3.5 section 9.1; leading
 * zeroes of a component are tolerated, senders make them). */
bool dcm_uid_valid(const char *uid);

/* ---- Where Pixel Data lies -------------------------------------------------------------- */

/* A push parser over the data set that finds the top-level Pixel Data (7FE0,0010) (or Float/Double
 * Float Pixel Data) without building anything: explicit and implicit VR, both byte orders,
 * sequences of defined and undefined length skipped. Pure C, no allocation, resumable at any byte.
 * It decides only how a stream is cut for deduplication, never its content. */
struct dcm_scan {
    bool implicit_vr, big_endian, deflated;
    uint64_t pos;              /* bytes consumed so far */
    int state;                 /* private */
    uint8_t carry[16];         /* private: an element head split over two pushes */
    uint32_t carry_len, depth; /* private */
    uint32_t un_depth, tag;    /* private */
    uint64_t skip;             /* private */
    /* Results, valid once found: */
    bool found, encapsulated, end_of_use; /* end_of_use: nothing (more) can be found */
    uint64_t pixel_off; /* data set offset of the value (after its element head) */
    uint64_t pixel_len; /* value length; UINT64_MAX when undefined */
    uint32_t rows, columns, samples, bits_allocated, frames; /* 0 where absent */
};
void dcm_scan_init(struct dcm_scan *s, const char *transfer_syntax);
/* Consumes up to n bytes; returns the bytes consumed, which is less than n only when Pixel Data was
 * found (the scan stops at pixel_off) or end_of_use was set. */
size_t dcm_scan_push(struct dcm_scan *s, const void *p, size_t n);

/* ---- The header as a data set ----------------------------------------------------------- */

struct dcm_header;

/* Parses a data set's bytes up to Pixel Data (or all of it when there is none; what follows Pixel
 * Data is not seen). The bytes may end anywhere after the last complete element. Deflated syntaxes
 * are inflated (bounded by OBJECT_HEADER_MAX). ERR_DICOM. */
int dcm_header_parse(const void *p, size_t n, const char *transfer_syntax,
                     struct dcm_header **ret_header);
void dcm_header_free(struct dcm_header *h); /* NULL is fine */

/* Text of a top-level attribute as struct object_attr describes it, converted to UTF-8 from the
 * data set's character set, padding trimmed. False when it is absent. */
bool dcm_header_get(const struct dcm_header *h, uint32_t tag, struct strbuf *out, char ret_vr[3]);

/* The attributes that the catalogue keeps for a level (dcm_catalog_tags), those present, in tag
 * order, as one allocation that the caller frees with mem_free. */
int dcm_header_catalog(const struct dcm_header *h, enum object_level level,
                       struct object_attr **ret_attrs, size_t *ret_count);

/* Tags that the catalogue keeps from the data set at a level: the required and the usual ones of
 * QIDO-RS (PS3.18 section 10.6.3) and C-FIND (PS3.4 section C.6). Zero-terminated. */
const uint32_t *dcm_catalog_tags(enum object_level level);

/* The whole header as one DICOM JSON object (PS3.18 annex F), strings in UTF-8. Binary values over
 * a small size, and Pixel Data when `has_pixels`, become BulkDataURI under `bulk_base`
 * ("<bulk_base>/7FE00010"). The group 2 elements are left out, as the standard asks; the transfer
 * syntax goes in as AvailableTransferSyntaxUID (0008,3002). */
int dcm_header_json(const struct dcm_header *h, const char *bulk_base, bool has_pixels,
                    struct strbuf *out);

/* The value that a BulkDataURI of dcm_header_json stands for: `path` is what follows
 * "<bulk_base>/", tags as 8 hex digits with item numbers (from 1) between them
 * ("54000100/1/54001010"). Bytes are little-endian whatever the data set's syntax. False: no such
 * value. Pixel Data is not here. */
bool dcm_header_bulk(const struct dcm_header *h, const char *path, struct strbuf *out,
                     char ret_vr[3]);

/* ---- DICOM JSON for rows ---------------------------------------------------------------- */

/* Appends `"GGGGEEEE":{"vr":"..","Value":[...]}` for an attribute (PS3.18 section F.2). */
void dcm_attr_json(const struct object_attr *a, struct strbuf *out);

/* Appends a JSON string literal: quoted, escaped; invalid UTF-8 becomes U+FFFD. */
void dcm_json_string(const char *s, size_t n, struct strbuf *out);

/* Tag and VR of a keyword ("PatientName") or of an 8-digit hex tag ("00100010"; "UN" when the
 * dictionary lacks it). False: neither. */
bool dcm_tag_lookup(const char *name, uint32_t *ret_tag, char ret_vr[3]);
