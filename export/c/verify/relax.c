/* SPDX-License-Identifier: Apache-2.0 */
#include "relax.h"

#include <string.h>

#include "affine.h"
#include "say.h"

enum { GRAIN = 24, BITS = 24, APART = 28 };
#define TERM ((int64_t)1 << 44)  /* grains that one element may add */
#define TOTAL ((int64_t)1 << 61) /* and that the constant may have: 2^17 terms fit */

ce_row ce_new_row(const ce_program *program)
{
    ce_row row = {program, NULL, NULL, 0, NULL, NULL, NULL, NULL, 0, true};
    int64_t widest = 1;
    for (int v = 0; v < program->value_count; v++) {
        widest = ce_most(widest, program->values[v].shape.count);
    }
    row.lines_of = ce_memory((size_t)program->value_count, sizeof *row.lines_of);
    row.a = ce_memory((size_t)program->elements, sizeof *row.a);
    row.work = ce_memory((size_t)widest, sizeof *row.work);
    row.e = ce_memory((size_t)program->value_count, sizeof *row.e);
    row.has = ce_memory((size_t)program->value_count, sizeof *row.has);
    for (int v = 0; v < program->value_count; v++) {
        row.lines_of[v] = -1;
    }
    return row;
}

/* One term t 2^-e in grains, rounded down; false where it has too many. */
static bool grains(int64_t t, int e, int64_t *found)
{
    if (e >= GRAIN) {
        *found = ce_down(t, e - GRAIN < 63 ? e - GRAIN : 63);
        return *found >= -TERM && *found <= TERM;
    }
    const int up = GRAIN - e;
    const int64_t most = up > 44 ? 0 : TERM >> up;
    if (t < -most || t > most) {
        return false;
    }
    *found = t == 0 ? 0 : ce_up(t, up);
    return true;
}

/* A sum of terms under way: `add` one by one, then `paid`. */
typedef struct {
    int64_t total;
    bool fits;
} bill_t;

static void add(bill_t *bill, int64_t t, int e)
{
    int64_t g = 0;
    bill->fits = bill->fits && grains(t, e, &g);
    bill->total += g;
}

static void pay(ce_row *row, bill_t bill)
{
    row->constant += bill.total;
    row->valid = row->valid && bill.fits && row->constant >= -TOTAL && row->constant <= TOTAL;
    row->constant = row->valid ? row->constant : 0;
}

/* Pays <a, v> 2^-e at its least over the value's bounds. */
static void least(ce_row *row, int64_t v, const int64_t *a, int e, ce_bounds bounds)
{
    const ce_value *value = &row->program->values[v];
    bill_t bill = {0, true};
    for (int64_t i = 0; i < value->shape.count && bill.fits; i++) {
        add(&bill, a[i] * (a[i] > 0 ? bounds.low : bounds.high)[value->at + i], e);
    }
    pay(row, bill);
}

/* Rounds the coefficients to BITS bits, halves up, and pays what that may cost; the new exponent. */
static int rounded(ce_row *row, int64_t v, int64_t *a, int e, ce_bounds bounds)
{
    const ce_value *value = &row->program->values[v];
    int64_t top = 0;
    int t = 0;
    for (int64_t i = 0; i < value->shape.count; i++) {
        top = ce_most(top, a[i] < 0 ? -a[i] : a[i]);
    }
    while (top >> t >= (int64_t)1 << BITS) {
        t++;
    }
    if (t == 0) {
        return e;
    }
    bill_t bill = {0, true};
    for (int64_t i = 0; i < value->shape.count; i++) {
        const int64_t kept = ce_down(a[i] + ((int64_t)1 << (t - 1)), t), rest = a[i] - ce_up(kept, t);
        add(&bill, rest * (rest > 0 ? bounds.low : bounds.high)[value->at + i], e);
        a[i] = kept;
    }
    pay(row, bill);
    return e - t;
}

/* Where coefficients for value v can be written: its own place, or, where it has some, `work`. */
static int64_t *room(ce_row *row, int64_t v)
{
    return row->has[v] ? row->work : row->a + row->program->values[v].at;
}

