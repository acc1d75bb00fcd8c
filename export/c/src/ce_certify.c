/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_certify.h"

/* How a model ends. */
typedef struct {
    const int32_t *blob;
    const int8_t *low, *high;         /* the arenas */
    const ce_softmax_record *softmax; /* the last operation, or null */
    const int32_t *stop;              /* the first record that the pass does not execute */
    int32_t logits;                   /* the place of their ends in the arenas */
    int32_t classes;
    const ce_dense_record *dense; /* the last layer, or null */
    const ce_requantize_record *behind[CE_BEHIND]; /* from the logits back */
    int32_t count;
} ce_end;

/* The record before `before` that wrote what lies at byte `place` then; null for the input. */
static const int32_t *ce_writer(const int32_t *blob, const int32_t *before, int32_t place)
{
    const int32_t *found = 0;
    for (const int32_t *record = blob + CE_BLOB_HEADER_WORDS; record != before; record += record[1]) {
        found = ((const ce_record *)(const void *)record)->out == place ? record : found;
    }
    return found;
}

static ce_end ce_find_end(const ce_certifier *c)
{
    const ce_blob_header *const header = ce_model_header(c->model);
    ce_end e = {0};
    e.blob = ce_model_words(c->model);
    e.low = c->model->arena;
    e.high = c->high;
    e.stop = e.blob + header->constants;
    e.logits = header->out;
    e.classes = header->out_bytes;
    const int32_t *writer = ce_writer(e.blob, e.stop, e.logits);
    if (writer && *writer == CE_SOFTMAX) {
        e.softmax = (const ce_softmax_record *)(const void *)writer;
        e.stop = writer;
        e.logits = e.softmax->in;
        writer = ce_writer(e.blob, writer, e.logits);
    }
    while (writer && *writer == CE_REQUANTIZE && e.count < CE_BEHIND) {
        e.behind[e.count++] = (const ce_requantize_record *)(const void *)writer;
        writer = ce_writer(e.blob, writer, e.behind[e.count - 1]->in);
    }
    if (writer && (*writer == CE_DENSE || *writer == CE_DENSE_S4)) {
        e.dense = (const ce_dense_record *)(const void *)writer;
        e.stop = writer;
        e.logits = e.dense->out;
    }
    return e;
}

/* The logit of class j at an accumulator of the last layer. Non-decreasing. */
static int32_t ce_logit(const ce_end *e, int32_t j, int32_t acc)
{
    const ce_dense_record *const d = e->dense;
    const int32_t c = d->per_channel ? j : 0;
    const int8_t *const shift = (const int8_t *)(e->blob + d->shift);
    int32_t v = ce_output(acc, e->blob[d->multiplier + c], shift[c], d->zero_out, d->lo, d->hi);
    for (int32_t k = e->count - 1; k >= 0; k--) {
        const ce_requantize_record *const r = e->behind[k];
        v = ce_output(v - r->zero_in, r->multiplier, r->shift, r->zero_out, r->lo, r->hi);
    }
    return v;
}

/* ---- the pass ---- */

static void ce_write_box(const ce_certifier *c, const int8_t *in, const ce_region *region)
{
    const ce_blob_header *const header = ce_model_header(c->model);
    int8_t *const low = c->model->arena + header->in, *const high = c->high + header->in;
    for (int32_t i = 0; i < header->in_bytes; i++) {
        const int32_t x = in[i], radius = region->radius[i * region->stride];
        high[i] = ce_clamp(x + radius, INT8_MIN, x > region->most ? x : region->most);
        low[i] = ce_clamp(x - radius, x < region->least ? x : region->least, INT8_MAX);
    }
}

static void ce_bound(const ce_certifier *c, const ce_end *e)
{
    int8_t *const low = c->model->arena, *const high = c->high;
    for (const int32_t *record = e->blob + CE_BLOB_HEADER_WORDS; record != e->stop; record += record[1]) {
        const ce_record *const r = (const ce_record *)(const void *)record;
        if (r->kind == CE_SOFTMAX) {
            /* Its outputs are not monotone in its inputs. Before other operations it may give any code. */
            for (int32_t i = 0; i < r->out_bytes; i++) {
                low[r->out + i] = INT8_MIN;
                high[r->out + i] = INT8_MAX;
            }
        } else if (c->kernels[r->kind]) {
            c->kernels[r->kind](e->blob, record, low, high);
        } else {
            c->model->kernels[r->kind](e->blob, record, low);
            c->model->kernels[r->kind](e->blob, record, high);
        }
    }
    if (e->dense) {
        for (int32_t k = 0; k < e->classes; k++) {
            const ce_range acc = ce_dense_range(e->blob, e->dense, k, low, high);
            low[e->logits + k] = (int8_t)ce_logit(e, k, acc.least);
            high[e->logits + k] = (int8_t)ce_logit(e, k, acc.most);
        }
    }
}

