/* Files of the io_uring env.
 *
 * READ, WRITE, SYNC, TRIM and RESERVE go through the ring; what the ring does not do everywhere
 * (open, mkdir, unlink, resize, the slow forms of TRIM) runs on the lane for blocking system calls.
 * The bookkeeping of an operation lives in the private part of the caller's struct env_io: nothing
 * is allocated.
 *
 * Short transfers are completed by asking for the rest. A direct read that ends off a 512-byte
 * border has met the end of the file; to ask for the rest there would only give EINVAL.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"

#define FILE_MOVE_MAX  (1u << 30) /* of one sqe */
#define FILE_ZERO_UNIT (256u * 1024)

struct uring_file {
    struct env_file base;
    struct uring *uring;
    int fd;
    bool direct;  /* the file system does it */
    bool aligned; /* it was asked for */
    bool readonly;
    bool forsaken;  /* its last operation closes it */
    unsigned asked; /* operations started and not ended */
    struct uring_share share;
};

struct uring_io {
    union {
        struct uring_op op;
        struct env_task task;
    } u;
    size_t moved;
} __attribute__((may_alias));

_Static_assert(sizeof(struct uring_io) <= sizeof(((struct env_io *)0)->private_),
               "an operation's bookkeeping fits in the caller's struct");

static struct uring_io *uring_io_of(struct env_io *io)
{
    return (struct uring_io *)io->private_;
}

static struct env_io *env_io_of(struct uring_op *op)
{
    return (struct env_io *)(void *)((char *)op - offsetof(struct env_io, private_));
}

static struct uring_file *uring_file_of(struct env_io *io)
{
    return (struct uring_file *)io->file;
}

/* ---- Operations in the ring ---------------------------------------------------------------------
 */

static void file_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct env_io *io = env_io_of(op);
    struct uring_file *f = uring_file_of(io);
    size_t moved = uring_io_of(io)->moved, left = io->len - moved;
    unsigned n = left > FILE_MOVE_MAX ? FILE_MOVE_MAX : (unsigned)left;

    switch (io->kind) {
    case ENV_READ:
        io_uring_prep_read(sqe, f->fd, (char *)io->buf + moved, n, io->off + moved);
        break;
    case ENV_WRITE:
        io_uring_prep_write(sqe, f->fd, (char *)io->buf + moved, n, io->off + moved);
        if (io->dsync)
            sqe->rw_flags = RWF_DSYNC;
        break;
    case ENV_SYNC:
        io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
        break;
    case ENV_TRIM:
        io_uring_prep_fallocate(sqe, f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)io->off, (off_t)io->len);
        break;
    case ENV_RESERVE:
        io_uring_prep_fallocate(sqe, f->fd, FALLOC_FL_KEEP_SIZE, (off_t)io->off, (off_t)io->len);
        break;
    case ENV_RESIZE:
        check_fail(__FILE__, __LINE__, "not an operation of the ring");
    }
}

static void file_nop_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    (void)op;
    io_uring_prep_nop(sqe);
}

static void file_free(struct uring_file *f)
{
    close(f->fd);
    mem_free(f);
}

static void file_end(struct env_io *io, int64_t result)
{
    struct uring_file *f = uring_file_of(io);
    struct uring *u = f->uring;
    bool last = --f->asked == 0 && f->forsaken;

    io->result = result;
    u->asked--;
    u->forsaken -= f->forsaken;
    uring_file_done(u, &f->share);
    io->done(io);
    if (last)
        file_free(f);
}

static void file_nop_done(struct uring_op *op, int res)
{
    struct env_io *io = env_io_of(op);

    (void)res;
    file_end(io, io->result);
}

static int file_size_fd(int fd, uint64_t *ret_size)
{
    struct stat st;
    uint64_t size;

    if (fstat(fd, &st) < 0)
        return err_from_errno(errno);
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(fd, BLKGETSIZE64, &size) < 0)
            return err_from_errno(errno);
    } else {
        size = (uint64_t)st.st_size;
    }
    *ret_size = size;
    return 0;
}

