/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_kernels.h"

void ce_concat_s8(const int32_t *blob, const int32_t *record, int8_t *arena)
{
    const ce_concat_record *const r = (const ce_concat_record *)(const void *)record;
    const ce_concat_part *const parts = (const ce_concat_part *)(const void *)(r + 1); /* [inputs] */
    int8_t *y = arena + r->out;
    (void)blob;

    for (int32_t row = 0; row < r->outer; row++) {
        for (int32_t k = 0; k < r->inputs; k++) {
            const int8_t *x = arena + parts[k].in + row * parts[k].chunk;
            for (int32_t i = 0; i < parts[k].chunk; i++) {
                *y++ = *x++;
            }
        }
    }
}
