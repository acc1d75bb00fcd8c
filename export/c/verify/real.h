/* SPDX-License-Identifier: Apache-2.0 */
/* IEEE double and single precision on positive numbers, in integers: what a runtime computes before it quantises a multiplier.
 *
 * Every operation rounds once, to the nearest, ties to even. No subnormal or infinite double can arise: operands are
 * float32 values, at most three of which are combined. */
#ifndef CE_VERIFY_REAL_H
#define CE_VERIFY_REAL_H

#include <stdbool.h>
#include <stdint.h>

/* m * 2^e with 2^52 <= m < 2^53, or 0 with m = 0. */
typedef struct {
    uint64_t m;
    int e;
} ce_real;

/* Whether the bits of a float32 are a finite number above zero. */
bool ce_positive(uint32_t bits);

/* The number behind such bits. */
ce_real ce_of_float(uint32_t bits);

ce_real ce_times(ce_real a, ce_real b);

/* a / b for b above zero. */
ce_real ce_over(ce_real a, ce_real b);

/* |a - b|. */
ce_real ce_apart(ce_real a, ce_real b);

/* a * 2^n. */
ce_real ce_scaled(ce_real a, int n);

/* a rounded to float32, which it must not exceed: false where it would be infinite. */
bool ce_single(ce_real a, ce_real *single);

/* -1, 0, 1: a below, equal to, above b. */
int ce_compare(ce_real a, ce_real b);

/* The nearest integer, ties away from zero, of a number below 2^32. */
int64_t ce_nearest(ce_real a);

/* TFLite's QuantizeMultiplier: the number is close to m * 2^(s - 31), m in [2^30, 2^31 - 1] or m = s = 0.
 *
 * Source: tensorflow/lite/kernels/internal/quantization_util.cc. */
typedef struct {
    int32_t m;
    int s;
} ce_multiplier;

ce_multiplier ce_quantised(ce_real a);

#endif
