/* SPDX-License-Identifier: Apache-2.0 */
#include "affine.h"

#include <string.h>

/* Output `out` reads inputs in..in + run - 1 with these weights (NULL: ones). */
typedef void taps_t(void *context, int64_t out, int64_t in, const uint8_t *weight, int64_t run);

/* First and one past the last tap of position p along axis i that lie inside the image. */
static void inside(const ce_affine *affine, int i, int64_t p, int64_t *first, int64_t *last)
{
    const ce_window *w = &affine->node->window;
    const int64_t start = p * w->stride[i] - w->before[i], d = w->dilation[i];
    *first = start >= 0 ? 0 : (-start + d - 1) / d;
    *last = start >= affine->in.size[i] ? 0 : ce_least(w->kernel[i], (affine->in.size[i] - 1 - start) / d + 1);
}

static void at_position(const ce_affine *affine, int64_t h, int64_t w, taps_t *visit, void *context)
{
    const ce_node *node = affine->node;
    const ce_window *window = &node->window;
    const int64_t c = affine->in.size[2], o = affine->out.size[2];
    const int64_t at = (h * affine->out.size[1] + w) * o;
    int64_t first[2], last[2];
    inside(affine, 0, h, &first[0], &last[0]);
    inside(affine, 1, w, &first[1], &last[1]);
    for (int64_t i = first[0]; i < last[0]; i++) {
        const int64_t y = h * window->stride[0] - window->before[0] + i * window->dilation[0];
        for (int64_t j = first[1]; j < last[1]; j++) {
            const int64_t x = w * window->stride[1] - window->before[1] + j * window->dilation[1];
            const int64_t pixel = (y * affine->in.size[1] + x) * c;
            for (int64_t k = 0; k < o; k++) {
                if (node->kind == CE_CONV) {
                    const int64_t group = k / (o / (c / node->inner));
                    const int64_t tap = ((k * window->kernel[0] + i) * window->kernel[1] + j) * node->inner;
                    visit(context, at + k, pixel + group * node->inner, node->weight + tap, node->inner);
                } else {
                    const int64_t tap = (i * window->kernel[1] + j) * o + k;
                    visit(context, at + k, pixel + k / (o / c), node->weight ? node->weight + tap : NULL, 1);
                }
            }
        }
    }
}

static void over_axes(const ce_affine *affine, taps_t *visit, void *context)
{
    const unsigned axes = affine->node->axes;
    int64_t index[CE_RANK] = {0};
    for (int64_t i = 0; i < affine->in.count; i++) {
        int64_t out = 0;
        for (int a = 0; a < affine->in.rank; a++) {
            out = axes >> a & 1u ? out : out * affine->in.size[a] + index[a];
        }
        visit(context, out, i, NULL, 1);
        for (int a = affine->in.rank - 1; a >= 0 && ++index[a] == affine->in.size[a]; a--) {
            index[a] = 0;
        }
    }
}

static void each(const ce_affine *affine, taps_t *visit, void *context)
{
    const ce_node *node = affine->node;
    if (node->kind == CE_DENSE) {
        for (int64_t k = 0; k < node->outer; k++) {
            visit(context, k, 0, node->weight + k * node->inner, node->inner);
        }
    } else if (node->kind == CE_MEAN || node->kind == CE_SUM) {
        over_axes(affine, visit, context);
    } else {
        for (int64_t h = 0; h < affine->out.size[0]; h++) {
            for (int64_t w = 0; w < affine->out.size[1]; w++) {
                at_position(affine, h, w, visit, context);
            }
        }
    }
}

typedef struct {
    const int32_t *low, *high;
    int64_t offset;
    int32_t *out_low, *out_high;
    bool fits;
} ends_t;

static bool in_int32(int64_t x)
{
    return x >= INT32_MIN && x <= INT32_MAX;
}

static void add_ends(void *context, int64_t out, int64_t in, const uint8_t *weight, int64_t run)
{
    ends_t *ends = context;
    const int32_t *low = ends->low + in, *high = ends->high + in;
    int64_t least = ends->out_low[out], most = ends->out_high[out];
    for (int64_t i = 0; i < run; i++) {
        const int64_t w = weight ? ce_i8(weight + i) : 1;
        const int64_t from_low = w * (low[i] + ends->offset), from_high = w * (high[i] + ends->offset);
        least += w >= 0 ? from_low : from_high;
        most += w >= 0 ? from_high : from_low;
    }
    ends->fits = ends->fits && in_int32(least) && in_int32(most);
    ends->out_low[out] = (int32_t)ce_clip(least, INT32_MIN, INT32_MAX);
    ends->out_high[out] = (int32_t)ce_clip(most, INT32_MIN, INT32_MAX);
}

bool ce_affine_ends(const ce_affine *affine, const int32_t *low, const int32_t *high, int32_t *out_low, int32_t *out_high)
{
    ends_t ends = {low, high, affine->offset, out_low, out_high, true};
    for (int64_t i = 0; i < affine->out.count; i++) {
        out_low[i] = out_high[i] = (int32_t)ce_bias_of(affine, i);
    }
    each(affine, add_ends, &ends);
    return ends.fits;
}

typedef struct {
    const int64_t *y;
    int64_t *x;
} back_t;

static void add_back(void *context, int64_t out, int64_t in, const uint8_t *weight, int64_t run)
{
    const back_t *back = context;
    const int64_t y = back->y[out];
    if (y == 0) {
        return;
    }
    for (int64_t i = 0; i < run; i++) {
        back->x[in + i] += weight ? y * ce_i8(weight + i) : y;
    }
}

void ce_affine_back(const ce_affine *affine, const int64_t *y, int64_t *x)
{
    back_t back = {y, x};
    memset(x, 0, (size_t)affine->in.count * sizeof *x);
    each(affine, add_back, &back);
}

int64_t ce_window_taps(const ce_affine *affine, int64_t p)
{
    int64_t first[2], last[2];
    inside(affine, 0, p / affine->out.size[1], &first[0], &last[0]);
    inside(affine, 1, p % affine->out.size[1], &first[1], &last[1]);
    return ce_most(last[0] - first[0], 0) * ce_most(last[1] - first[1], 0);
}

int64_t ce_affine_reach(const ce_affine *affine, int64_t i)
{
    const ce_node *node = affine->node;
    const int64_t taps = node->window.kernel[0] * node->window.kernel[1];
    int64_t total = 0;
    if (node->kind == CE_MEAN || node->kind == CE_SUM) {
        return affine->in.count / affine->out.count;
    }
    if (node->kind == CE_AVERAGE) {
        return ce_window_taps(affine, i);
    }
    const int64_t count = node->kind == CE_DENSE ? node->inner : taps * node->inner;
    for (int64_t k = 0; k < count; k++) {
        const int64_t w = ce_i8(node->weight + (node->kind == CE_DEPTHWISE ? k * node->outer + i : i * count + k));
        total += w < 0 ? -w : w;
    }
    return total;
}
