/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_arith.h"
#include "ce_kernels.h"
#include "ce_window.h"

/* Mean of the taps inside the image, ties away from zero, on the codes themselves: tensorflow/lite/kernels/internal/
 * reference/integer_ops/pooling.h. Input and output share scale and zero point. */
void ce_avg_pool_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_pool_record r = *(const ce_pool_record *)(const void *)record;
    const int8_t *const x = arena + r.in; /* [in_h][in_w][channels] */
    int8_t *y = arena + r.out;            /* [out_h][out_w][channels]; written in order, never ahead of what is read */
    (void)blob;

    for (int32_t oy = 0; oy < r.out_h; oy++) {
        for (int32_t ox = 0; ox < r.out_w; ox++) {
            const ce_window w = ce_window_of(&r, oy, ox);
            const int32_t count = (w.bottom - w.top) * (w.right - w.left);
            for (int32_t c = 0; c < r.channels; c++) {
                int32_t sum = 0;
                for (int32_t iy = w.top; iy < w.bottom; iy++) {
                    const int8_t *p = x + (iy * r.in_w + w.left) * r.channels + c;
                    for (int32_t ix = w.left; ix < w.right; ix++, p += r.channels) {
                        sum += *p;
                    }
                }
                sum += sum > 0 ? count / 2 : -(count / 2);
                *y++ = ce_clamp(sum / count, r.lo, r.hi);
            }
        }
    }
}
