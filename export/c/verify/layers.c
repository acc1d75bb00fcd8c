/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"
#include "real.h"
#include "say.h"

/* The weight as int8, int4 ones unpacked: element 2k is the low half of byte k, 2k + 1 the high half, two's complement. */
static const uint8_t *weight_codes(ce_operator *o, ce_shape *shape, ce_quantisation *q)
{
    o->packed = ce_type_of(o->file, o->inputs[1]) == CE_INT4;
    const uint8_t *const stored = ce_constant(o->file, o->inputs[1], o->packed ? CE_INT4 : CE_INT8, shape, q).at;
    if (!o->packed) {
        return stored;
    }
    uint8_t *const codes = ce_memory((size_t)shape->count, 1);
    for (int64_t i = 0; i < shape->count; i++) {
        const unsigned half = (unsigned)stored[i / 2] >> (i % 2 ? 4 : 0) & 15u;
        codes[i] = (uint8_t)(half < 8 ? half : half | 0xF0u);
    }
    return codes;
}

/* Weight [outer.., inner] of `rank` axes, whose output channels lie along `axis`, and the bias. */
static ce_shape weights(ce_operator *o, int rank, int axis)
{
    ce_node *node = o->node;
    ce_shape shape;
    ce_quantisation q;
    node->weight = weight_codes(o, &shape, &q);
    if (shape.rank != rank || q.scales.count == 0 || q.shifted) {
        ce_refuse("the model is malformed: a weight of %d axes, expected %d, with scales and zero points of 0", shape.rank,
                  rank);
    }
    node->outer = shape.size[axis];
    node->scales = q.scales;
    if (q.scales.count != 1 && (q.scales.count != node->outer || q.dimension != axis)) {
        ce_refuse("the model is malformed: %lu weight scales for %lld channels", (unsigned long)q.scales.count,
                  (long long)node->outer);
    }
    if (o->input_count < 3 || o->inputs[2] == -1) {
        return shape;
    }
    ce_shape length;
    ce_quantisation stated;
    node->bias = ce_constant(o->file, o->inputs[2], CE_INT32, &length, &stated).at;
    if (length.rank != 1 || length.size[0] != node->outer) {
        ce_refuse("the model is malformed: a bias of another length than the output has channels");
    }
    if (stated.scales.count == 0) {
        return shape;
    }
    /* A bias that states a scale must mean S_in * S_w within 0.02 S_out (kernel_util.cc GetQuantizedConvolutionMultipler). */
    const ce_tensor out = ce_activation_of(o->file, o->outputs[0], NULL);
    const ce_real hundredths = {UINT64_C(0x147AE147AE147B), -58};
    const ce_real allowed = ce_times(hundredths, ce_of_float(out.scale));
    if (stated.shifted || (stated.scales.count != 1 && stated.scales.count != node->outer) || out.real) {
        ce_refuse("the model is malformed: %lu bias scales, or zero points other than 0", (unsigned long)stated.scales.count);
    }
    const uint32_t most = stated.scales.count > q.scales.count ? stated.scales.count : q.scales.count;
    for (uint32_t i = 0; i < most; i++) {
        const uint32_t a = q.scales.count == 1 ? 0 : i, b = stated.scales.count == 1 ? 0 : i;
        const ce_real product = ce_times(ce_of_float(o->x->scale), ce_of_float(ce_u32(q.scales.at + 4 * (size_t)a)));
        if (ce_compare(ce_apart(product, ce_of_float(ce_u32(stated.scales.at + 4 * (size_t)b))), allowed) > 0) {
            ce_refuse("the model is malformed: a bias of another scale than S_in * S_w");
        }
    }
    return shape;
}

static void fan_in(int64_t taps)
{
    if (taps > CE_FAN_IN) {
        ce_refuse("%lld taps per output, at most %lld are supported", (long long)taps, (long long)CE_FAN_IN);
    }
}

void ce_read_conv(ce_operator *o)
{
    ce_node *node = o->node;
    node->kind = CE_CONV;
    const ce_shape shape = weights(o, 4, 0);
    for (int i = 0; i < 2; i++) {
        node->window.kernel[i] = shape.size[1 + i];
    }
    node->inner = shape.size[3];
    ce_two_options(o, 2, 1, 0, node->window.stride);
    ce_two_options(o, 5, 4, 1, node->window.dilation);
    ce_read_padding(o, 0);
    ce_fuse(o, 3);
    const int64_t c = o->x->shape.size[2];
    if (c % node->inner || node->outer % (c / node->inner)) {
        ce_refuse("the model is malformed: %lld channels do not fit the weight", (long long)c);
    }
    if (o->packed && c != node->inner) {
        ce_refuse("a grouped convolution with weights of 4 bits is none that TFLM was shown to run");
    }
    fan_in(node->window.kernel[0] * node->window.kernel[1] * node->inner);
    const ce_shape out = ce_slid(o, node->outer);
    ce_result(o, &out, NULL);
}

void ce_read_depthwise(ce_operator *o)
{
    ce_node *node = o->node;
    node->kind = CE_DEPTHWISE;
    const ce_shape shape = weights(o, 4, 3);
    for (int i = 0; i < 2; i++) {
        node->window.kernel[i] = shape.size[1 + i];
    }
    node->inner = 1;
    ce_two_options(o, 2, 1, 0, node->window.stride);
    ce_two_options(o, 6, 5, 1, node->window.dilation);
    ce_read_padding(o, 0);
    ce_fuse(o, 4);
    const int64_t c = o->x->shape.size[2];
    if (shape.size[0] != 1 || ce_option(o, 3, 4, 0) * c != node->outer) {
        ce_refuse("the model is malformed: %lld channels do not fit the depthwise weight", (long long)c);
    }
    if (o->packed && c % 2) {
        ce_refuse("a depthwise convolution of an odd number of channels with weights of 4 bits is none that TFLM was shown to run");
    }
    fan_in(node->window.kernel[0] * node->window.kernel[1]);
    const ce_shape out = ce_slid(o, node->outer);
    ce_result(o, &out, NULL);
}

void ce_read_dense(ce_operator *o)
{
    ce_node *node = o->node;
    node->kind = CE_DENSE;
    if (ce_option(o, 1, 1, 0)) {
        ce_refuse("a shuffled weight format is not supported");
    }
    const ce_shape shape = weights(o, 2, 0);
    node->inner = shape.size[1];
    ce_fuse(o, 0);
    if (o->packed && node->scales.count != 1) {
        ce_refuse("a dense layer of weights of 4 bits with a scale for each output is none that TFLM runs");
    }
    fan_in(node->inner);
    if (o->x->shape.count != node->inner) {
        ce_refuse("a dense layer of several rows, or of another length than its input, is not supported");
    }
    /* With keep_num_dims the output would keep the input's axes: only a batch of 1 in front leaves one row of classes. */
    ce_shape runs = {2, {1, node->outer}, node->outer};
    if (ce_option(o, 2, 1, 0) && o->x->shape.rank > 1) {
        ce_refuse("a dense layer that keeps several axes is not supported");
    }
    if (ce_option(o, 2, 1, 0) && o->x->whole) {
        runs.rank = 1;
        runs.size[0] = node->outer;
    }
    const ce_shape out = {1, {node->outer}, node->outer};
    ce_result(o, &out, &runs);
}
