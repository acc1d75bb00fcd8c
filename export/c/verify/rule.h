/* SPDX-License-Identifier: Apache-2.0 */
/* What TFLM's reference kernels do to an accumulator or to codes, as integer functions.
 *
 * Source: tensorflow/lite/kernels/internal/{common.h, reference}, gemmlowp/fixedpoint/fixedpoint.h. */
#ifndef CE_VERIFY_RULE_H
#define CE_VERIFY_RULE_H

#include <stdbool.h>

#include "real.h"

typedef enum { CE_REQUANTISE, CE_DIVIDE, CE_CLAMP } ce_rule_kind;

/* One argument, non-decreasing. Constant c of element i is c = i / channels for CE_DIVIDE, else i % channels or, of one, 0.
 *
 * CE_REQUANTISE: clamp(D(x - zero_in; multiplier[c]) + zero_out). CE_DIVIDE: clamp(x / divisor[c]), half away from zero.
 * CE_CLAMP: clamp(x). */
typedef struct {
    ce_rule_kind kind;
    int64_t count, channels;
    ce_multiplier *multiplier; /* [count] */
    int32_t *divisor;          /* [count] */
    int64_t zero_in, zero_out, low, high;
} ce_rule;

/* Which of a rule's constants element i takes. */
int64_t ce_constant_of(const ce_rule *rule, int64_t i);

int64_t ce_apply(const ce_rule *rule, int64_t constant, int64_t x);

/* Two arguments: clamp(D(term[0][x1 + 128] + term[1][x2 + 128]; out) + zero_out). Non-decreasing in both. */
typedef struct {
    int32_t term[2][256];
    ce_multiplier out;
    int64_t zero_out, low, high;
} ce_sum;

int64_t ce_apply_sum(const ce_sum *sum, int64_t x1, int64_t x2);

/* floor((a b + 2^30) / 2^31), at most 2^31 - 1; a, b in int32. */
int64_t ce_high_product(int64_t a, int64_t b);

/* x / 2^n to the nearest, ties away from zero; n in 0..31. */
int64_t ce_divided(int64_t x, int n);

/* Family D: ce_divided(ce_high_product(x 2^max(s, 0), m), max(-s, 0)). */
int64_t ce_scale_by(int64_t x, ce_multiplier multiplier);

/* Softmax over a row of codes: the exponential of the difference d - 255 to the row's maximum, as Q0.31, [256]. */
typedef struct {
    int32_t exponential[256];
} ce_softmax;

/* beta, scale: bits of float32. Refuses what TFLM has no result for. */
ce_softmax ce_softmax_of(uint32_t beta, uint32_t scale, int64_t depth);

/* y [n] from x [n]. */
void ce_apply_softmax(const ce_softmax *softmax, int64_t n, const int32_t *x, int32_t *y);

/* Whether margins [n] of the label over each class (256 for the label itself) separate the outputs: E - e_j >= 2^30 S / (2^26 - 1)
 * for the exponentials e that they bound from above, E = 2^31 - 1, and S the sum of e / 2^12, rounded. */
bool ce_separates(const ce_softmax *softmax, int64_t n, int64_t label, const int64_t *margins, bool first_maximum);

#endif