/* True when there is nothing more to ask for. */
static bool file_moved(struct env_io *io, int res)
{
    struct uring_io *p = uring_io_of(io);

    p->moved += (size_t)res;
    if (p->moved >= io->len)
        return true;
    if (io->kind == ENV_WRITE)
        return false;
    return res == 0 || (uring_file_of(io)->direct && p->moved % 512);
}

static void file_trim_slowly(struct env_io *io);

/* A disk that was pulled out answers writes with "no space", since the kernel has made it one of no
 * bytes. That of a device with its size is true: it is a thin one. */
static bool file_is_gone(struct env_io *io, int res)
{
    int fd = uring_file_of(io)->fd;
    uint64_t size;
    struct stat st;

    return res == -ENOSPC && io->kind == ENV_WRITE && fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) &&
           (file_size_fd(fd, &size) < 0 || size < io->off + io->len);
}

static void file_done(struct uring_op *op, int res)
{
    struct env_io *io = env_io_of(op);

    if (res == -EINTR || res == -EAGAIN) {
        uring_submit(uring_file_of(io)->uring, op);
        return;
    }
    if (res < 0) {
        if (io->kind == ENV_TRIM && res == -EOPNOTSUPP)
            file_trim_slowly(io);
        else if (io->kind == ENV_RESERVE && (res == -EOPNOTSUPP || res == -ENODEV))
            file_end(io, 0); /* a device, or a file system that cannot: nothing to reserve */
        else
            file_end(io, file_is_gone(io, res) ? ERR_IO : err_from_errno(-res));
        return;
    }
    if (io->kind != ENV_READ && io->kind != ENV_WRITE) {
        file_end(io, 0);
        return;
    }
    if (io->kind == ENV_WRITE && res == 0 && io->len > 0) {
        file_end(io, ERR_IO);
        return;
    }
    if (file_moved(io, res))
        file_end(io, (int64_t)uring_io_of(io)->moved);
    else
        uring_submit(uring_file_of(io)->uring, op);
}

/* ---- Operations on the lane ---------------------------------------------------------------------
 */

static void file_lane_done(void *arg)
{
    struct env_io *io = arg;

    file_end(io, io->result);
}

static void file_to_lane(struct env_io *io, void (*fn)(void *arg))
{
    struct uring_io *p = uring_io_of(io);

    p->u.task =
        (struct env_task){.fn = fn, .done = file_lane_done, .arg = io, .lane = URING_LANE_SYS};
    uring_offload(io->file->env, &p->u.task);
}

static void file_resize_fn(void *arg)
{
    struct env_io *io = arg;

    io->result = 0;
    if (ftruncate(uring_file_of(io)->fd, (off_t)io->off) < 0)
        io->result = err_from_errno(errno);
}

static int file_write_zeroes(int fd, uint64_t off, uint64_t end)
{
    MEM_AUTO char *zeroes = mem_alloc_aligned(4096, FILE_ZERO_UNIT);

    memset(zeroes, 0, FILE_ZERO_UNIT);
    while (off < end) {
        size_t n = end - off < FILE_ZERO_UNIT ? (size_t)(end - off) : FILE_ZERO_UNIT;
        ssize_t put = pwrite(fd, zeroes, n, (off_t)off);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? err_from_errno(errno) : ERR_IO;
        off += (uint64_t)put;
    }
    return 0;
}

/* No holes here: let the file system or the drive write zeroes, or write them. */
static void file_trim_fn(void *arg)
{
    struct env_io *io = arg;
    int fd = uring_file_of(io)->fd;
    uint64_t size = 0, end = io->off + io->len;

    io->result = 0;
    if (fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)io->off, (off_t)io->len) ==
        0)
        return;
    io->result = file_size_fd(fd, &size);
    if (io->result == 0)
        io->result = file_write_zeroes(fd, io->off, end < size ? end : size);
}

