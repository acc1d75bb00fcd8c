/* SPDX-License-Identifier: Apache-2.0 */
/* Lower bounds on sums of values: a row of coefficients is rewritten, step by step from the last to the first, in terms of what
 * each value is computed from, and what that costs is paid.
 *
 * Coefficients are integers a 2^-e with one e for all elements of a value; the constant counts grains of 2^-24. A number that would
 * leave its range makes the row invalid: it has no bound. */
#ifndef CE_VERIFY_RELAX_H
#define CE_VERIFY_RELAX_H

#include "lines.h"

/* Elements of a value that rows can be rewritten through. */
#define CE_WIDEST ((int64_t)1 << 17)

enum { CE_MULTIPLIER_BYTES = 11 }; /* u16 value, u32 element, i32 mu, u8 s */

typedef struct {
    const ce_program *program;
    const ce_lines *lines; /* [rules], ascending by value */
    int *lines_of;         /* [values]: its place among them, -1 for none */
    int64_t sheet;         /* elements of all rules' values: a sheet is k below [sheet], k above [sheet] */
    /* The row under way. */
    int64_t *a;    /* [elements of all values] */
    int64_t *work; /* [elements of the largest value] */
    int *e;        /* [values] */
    bool *has;     /* [values] */
    int64_t constant;
    bool valid;
} ce_row;

/* A row for a program; the lines are set by the caller. */
ce_row ce_new_row(const ce_program *program);

/* Begins a row with zeros on one value; returns them for the caller to fill (|a| < 2^24). */
int64_t *ce_begin(ce_row *row, int64_t value);

/* The bound, rounded up; false where there is none. bounds: of every value so far; multipliers: `count` as in a proof. */
bool ce_lower_bound(ce_row *row, ce_bounds bounds, const uint8_t *sheet, const uint8_t *multipliers, int count,
                    int64_t *found);

#endif
