/* SPDX-License-Identifier: Apache-2.0 */
#include "interval.h"

#include <string.h>

#include "affine.h"
#include "say.h"

ce_bounds ce_new_bounds(int64_t elements)
{
    const ce_bounds found = {ce_memory((size_t)elements, sizeof(int32_t)), ce_memory((size_t)elements, sizeof(int32_t))};
    return found;
}

static void rule_ends(const ce_step *step, int64_t n, const int32_t *x, int32_t *y)
{
    for (int64_t i = 0; i < n; i++) {
        y[i] = (int32_t)ce_apply(&step->rule, ce_constant_of(&step->rule, i), x[i]);
    }
}

int ce_pool_taps(const ce_step *step, const ce_shape *in, int64_t h, int64_t w, int64_t *taps)
{
    const ce_window *window = &step->node->window;
    int count = 0;
    for (int64_t i = 0; i < window->kernel[0]; i++) {
        const int64_t y = h * window->stride[0] - window->before[0] + i;
        for (int64_t j = 0; j < window->kernel[1] && y >= 0 && y < in->size[0]; j++) {
            const int64_t x = w * window->stride[1] - window->before[1] + j;
            if (x >= 0 && x < in->size[1]) {
                taps[count++] = (y * in->size[1] + x) * in->size[2];
            }
        }
    }
    return count;
}

static void max_ends(const ce_program *program, const ce_step *step, const int32_t *x, int32_t *y)
{
    const ce_shape *in = &program->values[step->args[0]].shape, *out = &program->values[step->out].shape;
    for (int64_t h = 0; h < out->size[0]; h++) {
        for (int64_t w = 0; w < out->size[1]; w++) {
            const int count = ce_pool_taps(step, in, h, w, program->taps);
            int32_t *result = y + (h * out->size[1] + w) * out->size[2];
            for (int64_t c = 0; c < out->size[2]; c++) {
                result[c] = x[program->taps[0] + c];
                for (int t = 1; t < count; t++) {
                    result[c] = result[c] > x[program->taps[t] + c] ? result[c] : x[program->taps[t] + c];
                }
            }
        }
    }
}

int64_t ce_padded_place(const ce_step *step, const ce_shape *in, const ce_shape *out, int64_t i)
{
    int64_t place = 0, unit = 1;
    for (int a = in->rank - 1; a >= 0; a--) {
        place += (i % in->size[a] + step->node->pads[a][0]) * unit;
        unit *= out->size[a];
        i /= in->size[a];
    }
    return place;
}

static void pad_ends(const ce_program *program, const ce_step *step, const int32_t *x, int32_t *y)
{
    const ce_shape *in = &program->values[step->args[0]].shape, *out = &program->values[step->out].shape;
    for (int64_t i = 0; i < out->count; i++) {
        y[i] = (int32_t)step->filler;
    }
    for (int64_t i = 0; i < in->count; i++) {
        y[ce_padded_place(step, in, out, i)] = x[i];
    }
}

ce_part ce_joined_part(const ce_program *program, const ce_step *step, int n)
{
    ce_part part = {1, 1, 0};
    const int axis = step->node->axis;
    for (int a = axis; a < program->values[step->out].shape.rank; a++) {
        part.run *= program->values[step->joined[n]].shape.size[a];
        part.step *= program->values[step->out].shape.size[a];
    }
    for (int i = 0; i < n; i++) {
        int64_t run = 1;
        for (int a = axis; a < program->values[step->out].shape.rank; a++) {
            run *= program->values[step->joined[i]].shape.size[a];
        }
        part.first += run;
    }
    return part;
}

static void join_ends(const ce_program *program, const ce_step *step, const int32_t *x, int32_t *y)
{
    for (int n = 0; n < step->joins; n++) {
        const ce_value *arg = &program->values[step->joined[n]];
        const ce_part part = ce_joined_part(program, step, n);
        for (int64_t i = 0; i < arg->shape.count; i++) {
            y[part.first + i / part.run * part.step + i % part.run] = x[arg->at + i];
        }
    }
}

static void softmax_ends(const ce_step *step, const ce_shape *shape, ce_bounds bounds, int64_t from, int64_t to, bool point)
{
    const int64_t n = ce_channels(shape);
    for (int64_t i = 0; i < shape->count; i += n) {
        if (point) {
            ce_apply_softmax(step->softmax, n, bounds.low + from + i, bounds.low + to + i);
            memcpy(bounds.high + to + i, bounds.low + to + i, (size_t)n * sizeof(int32_t));
        } else {
            for (int64_t k = i; k < i + n; k++) {
                bounds.low[to + k] = -128;
                bounds.high[to + k] = 127;
            }
        }
    }
}

void ce_step_ends(const ce_program *program, const ce_step *step, ce_bounds bounds, bool point)
{
    const ce_value *out = &program->values[step->out];
    const int64_t n = out->shape.count, to = out->at;
    const int64_t from = program->values[step->args[0]].at, second = program->values[step->args[1]].at;
    switch (step->kind) {
    case CE_STEP_AFFINE:
        if (!ce_affine_ends(&step->affine, bounds.low + from, bounds.high + from, bounds.low + to, bounds.high + to)) {
            ce_refuse("an accumulator leaves int32");
        }
        break;
    case CE_STEP_RULE:
        rule_ends(step, n, bounds.low + from, bounds.low + to);
        rule_ends(step, n, bounds.high + from, bounds.high + to);
        break;
    case CE_STEP_SUM:
        for (int64_t i = 0; i < n; i++) {
            bounds.low[to + i] = (int32_t)ce_apply_sum(step->sum, bounds.low[from + i], bounds.low[second + i]);
            bounds.high[to + i] = (int32_t)ce_apply_sum(step->sum, bounds.high[from + i], bounds.high[second + i]);
        }
        break;
    case CE_STEP_MAX:
        max_ends(program, step, bounds.low + from, bounds.low + to);
        max_ends(program, step, bounds.high + from, bounds.high + to);
        break;
    case CE_STEP_PAD:
        pad_ends(program, step, bounds.low + from, bounds.low + to);
        pad_ends(program, step, bounds.high + from, bounds.high + to);
        break;
    case CE_STEP_JOIN:
        join_ends(program, step, bounds.low, bounds.low + to);
        join_ends(program, step, bounds.high, bounds.high + to);
        break;
    case CE_STEP_RESHAPE:
        memcpy(bounds.low + to, bounds.low + from, (size_t)n * sizeof(int32_t));
        memcpy(bounds.high + to, bounds.high + from, (size_t)n * sizeof(int32_t));
        break;
    case CE_STEP_SOFTMAX:
        softmax_ends(step, &out->shape, bounds, from, to, point);
        break;
    }
}

void ce_propagate(const ce_program *program, ce_bounds bounds, bool point)
{
    for (int i = 0; i < program->step_count; i++) {
        ce_step_ends(program, &program->steps[i], bounds, point);
    }
}

bool ce_cut(const ce_program *program, int64_t value, ce_bounds bounds, const ce_bounds *other)
{
    const ce_value *v = &program->values[value];
    bool inhabited = true;
    for (int64_t i = v->at; i < v->at + v->shape.count; i++) {
        if (other != NULL) {
            bounds.low[i] = (int32_t)ce_most(bounds.low[i], other->low[i]);
            bounds.high[i] = (int32_t)ce_least(bounds.high[i], other->high[i]);
        }
        inhabited = inhabited && bounds.low[i] <= bounds.high[i];
    }
    return inhabited;
}
