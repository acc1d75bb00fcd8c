/* SPDX-License-Identifier: Apache-2.0 */
/* The part of a pooling window that lies inside the image. */
#ifndef CE_WINDOW_H
#define CE_WINDOW_H

#include "ce_blob.h"

/* Rows [top, bottom), columns [left, right) of the input: never empty, which the writer of the blob checks. */
typedef struct {
    int32_t top, bottom, left, right;
} ce_window;

static inline ce_window ce_window_of(const ce_pool_record *r, int32_t out_row, int32_t out_column)
{
    const int32_t y = out_row * r->stride_h - r->pad_top, x = out_column * r->stride_w - r->pad_left;
    ce_window w;
    w.top = y < 0 ? 0 : y;
    w.left = x < 0 ? 0 : x;
    w.bottom = y + r->kernel_h < r->in_h ? y + r->kernel_h : r->in_h;
    w.right = x + r->kernel_w < r->in_w ? x + r->kernel_w : r->in_w;
    return w;
}

#endif
