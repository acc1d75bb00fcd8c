/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"
#include "ce_nibble.h"
#include "ce_patch.h"

/* ce_conv2d_s8 with weights of 4 bits. */
void ce_conv2d_s4(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_conv2d_record r = *(const ce_conv2d_record *)(const void *)record;
    const int8_t *const image = arena + r.in;                         /* [in_h][in_w][in_c] */
    const uint8_t *const weight = (const uint8_t *)(blob + r.weight); /* [out_c] rows of n */
    const int32_t *const bias = blob + r.bias;                        /* [out_c] */
    const int32_t *const multiplier = blob + r.multiplier;            /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);     /* [out_c] */
    const int32_t n = r.kernel_h * r.kernel_w * r.group_in, row = ce_nibble_row(n);
    int8_t *y = arena + r.out;                                        /* [out_h][out_w][out_c] */

    for (int32_t oy = 0, iy = -r.pad_top; oy < r.out_h; oy++, iy += r.stride_h) {
        for (int32_t ox = 0, ix = -r.pad_left; ox < r.out_w; ox++, ix += r.stride_w, y += r.out_c) {
            const int8_t *group = image;
            for (int32_t o = 0; o < r.out_c; group += r.group_in) {
                const int8_t *const x = ce_conv2d_patch(&r, group, iy, ix, arena + r.scratch);
                for (const int32_t end = o + r.group_out; o < end; o++) {
                    const int32_t acc = ce_dot_nibbles(weight + o * row, x, n, bias[o]);
                    y[o] = ce_output(acc, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                }
            }
        }
    }
}
