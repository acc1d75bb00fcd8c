/* SPDX-License-Identifier: Apache-2.0 */
/* The least and the largest number that each value can take over a box, step by step. */
#ifndef CE_VERIFY_INTERVAL_H
#define CE_VERIFY_INTERVAL_H

#include "program.h"

/* Ends of every element of every value, int32 [program.elements] each. */
typedef struct {
    int32_t *low, *high;
} ce_bounds;

ce_bounds ce_new_bounds(int64_t elements);

/* Writes the ends of a step's result from those of its arguments. point: both ends are one network input, and a softmax inside is
 * computed; else its outputs are any codes. */
void ce_step_ends(const ce_program *program, const ce_step *step, ce_bounds bounds, bool point);

/* All ends from those of the input, which are there already. */
void ce_propagate(const ce_program *program, ce_bounds bounds, bool point);

/* Cuts the ends of `value` with those of another pass; false where an element keeps no number. */
bool ce_cut(const ce_program *program, int64_t value, ce_bounds bounds, const ce_bounds *other);

/* The input elements that output tap (h, w) of a pool's window reads: channel 0 of each, [taps] in row-major order; how many. */
int ce_pool_taps(const ce_step *step, const ce_shape *in, int64_t h, int64_t w, int64_t *taps);

/* Where element i of a padding's argument lies in its result. */
int64_t ce_padded_place(const ce_step *step, const ce_shape *in, const ce_shape *out, int64_t i);

/* Of argument n of a join: elements of one run, how far apart runs start in the result, and where the first does. */
typedef struct {
    int64_t run, step, first;
} ce_part;

ce_part ce_joined_part(const ce_program *program, const ce_step *step, int n);

#endif
