/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"
#include "ce_nibble.h"

/* ce_dense_s8 with weights of 4 bits. */
void ce_dense_s4(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_dense_record r = *(const ce_dense_record *)(const void *)record;
    const int8_t *const x = arena + r.in;                             /* [in_n] */
    const uint8_t *const weight = (const uint8_t *)(blob + r.weight); /* [out_n] rows of in_n */
    const int32_t *const bias = blob + r.bias;                        /* [out_n] */
    const int32_t *const multiplier = blob + r.multiplier;            /* [out_n] or [1] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);     /* as multiplier */
    const int32_t row = ce_nibble_row(r.in_n);
    int8_t *const y = arena + r.out;                                  /* [out_n] */

    for (int32_t o = 0; o < r.out_n; o++) {
        const int32_t acc = ce_dot_nibbles(weight + o * row, x, r.in_n, bias[o]), c = r.per_channel ? o : 0;
        y[o] = ce_output(acc, multiplier[c], shift[c], r.zero_out, r.lo, r.hi);
    }
}
