/* SPDX-License-Identifier: Apache-2.0 */
#include "program.h"

#include "affine.h"
#include "say.h"

typedef struct {
    const ce_graph *graph;
    const ce_node *node;
    const ce_tensor *x, *out;
    int *value_of; /* [tensors] */
    int64_t most_taps; /* of a maximum, inside the image */
    ce_program program;
} builder_t;

bool ce_accumulates(const ce_program *program, int64_t v)
{
    return v > 0 && v < program->value_count && program->steps[program->values[v].writer].kind == CE_STEP_AFFINE;
}

int64_t ce_bias_of(const ce_affine *affine, int64_t i)
{
    const ce_node *node = affine->node;
    return node->bias ? ce_i32(node->bias + 4 * (i % node->outer)) : 0;
}

static int64_t magnitude(int64_t x)
{
    return x < 0 ? -x : x;
}

static void fits(int64_t bound, const char *what)
{
    if (bound > INT32_MAX) {
        ce_refuse("%s may reach %lld, beyond int32", what, (long long)bound);
    }
}

static int add_value(builder_t *b, const ce_shape *shape, int writer)
{
    ce_value *value = &b->program.values[b->program.value_count];
    value->shape = *shape;
    value->at = b->program.elements;
    value->writer = writer;
    b->program.elements += shape->count;
    if (b->program.elements > CE_ALL_ELEMENTS) {
        ce_refuse("the model's values have more than 2^24 elements");
    }
    return b->program.value_count++;
}

/* A step from value `arg` to a new value. */
static ce_step *add_step(builder_t *b, ce_step_kind kind, int arg, const ce_shape *shape)
{
    ce_step *step = &b->program.steps[b->program.step_count];
    step->kind = kind;
    step->node = b->node;
    step->args[0] = step->args[1] = arg;
    step->out = add_value(b, shape, b->program.step_count);
    b->program.step_count++;
    return step;
}

/* The codes of [-1, 0, 6] that a fused activation clamps to: zero + f32(v / scale) to the nearest, ties away. */
static int64_t code_of(uint32_t value, bool negative, const ce_tensor *out)
{
    const ce_real limit = ce_of_float(0x4f000000u - 1); /* the float32 below 2^31 */
    ce_real ratio;
    if (!ce_single(ce_over(ce_of_float(value), ce_of_float(out->scale)), &ratio) || ce_compare(ratio, limit) >= 0) {
        ce_refuse("a fused activation with a scale that TFLM refuses");
    }
    const int64_t codes = ce_nearest(ratio);
    return out->zero + (negative ? -codes : codes);
}

static void set_clamp(ce_activation activation, const ce_tensor *out, int64_t *low, int64_t *high)
{
    const uint32_t one = 0x3f800000u, six = 0x40c00000u;
    *low = -128;
    *high = 127;
    if (activation == CE_ACT_RELU || activation == CE_ACT_RELU6) {
        *low = ce_most(-128, out->zero);
    }
    if (activation == CE_ACT_RELU6) {
        *high = ce_least(127, code_of(six, false, out));
    }
    if (activation == CE_ACT_RELU_N1_TO_1) {
        *low = ce_most(-128, code_of(one, true, out));
        *high = ce_least(127, code_of(one, false, out));
    }
}

static ce_multiplier shifted(ce_real value, int most)
{
    const ce_multiplier found = ce_quantised(value);
    if (found.s > most) {
        ce_refuse("a multiplier shifts left by %d bits, more than %d", found.s, most);
    }
    return found;
}

/* The facts about a requantisation of values up to `source` by constant c. */
static void check_requantise(const ce_rule *rule, int64_t c, int64_t source)
{
    const int64_t value = source + magnitude(rule->zero_in);
    const int s = rule->multiplier[c].s;
    fits(ce_up(value, s > 0 ? s : 0), "a value times its left shift");
    const int64_t most = ce_scale_by(value, rule->multiplier[c]), least = ce_scale_by(-value, rule->multiplier[c]);
    fits(ce_most(magnitude(most), magnitude(least)) + magnitude(rule->zero_out), "a requantised value");
}

