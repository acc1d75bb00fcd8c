/* SPDX-License-Identifier: Apache-2.0 */
/* Whether the label's class wins at the file's output, from bounds and rows: strictly, or as the first of equal maxima.
 *
 * Before a final softmax its input, the logits, decides. The tail is the last accumulation, where only rules of one argument and
 * reshapes stand between it and the logits: a bound on p acc_label - q acc_j then bounds the logits' difference level by level. */
#ifndef CE_VERIFY_DECIDE_H
#define CE_VERIFY_DECIDE_H

#include "relax.h"

enum { CE_MOST_FACTOR = 4096, CE_NO_SHEET = 0xffff };

typedef struct {
    const ce_program *program;
    const ce_softmax *softmax; /* NULL: none at the end */
    int logits;
    int64_t classes;
    int tail;           /* the step of the last accumulation, -1: none */
    const ce_rule **rules; /* behind it, from the logits back to it, [rule_count] */
    int rule_count;
    ce_bounds full;     /* of its accumulators over all int8 inputs, [classes] */
    int64_t top;        /* the largest logit of all classes over these */
    int64_t *margins;   /* [classes], of the leaf under way */
    int64_t *row, *back; /* room for a row and its transpose */
    bool first_maximum;  /* classes behind the label may equal it; else none may */
} ce_goal;

/* Refuses a program whose end has no decision rule. */
ce_goal ce_goal_of(const ce_program *program, const ce_graph *graph);

/* Begins a leaf: the margins that the ends of the bounds alone give. */
void ce_begin_leaf(ce_goal *goal, ce_bounds bounds, int64_t label);

/* Raises the margin of class j by a row: p, q its factors; sheet NULL: over the box of the last layer's input. */
void ce_use_row(ce_goal *goal, ce_row *row, ce_bounds bounds, int64_t label, int64_t j, int64_t p, int64_t q,
                const uint8_t *sheet, const uint8_t *multipliers, int count);

/* Whether the margins suffice. */
bool ce_won(const ce_goal *goal, int64_t label);

#endif
