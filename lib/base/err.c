/* The error table's rows as data: names, texts, errno both ways. */
#include "lib/base/err.h"

#include <errno.h>
#include <stddef.h>

static const struct err_row {
    const char *name;
    int no;
    const char *text;
} err_rows[] = {{"OK", 0, "success"},
#define ERR_ROW_(name, no, text) {#name, no, text},
                ERR_TABLE(ERR_ROW_)
#undef ERR_ROW_
};

static const struct err_row *err_find(int code)
{
    static const struct err_row unknown = {"UNKNOWN", EIO, "unknown error"};

    if (code >= 0)
        return &err_rows[0];
    if (code <= -(int)ERR_COUNT_)
        return &unknown;
    return &err_rows[-code];
}

const char *err_name(int code)
{
    return err_find(code)->name;
}

const char *err_text(int code)
{
    return err_find(code)->text;
}

int err_errno(int code)
{
    return err_find(code)->no;
}

int err_from_errno(int no)
{
    switch (no) {
    case 0:
        return 0;
    case EPIPE:
    case ECONNRESET:
    case ECONNABORTED:
    case ENOTCONN:
        return ERR_CLOSED;
    case EACCES:
        return ERR_PERM;
    case EDQUOT:
        return ERR_NOSPC;
    case EAGAIN:
        return ERR_AGAIN;
    case EIO:
        return ERR_IO;
    case EINVAL:
        return ERR_INVAL;
    default:
        break;
    }
    for (size_t i = 1; i < sizeof(err_rows) / sizeof(err_rows[0]); i++)
        if (err_rows[i].no == no)
            return -(int)i;
    return ERR_IO;
}
