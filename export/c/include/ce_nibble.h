/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of int4 weights, two to a byte (ce_blob.h), times int8 vectors: the inner loops of the kinds that end in _S4.
 * What ce_dot.h says of sums holds here: a weight is smaller, no partial sum larger. */
#ifndef CE_NIBBLE_H
#define CE_NIBBLE_H

#include <stdint.h>

#include "ce_dot.h"

/* Bytes of a row of n. */
static inline int32_t ce_nibble_row(int32_t n)
{
    return (n + 1) / 2;
}

/* Weight i of a row. */
static inline int32_t ce_nibble(const uint8_t *row, int32_t i)
{
    return (int32_t)(((uint32_t)row[i >> 1] >> (i % 2 ? 4 : 0) & 15u) ^ 8u) - 8;
}

#if CE_DOT_DSP

/* Weights 0 to 3 of the two bytes at p, as ce_load_quad has int8 ones. */
static inline ce_quad ce_load_nibbles(const uint8_t *p)
{
    const uint32_t eight = 0x00080008u, low = 0x000F000Fu;
    const uint32_t bytes = p[0] | (uint32_t)p[1] << 16;
    ce_quad q;
    __asm__("ssub16 %0, %1, %2" : "=r"(q.even) : "r"((bytes & low) ^ eight), "r"(eight));
    __asm__("ssub16 %0, %1, %2" : "=r"(q.odd) : "r"((bytes >> 4 & low) ^ eight), "r"(eight));
    return q;
}

#endif

/* acc + w.x for w int4 [n], x int8 [n]. */
static inline int32_t ce_dot_nibbles(const uint8_t *w, const int8_t *x, int32_t n, int32_t acc)
{
    int32_t i = 0;
#if CE_DOT_DSP
    for (; i + 4 <= n; i += 4, w += 2) {
        acc = ce_mac_quad(ce_load_nibbles(w), ce_load_quad(x + i), acc);
    }
#endif
    for (; i + 2 <= n; i += 2, w++) {
        acc += ce_nibble(w, 0) * x[i];
        acc += ce_nibble(w, 1) * x[i + 1];
    }
    return i < n ? acc + ce_nibble(w, 0) * x[i] : acc;
}

#endif
