/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

#include "say.h"

int64_t ce_option(const ce_operator *o, unsigned field, unsigned width, int64_t otherwise)
{
    return o->has_options ? ce_signed(&o->options, field, width, otherwise) : otherwise;
}

void ce_fuse(ce_operator *o, unsigned field)
{
    const int64_t code = ce_option(o, field, 1, 0);
    if (code < CE_NO_ACTIVATION || code > CE_ACT_RELU6) {
        ce_refuse("fused activation %lld is not supported", (long long)code);
    }
    o->node->activation = (ce_activation)code;
}

void ce_two_options(const ce_operator *o, unsigned height, unsigned width, int64_t otherwise, int64_t *found)
{
    found[0] = ce_option(o, height, 4, otherwise);
    found[1] = ce_option(o, width, 4, otherwise);
    if (found[0] < 1 || found[1] < 1) {
        ce_refuse("the model is malformed: a stride, dilation or window that is not above zero");
    }
}

/* SAME (0) or VALID (1), as TensorFlow computes it: the odd row or column comes last. */
void ce_read_padding(const ce_operator *o, unsigned field)
{
    ce_window *w = &o->node->window;
    const int64_t code = ce_option(o, field, 1, 0);
    if (code < 0 || code > 1 || o->x->shape.rank != 3) {
        ce_refuse("the model is malformed: an unknown padding, or a window over what is no image");
    }
    for (int i = 0; code == 0 && i < 2; i++) {
        const int64_t n = o->x->shape.size[i], steps = (n + w->stride[i] - 1) / w->stride[i];
        const int64_t total = ce_most((steps - 1) * w->stride[i] + (w->kernel[i] - 1) * w->dilation[i] + 1 - n, 0);
        w->before[i] = total / 2;
        w->after[i] = total - total / 2;
    }
}

ce_shape ce_slid(const ce_operator *o, int64_t channels)
{
    const ce_window *w = &o->node->window;
    ce_shape out = {3, {0}, channels};
    int64_t padded = o->x->shape.size[2];
    for (int i = 0; i < 2; i++) {
        const int64_t side = o->x->shape.size[i] + w->before[i] + w->after[i];
        const int64_t room = side - (w->kernel[i] - 1) * w->dilation[i] - 1;
        if (side > CE_ELEMENTS || padded * side > CE_ELEMENTS || room < 0) {
            ce_refuse("the model is malformed: a window does not fit its image, or more than 2^26 elements with its border");
        }
        padded *= side;
        out.size[i] = room / w->stride[i] + 1;
        out.count = out.count > CE_ELEMENTS ? out.count : out.count * out.size[i];
    }
    if (out.count > CE_ELEMENTS) {
        ce_refuse("a window gives more than 2^26 elements");
    }
    out.size[2] = channels;
    return out;
}

const ce_tensor *ce_result(ce_operator *o, const ce_shape *shape, const ce_shape *runs)
{
    o->node->output = ce_define(o->file, o->outputs[0], runs);
    const ce_tensor *out = &o->file->graph->tensors[o->node->output];
    if (!ce_same_shape(&out->shape, shape)) {
        ce_refuse("the model is malformed: an output of another shape than its operator gives it");
    }
    return out;
}

void ce_expect_like(const ce_tensor *x, const ce_tensor *out)
{
    if (x->scale != out->scale || x->zero != out->zero) {
        ce_refuse("the model is malformed: an operator that copies codes changes their scale");
    }
}
