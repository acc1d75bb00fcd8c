/* SPDX-License-Identifier: Apache-2.0 */
#include "lines.h"

#include "say.h"

enum { ONE = 7, UNIT = 12 }; /* k = 2^7 is the slope itself; intercepts count 2^-12 */

int64_t ce_p(const ce_lines *lines, int arg, int64_t i)
{
    const int64_t at = lines->step->kind == CE_STEP_SUM ? arg : lines->count > 1 ? i % lines->channels : 0;
    return ce_i32(lines->p + 4 * at);
}

static bool by_position(const ce_rule *rule)
{
    return rule->kind == CE_DIVIDE && rule->count > 1;
}

/* Which group of elements, all of whose constants are the same, i belongs to. */
static int64_t group_of(const ce_lines *lines, int64_t i)
{
    const int64_t position = by_position(&lines->step->rule) ? i / lines->channels : 0;
    return lines->by_channel ? position * lines->channels + i % lines->channels : position;
}

static void all_codes(const ce_value *value, ce_bounds bounds)
{
    for (int64_t i = value->at; i < value->at + value->shape.count; i++) {
        bounds.low[i] = -128;
        bounds.high[i] = 127;
    }
}

/* Writes the ends of a value over all int8 inputs of what accumulates it, or all codes. */
static void full_range(const ce_program *program, int64_t v, ce_bounds bounds)
{
    if (ce_accumulates(program, v)) {
        const ce_step *step = &program->steps[program->values[v].writer];
        all_codes(&program->values[step->args[0]], bounds);
        ce_step_ends(program, step, bounds, false);
    } else {
        all_codes(&program->values[v], bounds);
    }
}

/* The least and the largest p t_K - K 2^Q over the levels K that the rule reaches within (low, high]; 0 where there is none. */
static void extremes(const ce_rule *rule, int64_t constant, int q, int64_t p, int64_t low, int64_t high, int64_t *least,
                     int64_t *most)
{
    const int64_t last = ce_apply(rule, constant, high);
    int64_t under = low; /* R(under) < K */
    *least = *most = 0;
    for (int64_t level = ce_apply(rule, constant, low) + 1, first = level; level <= last; level++) {
        int64_t reached = high;
        while (reached - under > 1) {
            const int64_t middle = under + (reached - under) / 2;
            if (ce_apply(rule, constant, middle) >= level) {
                reached = middle;
            } else {
                under = middle;
            }
        }
        const int64_t d = p * reached - ce_up(level, q);
        *least = level == first ? d : ce_least(*least, d);
        *most = level == first ? d : ce_most(*most, d);
    }
}

static void one_argument(const ce_program *program, ce_lines *lines, ce_bounds room)
{
    const ce_rule *rule = &lines->step->rule;
    const int64_t n = program->values[lines->step->out].shape.count;
    lines->by_channel = lines->count > 1 || (rule->kind == CE_REQUANTISE && rule->count > 1);
    const int64_t groups = (by_position(rule) ? n / lines->channels : 1) * (lines->by_channel ? lines->channels : 1);
    lines->least = ce_memory((size_t)groups, sizeof *lines->least);
    lines->most = ce_memory((size_t)groups, sizeof *lines->most);
    int64_t *low = ce_memory((size_t)groups, sizeof *low), *high = ce_memory((size_t)groups, sizeof *high);
    int64_t *member = ce_memory((size_t)groups, sizeof *member);
    full_range(program, lines->step->args[0], room);
    const int32_t *least = room.low + program->values[lines->step->args[0]].at;
    const int32_t *most = room.high + program->values[lines->step->args[0]].at;
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t g = group_of(lines, i);
        const bool begun = member[g] > 0; /* elements come from the last on: one that was met is above 0 */
        low[g] = begun ? ce_least(low[g], least[i]) : least[i];
        high[g] = begun ? ce_most(high[g], most[i]) : most[i];
        member[g] = i;
    }
    for (int64_t g = 0; g < groups; g++) {
        const int64_t p = ce_p(lines, 0, member[g]), constant = ce_constant_of(rule, member[g]);
        extremes(rule, constant, lines->q, p, low[g], high[g], &lines->least[g], &lines->most[g]);
    }
}

static void two_arguments(ce_lines *lines)
{
    const ce_sum *sum = lines->step->sum;
    const int64_t low = ce_apply_sum(sum, -128, -128), high = ce_apply_sum(sum, 127, 127);
    bool above = false, below = false;
    for (int64_t x1 = -128; x1 < 128; x1++) {
        for (int64_t x2 = -128; x2 < 128; x2++) {
            const int64_t result = ce_apply_sum(sum, x1, x2);
            const int64_t excess = ce_up(result, lines->q) - (ce_p(lines, 0, 0) * x1 + ce_p(lines, 1, 0) * x2);
            if (result > low) {
                lines->over = above ? ce_most(lines->over, excess) : excess;
                above = true;
            }
            if (result < high) {
                lines->under = below ? ce_least(lines->under, excess) : excess;
                below = true;
            }
        }
    }
}

