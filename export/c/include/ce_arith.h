/* SPDX-License-Identifier: Apache-2.0 */
/* Exact integer primitives of TFLite's reference kernels: gemmlowp/fixedpoint/fixedpoint.h and
 * tensorflow/lite/kernels/internal/common.h. Python twin: cactus_edge/ir/arith.py. */
#ifndef CE_ARITH_H
#define CE_ARITH_H

#include <stdint.h>

#if (-1 >> 1) != -1
#error "cactus-edge needs arithmetic right shifts of negative numbers (every compiler for two's complement has them)"
#endif

/* SRDHM(a, b) = floor((a * b + 2^30) / 2^31), ties upwards; INT32_MAX for a = b = INT32_MIN.
 * Twins: vqrdmulh (NEON), vqrdmulhq (MVE). */
static inline int32_t ce_srdhm(int32_t a, int32_t b)
{
    if (a == INT32_MIN && b == INT32_MIN) {
        return INT32_MAX;
    }
    return (int32_t)(((int64_t)a * b + (INT64_C(1) << 30)) >> 31);
}

/* RDP(x, e) = x / 2^e rounded to nearest, ties away from zero. e in [0, 31]. */
static inline int32_t ce_rdp(int32_t x, int32_t e)
{
    const int32_t mask = (int32_t)((UINT32_C(1) << e) - 1u);
    const int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
    return (x >> e) + ((x & mask) > threshold ? 1 : 0);
}

/* D(acc; m, s) = RDP(SRDHM(acc * 2^max(s,0), m), max(-s,0)). m in [0, 2^31), s in [-31, 30];
 * |acc| * 2^max(s,0) < 2^31, which the blob's writer proves. m >= 0, so SRDHM cannot saturate. */
static inline int32_t ce_requantize(int32_t acc, int32_t m, int32_t s)
{
    const int32_t left = s > 0 ? s : 0;
    const int32_t shifted = acc * (INT32_C(1) << left);
    return ce_rdp((int32_t)(((int64_t)shifted * m + (INT64_C(1) << 30)) >> 31), left - s);
}

/* min(hi, max(lo, v)) for -128 <= lo <= hi <= 127. */
static inline int8_t ce_clamp(int32_t v, int32_t lo, int32_t hi)
{
    const int32_t above = v < lo ? lo : v;
    return (int8_t)(above > hi ? hi : above);
}

/* clamp(D(acc; m, s) + zero_out). */
static inline int8_t ce_output(int32_t acc, int32_t m, int32_t s, int32_t zero_out, int32_t lo, int32_t hi)
{
    return ce_clamp(ce_requantize(acc, m, s) + zero_out, lo, hi);
}

#endif
