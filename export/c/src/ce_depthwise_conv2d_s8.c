/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"
#include "ce_patch.h"

/* Where one pixel's taps lie: tap (kh, kw) of channel c at x + kh * row + kw * step + c. */
typedef struct {
    const int8_t *x;
    int32_t row;
    int32_t step;
} ce_taps;

/* acc[k] += sum over the taps of w[kh][kw][k] * tap(kh, kw)[k], k < 4; w int8 [kernel_h][kernel_w][out_c] from channel
 * 0 of the four on. */
static void ce_depthwise_4(const ce_conv2d_record *r, const int8_t *w, ce_taps t, int32_t *acc)
{
    int32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
    for (int32_t kh = r->kernel_h; kh > 0; kh--, t.x += t.row) {
        const int8_t *x = t.x;
        for (int32_t kw = r->kernel_w; kw > 0; kw--, w += r->out_c, x += t.step) {
            a0 += w[0] * x[0];
            a1 += w[1] * x[1];
            a2 += w[2] * x[2];
            a3 += w[3] * x[3];
        }
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

/* The same for one channel, from acc on. */
static int32_t ce_depthwise_1(const ce_conv2d_record *r, const int8_t *w, ce_taps t, int32_t acc)
{
    for (int32_t kh = r->kernel_h; kh > 0; kh--, t.x += t.row) {
        const int8_t *x = t.x;
        for (int32_t kw = r->kernel_w; kw > 0; kw--, w += r->out_c, x += t.step) {
            acc += *w * *x;
        }
    }
    return acc;
}

/* As ce_conv2d_s8 with one input channel for each output: tensorflow/lite/kernels/internal/reference/integer_ops/
 * depthwise_conv.h, the zero point folded into the bias. */
void ce_depthwise_conv2d_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_conv2d_record r = *(const ce_conv2d_record *)(const void *)record;
    const int8_t *const image = arena + r.in;                       /* [in_h][in_w][in_c] */
    const int8_t *const weight = (const int8_t *)(blob + r.weight); /* [kernel_h][kernel_w][out_c] */
    const int32_t *const bias = blob + r.bias;                      /* [out_c] */
    const int32_t *const multiplier = blob + r.multiplier;          /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r.shift);   /* [out_c] */
    int8_t *const scratch = arena + r.scratch;                      /* [kernel_h][kernel_w][in_c] */
    int8_t *y = arena + r.out;                                      /* [out_h][out_w][out_c] */

    for (int32_t oy = 0, iy = -r.pad_top; oy < r.out_h; oy++, iy += r.stride_h) {
        for (int32_t ox = 0, ix = -r.pad_left; ox < r.out_w; ox++, ix += r.stride_w, y += r.out_c) {
            ce_taps t = {scratch, r.kernel_w * r.in_c, r.in_c};
            if (ce_window_inside(&r, iy, ix)) {
                t.x = image + (iy * r.in_w + ix) * r.in_c;
                t.row = r.dilation_h * r.in_w * r.in_c;
                t.step = r.dilation_w * r.in_c;
            } else {
                ce_gather(&r, image, iy, ix, r.in_c, scratch);
            }
            int32_t o = 0;
            /* Neighbouring outputs read neighbouring inputs only if each input has one output. */
            for (; r.group_out == 1 && o + 4 <= r.out_c; o += 4, t.x += 4) {
                int32_t acc[4] = {bias[o], bias[o + 1], bias[o + 2], bias[o + 3]};
                ce_depthwise_4(&r, weight + o, t, acc);
                for (int32_t k = 0; k < 4; k++) {
                    y[o + k] = ce_output(acc[k], multiplier[o + k], shift[o + k], r.zero_out, r.lo, r.hi);
                }
            }
            for (int32_t left = r.group_out; o < r.out_c; o++) {
                const int32_t acc = ce_depthwise_1(&r, weight + o, t, bias[o]);
                y[o] = ce_output(acc, multiplier[o], shift[o], r.zero_out, r.lo, r.hi);
                if (--left == 0) {
                    left = r.group_out;
                    t.x++;
                }
            }
        }
    }
}
