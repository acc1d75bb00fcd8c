/* SPDX-License-Identifier: Apache-2.0 */
/* How the program ends, and where its memory comes from. */
#ifndef CE_VERIFY_SAY_H
#define CE_VERIFY_SAY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define CE_LAST(position) __attribute__((noreturn, format(printf, position, position + 1)))
#else
#define CE_LAST(position)
#endif

enum { CE_ACCEPTED = 0, CE_REJECTED = 1, CE_UNUSABLE = 2 };

/* The proof is not right: says so, and ends the program with CE_REJECTED. */
CE_LAST(1) void ce_reject(const char *format, ...);

/* Model or proof cannot be judged here: says so, and ends the program with CE_UNUSABLE. */
CE_LAST(1) void ce_refuse(const char *format, ...);

/* Which record messages speak of from here on. */
void ce_now_at(uint64_t record, uint32_t sample);

/* Zeroed memory for count elements of `size` bytes, never NULL; it is given back when the program ends. */
void *ce_memory(size_t count, size_t size);

#endif
