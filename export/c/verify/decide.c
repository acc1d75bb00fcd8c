/* SPDX-License-Identifier: Apache-2.0 */
#include "decide.h"

#include <string.h>

#include "affine.h"
#include "say.h"

/* The logit of class c for its accumulator. */
static int64_t logit(const ce_goal *goal, int64_t c, int64_t acc)
{
    for (int i = goal->rule_count - 1; i >= 0; i--) {
        acc = ce_apply(goal->rules[i], ce_constant_of(goal->rules[i], c), acc);
    }
    return acc;
}

static void find_tail(ce_goal *goal)
{
    const ce_program *program = goal->program;
    goal->rules = ce_memory((size_t)program->step_count + 1, sizeof *goal->rules);
    goal->tail = -1;
    for (int v = goal->logits; v != program->input && goal->tail < 0;) {
        const ce_step *step = &program->steps[program->values[v].writer];
        if (step->kind == CE_STEP_AFFINE) {
            goal->tail = program->values[v].writer;
        } else if (step->kind == CE_STEP_RULE) {
            goal->rules[goal->rule_count++] = &step->rule;
        } else if (step->kind != CE_STEP_RESHAPE) {
            return;
        }
        v = step->args[0];
    }
    if (goal->tail < 0) {
        return;
    }
    const ce_affine *affine = &program->steps[goal->tail].affine;
    const ce_bounds codes = ce_new_bounds(affine->in.count);
    for (int64_t i = 0; i < affine->in.count; i++) {
        codes.low[i] = -128;
        codes.high[i] = 127;
    }
    goal->full = ce_new_bounds(goal->classes);
    goal->back = ce_memory((size_t)affine->in.count, sizeof *goal->back);
    goal->row = ce_memory((size_t)goal->classes, sizeof *goal->row);
    if (!ce_affine_ends(affine, codes.low, codes.high, goal->full.low, goal->full.high)) {
        ce_refuse("an accumulator leaves int32");
    }
    goal->top = -128;
    for (int64_t c = 0; c < goal->classes; c++) {
        goal->top = ce_most(goal->top, logit(goal, c, goal->full.high[c]));
    }
}

/* Two codes whose floats are both infinite would tie. */
static void check_dequantised(const ce_tensor *out)
{
    ce_real steps = {(uint64_t)ce_most(128 + out->zero, 127 - out->zero) - 1, 0}, product;
    while (!(steps.m >> 52)) {
        steps.m <<= 1;
        steps.e--;
    }
    if (!ce_single(ce_times(steps, ce_of_float(out->scale)), &product)) {
        ce_refuse("the output has codes that dequantise to equal floats: wins may tie");
    }
}

ce_goal ce_goal_of(const ce_program *program, const ce_graph *graph)
{
    ce_goal goal = {program, NULL, program->output, 0, -1, NULL, 0, {NULL, NULL}, 0, NULL, NULL, NULL, false};
    const ce_shape *shape = &program->values[program->output].shape;
    const ce_node *last = &graph->nodes[graph->node_count - 1];
    goal.classes = shape->count;
    goal.margins = ce_memory((size_t)goal.classes, sizeof *goal.margins);
    if (goal.classes < 2) {
        ce_refuse("an output of one element: a decision needs two classes");
    }
    for (int v = program->output; v != program->input;) {
        const ce_step *step = &program->steps[program->values[v].writer];
        if (step->kind == CE_STEP_SOFTMAX) {
            goal.softmax = step->softmax;
            goal.logits = step->args[0];
            if (ce_channels(&program->values[v].shape) != shape->count) {
                ce_refuse("a softmax at the end over more than one row of classes");
            }
        }
        if (step->kind != CE_STEP_RESHAPE) {
            break;
        }
        v = step->args[0];
    }
    if (last->kind == CE_DEQUANTIZE) {
        check_dequantised(&graph->tensors[last->input[0]]);
    }
    find_tail(&goal);
    return goal;
}

void ce_begin_leaf(ce_goal *goal, ce_bounds bounds, int64_t label)
{
    const int64_t at = goal->program->values[goal->logits].at;
    for (int64_t j = 0; j < goal->classes; j++) {
        goal->margins[j] = (int64_t)bounds.low[at + label] - bounds.high[at + j];
    }
}

