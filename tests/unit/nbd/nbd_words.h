/* nbd_words: NBD byte streams written in words, for tests.
 *
 * `OPT`, `REP`, `REQ`, `CHUNK` stand for the magics, `OK` and `BAD` for a simple reply's magic with
 * and without error 0; qN dN wN are big-endian integers of 64, 32 and 16 bits (decimal, or hex with
 * 0x); 'text' is itself; z:N is N zero bytes and f:N is N bytes of 0x5a. When matching, `ERR opt
 * code` is an option's error and `ERRC cookie error` an error chunk, with whatever text they carry.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "lib/base/codec.h"
#include "lib/base/strbuf.h"

void nbd_words_build(struct strbuf *s, const char *words);
void nbd_words_match(struct codec_reader *r, const char *words); /* asserts */
void nbd_words_match_all(const struct strbuf *out, const char *words);
