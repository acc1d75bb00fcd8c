/* SPDX-License-Identifier: Apache-2.0 */
/* The part of a convolution kernel's row that lies inside the image, for one output column. */
#ifndef CE_SPAN_H
#define CE_SPAN_H

#include "ce_blob.h"

/* Taps [first, last) read input column `column` + tap * dilation_w; taps before and after read the input's zero point.
 * 0 <= first <= last <= kernel_w. */
typedef struct {
    int32_t column;
    int32_t first;
    int32_t last;
} ce_span;

static inline ce_span ce_span_of(const ce_conv2d_record *r, int32_t out_column)
{
    const int32_t column = out_column * r->stride_w - r->pad_left;
    const int32_t d = r->dilation_w;
    const int32_t first = column < 0 ? (d - 1 - column) / d : 0;
    const int32_t last = column < r->in_w ? (r->in_w - column + d - 1) / d : 0;
    ce_span s;
    s.column = column;
    s.last = last < r->kernel_w ? last : r->kernel_w;
    s.first = first < s.last ? first : s.last;
    return s;
}

static inline int ce_span_is_whole(const ce_conv2d_record *r, ce_span s)
{
    return s.first == 0 && s.last == r->kernel_w;
}

#endif
