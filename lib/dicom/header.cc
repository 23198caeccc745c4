/* Headers as DCMTK data sets: reading, values, DICOM JSON, the catalogue's attributes.
 *
 * Bytes pass through the walk (walk.c) before DCMTK sees them, so what DCMTK reads is sound in
 * structure and bounded in depth and number. Every entry catches all exceptions; DCMTK throws
 * std::bad_alloc at most, but a promise is a promise.
 *
 * JSON is written by an own walk over the data set, not by DcmDataset::writeJson. That one (3.6.7)
 * converts no character sets by itself, fails the whole object for a NaN or a malformed number, has
 * no size limit for inline values nor a way to name a value inside a sequence, and writes Specific
 * Character Set as it was. Here each element becomes its text first (the same text that the
 * catalogue keeps) and dcm_attr_json makes JSON of that.
 *
 * A wrong letter in a name is no reason to lose a study: what a character set cannot explain
 * becomes U+FFFD (charset.c). Attributes of VR UN that a dictionary knows as strings or numbers are
 * read as what they are (PS3.5 section 6.2.2); for private ones of implicit VR streams that is the
 * rule, and DCMTK's private dictionary tells, by private creator. It is kept apart from the one
 * that DCMTK itself parses by (walk.c says why).
 */
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

#include <dcmtk/config/osconfig.h>
#include <dcmtk/dcmdata/dctk.h>
#include <dcmtk/dcmdata/dcistrmb.h>
#include <dcmtk/dcmdata/dcistrmz.h>
#include <dcmtk/oflog/oflog.h>

extern "C" {
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
}
#include "lib/dicom/impl.h"

namespace
{

const size_t inline_max = 1024;        /* bytes of a binary value in JSON */
const size_t numbers_max = 64 * 1024;  /* bytes of a numeric value in JSON */
const size_t attr_max = 4 * 1024;      /* text of a catalogue attribute */
const size_t sequence_max = 16 * 1024; /* ... of a sequence */
const size_t charset_term_max = 256;   /* Specific Character Set, all its values */
const size_t charsets_max = 16;        /* different ones in a data set; iconv handles are dear */

/* Text that frees itself, thrown past or not. */
struct Text {
    struct strbuf s = {};
    ~Text()
    {
        strbuf_free(&s);
    }
    const char *c_str()
    {
        strbuf_room(&s, 0);
        return s.data;
    }
};

/* ---- Character sets --------------------------------------------------------------------- */

struct CharsetFree {
    void operator()(struct dcm_charset *cs) const
    {
        dcm_charset_free(cs);
    }
};

/* The character sets of a data set by the value of Specific Character Set: items may have their
 * own. */
class Charsets
{
  public:
    /* NULL: nothing to convert. Valid until the next call. */
    struct dcm_charset *find(const std::string &term)
    {
        if (term.empty() || term.size() > charset_term_max || term == "ISO_IR 192")
            return nullptr;
        auto it = known.find(term);
        if (it == known.end()) {
            if (known.size() >= charsets_max)
                known.clear();
            it = known.emplace(term, dcm_charset_new(term.c_str())).first;
        }
        return it->second.get();
    }

  private:
    std::map<std::string, std::unique_ptr<struct dcm_charset, CharsetFree>> known;
};

bool plain(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)p[i] >= 0x80 || p[i] == 0x1b)
            return false;
    }
    return true;
}

} // namespace

struct dcm_header {
    DcmDataset dataset;
    std::string transfer_syntax;
    mutable Charsets charsets;
};