ce_lines ce_lines_of(const ce_program *program, int64_t value, int q, int64_t count, const uint8_t *p, int64_t place,
                     ce_bounds room)
{
    ce_lines lines = {NULL, q, count, p, place, 1, false, NULL, NULL, 0, 0};
    if (value < 1 || value >= program->value_count || q > CE_MOST_Q) {
        ce_reject("slopes for value %lld, which no step writes, or of Q = %d", (long long)value, q);
    }
    const ce_step *step = &program->steps[program->values[value].writer];
    lines.step = step;
    lines.channels = ce_channels(&program->values[value].shape);
    const bool single = step->kind == CE_STEP_RULE, two = step->kind == CE_STEP_SUM;
    bool good = (two && count == 2) || (single && (count == 1 || count == lines.channels));
    for (int64_t i = 0; good && i < count; i++) {
        const int64_t given = ce_i32(p + 4 * i);
        good = given < CE_MOST_P && given > (two ? -CE_MOST_P : -1);
    }
    if (!good) {
        ce_reject("the slopes of value %lld do not fit its rule", (long long)value);
    }
    if (single) {
        one_argument(program, &lines, room);
    } else {
        two_arguments(&lines);
    }
    return lines;
}

/* b in units of 2^-(q + 7) as one of 2^-12, rounded down; beyond 2^57 only its sign and size matter. */
static int64_t coarse(int64_t b, int q)
{
    const int shift = q + ONE - UNIT;
    const int64_t limit = (int64_t)1 << 57;
    return shift >= 0 ? ce_down(b, shift) : ce_up(ce_clip(b, -limit, limit), -shift);
}

static int64_t single(const ce_lines *lines, int64_t i, int64_t k, int64_t low, int64_t high, bool above)
{
    const ce_rule *rule = &lines->step->rule;
    const int64_t constant = ce_constant_of(rule, i), p = ce_p(lines, 0, i), g = group_of(lines, i);
    const int64_t first = ce_apply(rule, constant, low), last = ce_apply(rule, constant, high);
    const int64_t rise = ce_up((1 << ONE) - k, lines->q);
    if (above) {
        const int64_t at_low = ce_up(first, lines->q + ONE) - k * p * low;
        const int64_t steps = ce_most((first + 1) * rise, last * rise) - k * lines->least[g];
        return last > first ? ce_most(at_low, steps) : at_low;
    }
    const int64_t at_high = ce_up(last, lines->q + ONE) - k * p * high;
    const int64_t steps = ce_least(first * rise, (last - 1) * rise) - k * (lines->most[g] + ce_up(1, lines->q) - p);
    return last > first ? ce_least(at_high, steps) : at_high;
}

static int64_t pair(const ce_lines *lines, int64_t k, const int64_t *low, const int64_t *high, bool above)
{
    const ce_sum *sum = lines->step->sum;
    const int64_t least = ce_up(ce_apply_sum(sum, -128, -128), lines->q), most = ce_up(ce_apply_sum(sum, 127, 127), lines->q);
    const int64_t excess = above ? lines->over : lines->under;
    int64_t ends[3] = {0, 0, 0}, found = 0;
    for (int arg = 0; arg < 2; arg++) {
        const int64_t p = ce_p(lines, arg, 0);
        ends[0] += ce_least(p * low[arg], p * high[arg]);
        ends[1] += ce_most(p * low[arg], p * high[arg]);
    }
    ends[2] = ce_clip((above ? most : least) - excess, ends[0], ends[1]);
    for (int at = 0; at < 3; at++) {
        const int64_t b = ce_up(ce_clip(ends[at] + excess, least, most), ONE) - k * ends[at];
        found = at == 0 ? b : above ? ce_most(found, b) : ce_least(found, b);
    }
    return found;
}

int64_t ce_intercept(const ce_program *program, const ce_lines *lines, ce_bounds bounds, int64_t i, int64_t k, bool above)
{
    int64_t low[2], high[2], b;
    for (int arg = 0; arg < 2; arg++) {
        const int64_t at = program->values[lines->step->args[arg]].at + i;
        low[arg] = bounds.low[at];
        high[arg] = bounds.high[at];
    }
    b = lines->step->kind == CE_STEP_SUM ? pair(lines, k, low, high, above) : single(lines, i, k, low[0], high[0], above);
    return above ? -coarse(-b, lines->q) : coarse(b, lines->q);
}
