/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_runtime.h"

static void ce_copy(int8_t *to, const int8_t *from, int32_t n)
{
    if (to == from) {
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        to[i] = from[i];
    }
}

int ce_model_check(const ce_model *model)
{
    const int32_t *const blob = ce_model_words(model);
    const ce_blob_header *const header = ce_model_header(model);

    /* The word and its first byte: both are right on a little-endian core only. */
    if (model->blob[0] != CE_BLOB_MAGIC || *(const char *)model->blob != 'C' || header->version != CE_BLOB_VERSION ||
        header->arithmetic != CE_ARITHMETIC_TFLM) {
        return CE_BAD_BLOB;
    }
    const int32_t *record = blob + CE_BLOB_HEADER_WORDS;
    for (int32_t i = 0; i < header->ops; i++) {
        const int32_t left = header->constants - (int32_t)(record - blob);
        if (left < 2 || record[1] < 2 || record[1] > left || record[0] <= 0 || record[0] >= CE_KINDS) {
            return CE_BAD_BLOB;
        }
        const int32_t kind = record[0];
        if (!model->kernels[kind]) {
            return CE_NO_KERNEL;
        }
        record += record[1];
    }
    return header->ops >= 0 && record == blob + header->constants ? CE_OK : CE_BAD_BLOB;
}

int ce_model_run(const ce_model *model, const int8_t *in, int8_t *out, ce_observer observer, void *context)
{
    const int32_t *const blob = ce_model_words(model);
    const ce_blob_header *const header = ce_model_header(model);
    int8_t *const arena = model->arena;

    /* All is checked before anything runs: a refusal leaves no half-computed output. */
    const int status = ce_model_check(model);
    if (status != CE_OK) {
        return status;
    }
    ce_copy(arena + header->in, in, header->in_bytes);
    const int32_t *record = blob + CE_BLOB_HEADER_WORDS;
    for (int32_t i = 0; i < header->ops; i++) {
        const ce_record *const head = (const ce_record *)(const void *)record;
        model->kernels[head->kind](blob, record, arena);
        if (observer) {
            observer(context, i, arena + head->out, head->out_bytes);
        }
        record += head->words;
    }
    ce_copy(out, arena + header->out, header->out_bytes);
    return CE_OK;
}