/* Bound of every partial sum of W (x + offset) + b for output i, in both spellings. */
static int64_t check_accumulator(const ce_affine *affine, int64_t i)
{
    const int64_t reach = ce_affine_reach(affine, i), bias = magnitude(ce_bias_of(affine, i));
    const int64_t farthest = ce_most(magnitude(-128 + affine->offset), magnitude(127 + affine->offset));
    fits(reach * farthest + bias, "an accumulator");
    fits(reach * (128 + magnitude(affine->offset)) + bias, "an accumulator with its zero point folded");
    return reach * farthest + bias;
}

static void layer(builder_t *b, int arg)
{
    const ce_node *node = b->node;
    ce_step *step = add_step(b, CE_STEP_AFFINE, arg, &b->out->shape);
    const ce_affine affine = {node, b->x->shape, b->out->shape, -b->x->zero};
    step->affine = affine;
    /* One scale counts for every channel of a convolution; a dense layer then forms its multiplier in another way. */
    const bool one = node->kind == CE_DENSE && node->scales.count == 1;
    ce_step *last = add_step(b, CE_STEP_RULE, step->out, &b->out->shape);
    ce_rule *rule = &last->rule;
    rule->kind = CE_REQUANTISE;
    rule->count = one ? 1 : node->outer;
    rule->channels = node->outer;
    rule->zero_out = b->out->zero;
    set_clamp(node->activation, b->out, &rule->low, &rule->high);
    rule->multiplier = ce_memory((size_t)rule->count, sizeof *rule->multiplier);
    for (int64_t c = 0; c < rule->count; c++) {
        const ce_real scale = ce_of_float(ce_u32(node->scales.at + (node->scales.count == 1 ? 0 : 4 * c)));
        ce_real product = ce_times(ce_of_float(b->x->scale), scale); /* exact: 48 bits */
        if (one && !ce_single(product, &product)) {
            ce_refuse("a product of scales is no float32");
        }
        rule->multiplier[c] = shifted(ce_over(product, ce_of_float(b->out->scale)), 30);
    }
    for (int64_t c = 0; c < node->outer; c++) {
        check_requantise(rule, one ? 0 : c, check_accumulator(&step->affine, c));
    }
}

static void sum_of_two(builder_t *b, int first, int second)
{
    ce_step *step = add_step(b, CE_STEP_SUM, first, &b->out->shape);
    step->args[1] = second;
    step->sum = ce_memory(1, sizeof *step->sum);
    ce_sum *sum = step->sum;
    const ce_tensor *x[2] = {b->x, &b->graph->tensors[b->node->input[1]]};
    const ce_real a = ce_of_float(x[0]->scale), c = ce_of_float(x[1]->scale);
    const ce_real twice = ce_scaled(ce_compare(a, c) > 0 ? a : c, 1);
    const ce_real out = ce_over(twice, ce_scaled(ce_of_float(b->out->scale), 20));
    if (ce_compare(out, ce_of_float(0x3f800000u)) >= 0) {
        ce_refuse("an ADD whose output scale is far below its inputs'");
    }
    sum->out = ce_quantised(out);
    sum->zero_out = b->out->zero;
    set_clamp(b->node->activation, b->out, &sum->low, &sum->high);
    int64_t total = 0;
    for (int i = 0; i < 2; i++) {
        const ce_multiplier multiplier = ce_quantised(ce_over(i ? c : a, twice));
        int64_t most = 0;
        for (int code = -128; code < 128; code++) {
            const int64_t term = ce_scale_by(ce_up(code - x[i]->zero, 20), multiplier);
            sum->term[i][code + 128] = (int32_t)term;
            most = ce_most(most, magnitude(term));
        }
        total += most;
    }
    const int s = sum->out.s;
    fits(ce_up(total, s > 0 ? s : 0), "the sum of an ADD");
    fits(ce_most(magnitude(ce_scale_by(total, sum->out)), magnitude(ce_scale_by(-total, sum->out))) + magnitude(sum->zero_out),
         "the result of an ADD");
}