/* Adds the coefficients b 2^-e that stand in `room` to those of the value. */
static void give(ce_row *row, int64_t v, int64_t *b, int e, ce_bounds bounds)
{
    const int64_t n = row->program->values[v].shape.count;
    int64_t *a = row->a + row->program->values[v].at;
    if (!row->has[v]) {
        row->has[v] = true;
        row->e[v] = e;
        return;
    }
    int first = rounded(row, v, a, row->e[v], bounds), second = rounded(row, v, b, e, bounds);
    const int apart = first > second ? first - second : second - first;
    if (apart > APART) {
        /* The finer of the two is paid for at once. */
        int64_t *finer = first > second ? a : b;
        least(row, v, finer, first > second ? first : second, bounds);
        memset(finer, 0, (size_t)n * sizeof *finer);
        first = second = first > second ? second : first;
    }
    const int fine = first > second ? first : second;
    for (int64_t i = 0; i < n; i++) {
        a[i] = ce_up(a[i], fine - first) + ce_up(b[i], fine - second);
    }
    row->e[v] = fine;
}

/* Multipliers of value v: coefficients change by mu 2^-s, at the most that this may add to the sum. */
static void change(ce_row *row, int64_t v, ce_bounds bounds, const uint8_t *multipliers, int count)
{
    const int64_t at = row->program->values[v].at;
    bill_t bill = {0, true};
    for (int n = 0; n < count; n++) {
        const uint8_t *m = multipliers + CE_MULTIPLIER_BYTES * n;
        if (ce_u16(m) != v) {
            continue;
        }
        const int64_t i = at + ce_u32(m + 2), mu = ce_i32(m + 6);
        const int s = m[10], finer = row->e[v] - s;
        if (finer > APART) {
            row->valid = false;
            return;
        }
        const int64_t by = finer >= 0 ? ce_up(mu, finer) : ce_down(mu, -finer < 63 ? -finer : 63);
        const int64_t paid = finer >= 0 ? mu : by;
        row->a[i] += by;
        add(&bill, -ce_most(paid * bounds.low[i], paid * bounds.high[i]), finer >= 0 ? s : row->e[v]);
    }
    pay(row, bill);
}

static void through_affine(ce_row *row, const ce_step *step, int64_t *a, int e, ce_bounds bounds)
{
    const ce_affine *affine = &step->affine;
    bill_t bias = {0, true}, offset = {0, true};
    for (int64_t i = 0; i < affine->out.count; i++) {
        add(&bias, a[i] * ce_bias_of(affine, i), e);
    }
    pay(row, bias);
    int64_t *b = room(row, step->args[0]);
    ce_affine_back(affine, a, b);
    for (int64_t i = 0; i < affine->in.count; i++) {
        add(&offset, b[i] * affine->offset, e);
    }
    pay(row, offset);
    give(row, step->args[0], b, e, bounds);
}

static void through_pad(ce_row *row, const ce_step *step, int64_t *a, int e, ce_bounds bounds)
{
    const ce_shape *in = &row->program->values[step->args[0]].shape, *out = &row->program->values[step->out].shape;
    int64_t *b = room(row, step->args[0]);
    bill_t border = {0, true};
    for (int64_t i = 0; i < in->count; i++) {
        int64_t *inner = &a[ce_padded_place(step, in, out, i)];
        b[i] = *inner;
        *inner = 0;
    }
    for (int64_t i = 0; i < out->count; i++) {
        add(&border, a[i] * step->filler, e);
    }
    pay(row, border);
    give(row, step->args[0], b, e, bounds);
}

static void through_join(ce_row *row, const ce_step *step, const int64_t *a, int e, ce_bounds bounds)
{
    for (int n = 0; n < step->joins; n++) {
        const int v = step->joined[n];
        const ce_part part = ce_joined_part(row->program, step, n);
        int64_t *b = room(row, v);
        for (int64_t i = 0; i < row->program->values[v].shape.count; i++) {
            b[i] = a[part.first + i / part.run * part.step + i % part.run];
        }
        give(row, v, b, e, bounds);
    }
}

