/* SPDX-License-Identifier: Apache-2.0 */
/* What one output pixel of a convolution reads, as one contiguous vector. */
#ifndef CE_PATCH_H
#define CE_PATCH_H

#include "ce_blob.h"

/* Whether all taps of the window whose tap (0, 0) is at row iy, column ix are inside the image. */
static inline int ce_window_inside(const ce_conv2d_record *r, int32_t iy, int32_t ix)
{
    return iy >= 0 && iy + (r->kernel_h - 1) * r->dilation_h < r->in_h && ix >= 0 &&
           ix + (r->kernel_w - 1) * r->dilation_w < r->in_w;
}

/* patch[kh][kw][i] = x[iy + kh * dilation_h][ix + kw * dilation_w][i], zero_in outside the image, i < channels.
 *   x      int8 [in_h][in_w][in_c], from the first channel to copy
 *   patch  int8 [kernel_h][kernel_w][channels], outside x */
static inline void ce_gather(const ce_conv2d_record *r, const int8_t *x, int32_t iy, int32_t ix, int32_t channels,
                             int8_t *patch)
{
    for (int32_t kh = 0; kh < r->kernel_h; kh++, iy += r->dilation_h) {
        int32_t column = ix;
        for (int32_t kw = 0; kw < r->kernel_w; kw++, column += r->dilation_w) {
            if (iy >= 0 && iy < r->in_h && column >= 0 && column < r->in_w) {
                const int8_t *from = x + (iy * r->in_w + column) * r->in_c;
                for (int32_t i = 0; i < channels; i++) {
                    *patch++ = *from++;
                }
            } else {
                for (int32_t i = 0; i < channels; i++) {
                    *patch++ = (int8_t)r->zero_in;
                }
            }
        }
    }
}

/* The patch of one group at the pixel at row iy, column ix: in the image itself for a kernel of one tap, else in scratch.
 *   x        int8 [in_h][in_w][in_c], from the group's first channel
 *   scratch  int8 [kernel_h][kernel_w][group_in] */
static inline const int8_t *ce_conv2d_patch(const ce_conv2d_record *r, const int8_t *x, int32_t iy, int32_t ix,
                                            int8_t *scratch)
{
    if (r->kernel_h == 1 && r->kernel_w == 1 && ce_window_inside(r, iy, ix)) {
        return x + (iy * r->in_w + ix) * r->in_c;
    }
    ce_gather(r, x, iy, ix, r->group_in, scratch);
    return scratch;
}

#endif