static void average(builder_t *b, int arg)
{
    ce_step *step = add_step(b, CE_STEP_AFFINE, arg, &b->out->shape);
    const ce_affine affine = {b->node, b->x->shape, b->out->shape, 0};
    step->affine = affine;
    ce_step *last = add_step(b, CE_STEP_RULE, step->out, &b->out->shape);
    ce_rule *rule = &last->rule;
    rule->kind = CE_DIVIDE;
    rule->channels = b->out->shape.size[2];
    rule->count = b->out->shape.size[0] * b->out->shape.size[1];
    rule->divisor = ce_memory((size_t)rule->count, sizeof *rule->divisor);
    set_clamp(b->node->activation, b->out, &rule->low, &rule->high);
    for (int64_t p = 0; p < rule->count; p++) {
        rule->divisor[p] = (int32_t)ce_window_taps(&affine, p);
        fits(check_accumulator(&affine, p) + rule->divisor[p] / 2, "a sum and half its divisor");
    }
}

/* MEAN divides the multiplier by the number of elements: m = floor(m0 2^k / n), s = s0 - k (reference/reduce.h). */
static void reduction(builder_t *b, int arg)
{
    ce_step *step = add_step(b, CE_STEP_AFFINE, arg, &b->out->shape);
    const ce_affine affine = {b->node, b->x->shape, b->out->shape, 0};
    step->affine = affine;
    const int64_t source = check_accumulator(&affine, 0), n = affine.in.count / affine.out.count;
    const int64_t divisor = b->node->kind == CE_MEAN ? n : 1;
    ce_step *last = add_step(b, CE_STEP_RULE, step->out, &b->out->shape);
    ce_rule *rule = &last->rule;
    rule->kind = CE_REQUANTISE;
    rule->count = rule->channels = 1;
    rule->multiplier = ce_memory(1, sizeof *rule->multiplier);
    ce_multiplier base = shifted(ce_over(ce_of_float(b->x->scale), ce_of_float(b->out->scale)), 30);
    int k = 0;
    while (divisor >> (k + 1) && k < 32 && k < 31 + base.s) {
        k++;
    }
    rule->multiplier->m = (int32_t)(ce_up(base.m, k) / divisor);
    rule->multiplier->s = base.s - k;
    rule->zero_in = (int64_t)b->x->zero * n;
    rule->zero_out = b->out->zero;
    set_clamp(CE_NO_ACTIVATION, b->out, &rule->low, &rule->high);
    check_requantise(rule, 0, source);
}

static void maximum(builder_t *b, int arg)
{
    ce_step *step = add_step(b, CE_STEP_MAX, arg, &b->out->shape);
    const int64_t *side = b->x->shape.size, *kernel = b->node->window.kernel;
    b->most_taps = ce_most(b->most_taps, ce_least(kernel[0], side[0]) * ce_least(kernel[1], side[1]));
    if (b->node->activation != CE_NO_ACTIVATION) {
        ce_step *last = add_step(b, CE_STEP_RULE, step->out, &b->out->shape);
        last->rule.kind = CE_CLAMP;
        last->rule.count = last->rule.channels = 1;
        set_clamp(b->node->activation, b->out, &last->rule.low, &last->rule.high);
    }
}

