/* What the DICOM front door decides; see core.h. */
#include "proto/dimse/core.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"

bool dimse_is_storage(const char *uid)
{
    static const char root[] = "1.2.840.10008.5.1.4.1.1.";
    /* Storage classes that lie elsewhere. */
    static const char *const others[] = {
        "1.2.840.10008.5.1.4.34.7",  /* RT Beams Delivery Instruction */
        "1.2.840.10008.5.1.4.34.10", /* RT Brachy Application Setup Delivery Instruction */
        "1.2.840.10008.5.1.4.38.1",  /* Hanging Protocol */
        "1.2.840.10008.5.1.4.39.1",  /* Color Palette */
        "1.2.840.10008.5.1.4.43.1",  /* Generic Implant Template */
        "1.2.840.10008.5.1.4.44.1",  /* Implant Assembly Template */
        "1.2.840.10008.5.1.4.45.1",  /* Implant Template Group */
        "1.2.840.10008.5.1.1.27",    /* Stored Print (retired) */
        "1.2.840.10008.5.1.1.29",    /* Hardcopy Grayscale Image (retired) */
        "1.2.840.10008.5.1.1.30",    /* Hardcopy Color Image (retired) */
    };

    if (strncmp(uid, root, sizeof(root) - 1) == 0)
        return true;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (strcmp(uid, others[i]) == 0)
            return true;
    }
    return false;
}

bool dimse_takes_class(const char *uid, bool strict)
{
    static const char standard[] = "1.2.840.10008.";

    if (!dcm_uid_valid(uid))
        return false;
    if (strcmp(uid, DIMSE_VERIFICATION) == 0 || dimse_is_storage(uid))
        return true;
    return !strict && strncmp(uid, standard, sizeof(standard) - 1) != 0;
}

static bool dimse_is_plain(const char *syntax)
{
    return strcmp(syntax, "1.2.840.10008.1.2") == 0 || strcmp(syntax, "1.2.840.10008.1.2.1") == 0 ||
           strcmp(syntax, "1.2.840.10008.1.2.2") == 0;
}

int dimse_choose(const char *abstract_syntax, const char *const *syntaxes, unsigned count,
                 bool strict)
{
    bool verification = strcmp(abstract_syntax, DIMSE_VERIFICATION) == 0;

    if (!dimse_takes_class(abstract_syntax, strict))
        return -2;
    for (unsigned i = 0; i < count; i++) {
        if (verification ? dimse_is_plain(syntaxes[i]) : dcm_uid_valid(syntaxes[i]))
            return (int)i;
    }
    return -1;
}

static uint16_t dimse_code(int rc)
{
    switch (rc) {
    case ERR_NOSPC:
    case ERR_NOMEM:
    case ERR_OVERLOAD:
    case ERR_AGAIN:
    case ERR_TOOBIG:
    case ERR_SHUTDOWN:
    case ERR_READONLY:
        return 0xa700; /* refused: out of resources */
    case ERR_DICOM_MISMATCH:
    case ERR_DICOM_NO_UID:
    case ERR_DICOM_UID:
        return 0xa900; /* error: data set does not match SOP class */
    case ERR_CONFLICT:
        return 0x0111; /* duplicate SOP instance */
    case ERR_DICOM:
    case ERR_TRUNCATED:
        return 0xc000; /* error: cannot understand */
    default:
        return rc < 0 ? 0x0110 /* processing failure */ : 0;
    }
}

struct scp_status dimse_status(int rc)
{
    struct scp_status st = {.code = dimse_code(rc)};

    if (rc < 0)
        snprintf(st.comment, sizeof(st.comment), "%s", err_text(rc));
    return st;
}

static const char *dimse_aet_trim(const char *s, size_t *ret_len)
{
    size_t n;

    while (*s == ' ')
        s++;
    n = strlen(s);
    while (n > 0 && s[n - 1] == ' ')
        n--;
    *ret_len = n;
    return s;
}

bool dimse_same_aet(const char *a, const char *b)
{
    size_t na, nb;

    a = dimse_aet_trim(a, &na);
    b = dimse_aet_trim(b, &nb);
    return na == nb && memcmp(a, b, na) == 0;
}
