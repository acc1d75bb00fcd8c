/* SPDX-License-Identifier: Apache-2.0 */
/* What the readers of single operators share: options, windows, outputs. */
#ifndef CE_VERIFY_OPERATOR_H
#define CE_VERIFY_OPERATOR_H

#include "tensors.h"

/* An operator under way. */
typedef struct {
    ce_file *file;
    ce_node *node;
    ce_table options;
    bool has_options;
    int64_t inputs[CE_OPERANDS], outputs[CE_OPERANDS];
    int input_count, output_count;
    const ce_tensor *x; /* the first activation */
    bool packed;        /* its weights take 4 bits each */
} ce_operator;

/* A signed option of 1 or 4 bytes, the schema's default `otherwise` where it is absent. */
int64_t ce_option(const ce_operator *o, unsigned field, unsigned width, int64_t otherwise);

/* Reads the fused activation. */
void ce_fuse(ce_operator *o, unsigned field);

/* Two positive options, height and width, as found [2]. */
void ce_two_options(const ce_operator *o, unsigned height, unsigned width, int64_t otherwise, int64_t *found);

/* Reads SAME (0) or VALID (1) for the window's kernel, stride and dilation. */
void ce_read_padding(const ce_operator *o, unsigned field);

/* The output shape of the window with that many channels; refuses windows that do not fit. */
ce_shape ce_slid(const ce_operator *o, int64_t channels);

/* Defines the operator's output, which must have this shape. runs: the same with the batch, where the operator says so itself. */
const ce_tensor *ce_result(ce_operator *o, const ce_shape *shape, const ce_shape *runs);

/* Refuses two tensors of different scales or zero points. */
void ce_expect_like(const ce_tensor *x, const ce_tensor *out);

/* Operators with weights. */
void ce_read_conv(ce_operator *o);
void ce_read_depthwise(ce_operator *o);
void ce_read_dense(ce_operator *o);

#endif
