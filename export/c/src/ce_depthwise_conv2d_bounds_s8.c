/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_interval.h"
#include "ce_patch.h"

/* ce_depthwise_conv2d_s8 on a box. A tap outside the image reads zero_in at both ends. */
void ce_depthwise_conv2d_bounds_s8(const int32_t *blob, const int32_t *record, int8_t *low, int8_t *high)
{
    const ce_conv2d_record r = *(const ce_conv2d_record *)(const void *)record;
    const int8_t *const weight = (const int8_t *)(blob + r.weight); /* [kernel_h][kernel_w][out_c] */
    const uint8_t *const packed = (const uint8_t *)weight; /* [kernel_h][kernel_w] rows of out_c (CE_DEPTHWISE_CONV2D_S4) */
    const int32_t *const bias = blob + r.bias;                      /* [out_c] */
    const int32_t *const multiplier = blob + r.multiplier;          /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);   /* [out_c] */
    int32_t at = r.out;                                             /* of [out_h][out_w][out_c] */

    for (int32_t oy = 0, iy = -r.pad_top; oy < r.out_h; oy++, iy += r.stride_h) {
        for (int32_t ox = 0, ix = -r.pad_left; ox < r.out_w; ox++, ix += r.stride_w) {
            /* Tap (kh, kw) of channel c is at first + kh * row + kw * step + c in both arenas. */
            int32_t first = r.scratch, row = r.kernel_w * r.in_c, step = r.in_c;
            if (ce_window_inside(&r, iy, ix)) {
                first = r.in + (iy * r.in_w + ix) * r.in_c;
                row = r.dilation_h * r.in_w * r.in_c;
                step = r.dilation_w * r.in_c;
            } else {
                ce_gather(&r, low + r.in, iy, ix, r.in_c, low + r.scratch);
                ce_gather(&r, high + r.in, iy, ix, r.in_c, high + r.scratch);
            }
            for (int32_t o = 0; o < r.out_c; o++, at++) {
                ce_range acc = {bias[o], bias[o]};
                for (int32_t kh = 0, k = 0, line = first + o / r.group_out; kh < r.kernel_h; kh++, line += row) {
                    for (int32_t kw = 0, tap = line; kw < r.kernel_w; kw++, k++, tap += step) {
                        const int32_t w = r.kind == CE_DEPTHWISE_CONV2D_S4
                                              ? ce_nibble(packed + k * ce_nibble_row(r.out_c), o)
                                              : weight[k * r.out_c + o];
                        acc = ce_range_add(acc, w, low[tap], high[tap]);
                    }
                }
                low[at] = ce_output(acc.least, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                high[at] = ce_output(acc.most, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
            }
        }
    }
}
