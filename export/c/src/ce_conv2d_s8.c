/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_dot.h"
#include "ce_kernels.h"
#include "ce_span.h"

/* How a kernel row is walked: `runs` runs of `length` neighbouring bytes, the input `step` bytes apart. Neighbouring taps
 * are neighbours in memory, one run, unless dilation or groups part them. */
typedef struct {
    int32_t runs;
    int32_t length;
    int32_t step;
} ce_walk;

static ce_walk ce_walk_of(const ce_conv2d_record *r, int32_t taps)
{
    const int joined = r->dilation_w == 1 && r->group_in == r->in_c;
    ce_walk w;
    w.runs = joined && taps > 1 ? 1 : taps;
    w.length = joined ? taps * r->group_in : r->group_in;
    w.step = r->dilation_w * r->in_c;
    return w;
}

/* Two output pixels of one row whose columns c0, c1 are inside the image, two output channels.
 *   w0, w1  int8 [kernel_h][kernel_w][group_in], one output channel each
 *   x       int8 [in_h][in_w][in_c], from the group's first channel; tap (0, 0) reads row iy, columns c0 and c1
 *   acc     int32 [4]: (w0, c0), (w0, c1), (w1, c0), (w1, c1) */
static void ce_conv2d_pair(const ce_conv2d_record *r, const int8_t *w0, const int8_t *w1, const int8_t *x, int32_t iy,
                           int32_t c0, int32_t c1, int32_t *acc)
{
    const ce_walk walk = ce_walk_of(r, r->kernel_w);
    const int32_t row = r->kernel_w * r->group_in;
    for (int32_t kh = 0; kh < r->kernel_h; kh++, iy += r->dilation_h) {
        if (iy < 0 || iy >= r->in_h) {
            const int32_t s0 = r->zero_in * ce_sum(w0, row), s1 = r->zero_in * ce_sum(w1, row);
            acc[0] += s0;
            acc[1] += s0;
            acc[2] += s1;
            acc[3] += s1;
            w0 += row;
            w1 += row;
            continue;
        }
        const int8_t *x0 = x + (iy * r->in_w + c0) * r->in_c;
        const int8_t *x1 = x + (iy * r->in_w + c1) * r->in_c;
        for (int32_t k = 0; k < walk.runs; k++) {
            ce_dot_2x2(w0, w1, x0, x1, walk.length, acc);
            w0 += walk.length;
            w1 += walk.length;
            x0 += walk.step;
            x1 += walk.step;
        }
    }
}

/* One output pixel anywhere, `rows` output channels, rows in [1, 4].
 *   w    int8 [rows][kernel_h][kernel_w][group_in]
 *   x    as above; s says which columns are inside the image
 *   acc  int32 [rows] */
static void ce_conv2d_single(const ce_conv2d_record *r, const int8_t *w, int32_t rows, const int8_t *x, int32_t iy,
                             ce_span s, int32_t *acc)
{
    const ce_walk walk = ce_walk_of(r, s.last - s.first);
    const int32_t row = r->kernel_w * r->group_in, channel = r->kernel_h * row;
    const int32_t before = s.first * r->group_in, after = (r->kernel_w - s.last) * r->group_in;
    for (int32_t kh = 0; kh < r->kernel_h; kh++, iy += r->dilation_h, w += row) {
        const int inside = iy >= 0 && iy < r->in_h;
        if (!inside || before + after > 0) {
            for (int32_t k = 0; k < rows; k++) {
                const int8_t *const v = w + k * channel;
                const int32_t outside = inside ? ce_sum(v, before) + ce_sum(v + row - after, after) : ce_sum(v, row);
                acc[k] += r->zero_in * outside;
            }
        }
        if (inside) {
            const int8_t *v = w + before;
            const int8_t *u = x + (iy * r->in_w + s.column + s.first * r->dilation_w) * r->in_c;
            for (int32_t k = 0; k < walk.runs; k++, v += walk.length, u += walk.step) {
                ce_dot_rows(v, channel, rows, u, walk.length, acc);
            }
        }
    }
}

/* y[oy][ox][o] = clamp(D(bias[o] + sum weight * x) + zero_out): tensorflow/lite/kernels/internal/reference/integer_ops/
 * conv.h with the input's zero point folded into the bias, so that taps outside the image read zero_in instead of
 * being skipped. */
void ce_conv2d_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_conv2d_record *const r = (const ce_conv2d_record *)(const void *)record;
    const int8_t *const image = arena + r->in;                       /* [in_h][in_w][in_c] */
    const int8_t *const weight = (const int8_t *)(blob + r->weight); /* [out_c][kernel_h][kernel_w][group_in] */
    const int32_t *const bias = blob + r->bias;                      /* [out_c] */
    const int32_t *const multiplier = blob + r->multiplier;          /* [out_c] */
    const int8_t *const shift = (const int8_t *)(blob + r->shift);   /* [out_c] */
    const int32_t channel = r->kernel_h * r->kernel_w * r->group_in;
    int8_t *y = arena + r->out;                                      /* [out_h][out_w][out_c] */

    for (int32_t oy = 0; oy < r->out_h; oy++) {
        const int32_t iy = oy * r->stride_h - r->pad_top;
        for (int32_t ox = 0; ox < r->out_w;) {
            const ce_span s = ce_span_of(r, ox);
            /* The next column is inside too if its last tap is; its first one lies further right. */
            const int paired = ox + 1 < r->out_w && ce_span_is_whole(r, s) && ce_span_is_whole(r, ce_span_of(r, ox + 1));
            const int32_t pixels = paired ? 2 : 1, block = paired ? 2 : 4;
            for (int32_t group = 0; group < r->out_c; group += r->group_out) {
                const int8_t *const x = image + group / r->group_out * r->group_in;
                for (int32_t o = group; o < group + r->group_out; o += block) {
                    const int32_t left = group + r->group_out - o, rows = left < block ? left : block;
                    const int8_t *const w = weight + o * channel;
                    int32_t acc[4];
                    for (int32_t k = 0; k < rows * pixels; k++) {
                        acc[k] = bias[o + k / pixels];
                    }
                    if (paired) {
                        /* The odd last channel is computed twice. */
                        acc[2] = rows == 2 ? acc[2] : acc[0];
                        acc[3] = rows == 2 ? acc[3] : acc[1];
                        ce_conv2d_pair(r, w, w + (rows - 1) * channel, x, iy, s.column, s.column + r->stride_w, acc);
                    } else {
                        ce_conv2d_single(r, w, rows, x, iy, s, acc);
                    }
                    for (int32_t k = 0; k < rows * pixels; k++) {
                        const int32_t c = o + k / pixels;
                        y[k % pixels * r->out_c + c] =
                            ce_clamp(ce_requantize(acc[k], multiplier[c], shift[c]) + r->zero_out, r->lo, r->hi);
                    }
                }
            }
            ox += pixels;
            y += pixels * r->out_c;
        }
    }
}
