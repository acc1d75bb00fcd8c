/* SPDX-License-Identifier: Apache-2.0 */
/* The linear maps: what they reach over a box, and their transpose. Taps outside an image are zero. */
#ifndef CE_VERIFY_AFFINE_H
#define CE_VERIFY_AFFINE_H

#include "program.h"

/* Ends [out] of W (x + offset) + bias over low <= x <= high [in], exact. False where one leaves int32. */
bool ce_affine_ends(const ce_affine *affine, const int32_t *low, const int32_t *high, int32_t *out_low, int32_t *out_high);

/* x [in] = W^T y for y [out]; |y| <= 2^24, so that every sum stays below 2^53 (a column's |weights| sum to 2^24 at most: 128 times
 * the 2^17 outputs that a value may have). */
void ce_affine_back(const ce_affine *affine, const int64_t *y, int64_t *x);

/* The largest sum of |weights| of output channel (position, axis 0) i; over how many i there are. */
int64_t ce_affine_reach(const ce_affine *affine, int64_t i);

/* Taps of window position p (row-major) that lie inside the image. */
int64_t ce_window_taps(const ce_affine *affine, int64_t p);

#endif
