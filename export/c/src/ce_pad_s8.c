/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_kernels.h"

/* Writes n times `value`, returns the end. */
static int8_t *ce_fill(int8_t *y, int32_t n, int8_t value)
{
    while (n-- > 0) {
        *y++ = value;
    }
    return y;
}

void ce_pad_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_pad_record *const r = (const ce_pad_record *)(const void *)record;
    const int8_t *x = arena + r->in; /* [in_0][in_1][in_2] */
    int8_t *y = arena + r->out;
    const int32_t line = r->before_2 + r->in_2 + r->after_2;
    const int32_t plane = (r->before_1 + r->in_1 + r->after_1) * line;
    const int8_t value = (int8_t)r->value;
    (void)blob;

    y = ce_fill(y, r->before_0 * plane, value);
    for (int32_t a = 0; a < r->in_0; a++) {
        y = ce_fill(y, r->before_1 * line, value);
        for (int32_t b = 0; b < r->in_1; b++) {
            y = ce_fill(y, r->before_2, value);
            for (int32_t c = 0; c < r->in_2; c++) {
                *y++ = *x++;
            }
            y = ce_fill(y, r->after_2, value);
        }
        y = ce_fill(y, r->after_1 * line, value);
    }
    ce_fill(y, r->after_0 * plane, value);
}
