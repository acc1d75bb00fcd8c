/* SPDX-License-Identifier: Apache-2.0 */
/* Inner products of int8 vectors, accumulated in int32: the inner loops of CE_CONV2D and CE_DENSE.
 *
 * The writer of the blob proves |bias| + 128 * sum |w| < 2^31, so no partial sum in any order overflows: order and
 * width are free, and the results are the same bits with and without the DSP extension. Blocks of four outputs, because
 * an operand that is loaded once serves two or four products. Vectors need no alignment.
 */
#ifndef CE_DOT_H
#define CE_DOT_H

#include <stdint.h>

#if defined(__GNUC__) && defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_UNALIGNED) && !defined(CE_PORTABLE)
#define CE_DOT_DSP 1
#else
#define CE_DOT_DSP 0
#endif

#if CE_DOT_DSP

/* Four int8 as two pairs of int16: elements 0 and 2, elements 1 and 3. */
typedef struct {
    int32_t even;
    int32_t odd;
} ce_quad;

static inline int32_t ce_load_bytes(const int8_t *p)
{
    int32_t bytes;
    /* Not memcpy: freestanding compilers leave that a call. */
    __builtin_memcpy(&bytes, p, 4);
    return bytes;
}

static inline ce_quad ce_split(int32_t bytes)
{
    ce_quad q;
    __asm__("sxtb16 %0, %1" : "=r"(q.even) : "r"(bytes));
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(q.odd) : "r"(bytes));
    return q;
}

static inline ce_quad ce_load_quad(const int8_t *p)
{
    return ce_split(ce_load_bytes(p));
}

static inline int32_t ce_mac_quad(ce_quad a, ce_quad b, int32_t acc)
{
    __asm__("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(a.even), "r"(b.even));
    __asm__("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(a.odd), "r"(b.odd));
    return acc;
}

#endif

/* acc[0] += w0.x0, acc[1] += w0.x1, acc[2] += w1.x0, acc[3] += w1.x1.
 * w0, w1, x0, x1 int8 [n], acc int32 [4] */
static inline void ce_dot_2x2(const int8_t *w0, const int8_t *w1, const int8_t *x0, const int8_t *x1, int32_t n,
                              int32_t *acc)
{
    int32_t a00 = acc[0], a01 = acc[1], a10 = acc[2], a11 = acc[3];
    int32_t i = 0;
#if CE_DOT_DSP
    for (; i + 4 <= n; i += 4) {
        const ce_quad x0q = ce_load_quad(x0 + i), x1q = ce_load_quad(x1 + i);
        ce_quad w = ce_load_quad(w0 + i);
        a00 = ce_mac_quad(w, x0q, a00);
        a01 = ce_mac_quad(w, x1q, a01);
        w = ce_load_quad(w1 + i);
        a10 = ce_mac_quad(w, x0q, a10);
        a11 = ce_mac_quad(w, x1q, a11);
    }
#endif
    for (; i < n; i++) {
        a00 += w0[i] * x0[i];
        a01 += w0[i] * x1[i];
        a10 += w1[i] * x0[i];
        a11 += w1[i] * x1[i];
    }
    acc[0] = a00;
    acc[1] = a01;
    acc[2] = a10;
    acc[3] = a11;
}

/* acc[k] += w_k.x, where w_k begins k * step after w.
 * w int8 [3 * step + n], x int8 [n], acc int32 [4] */
static inline void ce_dot_4x1(const int8_t *w, int32_t step, const int8_t *x, int32_t n, int32_t *acc)
{
    const int8_t *const w1 = w + step, *const w2 = w1 + step, *const w3 = w2 + step;
    int32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
    int32_t i = 0;
#if CE_DOT_DSP
    for (; i + 4 <= n; i += 4) {
        const ce_quad xq = ce_load_quad(x + i);
        a0 = ce_mac_quad(ce_load_quad(w + i), xq, a0);
        a1 = ce_mac_quad(ce_load_quad(w1 + i), xq, a1);
        a2 = ce_mac_quad(ce_load_quad(w2 + i), xq, a2);
        a3 = ce_mac_quad(ce_load_quad(w3 + i), xq, a3);
    }
#endif
    for (; i < n; i++) {
        const int32_t v = x[i];
        a0 += w[i] * v;
        a1 += w1[i] * v;
        a2 += w2[i] * v;
        a3 += w3[i] * v;
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

/* acc + w.x for w, x int8 [n]. */
static inline int32_t ce_dot(const int8_t *w, const int8_t *x, int32_t n, int32_t acc)
{
    int32_t i = 0;
#if CE_DOT_DSP
    for (; i + 4 <= n; i += 4) {
        acc = ce_mac_quad(ce_load_quad(w + i), ce_load_quad(x + i), acc);
    }
#endif
    for (; i < n; i++) {
        acc += w[i] * x[i];
    }
    return acc;
}

/* acc[k] += w_k.x for k < rows, rows in [1, 4], where w_k begins k * step after w. Arguments as ce_dot_4x1. */
static inline void ce_dot_rows(const int8_t *w, int32_t step, int32_t rows, const int8_t *x, int32_t n, int32_t *acc)
{
    if (rows == 4) {
        ce_dot_4x1(w, step, x, n, acc);
        return;
    }
    for (int32_t k = 0; k < rows; k++) {
        acc[k] = ce_dot(w + k * step, x, n, acc[k]);
    }
}

/* Sum of w int8 [n]. */
static inline int32_t ce_sum(const int8_t *w, int32_t n)
{
    int32_t total = 0;
    for (int32_t i = 0; i < n; i++) {
        total += w[i];
    }
    return total;
}

#endif
