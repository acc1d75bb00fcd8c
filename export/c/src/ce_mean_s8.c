/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"

/* tensorflow/lite/kernels/internal/reference/reduce.h, QuantizedMeanOrSum. */
void ce_mean_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_mean_record r = *(const ce_mean_record *)(const void *)record;
    const int8_t *const x = arena + r.in; /* [kept0][summed0][kept1][summed1][kept2] */
    int8_t *y = arena + r.out;            /* [kept0][kept1][kept2]; written in order, never ahead of what is read */
    const int32_t inner = r.summed1 * r.kept2, row = r.kept1 * inner;
    const int32_t offset = r.zero_in * (r.summed0 * r.summed1);
    (void)blob;

    for (int32_t a = 0; a < r.kept0; a++) {
        for (int32_t b = 0; b < r.kept1; b++) {
            for (int32_t c = 0; c < r.kept2; c++) {
                int32_t sum = -offset;
                for (int32_t i = 0; i < r.summed0; i++) {
                    const int8_t *p = x + (a * r.summed0 + i) * row + b * inner + c;
                    for (int32_t j = 0; j < r.summed1; j++, p += r.kept2) {
                        sum += *p;
                    }
                }
                *y++ = ce_output(sum, r.multiplier, r.shift, r.zero_out, INT8_MIN, INT8_MAX);
            }
        }
    }
}