/* ---- the fused margin ---- */

/* A multiplier m 2^s with m in [2^30, 2^31), or 0. */
typedef struct {
    int32_t m, s;
} ce_scale;

static ce_scale ce_scale_of(const ce_end *e, int32_t channel)
{
    ce_scale x = {e->blob[e->dense->multiplier + channel], ((const int8_t *)(e->blob + e->dense->shift))[channel]};
    if (x.m == 0) {
        x.s = INT8_MIN; /* less than every other */
    }
    for (; x.m != 0 && x.m < INT32_C(1) << 30; x.m *= 2) {
        x.s--;
    }
    return x;
}

/* 4096 x / most, to nearest, ties to even, and at least 1: about what the accumulator is multiplied by. */
static int32_t ce_factor(ce_scale x, ce_scale most)
{
    if (most.s - x.s > 20) {
        return 1;
    }
    const int64_t above = (int64_t)4096 * x.m, below = (int64_t)most.m << (most.s - x.s);
    const int64_t q = above / below, rest = 2 * (above % below);
    const int32_t rounded = (int32_t)(q + (rest > below || (rest == below && (q & 1) != 0) ? 1 : 0));
    return rounded < 1 ? 1 : rounded;
}

/* Positive p, own for the label's class and other for class j, which make p * acc comparable between the two. */
static void ce_factors(const ce_end *e, int32_t label, int32_t j, int32_t *own, int32_t *other)
{
    *own = *other = 1;
    if (!e->dense->per_channel) {
        return;
    }
    ce_scale most = ce_scale_of(e, 0), least = most;
    for (int32_t k = 1; k < e->classes; k++) {
        const ce_scale x = ce_scale_of(e, k);
        most = x.s > most.s || (x.s == most.s && x.m > most.m) ? x : most;
        least = x.s < least.s || (x.s == least.s && x.m < least.m) ? x : least;
    }
    if (most.s != least.s || most.m != least.m) {
        *own = ce_factor(ce_scale_of(e, label), most);
        *other = ce_factor(ce_scale_of(e, j), most);
    }
}

/* The least p_y acc_y - p_j acc_j over the box of the last layer's input. */
static int64_t ce_difference(const ce_end *e, int32_t y, int32_t j, int32_t own, int32_t other)
{
    const ce_dense_record *const d = e->dense;
    const int8_t *const low = e->low + d->in, *const high = e->high + d->in;
    int64_t least = (int64_t)own * e->blob[d->bias + y] - (int64_t)other * e->blob[d->bias + j];
    for (int32_t i = 0; i < d->in_n; i++) {
        const int32_t wy = ce_dense_weight(e->blob, d, y, i), wj = ce_dense_weight(e->blob, d, j, i);
        const int32_t w = own * wy - other * wj; /* below 2^20 */
        least += w * (w < 0 ? high[i] : low[i]);
    }
    return least;
}

/* The least accumulator from `least` to `most` with which class j reaches `level`; `most` does. */
static int32_t ce_threshold(const ce_end *e, int32_t j, int32_t level, int32_t least, int32_t most)
{
    while (least < most) {
        const int32_t middle = least + (int32_t)(((uint32_t)most - (uint32_t)least) >> 1);
        if (ce_logit(e, j, middle) >= level) {
            most = middle;
        } else {
            least = middle + 1;
        }
    }
    return least;
}

/* a / b rounded up, b > 0. */
static int64_t ce_ceil(int64_t a, int32_t b)
{
    return b == 1 ? a : a / b + (a % b > 0 ? 1 : 0);
}

/* How far logit y is above `level`, at least, where own * its accumulator >= scaled and its accumulator >= least. */
static int32_t ce_above(const ce_end *e, int32_t y, int32_t level, int64_t scaled, int32_t own, int32_t least)
{
    const int64_t reached = ce_ceil(scaled, own);
    /* No more than the label's largest accumulator, so that it fits. */
    return ce_logit(e, y, reached > least ? (int32_t)reached : least) - level;
}

