/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_dot.h"
#include "ce_kernels.h"
#include "ce_patch.h"

/* y[oy][ox][o] = clamp(D(bias[o] + sum weight * x) + zero_out): tensorflow/lite/kernels/internal/reference/integer_ops/
 * conv.h with the input's zero point folded into the bias, so that taps outside the image read zero_in instead of being
 * skipped. Two pixels by two channels at a time, one by four where a row of pixels ends. */
void ce_conv2d_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    /* A copy: the compiler must assume that a store to y, int8, changes anything that is behind a pointer. */
    const ce_conv2d_record r = *(const ce_conv2d_record *)(const void *)record;
    const int8_t *const image = arena + r.in;                       /* [in_h][in_w][in_c] */
    const int8_t *const weight = (const int8_t *)(blob + r.weight); /* [out_c][kernel_h][kernel_w][group_in] */
    const int32_t *const bias = blob + r.bias;                      /* [out_c] */
    const int32_t *const multiplier = blob + r.multiplier;          /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);   /* [out_c] */
    const int32_t n = r.kernel_h * r.kernel_w * r.group_in;
    int8_t *const scratch = arena + r.scratch;                      /* [2][n] */
    int8_t *y = arena + r.out;                                      /* [out_h][out_w][out_c] */

    for (int32_t oy = 0, iy = -r.pad_top; oy < r.out_h; oy++, iy += r.stride_h) {
        int32_t pixels;
        for (int32_t ox = 0, ix = -r.pad_left; ox < r.out_w; ox += pixels, ix += pixels * r.stride_w) {
            pixels = r.out_w - ox < 2 ? 1 : 2;
            const int8_t *x = image;
            for (int32_t o = 0; o < r.out_c; x += r.group_in) {
                const int32_t end = o + r.group_out;
                const int8_t *const x0 = ce_conv2d_patch(&r, x, iy, ix, scratch);
                if (pixels == 1) {
                    for (; o < end; o += 4) {
                        const int32_t rows = end - o < 4 ? end - o : 4;
                        int32_t acc[4];
                        for (int32_t k = 0; k < rows; k++) {
                            acc[k] = bias[o + k];
                        }
                        ce_dot_rows(weight + o * n, n, rows, x0, n, acc);
                        for (int32_t k = 0; k < rows; k++) {
                            y[o + k] = ce_output(acc[k], multiplier[o + k], shift[o + k], r.zero_out, r.lo, r.hi);
                        }
                    }
                    o = end;
                    continue;
                }
                const int8_t *const x1 = ce_conv2d_patch(&r, x, iy, ix + r.stride_w, scratch + n);
                for (; o < end; o += 2) {
                    /* The odd last channel of a group is computed twice. */
                    const int32_t p = o + 1 < end ? o + 1 : o;
                    int32_t acc[4] = {bias[o], bias[o], bias[p], bias[p]};
                    ce_dot_2x2(weight + o * n, weight + p * n, x0, x1, n, acc);
                    y[o] = ce_output(acc[0], multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                    y[r.out_c + o] = ce_output(acc[1], multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                    y[p] = ce_output(acc[2], multiplier[p], shift[p], r.zero_out, r.lo, r.hi);
                    y[r.out_c + p] = ce_output(acc[3], multiplier[p], shift[p], r.zero_out, r.lo, r.hi);
                }
                o = end;
            }
            y += pixels * r.out_c;
        }
    }
}
