/* The one error table.
 *
 * Functions that can fail return 0 (or a count) on success and a negative ERR_* code on failure;
 * their out-parameters, named `ret_*`, are untouched on failure. Library code returns errors, the
 * program logs each once. Every code has a name for logs, an errno for protocols that speak errno
 * (NBD, iSCSI sense tables start from it) and a text that tells a person what to do.
 *
 * Add a row where a caller must act differently or a person must be told something else.
 */
#pragma once

/*        name            errno          text */
#define ERR_TABLE(X)                                                                             \
    X(INVAL, EINVAL, "the request is not valid")                                                 \
    X(RANGE, EINVAL, "the range lies outside the object")                                        \
    X(NAME, EINVAL, "the name is not valid: use letters, digits, '.', '_' and '-', at most 200") \
    X(NOENT, ENOENT, "no such object")                                                           \
    X(EXIST, EEXIST, "an object of that name exists already")                                    \
    X(BUSY, EBUSY, "the object is in use: close its clients first")                              \
    X(SNAPSHOTS, EBUSY, "the volume has snapshots: delete them first")                           \
    X(SPREAD, EINVAL, "the volumes lie in different partitions: take a snapshot of each")        \
    X(DEPTH, EMLINK, "too many snapshots build on each other: delete some of them first")        \
    X(NOSPC, ENOSPC, "no space left in the store: delete data or add drives")                    \
    X(NOMEM, ENOMEM, "the memory budget is used up: try again with less at once")                \
    X(IO, EIO, "a drive or the system returned an I/O error")                                    \
    X(CORRUPT, EIO, "the data read does not match its checksum")                                 \
    X(LOST, EIO, "too many drives are gone or damaged to rebuild this data")                     \
    X(FORMAT, EIO, "what is on the medium is not in a format this version reads")                \
    X(JOURNAL, EIO, "the journal has a hole before its end: acknowledged data may be missing")   \
    X(READONLY, EROFS, "the object is read-only")                                                \
    X(TIMEDOUT, ETIMEDOUT, "the operation took too long")                                        \
    X(CANCELED, ECANCELED, "the operation was cancelled")                                        \
    X(AGAIN, EAGAIN, "not now: try again")                                                       \
    X(OVERLOAD, EAGAIN, "a limit on concurrent work was reached: try again later")               \
    X(SHUTDOWN, ESHUTDOWN, "the service is stopping")                                            \
    X(CLOSED, EPIPE, "the peer closed the connection")                                           \
    X(ADDR, EADDRINUSE, "cannot listen on that address: is another daemon running?")             \
    X(PERM, EPERM, "the operation is not permitted")                                             \
    X(PROTO, EPROTO, "the peer broke the protocol")                                              \
    X(TRUNCATED, EPROTO, "the input ends too early")                                             \
    X(TOOBIG, EMSGSIZE, "the input is larger than the limit")                                    \
    X(UNSUPPORTED, ENOTSUP, "not supported")                                                     \
    X(CONFIG, EINVAL, "the configuration is not valid")                                          \
    X(LOCKED, EBUSY, "the store is in use by another daemon")                                    \
    X(KV, EIO, "the metadata store failed")                                                      \
    X(CODEC, EIO, "a compression library failed")                                                \
    X(DICOM, EBADMSG, "not a readable DICOM object")                                             \
    X(DICOM_NO_UID, EBADMSG, "the DICOM object lacks a Study, Series or SOP Instance UID")       \
    X(DICOM_UID, EBADMSG, "a DICOM UID is not valid")                                            \
    X(DICOM_MISMATCH, EBADMSG, "the DICOM object is not the one that was announced")             \
    X(CONFLICT, EEXIST, "an instance with this SOP Instance UID and other content is stored")    \
    X(NOTEMPTY, ENOTEMPTY, "the bucket has objects: delete them first")                          \
    X(CONDITION, EEXIST, "the object is not as the condition says: look at it again")

enum err_code {
    ERR_OK_ = 0,
#define ERR_ROW_(name, no, text) ERR_POS_##name,
    ERR_TABLE(ERR_ROW_)
#undef ERR_ROW_
        ERR_COUNT_,
#define ERR_ROW_(name, no, text) ERR_##name = -ERR_POS_##name,
    ERR_TABLE(ERR_ROW_)
#undef ERR_ROW_
};

/* Name of the code, as in "NOSPC"; "OK" for 0 and above, "UNKNOWN" for what is not in the table. */
const char *err_name(int code);

/* One sentence for a person. */
const char *err_text(int code);

/* The positive errno nearest to the code; 0 for 0 and above. */
int err_errno(int code);

/* The ERR_* code nearest to a positive errno. */
int err_from_errno(int no);