/* The least p acc_label - q acc_j over the box of the last layer's input. */
static int64_t over_box(ce_goal *goal, ce_bounds bounds, int64_t label, int64_t j, int64_t p, int64_t q)
{
    const ce_step *step = &goal->program->steps[goal->tail];
    const ce_affine *affine = &step->affine;
    const int64_t at = goal->program->values[step->args[0]].at;
    memset(goal->row, 0, (size_t)goal->classes * sizeof *goal->row);
    goal->row[label] = p;
    goal->row[j] = -q;
    ce_affine_back(affine, goal->row, goal->back);
    int64_t found = p * ce_bias_of(affine, label) - q * ce_bias_of(affine, j);
    for (int64_t i = 0; i < affine->in.count; i++) {
        const int64_t b = goal->back[i];
        found += b * ((b > 0 ? bounds.low : bounds.high)[at + i] + affine->offset);
    }
    return found;
}

/* ceil(a / b), b above zero. */
static int64_t ceiling(int64_t a, int64_t b)
{
    return a / b + (a % b > 0);
}

/* The least margin over class j that is a win. */
static int64_t enough(const ce_goal *goal, int64_t label, int64_t j)
{
    return goal->first_maximum && j > label ? 0 : 1;
}

/* The least out_label - out_j where p acc_label - q acc_j >= least: for each logit k that class j may have, its accumulator is at
 * least the first that gives k, which puts the label's own at a level. */
static int64_t behind(const ce_goal *goal, ce_bounds bounds, int64_t label, int64_t j, int64_t p, int64_t q, int64_t least)
{
    const ce_program *program = goal->program;
    const int64_t at = program->values[goal->logits].at, acc = program->values[program->steps[goal->tail].out].at;
    const int64_t own_least = bounds.low[at + label];
    int64_t margin = INT64_MAX, first = bounds.low[acc + j];
    for (int64_t k = bounds.low[at + j]; k <= bounds.high[at + j]; k++) {
        /* The least accumulator of class j from its own lower end on that gives k or more. */
        int64_t under = first - 1, reached = ce_most(goal->full.high[j], first);
        while (reached - under > 1) {
            const int64_t middle = under + (reached - under) / 2;
            if (logit(goal, j, middle) >= k) {
                reached = middle;
            } else {
                under = middle;
            }
        }
        first = reached;
        const int64_t own = ceiling(q * first + least, p);
        /* Beyond the full range there is no such accumulator, and every level holds. */
        const int64_t level = own > goal->full.high[label]
                                  ? goal->top
                                  : logit(goal, label, ce_most(own, goal->full.low[label]));
        margin = ce_least(margin, ce_most(level, own_least) - k);
        if (margin < enough(goal, label, j)) {
            break;
        }
    }
    return margin;
}

void ce_use_row(ce_goal *goal, ce_row *row, ce_bounds bounds, int64_t label, int64_t j, int64_t p, int64_t q,
                const uint8_t *sheet, const uint8_t *multipliers, int count)
{
    int64_t found;
    if (sheet == NULL) {
        found = over_box(goal, bounds, label, j, p, q);
    } else {
        int64_t *a = ce_begin(row, goal->tail < 0 ? goal->logits : goal->program->steps[goal->tail].out);
        a[label] = p;
        a[j] = -q;
        if (!ce_lower_bound(row, bounds, sheet, multipliers, count, &found)) {
            return;
        }
    }
    if (goal->tail >= 0) {
        found = behind(goal, bounds, label, j, p, q, found);
    }
    goal->margins[j] = ce_most(goal->margins[j], found);
}

bool ce_won(const ce_goal *goal, int64_t label)
{
    for (int64_t j = 0; j < goal->classes; j++) {
        if (j != label && goal->margins[j] < enough(goal, label, j)) {
            return false;
        }
    }
    return goal->softmax == NULL || ce_separates(goal->softmax, goal->classes, label, goal->margins, goal->first_maximum);
}
