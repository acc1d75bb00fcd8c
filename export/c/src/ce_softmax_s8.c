/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"

/* The number of leading zero bits of v > 0. */
static int32_t ce_leading_zeros(int32_t v)
{
    int32_t n = 0;
    for (uint32_t bit = UINT32_C(1) << 31; ((uint32_t)v & bit) == 0u; bit >>= 1) {
        n++;
    }
    return n;
}

/* 1 / (1 + t) for t in [0, 1), both as Q0.31, by three Newton steps in Q2.29: gemmlowp/fixedpoint/fixedpoint.h,
 * one_over_one_plus_x_for_x_in_0_1. `half` in [2^30, 2^31), so 48/17 - 32/17 * half starts in (0.94, 1.89): the steps
 * of |step| < 2^29 and the iterates below 2^31 stay in int32 until the last doubling, which saturates. */
static int32_t ce_reciprocal(int32_t t)
{
    const int32_t half = (int32_t)(((int64_t)t + INT32_MAX + 1) >> 1);
    int32_t x = 1515870810 + ce_srdhm(half, -1010580540);
    for (int32_t k = 0; k < 3; k++) {
        x += ce_srdhm(x, (INT32_C(1) << 29) - ce_srdhm(half, x)) * 4;
    }
    return x > INT32_MAX / 2 ? INT32_MAX : x * 2;
}

/* tensorflow/lite/kernels/internal/reference/softmax.h, the exponentials looked up. Each row's sum of at most 511
 * terms of at most 2^19 is in [2^19, 2^28), so that at least 4 bits lead and the last shift is at most 31. */
void ce_softmax_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_softmax_record r = *(const ce_softmax_record *)(const void *)record;
    const int32_t *const table = blob + r.table; /* [entries], Q0.31 */
    const int8_t *x = arena + r.in;              /* [rows][depth] */
    int8_t *y = arena + r.out;                   /* [rows][depth] */

    for (int32_t row = 0; row < r.rows; row++, x += r.depth, y += r.depth) {
        int32_t best = INT8_MIN;
        for (int32_t i = 0; i < r.depth; i++) {
            best = x[i] > best ? x[i] : best;
        }
        int32_t sum = 0; /* Q12.19 */
        for (int32_t i = 0; i < r.depth; i++) {
            const int32_t difference = best - x[i];
            sum += difference < r.entries ? ce_rdp(table[difference], 12) : 0;
        }
        const int32_t zeros = ce_leading_zeros(sum);
        const int32_t scale = ce_reciprocal((int32_t)(((uint32_t)sum << zeros) - (UINT32_C(1) << 31)));
        for (int32_t i = 0; i < r.depth; i++) {
            const int32_t difference = best - x[i];
            const int32_t e = difference < r.entries ? table[difference] : 0;
            y[i] = ce_clamp(ce_rdp(ce_srdhm(scale, e), 12 - zeros + 23) - 128, INT8_MIN, INT8_MAX);
        }
    }
}
