/* Is a disk blank? See blank.h. */
#include "lib/store/blank.h"

#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/err.h"
#include "lib/rt/env.h"
#include "lib/store/drive_priv.h"

const char *blank_signature(const uint8_t *p, size_t n)
{
    static const struct {
        size_t at;
        const char *bytes, *name;
    } known[] = {
        {0, "LUKS", "a LUKS volume"},
        {0, "XFSB", "an XFS file system"},
        {512, "LABELONE", "an LVM volume"},
        {512, "EFI PART", "a partition table"},
        {0x438, "\x53\xef", "an ext file system"},
        {0x10040, "_BHRfS_M", "a btrfs file system"},
        {4086, "SWAPSPACE2", "swap space"},
        {3, "NTFS    ", "an NTFS file system"},
        {4096, "\xfc\x4e\x2b\xa9", "an md RAID member"},
        {510, "\x55\xaa", "a partition table"},
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        size_t len = strlen(known[i].bytes);

        if (known[i].at + len <= n && memcmp(p + known[i].at, known[i].bytes, len) == 0)
            return known[i].name;
    }
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return "something (it does not begin and end with zeroes)";
    return NULL;
}

uint64_t blank_last(uint64_t size)
{
    return (size - BLANK_LOOK) & ~(uint64_t)(FORMAT_UNIT - 1);
}

static int file_look(struct env_file *f, const uint8_t *ours, const char **ret_what)
{
    struct format_super super;
    struct buf *b;
    uint64_t size;
    const char *what = NULL;
    int rc = env_file_size(f, &size);

    if (rc < 0 || size == 0)
        return rc;
    if (size < FORMAT_JOURNAL_OFF || size < BLANK_LOOK) {
        *ret_what = "a small file";
        return ERR_NOTEMPTY;
    }
    if (drive_super_read(f, &super) == 0)
        return drive_super_begun(&super, ours) ? 0 : ERR_EXIST;
    b = buf_new(BLANK_LOOK);
    for (unsigned i = 0; rc == 0 && !what && i < 2; i++) {
        rc = env_pread(f, b->data, BLANK_LOOK, i ? blank_last(size) : 0);
        if (rc == 0)
            what = blank_signature(b->data, BLANK_LOOK);
    }
    buf_unref(b);
    if (rc == 0 && what) {
        *ret_what = what;
        return ERR_NOTEMPTY;
    }
    return rc;
}

int blank_look(struct env *env, const char *path, const uint8_t *ours, const char **ret_what)
{
    struct env_file *f;
    int rc = env_open(env, path, ENV_OPEN_RDONLY | ENV_OPEN_DIRECT, &f);

    if (rc == ERR_NOENT)
        return strncmp(path, "/dev/", 5) == 0 ? ERR_NOENT : 0;
    if (rc < 0)
        return rc;
    rc = file_look(f, ours, ret_what);
    env_close(f);
    return rc;
}
