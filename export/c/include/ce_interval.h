/* SPDX-License-Identifier: Apache-2.0 */
/* Boxes of int8 codes: the bounds of an inner product over low <= x <= high, and the kernels that need more for a box
 * than the plain kernel once for each end. Twin: cactus_edge/verify/interval.py. */
#ifndef CE_INTERVAL_H
#define CE_INTERVAL_H

#include <stdint.h>

#include "ce_blob.h"
#include "ce_dot.h"
#include "ce_nibble.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As ce_kernel, on two arenas of one plan: `low` holds the lower ends of every tensor, `high` the upper ones. Each end of
 * an output is attained in the box of the inputs. */
typedef void (*ce_bounds_kernel)(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high);

/* For weights of 8 and of 4 bits. */
void ce_conv2d_bounds_s8(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high);
void ce_depthwise_conv2d_bounds_s8(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high);
void ce_dense_bounds_s8(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high);

/* Bounds of an accumulator. */
typedef struct {
    int32_t least;
    int32_t most;
} ce_range;

/* `acc` and a product w * x, low <= x <= high: the end that the weight's sign points to. */
static inline ce_range ce_range_add(ce_range acc, int32_t w, int32_t low, int32_t high)
{
    acc.least += w * (w < 0 ? high : low);
    acc.most += w * (w < 0 ? low : high);
    return acc;
}

/* Bounds of bias + w.x over low <= x <= high, all int8 [n]. Every term is a weight times a code, so that no partial sum
 * overflows, for the reason in ce_dot.h. */
static inline ce_range ce_dot_box(const int8_t *w, const int8_t *low, const int8_t *high, int32_t n, int32_t bias)
{
    ce_range acc = {bias, bias};
    int32_t i = 0;
#if CE_DOT_DSP
    for (; i + 4 <= n; i += 4) {
        const int32_t bytes = ce_load_bytes(w + i);
        int32_t down, up;
        /* SADD8 sets a flag for each byte of w that is not negative, SEL takes the first operand's byte where it is set. */
        __asm__("sadd8 %0, %2, %2\n\tsel %0, %3, %4\n\tsel %1, %4, %3"
                : "=&r"(down), "=&r"(up)
                : "r"(bytes), "r"(ce_load_bytes(low + i)), "r"(ce_load_bytes(high + i))
                : "cc");
        const ce_quad weights = ce_split(bytes);
        acc.least = ce_mac_quad(weights, ce_split(down), acc.least);
        acc.most = ce_mac_quad(weights, ce_split(up), acc.most);
    }
#endif
    for (; i < n; i++) {
        acc = ce_range_add(acc, w[i], low[i], high[i]);
    }
    return acc;
}

/* The same for a row of int4 weights. */
static inline ce_range ce_dot_box_nibbles(const uint8_t *w, const int8_t *low, const int8_t *high, int32_t n, int32_t bias)
{
    ce_range acc = {bias, bias};
    for (int32_t i = 0; i < n; i++) {
        acc = ce_range_add(acc, ce_nibble(w, i), low[i], high[i]);
    }
    return acc;
}

/* Weight i of output o of a dense layer. */
static inline int32_t ce_dense_weight(const int32_t *blob, const ce_dense_record *r, int32_t o, int32_t i)
{
    if (r->kind == CE_DENSE_S4) {
        return ce_nibble((const uint8_t *)(blob + r->weight) + o * ce_nibble_row(r->in_n), i);
    }
    return ((const int8_t *)(blob + r->weight))[o * r->in_n + i];
}

/* Bounds of accumulator `o` of a dense layer. */
static inline ce_range ce_dense_range(const int32_t *blob, const ce_dense_record *r, int32_t o, const int8_t *low,
                                      const int8_t *high)
{
    if (r->kind == CE_DENSE_S4) {
        const uint8_t *const packed = (const uint8_t *)(blob + r->weight) + o * ce_nibble_row(r->in_n);
        return ce_dot_box_nibbles(packed, low + r->in, high + r->in, r->in_n, blob[r->bias + o]);
    }
    const int8_t *const weight = (const int8_t *)(blob + r->weight) + o * r->in_n;
    return ce_dot_box(weight, low + r->in, high + r->in, r->in_n, blob[r->bias + o]);
}

#ifdef __cplusplus
}
#endif

#endif
