/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"

/* tensorflow/lite/kernels/internal/reference/requantize.h; also RELU and RELU6 as operations of their own. */
void ce_requantize_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_requantize_record r = *(const ce_requantize_record *)(const void *)record;
    const int8_t *const x = arena + r.in; /* [out_bytes] */
    int8_t *const y = arena + r.out;      /* [out_bytes] */
    (void)blob;

    for (int32_t i = 0; i < r.out_bytes; i++) {
        y[i] = ce_output(x[i] - r.zero_in, r.multiplier, r.shift, r.zero_out, r.lo, r.hi);
    }
}