/* RELU, RELU6 and QUANTIZE of codes. */
static void on_codes(builder_t *b, int arg)
{
    const ce_kind kind = b->node->kind;
    ce_step *step = add_step(b, CE_STEP_RULE, arg, &b->out->shape);
    ce_rule *rule = &step->rule;
    rule->count = rule->channels = 1;
    set_clamp(kind == CE_RELU ? CE_ACT_RELU : kind == CE_RELU6 ? CE_ACT_RELU6 : CE_NO_ACTIVATION, b->out, &rule->low,
              &rule->high);
    rule->kind = kind == CE_RELU6 ? CE_CLAMP : CE_REQUANTISE;
    if (kind == CE_RELU6) {
        if (b->x->scale != b->out->scale || b->x->zero != b->out->zero) {
            ce_refuse("a RELU6 between two scales, where TFLM only clamps");
        }
        return;
    }
    rule->multiplier = ce_memory(1, sizeof *rule->multiplier);
    *rule->multiplier = shifted(ce_over(ce_of_float(b->x->scale), ce_of_float(b->out->scale)), 23);
    rule->zero_in = b->x->zero;
    rule->zero_out = b->out->zero;
    check_requantise(rule, 0, 128);
}

static void join(builder_t *b)
{
    ce_step *step = add_step(b, CE_STEP_JOIN, b->value_of[b->node->input[0]], &b->out->shape);
    step->joins = b->node->inputs;
    step->joined = ce_memory((size_t)step->joins, sizeof *step->joined);
    for (int i = 0; i < step->joins; i++) {
        step->joined[i] = b->value_of[b->node->input[i]];
    }
}

static void expand(builder_t *b, const ce_node *node)
{
    const int first = b->value_of[node->input[0]];
    b->node = node;
    b->x = &b->graph->tensors[node->input[0]];
    b->out = &b->graph->tensors[node->output];
    switch (node->kind) {
    case CE_CONV:
    case CE_DEPTHWISE:
    case CE_DENSE:
        layer(b, first);
        break;
    case CE_ADD:
        sum_of_two(b, first, b->value_of[node->input[1]]);
        break;
    case CE_AVERAGE:
        average(b, first);
        break;
    case CE_MEAN:
    case CE_SUM:
        reduction(b, first);
        break;
    case CE_MAXIMUM:
        maximum(b, first);
        break;
    case CE_PAD:
        add_step(b, CE_STEP_PAD, first, &b->out->shape)->filler = b->out->zero;
        break;
    case CE_CONCAT:
        join(b);
        break;
    case CE_RESHAPE:
        add_step(b, CE_STEP_RESHAPE, first, &b->out->shape);
        break;
    case CE_RELU:
    case CE_RELU6:
    case CE_REQUANTIZE:
        on_codes(b, first);
        break;
    case CE_SOFTMAX: {
        ce_step *step = add_step(b, CE_STEP_SOFTMAX, first, &b->out->shape);
        step->softmax = ce_memory(1, sizeof *step->softmax);
        *step->softmax = ce_softmax_of(node->beta, b->x->scale, ce_channels(&b->x->shape));
        break;
    }
    case CE_QUANTIZE:
    case CE_DEQUANTIZE:
        return;
    }
    b->value_of[node->output] = b->program.value_count - 1;
}

ce_program ce_lower(const ce_graph *graph)
{
    builder_t b = {graph, NULL, NULL, NULL, NULL, 0, {NULL, 0, NULL, 0, 0, 0, 0, NULL}};
    const ce_node *nodes = graph->nodes, *last = &nodes[graph->node_count - 1];
    const int32_t source = nodes[0].kind == CE_QUANTIZE ? nodes[0].output : graph->input;
    b.value_of = ce_memory((size_t)graph->count, sizeof *b.value_of);
    b.program.values = ce_memory(2 * (size_t)graph->node_count + 1, sizeof *b.program.values);
    b.program.steps = ce_memory(2 * (size_t)graph->node_count, sizeof *b.program.steps);
    b.value_of[source] = add_value(&b, &graph->tensors[source].shape, -1);
    for (int i = 0; i < graph->node_count; i++) {
        expand(&b, &nodes[i]);
    }
    b.program.taps = ce_memory((size_t)b.most_taps, sizeof *b.program.taps);
    b.program.input = 0;
    b.program.output = b.value_of[last->kind == CE_DEQUANTIZE ? last->input[0] : graph->output];
    return b.program;
}