namespace
{

/* ---- The dictionary --------------------------------------------------------------------- */

/* DCMTK's name for a VR of its own making ("ox", "xs") is one that the standard has. */
void vr_name(DcmEVR evr, char out[3])
{
    const char *name = DcmVR(evr).getValidVRName();

    if (evr == EVR_UNKNOWN || evr == EVR_UNKNOWN2B || !name || strlen(name) != 2 || name[0] < 'A' ||
        name[0] > 'Z' || name[1] < 'A' || name[1] > 'Z')
        name = "UN";
    memcpy(out, name, 3);
}

DcmTagKey key_of(uint32_t tag)
{
    return DcmTagKey((Uint16)(tag >> 16), (Uint16)(tag & 0xffff));
}

uint32_t tag_of(const DcmTagKey &key)
{
    return (uint32_t)key.getGroup() << 16 | key.getElement();
}

bool dictionary_vr(uint32_t tag, DcmEVR *ret_evr)
{
    const DcmDataDictionary &dict = dcmDataDict.rdlock();
    const DcmDictEntry *entry = dict.findEntry(key_of(tag), nullptr);

    if (entry)
        *ret_evr = entry->getEVR();
    dcmDataDict.rdunlock();
    return entry != nullptr;
}

extern "C" char walk_dictionary(uint32_t tag)
{
    DcmEVR evr;

    if (!dictionary_vr(tag, &evr) || evr == EVR_UN || evr == EVR_UNKNOWN)
        return 'U';
    return evr == EVR_SQ ? 'S' : 'O';
}

/* Entries of the default path: the standard's dictionary, then the private one. */
std::string dictionary_path(int which)
{
    std::string paths = DCM_DICT_DEFAULT_PATH;
    size_t colon = paths.find(':');

    if (which == 0)
        return paths.substr(0, colon);
    return colon == std::string::npos ? "" : paths.substr(colon + 1, paths.find(':', colon + 1));
}

const DcmDataDictionary *private_dictionary; /* set once, by dcm_init; NULL: none installed */

/* The private creators of one item's current group, noted while its elements go by in order. */
class Creators
{
  public:
    void note(DcmElement &e);
    const char *of(uint32_t tag) const
    {
        return tag >> 16 == group && (tag & 0xffff) >= 0x1000 && !names.empty() &&
                       !names[tag >> 8 & 0xff].empty()
                   ? names[tag >> 8 & 0xff].c_str()
                   : nullptr;
    }

