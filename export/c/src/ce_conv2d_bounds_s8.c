/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_interval.h"
#include "ce_patch.h"

/* ce_conv2d_s8 on a box. A tap outside the image reads zero_in at both ends. */
void ce_conv2d_bounds_s8(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high)
{
    const ce_conv2d_record r = *(const ce_conv2d_record *)(const void *)record;
    const int8_t *const weight = (const int8_t *)(blob + r.weight); /* [out_c][kernel_h][kernel_w][group_in] */
    const int32_t *const bias = blob + r.bias;                      /* [out_c] */
    const int32_t *const multiplier = blob + r.multiplier;          /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);   /* [out_c] */
    const uint8_t *const packed = (const uint8_t *)weight;          /* [out_c] rows of n (CE_CONV2D_S4) */
    const int32_t n = r.kernel_h * r.kernel_w * r.group_in, row = ce_nibble_row(n);
    int32_t at = r.out; /* of [out_h][out_w][out_c] */

    for (int32_t oy = 0, iy = -r.pad_top; oy < r.out_h; oy++, iy += r.stride_h) {
        for (int32_t ox = 0, ix = -r.pad_left; ox < r.out_w; ox++, ix += r.stride_w) {
            int32_t channel = r.in;
            for (int32_t o = 0; o < r.out_c; channel += r.group_in) {
                const int8_t *const l = ce_conv2d_patch(&r, low + channel, iy, ix, low + r.scratch);
                const int8_t *const h = ce_conv2d_patch(&r, high + channel, iy, ix, high + r.scratch);
                for (const int32_t end = o + r.group_out; o < end; o++, at++) {
                    const ce_range acc = r.kind == CE_CONV2D_S4 ? ce_dot_box_nibbles(packed + o * row, l, h, n, bias[o])
                                                                : ce_dot_box(weight + o * n, l, h, n, bias[o]);
                    low[at] = ce_output(acc.least, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                    high[at] = ce_output(acc.most, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                }
            }
        }
    }
}