/* The maximum is at least its tap of the largest lower end, and equal to it where no other tap can pass that. */
static void through_max(ce_row *row, const ce_step *step, const int64_t *a, int e, ce_bounds bounds)
{
    const ce_value *in = &row->program->values[step->args[0]], *out = &row->program->values[step->out];
    int64_t *b = room(row, step->args[0]), *taps = row->program->taps;
    bill_t from_above = {0, true};
    memset(b, 0, (size_t)in->shape.count * sizeof *b);
    for (int64_t i = 0; i < out->shape.count; i++) {
        const int64_t c = i % out->shape.size[2], at = i / out->shape.size[2];
        const int count = ce_pool_taps(step, &in->shape, at / out->shape.size[1], at % out->shape.size[1], taps);
        int chosen = 0;
        bool certain = true;
        for (int t = 1; t < count; t++) {
            chosen = bounds.low[in->at + taps[t] + c] > bounds.low[in->at + taps[chosen] + c] ? t : chosen;
        }
        for (int t = 0; t < count; t++) {
            certain = certain && (t == chosen ||
                                  bounds.high[in->at + taps[t] + c] <= bounds.low[in->at + taps[chosen] + c]);
        }
        if (a[i] > 0 || certain) {
            b[taps[chosen] + c] += a[i];
        } else {
            add(&from_above, a[i] * bounds.high[out->at + i], e);
        }
    }
    pay(row, from_above);
    give(row, step->args[0], b, e, bounds);
}

static void through_lines(ce_row *row, const ce_lines *lines, const int64_t *a, int e, ce_bounds bounds, const uint8_t *sheet)
{
    const ce_step *step = lines->step;
    const int64_t n = row->program->values[step->out].shape.count;
    bill_t intercepts = {0, true};
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = sheet[lines->place + i + (a[i] > 0 ? 0 : row->sheet)];
        const int64_t b = a[i] == 0 ? 0 : ce_intercept(row->program, lines, bounds, i, k, a[i] < 0);
        if (b <= -CE_FAR_INTERCEPT || b >= CE_FAR_INTERCEPT) {
            row->valid = false;
            return;
        }
        add(&intercepts, a[i] * b, e + 12);
    }
    pay(row, intercepts);
    for (int arg = 0; arg < (step->kind == CE_STEP_SUM ? 2 : 1); arg++) {
        int64_t *b = room(row, step->args[arg]);
        for (int64_t i = 0; i < n; i++) {
            const int64_t k = sheet[lines->place + i + (a[i] > 0 ? 0 : row->sheet)];
            b[i] = a[i] * k * ce_p(lines, arg, i);
        }
        give(row, step->args[arg], b, e + lines->q + 7, bounds);
    }
}

static void through(ce_row *row, const ce_step *step, ce_bounds bounds, const uint8_t *sheet)
{
    int64_t *a = row->a + row->program->values[step->out].at;
    const int e = rounded(row, step->out, a, row->e[step->out], bounds);
    row->has[step->out] = false;
    if (step->kind == CE_STEP_AFFINE) {
        through_affine(row, step, a, e, bounds);
    } else if (step->kind == CE_STEP_RESHAPE) {
        int64_t *b = room(row, step->args[0]);
        memcpy(b, a, (size_t)row->program->values[step->out].shape.count * sizeof *b);
        give(row, step->args[0], b, e, bounds);
    } else if (step->kind == CE_STEP_PAD) {
        through_pad(row, step, a, e, bounds);
    } else if (step->kind == CE_STEP_JOIN) {
        through_join(row, step, a, e, bounds);
    } else if (step->kind == CE_STEP_MAX) {
        through_max(row, step, a, e, bounds);
    } else if (row->lines_of[step->out] >= 0) {
        through_lines(row, &row->lines[row->lines_of[step->out]], a, e, bounds, sheet);
    } else {
        least(row, step->out, a, e, bounds);
    }
}

int64_t *ce_begin(ce_row *row, int64_t value)
{
    const ce_value *v = &row->program->values[value];
    memset(row->has, 0, (size_t)row->program->value_count * sizeof *row->has);
    memset(row->a + v->at, 0, (size_t)v->shape.count * sizeof *row->a);
    row->has[value] = true;
    row->e[value] = 0;
    row->constant = 0;
    row->valid = true;
    return row->a + v->at;
}

bool ce_lower_bound(ce_row *row, ce_bounds bounds, const uint8_t *sheet, const uint8_t *multipliers, int count, int64_t *found)
{
    const ce_program *program = row->program;
    for (int i = program->step_count - 1; i >= 0 && row->valid; i--) {
        const ce_step *step = &program->steps[i];
        if (row->has[step->out]) {
            change(row, step->out, bounds, multipliers, count);
            through(row, step, bounds, sheet);
        }
    }
    if (row->valid && row->has[program->input]) {
        least(row, program->input, row->a + program->values[program->input].at, row->e[program->input], bounds);
    }
    *found = row->valid ? -ce_down(-row->constant, GRAIN) : 0;
    return row->valid;
}