  private:
    uint32_t group = 0;
    std::vector<std::string> names;
};

/* ---- Values ----------------------------------------------------------------------------- */

/* Bytes of the value, without copying it; nested encapsulated Pixel Data counts as empty. */
size_t element_size(DcmElement &e)
{
    Uint32 n = e.getLengthField();

    return n == DCM_UndefinedLength ? 0 : n;
}

bool element_bytes(DcmElement &e, std::vector<char> &out)
{
    size_t n = element_size(e);

    out.resize(n);
    return n == 0 || e.getPartialValue(out.data(), 0, (Uint32)n, nullptr, EBO_LittleEndian).good();
}

/* The text of an element that has one. */
bool element_text(DcmElement &e, const char *vr, struct dcm_charset *cs, struct strbuf *out)
{
    enum dcm_vr_kind kind = dcm_vr_kind(vr);
    std::vector<char> bytes;

    if (kind == DCM_VR_BINARY || kind == DCM_VR_SEQUENCE || !element_bytes(e, bytes))
        return false;
    size_t n = bytes.size();
    if (kind == DCM_VR_NUMBER) {
        dcm_text_numbers(vr, (const uint8_t *)bytes.data(), n, out);
        return true;
    }
    while (n > 0 && (bytes[n - 1] == 0 || bytes[n - 1] == ' '))
        n--;
    if (cs && kind != DCM_VR_STRINGS && n > 0 && !plain(bytes.data(), n)) {
        Text to;

        dcm_charset_convert(cs, vr, bytes.data(), n, &to.s);
        dcm_text_strings(vr, to.c_str(), to.s.len, out);
    } else {
        dcm_text_strings(vr, bytes.data(), n, out);
    }
    return true;
}

void Creators::note(DcmElement &e)
{
    uint32_t tag = tag_of(e.getTag());
    Text text;

    if (!(tag & 0x10000) || (tag & 0xffff) < 0x10 || (tag & 0xffff) > 0xff || element_size(e) > 64)
        return;
    if (tag >> 16 != group) {
        group = tag >> 16;
        names.assign(256, "");
    }
    if (element_text(e, "LO", nullptr, &text.s))
        names[tag & 0xff] = text.c_str();
}

/* An element's VR; that of a dictionary where it is UN. */
void element_vr(DcmElement &e, const Creators *creators, char out[3])
{
    uint32_t tag = tag_of(e.getTag());
    DcmEVR evr = EVR_UN;
    char known[3];

    vr_name(e.getVR(), out);
    if (strcmp(out, "UN") != 0 || e.ident() == EVR_SQ)
        return;
    if (!(tag & 0x10000)) {
        dictionary_vr(tag, &evr);
    } else if ((tag & 0xffff) >= 0x10 && (tag & 0xffff) <= 0xff) {
        evr = EVR_LO; /* a private creator (PS3.5 section 7.8.1) */
    } else if (private_dictionary && creators && creators->of(tag)) {
        const DcmDictEntry *entry = private_dictionary->findEntry(e.getTag(), creators->of(tag));

        evr = entry ? entry->getEVR() : EVR_UN;
    }
    vr_name(evr, known);
    if (dcm_vr_kind(known) != DCM_VR_SEQUENCE && dcm_vr_kind(known) != DCM_VR_BINARY)
        memcpy(out, known, 3);
}

/* The value of Specific Character Set in the item; `outer` when the item has none. */
std::string charset_term(DcmItem &item, const std::string &outer)
{
    DcmElement *e = nullptr;
    std::string term = outer;
    Text text;

    if (item.findAndGetElement(key_of(DCM_TAG_CHARSET), e).good() && e &&
        element_size(*e) <= charset_term_max && element_text(*e, "CS", nullptr, &text.s))
        term = text.c_str();
    return term;
}

/* ---- JSON ------------------------------------------------------------------------------- */

struct JsonContext {
    const dcm_header *header;
    bool bulk; /* there is a place for BulkDataURI to point to */
    struct strbuf *out;
};

void item_json(const JsonContext &c, DcmItem &item, const std::string &path,
               const std::string &outer_term, const std::string &inserted, uint32_t inserted_tag);

void sequence_values(const JsonContext &c, DcmSequenceOfItems &sq, const std::string &path,
                     const std::string &term)
{
    DcmObject *obj = nullptr;
    unsigned number = 0;

    strbuf_addc(c.out, '[');
    while ((obj = sq.nextInContainer(obj))) {
        if (number++)
            strbuf_addc(c.out, ',');
        item_json(c, *static_cast<DcmItem *>(obj), path + "/" + std::to_string(number), term, "",
                  0);
    }
    strbuf_addc(c.out, ']');
}

void bulk_uri(const JsonContext &c, const std::string &path)
{
    if (!c.bulk)
        return;
    strbuf_adds(c.out, ",\"BulkDataURI\":");
    dcm_json_string(path.data(), path.size(), c.out);
}

void binary_value(const JsonContext &c, DcmElement &e, const std::string &path)
{
    std::vector<char> bytes;
    size_t n = element_size(e);

    if (n == 0)
        return;
    if (n > inline_max) {
        bulk_uri(c, path);
    } else if (element_bytes(e, bytes)) {
        strbuf_adds(c.out, ",\"InlineBinary\":\"");
        dcm_json_base64((const uint8_t *)bytes.data(), n, c.out);
        strbuf_addc(c.out, '"');
    }
}

void attribute_json(const JsonContext &c, DcmElement &e, const Creators &creators,
                    const std::string &path, const std::string &term)
{
    uint32_t tag = tag_of(e.getTag());
    char vr[3];

    element_vr(e, &creators, vr);
    enum dcm_vr_kind kind = e.ident() == EVR_SQ ? DCM_VR_SEQUENCE : dcm_vr_kind(vr);
    if (tag == DCM_TAG_CHARSET) {
        struct object_attr utf8 = {tag, "CS", 10, "ISO_IR 192"};

        dcm_attr_json(&utf8, c.out);
    } else if (kind == DCM_VR_SEQUENCE || kind == DCM_VR_BINARY ||
               (kind == DCM_VR_NUMBER && element_size(e) > numbers_max)) {
        dcm_json_name(tag, kind == DCM_VR_SEQUENCE ? "SQ" : vr, c.out);
        if (kind == DCM_VR_NUMBER) {
            bulk_uri(c, path);
        } else if (kind == DCM_VR_BINARY) {
            binary_value(c, e, path);
        } else if (static_cast<DcmSequenceOfItems &>(e).card() > 0) {
            strbuf_adds(c.out, ",\"Value\":");
            sequence_values(c, static_cast<DcmSequenceOfItems &>(e), path, term);
        }
        strbuf_addc(c.out, '}');
    } else {
        Text text;

        element_text(e, vr, c.header->charsets.find(term), &text.s);
        struct object_attr a = {tag, {vr[0], vr[1], 0}, (uint32_t)text.s.len, text.c_str()};
        dcm_attr_json(&a, c.out);
    }
}

/* An item as a JSON object, with one ready-made attribute put in at its place. */
void item_json(const JsonContext &c, DcmItem &item, const std::string &path,
               const std::string &outer_term, const std::string &inserted, uint32_t inserted_tag)
{
    std::string term = charset_term(item, outer_term);
    DcmObject *obj = nullptr;
    bool pending = !inserted.empty();
    Creators creators;
    char sep = '{';

    while ((obj = item.nextInContainer(obj))) {
        DcmElement &e = *static_cast<DcmElement *>(obj);
        uint32_t tag = tag_of(e.getTag());
        char name[16];

        if ((tag & 0xffff) == 0 || tag >> 16 == 0 || tag >> 16 == 2 ||
            (tag == inserted_tag && !inserted.empty()))
            continue;
        creators.note(e);
        if (pending && tag > inserted_tag) {
            strbuf_addc(c.out, sep);
            strbuf_adds(c.out, inserted.c_str());
            sep = ',';
            pending = false;
        }
        strbuf_addc(c.out, sep);
        sep = ',';
        snprintf(name, sizeof(name), "/%08X", tag);
        attribute_json(c, e, creators, path + name, term);
    }
    if (pending) {
        strbuf_addc(c.out, sep);
        strbuf_adds(c.out, inserted.c_str());
        sep = ',';
    }
    strbuf_adds(c.out, sep == '{' ? "{}" : "}");
}

/* Pixel Data, which the parsed bytes end before. OW is the rule of PS3.5 section 8.2 and annex A
 * for native data, save cells of up to 8 bits in explicit VR, where senders use both. */
void pixels_json(const dcm_header &h, const char *bulk_base, struct strbuf *out)
{
    bool native =
        h.transfer_syntax == "1.2.840.10008.1.2" || h.transfer_syntax == "1.2.840.10008.1.2.1" ||
        h.transfer_syntax == "1.2.840.10008.1.2.2" || h.transfer_syntax == "1.2.840.10008.1.2.1.99";
    std::string uri = std::string(bulk_base) + "/7FE00010";

    if (out->len && out->data[out->len - 1] == '}') {
        out->data[--out->len] = 0;
        if (out->data[out->len - 1] != '{')
            strbuf_addc(out, ',');
    }
    dcm_json_name(DCM_TAG_PIXELS, native ? "OW" : "OB", out);
    strbuf_adds(out, ",\"BulkDataURI\":");
    dcm_json_string(uri.data(), uri.size(), out);
    strbuf_adds(out, "}}");
}

/* ---- Reading ---------------------------------------------------------------------------- */

/* Inflates up to Pixel Data, at most OBJECT_HEADER_MAX bytes. What is broken ends it. */
void inflate(const void *p, size_t n, std::vector<char> &out)
{
    DcmInputBufferStream in;
    struct dcm_scan scan;
    char piece[16 * 1024];

    dcm_scan_init(&scan, "1.2.840.10008.1.2.1");
    in.setBuffer(p, (offile_off_t)n);
    in.setEos();
    if (in.installCompressionFilter(ESC_zlib).bad())
        return;
    while (out.size() < OBJECT_HEADER_MAX && !scan.found && !scan.end_of_use) {
        offile_off_t got = in.read(piece, sizeof(piece));

        if (got <= 0)
            return;
        out.insert(out.end(), piece, piece + dcm_scan_push(&scan, piece, (size_t)got));
    }
}

bool read_sound(dcm_header &h, const void *p, const struct dcm_walk &w)
{
    E_TransferSyntax xfer = w.implicit_vr  ? EXS_LittleEndianImplicit
                            : w.big_endian ? EXS_BigEndianExplicit
                                           : EXS_LittleEndianExplicit;
    DcmInputBufferStream in;

    in.setBuffer(p, (offile_off_t)w.good);
    in.setEos();
    h.dataset.transferInit();
    /* What DCMTK refuses half way is a data set with the elements before that. */
    (void)h.dataset.read(in, xfer, EGL_noChange);
    h.dataset.transferEnd();
    return h.dataset.card() > 0;
}

int header_parse(const void *p, size_t n, const char *transfer_syntax, dcm_header **ret_header)
{
    struct dcm_scan syntax;
    struct dcm_walk w = {};
    std::vector<char> inflated;
    auto h = std::make_unique<dcm_header>();

    if (!dcm_uid_valid(transfer_syntax))
        return ERR_DICOM_UID;
    dcm_scan_init(&syntax, transfer_syntax);
    if (syntax.deflated) {
        inflate(p, n, inflated);
        p = inflated.data();
        n = inflated.size();
    }
    if (n > OBJECT_HEADER_MAX)
        n = OBJECT_HEADER_MAX;
    w.implicit_vr = syntax.implicit_vr;
    w.big_endian = syntax.big_endian;
    w.dictionary = walk_dictionary;
    dcm_walk_run(&w, static_cast<const uint8_t *>(p), n);
    h->transfer_syntax = transfer_syntax;
    if (w.good == 0 || !read_sound(*h, p, w))
        return ERR_DICOM;
    *ret_header = h.release();
    return 0;
}

/* Text of a top-level element as the catalogue keeps it. */
bool catalog_text(const dcm_header &h, DcmElement &e, const std::string &term, struct strbuf *out,
                  char ret_vr[3])
{
    char vr[3];
    bool ok = true;

    element_vr(e, nullptr, vr);
    if (e.ident() == EVR_SQ) {
        JsonContext c = {&h, false, out};

        memcpy(vr, "SQ", 3);
        if (static_cast<DcmSequenceOfItems &>(e).card() > 0)
            sequence_values(c, static_cast<DcmSequenceOfItems &>(e), "", term);
    } else if (tag_of(e.getTag()) == DCM_TAG_CHARSET) {
        strbuf_adds(out, "ISO_IR 192");
    } else {
        ok = element_text(e, vr, h.charsets.find(term), out);
    }
    strbuf_room(out, 0);
    if (ok)
        memcpy(ret_vr, vr, 3);
    return ok;
}

/* The length that a text may keep: whole characters, and whole values where there is room for one.
 */
size_t text_cut(const struct strbuf &text, const char *vr)
{
    size_t n = attr_max;

    if (text.len <= attr_max)
        return text.len;
    if (strcmp(vr, "SQ") == 0)
        return text.len <= sequence_max ? text.len : 0;
    if (dcm_vr_kind(vr) != DCM_VR_TEXT) {
        for (size_t i = n; i > 0; i--) {
            if (text.data[i] == '\\')
                return i;
        }
    }
    while (n > 0 && (text.data[n] & 0xc0) == 0x80)
        n--;
    return n;
}

struct CatalogText {
    uint32_t tag;
    char vr[3];
    size_t off, len;
};

int header_catalog(const dcm_header &h, enum object_level level, struct object_attr **ret_attrs,
                   size_t *ret_count)
{
    DcmDataset &ds = const_cast<DcmDataset &>(h.dataset);
    const uint32_t *tags = dcm_catalog_tags(level), *tags_end = tags;
    std::string term = charset_term(ds, ""), texts;
    std::vector<CatalogText> found;
    DcmObject *obj = nullptr;
    Text text;

    while (*tags_end)
        tags_end++;
    while ((obj = ds.nextInContainer(obj))) {
        DcmElement &e = *static_cast<DcmElement *>(obj);
        CatalogText row = {tag_of(e.getTag()), "", texts.size(), 0};

        strbuf_reset(&text.s);
        if (!std::binary_search(tags, tags_end, row.tag) ||
            !catalog_text(h, e, term, &text.s, row.vr))
            continue;
        row.len = text_cut(text.s, row.vr);
        texts.append(text.c_str(), row.len);
        texts += '\0';
        found.push_back(row);
    }
    size_t head = found.size() * sizeof(struct object_attr);
    struct object_attr *attrs =
        static_cast<struct object_attr *>(mem_alloc(head + texts.size() + 1));
    char *chars = reinterpret_cast<char *>(attrs) + head;
    memcpy(chars, texts.data(), texts.size());
    for (size_t i = 0; i < found.size(); i++) {
        const CatalogText &f = found[i];

        attrs[i] = {f.tag, {f.vr[0], f.vr[1], 0}, (uint32_t)f.len, chars + f.off};
    }
    *ret_attrs = attrs;
    *ret_count = found.size();
    return 0;
}

/* ---- Paths to bulk data ----------------------------------------------------------------- */

bool hex_tag(const char *s, uint32_t *ret_tag)
{
    char text[9];
    char *end;

    for (int i = 0; i < 8; i++) {
        if (!isxdigit((unsigned char)s[i]))
            return false;
        text[i] = s[i];
    }
    text[8] = 0;
    *ret_tag = (uint32_t)strtoul(text, &end, 16);
    return true;
}

bool header_bulk(const dcm_header &h, const char *path, struct strbuf *out, char ret_vr[3])
{
    DcmItem *item = const_cast<DcmDataset *>(&h.dataset);
    uint32_t tag;

    for (int depth = 0; depth <= DCM_WALK_DEPTH_MAX && hex_tag(path, &tag); depth++) {
        DcmElement *e = nullptr;
        char vr[3], *end;

        path += 8;
        if (item->findAndGetElement(key_of(tag), e).bad() || !e)
            return false;
        if (*path == 0) {
            std::vector<char> bytes;

            element_vr(*e, nullptr, vr);
            if (e->ident() == EVR_SQ || element_size(*e) == 0 || !element_bytes(*e, bytes))
                return false;
            strbuf_add(out, bytes.data(), bytes.size());
            memcpy(ret_vr, vr, 3);
            return true;
        }
        if (*path++ != '/' || e->ident() != EVR_SQ || !isdigit((unsigned char)*path))
            return false;
        unsigned long number = strtoul(path, &end, 10);
        if (*end != '/' || number == 0 || number > static_cast<DcmSequenceOfItems *>(e)->card())
            return false;
        item = static_cast<DcmSequenceOfItems *>(e)->getItem(number - 1);
        path = end + 1;
        if (!item)
            return false;
    }
    return false;
}

} // namespace

