/* SPDX-License-Identifier: Apache-2.0 */
/* Any blob, from a file, with every kernel: ARGUMENT is the file's path. */
#include <stdio.h>
#include <stdlib.h>

#include "ce_host.h"

static const ce_kernel ALL[CE_KINDS] = {
    [CE_CONV2D] = ce_conv2d_s8,
    [CE_DEPTHWISE_CONV2D] = ce_depthwise_conv2d_s8,
    [CE_DENSE] = ce_dense_s8,
    [CE_ADD] = ce_add_s8,
    [CE_AVG_POOL] = ce_avg_pool_s8,
    [CE_MAX_POOL] = ce_max_pool_s8,
    [CE_MEAN] = ce_mean_s8,
    [CE_PAD] = ce_pad_s8,
    [CE_CONCAT] = ce_concat_s8,
    [CE_REQUANTIZE] = ce_requantize_s8,
    [CE_SOFTMAX] = ce_softmax_s8,
    [CE_CONV2D_S4] = ce_conv2d_s4,
    [CE_DEPTHWISE_CONV2D_S4] = ce_depthwise_conv2d_s4,
    [CE_DENSE_S4] = ce_dense_s4,
};

static const ce_bounds_kernel BOUNDS[CE_KINDS] = {
    [CE_CONV2D] = ce_conv2d_bounds_s8,
    [CE_DEPTHWISE_CONV2D] = ce_depthwise_conv2d_bounds_s8,
    [CE_DENSE] = ce_dense_bounds_s8,
    [CE_CONV2D_S4] = ce_conv2d_bounds_s8,
    [CE_DEPTHWISE_CONV2D_S4] = ce_depthwise_conv2d_bounds_s8,
    [CE_DENSE_S4] = ce_dense_bounds_s8,
};

const ce_model *ce_host_model(const char *argument)
{
    static ce_model model;
    long size = -1;
    FILE *const file = fopen(argument, "rb");
    if (file && fseek(file, 0, SEEK_END) == 0) {
        size = ftell(file);
        rewind(file);
    }
    uint32_t *const blob = size >= 4 * CE_BLOB_HEADER_WORDS ? malloc((size_t)size) : NULL;
    if (!blob || fread(blob, 1, (size_t)size, file) != (size_t)size || (long)blob[2] * 4 != size) {
        fprintf(stderr, "%s: not a readable blob\n", argument);
        free(blob);
        return NULL;
    }
    fclose(file);
    model.blob = blob;
    model.kernels = ALL;
    model.digest = "";
    model.arena = malloc((size_t)ce_model_header(&model)->arena);
    return model.arena ? &model : NULL;
}

const ce_certifier *ce_host_certifier(const ce_model *model)
{
    static ce_certifier certifier;
    certifier.model = model;
    certifier.kernels = BOUNDS;
    certifier.high = malloc((size_t)ce_model_header(model)->arena);
    if (!certifier.high) {
        fprintf(stderr, "no memory for a second arena\n");
        return NULL;
    }
    return &certifier;
}
