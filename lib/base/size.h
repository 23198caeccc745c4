/* Sizes as people write and read them: binary units, "10G", "512 MiB". */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SIZE_TEXT_MAX 24 /* bytes of a formatted size, with the NUL */

/* A whole number and a unit: nothing or B (bytes), K, M, G, T, P, E, each also as "KiB" and so on,
 * in any case, a space between allowed. "KB" and its like are refused, since they mean 1000 to
 * some. ERR_INVAL for anything else, ERR_RANGE over 2^63 - 1. */
int size_parse(const char *text, uint64_t *ret_bytes);

/* "0 B", "4096 B" below 10 KiB, then "12.5 KiB", "64 GiB": three digits at most, rounded down, so
 * that what is free never looks larger than it is. Returns buf. */
const char *size_format(uint64_t bytes, char buf[SIZE_TEXT_MAX]);

/* As size_parse takes it back without loss: "64G", "1536M", "4097". Returns buf. */
const char *size_format_exact(uint64_t bytes, char buf[SIZE_TEXT_MAX]);
