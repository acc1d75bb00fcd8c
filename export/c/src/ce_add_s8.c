/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"

/* tensorflow/lite/kernels/internal/reference/integer_ops/add.h. |x - zero| * 2^left <= 255 * 2^20, and both inner
 * shifts are at most 0, so the sum stays below 2^30. */
void ce_add_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_add_record r = *(const ce_add_record *)(const void *)record;
    const int8_t *const x1 = arena + r.in;  /* [out_bytes] */
    const int8_t *const x2 = arena + r.in2; /* [out_bytes] */
    int8_t *const y = arena + r.out;        /* [out_bytes] */
    const int32_t unit = INT32_C(1) << r.left;
    (void)blob;

    for (int32_t i = 0; i < r.out_bytes; i++) {
        const int32_t u1 = ce_requantize((x1[i] - r.zero1) * unit, r.multiplier1, r.shift1);
        const int32_t u2 = ce_requantize((x2[i] - r.zero2) * unit, r.multiplier2, r.shift2);
        y[i] = ce_output(u1 + u2, r.multiplier, r.shift, r.zero_out, r.lo, r.hi);
    }
}