/* A lower bound on logit y - logit j over the box. Where class j is at a level, its accumulator is at least that
 * level's threshold a, hence the label's at least (p_j a + least) / p_y: the label's logit there is a lower bound. The
 * highest level is tried first, and where it is not passed the ends' own bound has to do. */
static int32_t ce_fused(const ce_end *e, int32_t y, int32_t j)
{
    const ce_range acc_y = ce_dense_range(e->blob, e->dense, y, e->low, e->high);
    const ce_range acc_j = ce_dense_range(e->blob, e->dense, j, e->low, e->high);
    const int32_t first = e->low[e->logits + j], last = e->high[e->logits + j];
    int32_t own, other;
    ce_factors(e, y, j, &own, &other);
    const int64_t least = ce_difference(e, y, j, own, other);
    int32_t a = ce_threshold(e, j, last, acc_j.least, acc_j.most);
    int32_t margin = ce_above(e, y, last, (int64_t)other * a + least, own, acc_y.least);
    if (margin < 1) {
        return e->low[e->logits + y] - last;
    }
    a = acc_j.least;
    for (int32_t level = first; level < last; level++) {
        a = ce_threshold(e, j, level, a, acc_j.most);
        const int32_t found = ce_above(e, y, level, (int64_t)other * a + least, own, acc_y.least);
        margin = found < margin ? found : margin;
    }
    return margin;
}

/* ---- the verdict ---- */

/* Q0.31 exponential of a class that is at least `margin` below the label: an upper bound. */
static int32_t ce_exponential(const ce_end *e, int32_t margin)
{
    const int32_t k = margin < 0 ? 0 : margin;
    return k < e->softmax->entries ? e->blob[e->softmax->table + k] : 0;
}

/* A margin as far as ce_wins looks at it, 0 to 255, in a byte. */
static int8_t ce_from_margin(int32_t margin)
{
    return (int8_t)((margin < 0 ? 0 : margin > 255 ? 255 : margin) - 128);
}

static int32_t ce_to_margin(int8_t byte)
{
    return byte + 128;
}

/* Whether a margin implies a strict win at the output. Behind a softmax, `total` bounds the sum of the exponentials in
 * Q12.19 from above (cactus_edge/verify/softmax.py says why this suffices). */
static int ce_wins(const ce_end *e, int32_t margin, int32_t total)
{
    if (margin < 1) {
        return 0;
    }
    return !e->softmax || ((INT64_C(1) << 26) - 1) * ((int64_t)INT32_MAX - ce_exponential(e, margin)) >=
                              (INT64_C(1) << 30) * total;
}

int ce_certify(const ce_certifier *certifier, const int8_t *in, const ce_region *region, int32_t label,
               ce_verdict *verdict)
{
    const int status = ce_model_check(certifier->model);
    if (status != CE_OK) {
        return status;
    }
    const ce_end e = ce_find_end(certifier);
    if (e.classes < 2 || (e.softmax && e.softmax->rows != 1)) {
        return CE_NO_RULE;
    }
    if (label < 0 || label >= e.classes) {
        return CE_NO_LABEL;
    }
    ce_write_box(certifier, in, region);
    ce_bound(certifier, &e);

    const int8_t *const high = e.high + e.logits;
    int8_t *const low = certifier->model->arena + e.logits;
    int32_t total = 0, closest = INT32_MAX, won = 1;
    for (int32_t j = 0; e.softmax && j < e.classes; j++) {
        total += ce_rdp(ce_exponential(&e, j == label ? 0 : low[label] - high[j]), 12);
    }
    for (int32_t j = 0; j < e.classes; j++) {
        if (j == label) {
            continue;
        }
        int32_t margin = low[label] - high[j];
        /* Where class j can be at least as high as the label, no margin at its highest level is passed. */
        if (e.dense && !ce_wins(&e, margin, total) && high[j] < high[label]) {
            margin = ce_fused(&e, label, j);
        }
        closest = margin < closest ? margin : closest;
        low[j] = ce_from_margin(margin); /* its lower end is not read again */
    }
    if (e.softmax) {
        total = 0;
        for (int32_t j = 0; j < e.classes; j++) {
            total += ce_rdp(ce_exponential(&e, j == label ? 0 : ce_to_margin(low[j])), 12);
        }
    }
    for (int32_t j = 0; j < e.classes; j++) {
        won = won && (j == label || ce_wins(&e, ce_to_margin(low[j]), total));
    }
    verdict->certified = won;
    verdict->margin = closest;
    return CE_OK;
}
