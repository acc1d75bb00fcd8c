/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors and buffers of a .tflite file, each checked before it is used. */
#ifndef CE_VERIFY_TENSORS_H
#define CE_VERIFY_TENSORS_H

#include "graph.h"

typedef enum {
    CE_FLOAT32 = 0,
    CE_FLOAT16 = 1,
    CE_INT32 = 2,
    CE_INT8 = 9,
    CE_FLOAT64 = 10,
    CE_INT4 = 17,
    CE_BFLOAT16 = 18
} ce_type;

typedef struct {
    ce_table model, subgraph;
    ce_vector tensors, buffers, codes, operators;
    int32_t *known; /* [tensors.count]: 1 + the graph's number of the tensor, 0 before it is written */
    ce_graph *graph;
} ce_file;

/* Scales above zero with as many zero points in int8; scales.count 0 where the tensor has none. */
typedef struct {
    ce_vector scales, zeros;
    int64_t dimension;
    bool shifted; /* a zero point other than 0 */
} ce_quantisation;

/* A short vector of int32 (sizes, operands) as found [CE_OPERANDS]; how many there are. */
int ce_indices(const ce_table *table, unsigned field, int64_t *found);

ce_type ce_type_of(const ce_file *file, int64_t tensor);

/* The shape that the file stores, batch included. */
ce_shape ce_stored_shape(const ce_file *file, int64_t tensor);

/* The bytes of a buffer of the file. */
ce_vector ce_buffer(const ce_file *file, uint64_t index);

/* The activation that a tensor of the file is. runs: the shape that it has when the file runs, batch included (NULL: the stored
 * one), which must be the one in the file: the runtime looks for no other. */
ce_tensor ce_activation_of(const ce_file *file, int64_t tensor, const ce_shape *runs);

/* Adds it to the graph as one that is written here; its number there. */
int32_t ce_define(ce_file *file, int64_t tensor, const ce_shape *runs);

/* The graph's number of an activation that was written before. */
int32_t ce_use(const ce_file *file, int64_t tensor);

/* A constant's elements (int32 4 bytes each, int8 one, int4 half of one), its stored shape and its quantisation (either may be
 * NULL). */
ce_vector ce_constant(const ce_file *file, int64_t tensor, ce_type type, ce_shape *shape, ce_quantisation *quantisation);

#endif
