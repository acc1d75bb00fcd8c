/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_interval.h"

/* ce_dense_s8 on a box. */
void ce_dense_bounds_s8(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high)
{
    const ce_dense_record r = *(const ce_dense_record *)(const void *)record;
    const int32_t *const multiplier = blob + r.multiplier;        /* [out_n] or [1] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift); /* as multiplier */

    for (int32_t o = 0; o < r.out_n; o++) {
        const ce_range acc = ce_dense_range(blob, &r, o, low, high);
        const int32_t c = r.per_channel ? o : 0;
        low[r.out + o] = ce_output(acc.least, multiplier[c], shift[c], r.zero_out, r.lo, r.hi);
        high[r.out + o] = ce_output(acc.most, multiplier[c], shift[c], r.zero_out, r.lo, r.hi);
    }
}
