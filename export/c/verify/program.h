/* SPDX-License-Identifier: Apache-2.0 */
/* A graph under profile tflm as values and the steps that write them, numbered as proofs number them.
 *
 * Value 0 is the input's codes. Then, node by node, the accumulator of a layer, average, mean or sum (or the maximum before a
 * fused activation), and the node's output. QUANTIZE and DEQUANTIZE at the ends have no step. */
#ifndef CE_VERIFY_PROGRAM_H
#define CE_VERIFY_PROGRAM_H

#include "graph.h"
#include "rule.h"

/* acc = W (x + offset) + bias. The map is the node's convolution, dense layer, sum over windows or sum over axes. */
typedef struct {
    const ce_node *node;
    ce_shape in, out;
    int64_t offset;
} ce_affine;

typedef enum {
    CE_STEP_AFFINE,
    CE_STEP_RULE,
    CE_STEP_SUM,
    CE_STEP_MAX,
    CE_STEP_PAD,
    CE_STEP_JOIN,
    CE_STEP_RESHAPE,
    CE_STEP_SOFTMAX
} ce_step_kind;

typedef struct {
    ce_step_kind kind;
    const ce_node *node;
    int args[2];     /* values; those of a join are in `joined` */
    int *joined;     /* [joins] */
    int joins;
    int out;
    ce_affine affine;
    ce_rule rule;
    ce_sum *sum;
    ce_softmax *softmax;
    int64_t filler; /* the code that a padding inserts */
} ce_step;

typedef struct {
    ce_shape shape;
    int64_t at;  /* of its first element in arrays over all values */
    int writer;  /* the step, -1 for the input */
} ce_value;

typedef struct {
    ce_value *values;
    int value_count;
    ce_step *steps;
    int step_count;
    int input, output;
    int64_t elements; /* of all values */
    int64_t *taps;    /* room for those of the largest window */
} ce_program;

/* Elements of all values at most: bounds the memory. */
#define CE_ALL_ELEMENTS ((int64_t)1 << 24)

/* Ends the program (CE_UNUSABLE) where TFLM refuses the graph, or where an integer of it may overflow. The bounds are over all int8
 * inputs, every order of a sum, and both of its spellings: sum w (x - z) + b, and sum w x + (b - z sum w). */
ce_program ce_lower(const ce_graph *graph);

/* Whether value `v` is the result of an accumulation. */
bool ce_accumulates(const ce_program *program, int64_t v);

/* Bias of element i of an accumulation. */
int64_t ce_bias_of(const ce_affine *affine, int64_t i);

#endif
