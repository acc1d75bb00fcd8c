/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels. Each executes one record of the blob: it reads its parameters at `record`, its constants at word offsets
 * from `blob`, its tensors at byte offsets from `arena`. None keeps state, allocates, uses floating point or fails: the
 * writer of the blob has checked every size, and the digest says that it is that blob. */
#ifndef CE_KERNELS_H
#define CE_KERNELS_H

#include <stdint.h>

#include "ce_blob.h"

#ifdef __cplusplus
extern "C" {
#endif

/* blob    int32 [words], the whole blob
 * record  int32 [record->words], inside the blob, of the kind that the kernel is named after
 * arena   int8 [header arena bytes] */
typedef void (*ce_kernel)(const int32_t *blob, const int32_t *record, int8_t *arena);

void ce_conv2d_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_depthwise_conv2d_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_dense_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_add_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_avg_pool_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_max_pool_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_mean_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_pad_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_concat_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_requantize_s8(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_softmax_s8(const int32_t *blob, const int32_t *record, int8_t *arena);

/* With weights of 4 bits. */
void ce_conv2d_s4(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_depthwise_conv2d_s4(const int32_t *blob, const int32_t *record, int8_t *arena);
void ce_dense_s4(const int32_t *blob, const int32_t *record, int8_t *arena);

#ifdef __cplusplus
}
#endif

#endif
