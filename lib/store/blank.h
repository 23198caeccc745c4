/* Is a disk blank? What is to become a drive is looked at first: a wrong path in the settings must
 * not cost anybody a file system. Blank is what begins and ends with a mebibyte of zeroes.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct env;

#define BLANK_LOOK (1u << 20) /* bytes at both ends that are looked at */

/* Names what these bytes, from the beginning or the end of a disk, are of; NULL: of nothing. The
 * text is constant. What is not known by name is found all the same. */
const char *blank_signature(const uint8_t *p, size_t n);
/* Where the last part of a disk of that size, at least BLANK_LOOK, begins. */
uint64_t blank_last(uint64_t size);

/* Looks at what is under a path. 0: it is blank, or a file that does not exist yet, or is empty; or
 * a drive that driveset_format has begun for the store of the UUID `ours` (NULL: none), and that
 * no start of it has used. ERR_EXIST: another drive of a Filmroom store. ERR_NOTEMPTY: something
 * else, *ret_what says what. ERR_NOENT: a device (a path below /dev/) that is not there. Errors of
 * opening and reading. Suspends. */
int blank_look(struct env *env, const char *path, const uint8_t *ours, const char **ret_what);
