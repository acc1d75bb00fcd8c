/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a model blob. */
#ifndef CE_RUNTIME_H
#define CE_RUNTIME_H

#include <stdint.h>

#include "ce_blob.h"
#include "ce_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the blob's int8 constants are read bytewise from little-endian words"
#endif

#define CE_OK 0
#define CE_BAD_BLOB (-1)  /* another version or arithmetic, records that do not add up, or a big-endian core */
#define CE_NO_KERNEL (-2) /* an operation whose kernel is not in the kernel table */

typedef struct {
    const uint32_t *blob;      /* [words] */
    const ce_kernel *kernels;  /* [CE_KINDS]; null where the model has no such operation, so that the linker drops it */
    int8_t *arena;             /* [header arena bytes], scratch: nothing in it outlives a run */
    const char *digest;        /* SHA-256 of the blob's bytes, 64 hex digits */
} ce_model;

/* Called after operation `index` (from 0) has written its output, int8 [bytes]. It must not write to the tensor. */
typedef void (*ce_observer)(void *context, int32_t index, const int8_t *tensor, int32_t bytes);

/* A model's blob as the words that records and constants are. */
static inline const int32_t *ce_model_words(const ce_model *model)
{
    /* Legal: an int32_t may read a uint32_t object (C99 6.5 paragraph 7). */
    return (const int32_t *)(const void *)model->blob;
}

/* The header of a model's blob. */
static inline const ce_blob_header *ce_model_header(const ce_model *model)
{
    return (const ce_blob_header *)(const void *)ce_model_words(model);
}

/* Where an input may be written in place; passing this very pointer to ce_model_run saves the copy. */
static inline int8_t *ce_model_input(const ce_model *model)
{
    return model->arena + ce_model_header(model)->in;
}

/* CE_OK where ce_model_run would run the model, else what it would return. */
int ce_model_check(const ce_model *model);

/* Runs the model once. Not reentrant: the arena is the model's only one.
 *   in        int8 [header in_bytes], row-major height, width, channel
 *   out       int8 [header out_bytes]
 *   observer  may be null; context is passed through
 * Returns CE_OK, or CE_BAD_BLOB or CE_NO_KERNEL with `out` untouched. */
int ce_model_run(const ce_model *model, const int8_t *in, int8_t *out, ce_observer observer, void *context);

#ifdef __cplusplus
}
#endif

#endif
