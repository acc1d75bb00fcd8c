/* SPDX-License-Identifier: Apache-2.0 */
#include "rule.h"

#include "bytes.h"
#include "say.h"

int64_t ce_high_product(int64_t a, int64_t b)
{
    return ce_least(ce_down(a * b + ((int64_t)1 << 30), 31), INT32_MAX);
}

int64_t ce_divided(int64_t x, int n)
{
    const int64_t half = n ? (int64_t)1 << (n - 1) : 0;
    return x >= 0 ? (x + half) >> n : -((-x + half) >> n);
}

int64_t ce_scale_by(int64_t x, ce_multiplier multiplier)
{
    const int s = multiplier.s;
    return ce_divided(ce_high_product(ce_up(x, s > 0 ? s : 0), multiplier.m), s < 0 ? -s : 0);
}

int64_t ce_constant_of(const ce_rule *rule, int64_t i)
{
    if (rule->count == 1) {
        return 0;
    }
    return rule->kind == CE_DIVIDE ? i / rule->channels : i % rule->channels;
}

int64_t ce_apply(const ce_rule *rule, int64_t constant, int64_t x)
{
    int64_t y = x;
    if (rule->kind == CE_REQUANTISE) {
        y = ce_scale_by(x - rule->zero_in, rule->multiplier[constant]) + rule->zero_out;
    } else if (rule->kind == CE_DIVIDE) {
        const int64_t n = rule->divisor[constant];
        y = x >= 0 ? (x + n / 2) / n : -((-x + n / 2) / n);
    }
    return ce_clip(y, rule->low, rule->high);
}

int64_t ce_apply_sum(const ce_sum *sum, int64_t x1, int64_t x2)
{
    const int64_t total = (int64_t)sum->term[0][x1 + 128] + sum->term[1][x2 + 128];
    return ce_clip(ce_scale_by(total, sum->out) + sum->zero_out, sum->low, sum->high);
}

/* exp(a / 2^26) as Q0.31 for a <= 0 in int32: gemmlowp's exp_on_negative_values on Q5.26 numbers. */
static int64_t exponential_of(int64_t a)
{
    static const int32_t barrel[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int64_t quarter = (int64_t)1 << 24;
    if (a == 0) {
        return INT32_MAX;
    }
    /* a in [-1/4, 0) and a multiple of 1/4 below it. */
    const int64_t reduced = a - quarter * ce_down(a, 24) - quarter;
    const int64_t rest = reduced - a;
    const int64_t x = reduced * 32 + ((int64_t)1 << 28);
    const int64_t x2 = ce_high_product(x, x), x3 = ce_high_product(x2, x), x4 = ce_high_product(x2, x2);
    const int64_t cubic = ce_divided(ce_high_product(ce_divided(x4, 2) + x3, 715827883) + x2, 1);
    int64_t found = 1895147668 + ce_high_product(1895147668, x + cubic);
    for (int i = 0; i < 7; i++) {
        if (rest >> (24 + i) & 1) {
            found = ce_high_product(found, barrel[i]);
        }
    }
    return found;
}

/* 1 / (1 + t / 2^31) as Q0.31 for t in [0, 2^31 - 1]: three Newton steps. */
static int64_t reciprocal_of(int64_t t)
{
    const int64_t half = (t + INT32_MAX + 1) >> 1;
    int64_t x = 1515870810 + ce_high_product(half, -1010580540);
    for (int i = 0; i < 3; i++) {
        const int64_t step = ce_high_product(x, ((int64_t)1 << 29) - ce_high_product(half, x));
        x += ce_clip(step * 4, INT32_MIN, INT32_MAX);
    }
    return ce_clip(x * 2, INT32_MIN, INT32_MAX);
}

ce_softmax ce_softmax_of(uint32_t beta, uint32_t scale, int64_t depth)
{
    ce_softmax found;
    const ce_real one = ce_of_float(0x3f800000u), most = {(uint64_t)INT32_MAX << 22, -22};
    ce_real product = ce_scaled(ce_times(ce_of_float(beta), ce_of_float(scale)), 26);
    if (ce_compare(product, one) <= 0 || depth > 511) {
        ce_refuse("a softmax over %lld elements, or of a scale that TFLM does not take", (long long)depth);
    }
    if (ce_compare(product, most) > 0) {
        product = most;
    }
    const ce_multiplier multiplier = ce_quantised(product);
    const int64_t least = -(((int64_t)31 << 26) >> multiplier.s);
    int64_t largest = 0;
    for (int d = 0; d < 256; d++) {
        const int64_t difference = d - 255;
        const int64_t e = difference < least ? 0
                                             : exponential_of(ce_high_product(ce_up(difference, multiplier.s), multiplier.m));
        found.exponential[d] = (int32_t)e;
        largest = ce_most(largest, ce_divided(e, 12));
        if (e < 0 || (d > 0 && e < found.exponential[d - 1])) {
            ce_refuse("the softmax's table of exponentials is not monotone");
        }
    }
    if (depth * largest >= (int64_t)1 << 28) {
        ce_refuse("the sum of a softmax's exponentials may leave its range");
    }
    return found;
}

void ce_apply_softmax(const ce_softmax *softmax, int64_t n, const int32_t *x, int32_t *y)
{
    int32_t top = x[0];
    int64_t total = 0;
    for (int64_t i = 1; i < n; i++) {
        top = x[i] > top ? x[i] : top;
    }
    for (int64_t i = 0; i < n; i++) {
        total += ce_divided(softmax->exponential[x[i] - top + 255], 12);
    }
    int leading = 0; /* zeros before the total's first one, of 32 */
    while (total >> (31 - leading) == 0) {
        leading++;
    }
    const int64_t g = reciprocal_of(ce_up(total, leading) - ((int64_t)1 << 31));
    for (int64_t i = 0; i < n; i++) {
        const int64_t p = ce_divided(ce_high_product(g, softmax->exponential[x[i] - top + 255]), 12 - leading + 23);
        y[i] = (int32_t)ce_clip(p - 128, -128, 127);
    }
}

bool ce_separates(const ce_softmax *softmax, int64_t n, int64_t label, const int64_t *margins, bool first_maximum)
{
    int64_t total = 0;
    bool won = true;
    for (int64_t j = 0; j < n; j++) {
        const int64_t behind = j == label ? 0 : ce_clip(margins[j], 0, 255);
        total += ce_divided(softmax->exponential[255 - behind], 12);
    }
    for (int64_t j = 0; j < n; j++) {
        const int64_t e = softmax->exponential[255 - ce_clip(margins[j], 0, 255)];
        const bool may_tie = j == label || (first_maximum && j > label);
        won = won && (may_tie || (((int64_t)1 << 26) - 1) * (INT32_MAX - e) >= ce_up(total, 30));
    }
    return won;
}