static void file_trim_slowly(struct env_io *io)
{
    file_to_lane(io, file_trim_fn);
}

/* ---- The vtable ---------------------------------------------------------------------------------
 */

static void file_start(struct env_file *file, struct env_io *io)
{
    struct uring_file *f = (struct uring_file *)file;
    struct uring_io *p = uring_io_of(io);
    int r = env_io_check(io, f->aligned, f->readonly);

    f->asked++;
    f->uring->asked++;
    p->moved = 0;
    if (r < 0 || (io->len == 0 && io->kind != ENV_SYNC && io->kind != ENV_RESIZE)) {
        io->result = r;
        p->u.op = (struct uring_op){.prep = file_nop_prep, .fn = file_nop_done};
        uring_submit_file(f->uring, &f->share, &p->u.op);
        return;
    }
    if (io->kind == ENV_RESIZE) {
        /* The lane has a queue of its own; only file_end counts these back. */
        f->uring->file_ops++;
        f->share.taken++;
        file_to_lane(io, file_resize_fn);
        return;
    }
    p->u.op = (struct uring_op){.prep = file_prep, .fn = file_done};
    uring_submit_file(f->uring, &f->share, &p->u.op);
}

static int file_size(struct env_file *file, uint64_t *ret_size)
{
    return file_size_fd(((struct uring_file *)file)->fd, ret_size);
}

/* Does direct I/O on this file reach the device itself, in place? ext4 says so by statx (not with
 * data=journal); of other file systems we do not know. */
