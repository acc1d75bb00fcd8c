/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"
#include "ce_nibble.h"
#include "ce_patch.h"

/* ce_depthwise_conv2d_s8 with weights of 4 bits. */
void ce_depthwise_conv2d_s4(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_conv2d_record r = *(const ce_conv2d_record *)(const void *)record;
    const int8_t *const image = arena + r.in;                         /* [in_h][in_w][in_c] */
    const uint8_t *const weight = (const uint8_t *)(blob + r.weight); /* [kernel_h][kernel_w] rows of out_c */
    const int32_t *const bias = blob + r.bias;                        /* [out_c] */
    const int32_t *const multiplier = blob + r.multiplier;            /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);     /* [out_c] */
    const int32_t row = ce_nibble_row(r.out_c);
    int8_t *const scratch = arena + r.scratch;                        /* [kernel_h][kernel_w][in_c] */
    int8_t *y = arena + r.out;                                        /* [out_h][out_w][out_c] */

    for (int32_t oy = 0, iy = -r.pad_top; oy < r.out_h; oy++, iy += r.stride_h) {
        for (int32_t ox = 0, ix = -r.pad_left; ox < r.out_w; ox++, ix += r.stride_w, y += r.out_c) {
            /* Tap (kh, kw) of channel c is at first[kh * line + kw * step + c]. */
            const int8_t *first = scratch;
            int32_t line = r.kernel_w * r.in_c, step = r.in_c;
            if (ce_window_inside(&r, iy, ix)) {
                first = image + (iy * r.in_w + ix) * r.in_c;
                line = r.dilation_h * r.in_w * r.in_c;
                step = r.dilation_w * r.in_c;
            } else {
                ce_gather(&r, image, iy, ix, r.in_c, scratch);
            }
            for (int32_t o = 0; o < r.out_c; o++) {
                const uint8_t *w = weight;
                const int8_t *x = first + o / r.group_out;
                int32_t acc = bias[o];
                for (int32_t kh = 0; kh < r.kernel_h; kh++, x += line) {
                    for (int32_t kw = 0; kw < r.kernel_w; kw++, w += row) {
                        acc += ce_nibble(w, o) * x[kw * step];
                    }
                }
                y[o] = ce_output(acc, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
            }
        }
    }
}
