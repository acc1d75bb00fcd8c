/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian numbers in bytes that are known to be there, and shifts that round down for every sign. */
#ifndef CE_VERIFY_BYTES_H
#define CE_VERIFY_BYTES_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data; /* [size] */
    size_t size;
} ce_bytes;

static inline uint32_t ce_u16(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static inline uint32_t ce_u32(const uint8_t *at)
{
    return ce_u16(at) | ce_u16(at + 2) << 16;
}

static inline uint64_t ce_u64(const uint8_t *at)
{
    return (uint64_t)ce_u32(at) | (uint64_t)ce_u32(at + 4) << 32;
}

static inline int32_t ce_i8(const uint8_t *at)
{
    return at[0] < 128 ? (int32_t)at[0] : (int32_t)at[0] - 256;
}

static inline int64_t ce_i32(const uint8_t *at)
{
    const int64_t found = (int64_t)ce_u32(at);
    return found < ((int64_t)1 << 31) ? found : found - ((int64_t)1 << 32);
}

/* floor(x / 2^n), n in 0..63. */
static inline int64_t ce_down(int64_t x, int n)
{
    return x >= 0 ? x >> n : ~(~x >> n);
}

/* x * 2^n, which the caller knows to fit. */
static inline int64_t ce_up(int64_t x, int n)
{
    return x * ((int64_t)1 << n);
}

static inline int64_t ce_least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t ce_most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t ce_clip(int64_t x, int64_t low, int64_t high)
{
    return ce_least(ce_most(x, low), high);
}

#endif