static bool file_in_place(int fd)
{
#ifdef STATX_DIOALIGN
    struct statfs fs;
    struct statx sx;

    return fstatfs(fd, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC &&
           statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
           (sx.stx_mask & STATX_DIOALIGN) && sx.stx_dio_offset_align != 0;
#else
    (void)fd;
    return false;
#endif
}

/* The device: what fdatasync ends with is a flush of all of its cache. */
static uint64_t file_cache(struct env_file *file)
{
    const struct uring_file *f = (struct uring_file *)file;
    struct stat st;

    if (!f->direct || fstat(f->fd, &st) < 0)
        return 0;
    if (S_ISBLK(st.st_mode))
        return st.st_rdev + 1;
    return S_ISREG(st.st_mode) && file_in_place(f->fd) ? st.st_dev + 1 : 0;
}

static void file_close(struct env_file *file)
{
    struct uring_file *f = (struct uring_file *)file;

    CHECK(f->asked == 0);
    file_free(f);
}

/* The lock on the file stays as well until the last operation is answered, even when the process is
 * gone by then: it belongs to the open file, which a request in the kernel keeps. */
static void file_forsake(struct env_file *file)
{
    struct uring_file *f = (struct uring_file *)file;

    if (f->asked == 0) {
        file_free(f);
        return;
    }
    f->forsaken = true;
    f->uring->forsaken += f->asked;
}

static const struct env_file_ops file_ops = {.start = file_start,
                                             .size = file_size,
                                             .close = file_close,
                                             .forsake = file_forsake,
                                             .cache = file_cache};

/* ---- Opening and names, on the lane -------------------------------------------------------------
 */

struct file_job {
    const char *path;
    unsigned flags;
    int result, fd;
    bool direct;
};

/* The directory entry of `path` is durable when its directory has been synced. */
static int file_sync_parent(const char *path)
{
    MEM_AUTO char *dir = mem_strdup(path);
    char *slash = strrchr(dir, '/');
    int fd, r = 0;

    if (slash == dir)
        slash[1] = '\0';
    else if (slash)
        *slash = '\0';
    fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(errno);
    if (fsync(fd) < 0 && errno != EINVAL) /* EINVAL: this file system has nothing to sync */
        r = err_from_errno(errno);
    close(fd);
    return r;
}

static int file_open_flags(const struct file_job *j)
{
    int flags = O_CLOEXEC | (j->flags & ENV_OPEN_RDONLY ? O_RDONLY : O_RDWR);
    struct stat st;

    if (stat(j->path, &st) == 0 && S_ISBLK(st.st_mode)) {
        /* For a device O_EXCL means: not while it is mounted or a part of something else. */
        if (j->flags & ENV_OPEN_LOCK)
            flags |= O_EXCL;
        return flags;
    }
    if (j->flags & ENV_OPEN_CREATE)
        flags |= O_CREAT;
    if (j->flags & ENV_OPEN_EXCL)
        flags |= O_EXCL;
    return flags;
}

static int file_open_fd(struct file_job *j)
{
    int flags = file_open_flags(j);

    j->fd = open(j->path, flags, 0600);
    if (j->fd < 0)
        return errno == EBUSY ? ERR_LOCKED : err_from_errno(errno);
    if ((j->flags & ENV_OPEN_LOCK) && flock(j->fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? ERR_LOCKED : err_from_errno(errno);
    /* Set afterwards because open itself would create the file and then fail where the file system
     * knows no direct I/O (tmpfs); there we go through the page cache. */
    if (j->flags & ENV_OPEN_DIRECT) {
        int set = fcntl(j->fd, F_GETFL);

        j->direct = set >= 0 && fcntl(j->fd, F_SETFL, set | O_DIRECT) == 0;
    }
    return flags & O_CREAT ? file_sync_parent(j->path) : 0;
}

static void file_open_fn(void *arg)
{
    struct file_job *j = arg;

    j->result = file_open_fd(j);
    if (j->result < 0 && j->fd >= 0)
        close(j->fd);
}

int uring_open(struct env *env, const char *path, unsigned flags, struct env_file **ret_file)
{
    struct file_job j = {.path = path, .flags = flags, .fd = -1};
    struct uring_file *f;

    env_offload(env, (enum env_lane)URING_LANE_SYS, file_open_fn, &j);
    if (j.result < 0)
        return j.result;
    f = mem_zalloc(sizeof(*f));
    f->base = (struct env_file){.ops = &file_ops, .env = env};
    f->uring = uring_of(env);
    f->fd = j.fd;
    f->direct = j.direct;
    f->aligned = flags & ENV_OPEN_DIRECT;
    f->readonly = flags & ENV_OPEN_RDONLY;
    uring_ops_init(&f->share.waiting);
    *ret_file = &f->base;
    return 0;
}

static void file_mkdir_fn(void *arg)
{
    struct file_job *j = arg;
    struct stat st;

    if (mkdir(j->path, 0700) == 0)
        j->result = file_sync_parent(j->path);
    else if (errno != EEXIST)
        j->result = err_from_errno(errno);
    else if (stat(j->path, &st) < 0 || !S_ISDIR(st.st_mode))
        j->result = ERR_EXIST;
}

int uring_mkdir(struct env *env, const char *path)
{
    struct file_job j = {.path = path};

    env_offload(env, (enum env_lane)URING_LANE_SYS, file_mkdir_fn, &j);
    return j.result;
}

static void file_unlink_fn(void *arg)
{
    struct file_job *j = arg;

    j->result = unlink(j->path) < 0 ? err_from_errno(errno) : file_sync_parent(j->path);
}

int uring_unlink(struct env *env, const char *path)
{
    struct file_job j = {.path = path};

    env_offload(env, (enum env_lane)URING_LANE_SYS, file_unlink_fn, &j);
    return j.result;
}

/* Two names; the directory that is made durable is the new one's, which is the old one's too or
 * keeps a name that nobody asks for. */
struct file_rename {
    const char *from, *to;
    int result;
};

static void file_rename_fn(void *arg)
{
    struct file_rename *j = arg;

    j->result = rename(j->from, j->to) < 0 ? err_from_errno(errno) : file_sync_parent(j->to);
}

int uring_rename(struct env *env, const char *from, const char *to)
{
    struct file_rename j = {.from = from, .to = to};

    env_offload(env, (enum env_lane)URING_LANE_SYS, file_rename_fn, &j);
    return j.result;
}
