/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"
#include "ce_span.h"

#define CE_LANES 4

/* acc[k] += sum over t < taps of w[t * w_step + k] * x[t * x_step + k], for k < CE_LANES. */
static void ce_taps_4(const int8_t *w, int32_t w_step, const int8_t *x, int32_t x_step, int32_t taps, int32_t *acc)
{
    int32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
    for (; taps > 0; taps--, w += w_step, x += x_step) {
        a0 += w[0] * x[0];
        a1 += w[1] * x[1];
        a2 += w[2] * x[2];
        a3 += w[3] * x[3];
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

/* acc[k] += zero * sum over t < taps of w[t * w_step + k], for k < lanes. */
static void ce_taps_outside(const int8_t *w, int32_t w_step, int32_t taps, int32_t zero, int32_t lanes, int32_t *acc)
{
    for (; taps > 0; taps--, w += w_step) {
        for (int32_t k = 0; k < lanes; k++) {
            acc[k] += zero * w[k];
        }
    }
}

/* As ce_conv2d_s8 with one input channel for each output: tensorflow/lite/kernels/internal/reference/integer_ops/
 * depthwise_conv.h, the zero point folded into the bias. */
void ce_depthwise_conv2d_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_conv2d_record *const r = (const ce_conv2d_record *)(const void *)record;
    const int8_t *const image = arena + r->in;                       /* [in_h][in_w][in_c] */
    const int8_t *const weight = (const int8_t *)(blob + r->weight); /* [kernel_h][kernel_w][out_c] */
    const int32_t *const bias = blob + r->bias;                      /* [out_c] */
    const int32_t *const multiplier = blob + r->multiplier;          /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r->shift);   /* [out_c] */
    const int32_t row = r->kernel_w * r->out_c, x_step = r->dilation_w * r->in_c;
    int8_t *y = arena + r->out;                                      /* [out_h][out_w][out_c] */

    for (int32_t oy = 0; oy < r->out_h; oy++) {
        for (int32_t ox = 0; ox < r->out_w; ox++, y += r->out_c) {
            const ce_span s = ce_span_of(r, ox);
            for (int32_t o = 0; o < r->out_c;) {
                /* Neighbouring outputs read neighbouring inputs only if each input has one output. */
                const int32_t lanes = r->group_out == 1 && r->out_c - o >= CE_LANES ? CE_LANES : 1;
                const int32_t left = s.column + s.first * r->dilation_w;
                const int8_t *const x = image + left * r->in_c + o / r->group_out;
                const int8_t *w = weight + o;
                int32_t iy = oy * r->stride_h - r->pad_top;
                int32_t acc[CE_LANES];
                for (int32_t k = 0; k < lanes; k++) {
                    acc[k] = bias[o + k];
                }
                for (int32_t kh = 0; kh < r->kernel_h; kh++, iy += r->dilation_h, w += row) {
                    if (iy < 0 || iy >= r->in_h) {
                        ce_taps_outside(w, r->out_c, r->kernel_w, r->zero_in, lanes, acc);
                        continue;
                    }
                    const int8_t *const inside = w + s.first * r->out_c;
                    const int8_t *const u = x + iy * r->in_w * r->in_c;
                    ce_taps_outside(w, r->out_c, s.first, r->zero_in, lanes, acc);
                    ce_taps_outside(w + s.last * r->out_c, r->out_c, r->kernel_w - s.last, r->zero_in, lanes, acc);
                    if (lanes == CE_LANES) {
                        ce_taps_4(inside, r->out_c, u, x_step, s.last - s.first, acc);
                    } else {
                        for (int32_t t = 0; t < s.last - s.first; t++) {
                            acc[0] += inside[t * r->out_c] * u[t * x_step];
                        }
                    }
                }
                for (int32_t k = 0; k < lanes; k++, o++) {
                    y[o] = ce_clamp(ce_requantize(acc[k], multiplier[o], shift[o]) + r->zero_out, r->lo, r->hi);
                }
            }
        }
    }
}
