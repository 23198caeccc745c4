/* What the files of this folder share. C and C++ both include it.
 *
 * The way of a header: walk.c finds how far the bytes are sound, header.cc has DCMTK read just that
 * and gives out values, text.c turns a value's bytes into the text of an attribute, json.c writes
 * text as DICOM JSON.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Who wrote a head or speaks on the network (PS3.7 annex D.3.3.2). The UID is from a random UUID
 * (PS3.5 section B.2). Neither ever changes: the heads of a data set stay the same bytes. */
#define DCM_IMPLEMENTATION_UID     "2.25.214585550228963209164104398881101960865"
#define DCM_IMPLEMENTATION_VERSION "FILMROOM_1"

/* ---- Element heads (scan.c) ------------------------------------------------------------- */

#define DCM_UNDEFINED        0xffffffffu
#define DCM_TAG_CHARSET      0x00080005u
#define DCM_TAG_PIXELS       0x7fe00010u
#define DCM_TAG_ITEM         0xfffee000u
#define DCM_TAG_ITEM_END     0xfffee00du
#define DCM_TAG_SEQUENCE_END 0xfffee0ddu

struct dcm_element {
    uint32_t tag, len;
    uint32_t head_len; /* 8 or 12; when more than was given, len is not known yet */
    char vr[3];        /* "" in implicit VR and for items */
};

/* Reads the element head at c, of which `have` >= 8 bytes are there. */
struct dcm_element dcm_element_read(const uint8_t *c, size_t have, bool implicit_vr,
                                    bool big_endian);

/* What the first 8 bytes of a data set say about its VR encoding, where they contradict
 * `implicit_vr` as announced by the transfer syntax. */
bool dcm_element_implicit(const uint8_t *first, bool implicit_vr, bool big_endian);

/* Is it Pixel Data, Float Pixel Data or Double Float Pixel Data? */
bool dcm_tag_is_pixels(uint32_t tag);

/* ---- Soundness (walk.c) ----------------------------------------------------------------- */

#define DCM_WALK_DEPTH_MAX    64         /* sequences and items, counted together */
#define DCM_WALK_STRAYS_MAX   64         /* elements out of order */
#define DCM_WALK_ELEMENTS_MAX (1u << 20) /* DCMTK takes some 250 bytes for each */

struct dcm_walk {
    bool implicit_vr, big_endian;     /* in: as the syntax says; out: as the bytes say */
    char (*dictionary)(uint32_t tag); /* 'S': a sequence, 'U': unknown, 'O': other */
    size_t good;    /* out: bytes up to the end of the last sound top-level element */
    unsigned count; /* out: elements in it, items counted too */
};

/* Walks the elements up to Pixel Data, the end, or the first one that is broken or cut off. */
void dcm_walk_run(struct dcm_walk *w, const uint8_t *p, size_t n);

/* ---- Association requests (rq.c) ------------------------------------------------------- */

/* Checks an A-ASSOCIATE-RQ PDU of n bytes (its type aside) and cuts out, in place, what is of no
 * concern to us. Returns the bytes left; 0: malformed. */
size_t dcm_rq_clean(uint8_t *p, size_t n);

/* ---- Command sets (command.c) ---------------------------------------------------------- */

#define DCM_COMMAND_UID_MAX     64
#define DCM_COMMAND_NO_DATA_SET 0x0101
#define DCM_COMMAND_C_STORE     0x0001
#define DCM_COMMAND_C_ECHO      0x0030

struct dcm_command {
    uint16_t field, message_id, data_set_type;
    char sop_class[DCM_COMMAND_UID_MAX + 1], sop_instance[DCM_COMMAND_UID_MAX + 1]; /* or "" */
};

/* False: not a command set. */
bool dcm_command_parse(const uint8_t *p, size_t n, struct dcm_command *ret_command);

/* Appends the response to a request; comment: "" for none. */
void dcm_command_respond(const struct dcm_command *request, uint16_t status, const char *comment,
                         struct strbuf *out);

/* ---- Values (text.c) -------------------------------------------------------------------- */

enum dcm_vr_kind {
    DCM_VR_BINARY,  /* OB and the like, UN: no text */
    DCM_VR_NUMBER,  /* fixed-width numbers and AT */
    DCM_VR_STRINGS, /* several values, ASCII */
    DCM_VR_LOCAL,   /* several values in the data set's character set: LO PN SH UC */
    DCM_VR_TEXT,    /* one value in the data set's character set: LT ST UT; UR as well (ASCII) */
    DCM_VR_SEQUENCE,
};
enum dcm_vr_kind dcm_vr_kind(const char *vr);

/* Appends numbers, from little-endian bytes, as decimal text joined by '\'; AT as 8 hex digits. */
void dcm_text_numbers(const char *vr, const uint8_t *p, size_t n, struct strbuf *out);

/* Appends text without the padding of its values (by kind), as valid UTF-8 without NULs: what is
 * not UTF-8 becomes U+FFFD. */
void dcm_text_strings(const char *vr, const char *p, size_t n, struct strbuf *out);

/* Bytes of the valid UTF-8 sequence at p (RFC 3629 section 4), n > 0; 0 when there is none. */
size_t dcm_text_utf8(const uint8_t *p, size_t n);

/* Appends text as valid UTF-8 without NULs, in the same way. */
void dcm_text_clean(const char *p, size_t n, struct strbuf *out);

/* ---- Character sets (charset.c) --------------------------------------------------------- */

struct dcm_charset;

/* `terms`: the value of Specific Character Set; what it does not know counts as ASCII. Never fails.
 */
struct dcm_charset *dcm_charset_new(const char *terms);
void dcm_charset_free(struct dcm_charset *cs); /* NULL is fine */

/* Appends the text as UTF-8, save that bytes for which no set was announced stay as they are. */
void dcm_charset_convert(struct dcm_charset *cs, const char *vr, const char *p, size_t n,
                         struct strbuf *out);

/* ---- JSON (json.c) ---------------------------------------------------------------------- */

void dcm_json_name(uint32_t tag, const char *vr, struct strbuf *out); /* "GGGGEEEE":{"vr":"XX" */
void dcm_json_base64(const uint8_t *p, size_t n, struct strbuf *out);

#ifdef __cplusplus
}
#endif
