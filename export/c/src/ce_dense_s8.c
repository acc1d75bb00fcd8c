/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_dot.h"
#include "ce_kernels.h"

/* y[o] = clamp(D(bias[o] + sum_i weight[o][i] * x[i]) + zero_out): tensorflow/lite/kernels/internal/reference/
 * integer_ops/fully_connected.h with the input's zero point folded into the bias. */
void ce_dense_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_dense_record r = *(const ce_dense_record *)(const void *)record;
    const int32_t in_n = r.in_n, out_n = r.out_n;
    const int8_t *const x = arena + r.in;                           /* [in_n] */
    const int8_t *const weight = (const int8_t *)(blob + r.weight); /* [out_n][in_n] */
    const int32_t *const bias = blob + r.bias;                      /* [out_n] */
    const int32_t *const multiplier = blob + r.multiplier;          /* [out_n] or [1] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);   /* as multiplier */
    int8_t *const y = arena + r.out;                                /* [out_n] */

    for (int32_t o = 0; o < out_n; o += 4) {
        const int32_t rows = out_n - o < 4 ? out_n - o : 4;
        int32_t acc[4];
        for (int32_t k = 0; k < rows; k++) {
            acc[k] = bias[o + k];
        }
        ce_dot_rows(weight + o * in_n, in_n, rows, x, in_n, acc);
        for (int32_t k = 0; k < rows; k++) {
            const int32_t c = r.per_channel ? o + k : 0;
            y[o + k] = ce_output(acc[k], multiplier[c], shift[c], r.zero_out, r.lo, r.hi);
        }
    }
}
