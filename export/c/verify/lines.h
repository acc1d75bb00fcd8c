/* SPDX-License-Identifier: Apache-2.0 */
/* Lines above and below a rule over a box, for slopes that a proof proposes: whatever they are, the intercepts make the lines sound.
 *
 * With U = 2^(Q+7) a line of slope k p / U is wanted, k from 0 to 255 for each element, p and Q constants of the rule.
 * One argument: with t_K = min {a : R(a) >= K}, U R(x) - k p x is largest at the lower end or at a t_K, and least at the upper end
 * or at a t_K - 1; D_K = p t_K - K 2^Q makes both linear in K but for the least and the largest D_K.
 * Two arguments: s = p1 x1 + p2 x2, and R 2^Q is at most s plus the largest such excess over all pairs of codes, clamped. */
#ifndef CE_VERIFY_LINES_H
#define CE_VERIFY_LINES_H

#include "interval.h"

enum { CE_MOST_Q = 40 };

/* |p| is below it. */
#define CE_MOST_P ((int64_t)1 << 20)

/* An intercept of that magnitude, in its unit of 2^-12 steps of the rule's result, is none. */
#define CE_FAR_INTERCEPT ((int64_t)1 << 36)

/* The slopes for one value of a program. */
typedef struct {
    const ce_step *step;
    int q;
    int64_t count;     /* of p: 1, or one a channel; of two arguments one each */
    const uint8_t *p;  /* int32 [count] as in the proof */
    int64_t place;     /* of its first element in a sheet */
    int64_t channels;  /* size of the last axis */
    bool by_channel;   /* the rule's constants or p differ from channel to channel */
    int64_t *least, *most; /* one argument: D_K per group of elements that share all constants */
    int64_t over, under;   /* two arguments: the largest and the least R 2^Q - s */
} ce_lines;

/* Rejects slopes that do not fit the value's rule. room: bounds that may be overwritten. */
ce_lines ce_lines_of(const ce_program *program, int64_t value, int q, int64_t count, const uint8_t *p, int64_t place,
                     ce_bounds room);

/* p of argument `arg` for element i. */
int64_t ce_p(const ce_lines *lines, int arg, int64_t i);

/* The least intercept of a line above element i, or the largest of one below, in units of 2^-12, over the ends of its arguments. */
int64_t ce_intercept(const ce_program *program, const ce_lines *lines, ce_bounds bounds, int64_t i, int64_t k, bool above);

#endif
