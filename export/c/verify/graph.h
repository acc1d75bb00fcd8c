/* SPDX-License-Identifier: Apache-2.0 */
/* The integer network that a .tflite file holds: tensors of one sample, and operators in file order. */
#ifndef CE_VERIFY_GRAPH_H
#define CE_VERIFY_GRAPH_H

#include <stdbool.h>

#include "bytes.h"
#include "flatbuffer.h"

enum { CE_RANK = 8, CE_OPERATORS = 2048, CE_OPERANDS = 256 };

/* Elements of one tensor at most. */
#define CE_ELEMENTS ((int64_t)1 << 26)

/* Products per accumulator at most. */
#define CE_FAN_IN ((int64_t)1 << 16)

typedef struct {
    int rank;
    int64_t size[CE_RANK];
    int64_t count; /* product of the sizes, 1 for rank 0 */
} ce_shape;

bool ce_same_shape(const ce_shape *a, const ce_shape *b);

/* The size of the last axis, 1 where there is none. */
int64_t ce_channels(const ce_shape *shape);

/* real = scale * (code - zero), scale the bits of a float32 above zero; `real`: it holds float32 instead. */
typedef struct {
    ce_shape shape; /* without the batch of 1 */
    bool real;
    bool whole; /* its first axis in the file is no batch of 1, and belongs to the sample */
    uint32_t scale;
    int32_t zero;
} ce_tensor;

typedef enum {
    CE_CONV,
    CE_DEPTHWISE,
    CE_DENSE,
    CE_ADD,
    CE_AVERAGE,
    CE_MAXIMUM,
    CE_MEAN,
    CE_SUM,
    CE_PAD,
    CE_CONCAT,
    CE_RESHAPE,
    CE_RELU,
    CE_RELU6,
    CE_REQUANTIZE,
    CE_QUANTIZE,
    CE_DEQUANTIZE,
    CE_SOFTMAX
} ce_kind;

/* Fused activations, as the file numbers them. */
typedef enum { CE_NO_ACTIVATION, CE_ACT_RELU, CE_ACT_RELU_N1_TO_1, CE_ACT_RELU6 } ce_activation;

/* A window over an image; [0] is along the height, [1] along the width. Taps outside the image are skipped. */
typedef struct {
    int64_t kernel[2], stride[2], dilation[2], before[2], after[2];
} ce_window;

typedef struct {
    ce_kind kind;
    int32_t *input; /* tensors [inputs] */
    int inputs;
    int32_t output;
    ce_activation activation;
    ce_window window;
    /* int8: [O, KH, KW, I], depthwise [KH, KW, O], dense [O, I]; I is `inner`, O `outer`. */
    const uint8_t *weight;
    int64_t outer, inner;
    const uint8_t *bias; /* int32 [O], NULL: zeros */
    ce_vector scales;    /* of the weight: float32 [1] or [O] */
    int64_t pads[CE_RANK][2];
    int axis;      /* concatenation */
    unsigned axes; /* reductions: bit a for axis a */
    bool keep;
    uint32_t beta; /* float32 */
} ce_node;

typedef struct {
    ce_tensor *tensors;
    int32_t count;
    ce_node *nodes;
    int node_count;
    int32_t input, output;
} ce_graph;

#endif