/* ---- The C face ------------------------------------------------------------------------- */

extern "C" {

const char *dcm_dictionary_path(void)
{
    static const std::string path = dictionary_path(0);

    return path.c_str();
}

int dcm_init(void)
{
    try {
        OFLog::configure(OFLogger::OFF_LOG_LEVEL);
        DcmDataDictionary &dict = dcmDataDict.wrlock();
        dict.clear();
        bool loaded =
            dict.loadDictionary(dcm_dictionary_path()) != OFFalse && dict.numberOfEntries() > 1000;
        dcmDataDict.wrunlock();
        auto names = std::make_unique<DcmDataDictionary>(OFFalse, OFFalse);
        if (names->loadDictionary(dictionary_path(1).c_str(), OFFalse) && !private_dictionary)
            private_dictionary = names.release();
        return loaded ? 0 : ERR_DICOM;
    } catch (...) {
        return ERR_DICOM;
    }
}

int dcm_header_parse(const void *p, size_t n, const char *transfer_syntax,
                     struct dcm_header **ret_header)
{
    try {
        return header_parse(p, n, transfer_syntax, ret_header);
    } catch (...) {
        return ERR_DICOM;
    }
}

void dcm_header_free(struct dcm_header *h)
{
    delete h;
}

bool dcm_header_get(const struct dcm_header *h, uint32_t tag, struct strbuf *out, char ret_vr[3])
{
    try {
        DcmDataset &ds = const_cast<DcmDataset &>(h->dataset);
        DcmElement *e = nullptr;

        return ds.findAndGetElement(key_of(tag), e).good() && e &&
               catalog_text(*h, *e, charset_term(ds, ""), out, ret_vr);
    } catch (...) {
        return false;
    }
}

int dcm_header_catalog(const struct dcm_header *h, enum object_level level,
                       struct object_attr **ret_attrs, size_t *ret_count)
{
    try {
        return header_catalog(*h, level, ret_attrs, ret_count);
    } catch (...) {
        return ERR_DICOM;
    }
}

int dcm_header_json(const struct dcm_header *h, const char *bulk_base, bool has_pixels,
                    struct strbuf *out)
{
    try {
        JsonContext c = {h, true, out};
        Text syntax;
        struct object_attr a = {0x00083002, "UI", (uint32_t)h->transfer_syntax.size(),
                                h->transfer_syntax.c_str()};

        dcm_attr_json(&a, &syntax.s);
        item_json(c, const_cast<DcmDataset &>(h->dataset), bulk_base, "", syntax.c_str(), a.tag);
        if (has_pixels)
            pixels_json(*h, bulk_base, out);
        return out->overflow ? ERR_TOOBIG : 0;
    } catch (...) {
        return ERR_DICOM;
    }
}

bool dcm_header_bulk(const struct dcm_header *h, const char *path, struct strbuf *out,
                     char ret_vr[3])
{
    try {
        return header_bulk(*h, path, out, ret_vr);
    } catch (...) {
        return false;
    }
}

bool dcm_tag_lookup(const char *name, uint32_t *ret_tag, char ret_vr[3])
{
    try {
        DcmEVR evr = EVR_UN;
        uint32_t tag;

        if (strlen(name) == 8 && hex_tag(name, &tag)) {
            dictionary_vr(tag, &evr);
        } else {
            const DcmDataDictionary &dict = dcmDataDict.rdlock();
            const DcmDictEntry *entry = dict.findEntry(name);

            if (entry) {
                tag = tag_of(entry->getKey());
                evr = entry->getEVR();
            }
            dcmDataDict.rdunlock();
            if (!entry)
                return false;
        }
        vr_name(evr, ret_vr);
        *ret_tag = tag;
        return true;
    } catch (...) {
        return false;
    }
}

} // extern "C"
