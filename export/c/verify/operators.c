/* SPDX-License-Identifier: Apache-2.0 */
#include "operators.h"

#include "operator.h"
#include "real.h"
#include "say.h"

enum { OPERATOR_FIELDS = 14, CODE_FIELDS = 4 };
enum { OPCODE, INPUTS, OUTPUTS, OPTIONS_TYPE, OPTIONS, CUSTOM_OPTIONS, FORMAT, MUTATING, INTERMEDIATES };
enum { OPTIONS_2 = 12 };
enum { OLD_CODE, CUSTOM_CODE, VERSION, CODE };
enum { QUANTIZE_CODE = 114, DEQUANTIZE_CODE = 6 };
#define POSITIONS ((int64_t)1 << 20) /* of an average */

/* What is known of an operator before it is read: how many operands it has and how many fields its options. */
typedef struct {
    int code;
    const char *name;
    int least, most;
    unsigned option_type, option_fields; /* 0: no options that say anything */
    bool optional, whole;                /* whole: its first axis need not be a batch of 1 */
    void (*read)(ce_operator *o);
} kind_t;

static void read_add(ce_operator *o)
{
    o->node->kind = CE_ADD;
    ce_fuse(o, 0);
    const ce_tensor *y = &o->file->graph->tensors[o->node->input[1]];
    if (!ce_same_shape(&o->x->shape, &y->shape)) {
        ce_refuse("an ADD of two shapes is not supported");
    }
    ce_result(o, &o->x->shape, NULL);
}

static void read_pool(ce_operator *o, ce_kind kind)
{
    ce_node *node = o->node;
    ce_window *w = &node->window;
    node->kind = kind;
    ce_two_options(o, 4, 3, 0, w->kernel);
    ce_two_options(o, 2, 1, 0, w->stride);
    w->dilation[0] = w->dilation[1] = 1;
    ce_read_padding(o, 0);
    ce_fuse(o, 5);
    const ce_shape shape = ce_slid(o, o->x->shape.size[2]);
    if (kind == CE_AVERAGE && (w->kernel[0] * w->kernel[1] > CE_FAN_IN || shape.size[0] * shape.size[1] > POSITIONS)) {
        ce_refuse("an average of too many elements, or at too many positions");
    }
    for (int i = 0; i < 2; i++) {
        if (ce_most(w->before[i], w->after[i]) >= w->kernel[i] ||
            (shape.size[i] - 1) * w->stride[i] - w->before[i] >= o->x->shape.size[i]) {
            ce_refuse("the model is malformed: a window that lies outside the image");
        }
    }
    ce_expect_like(o->x, ce_result(o, &shape, NULL));
}

static void read_average(ce_operator *o)
{
    read_pool(o, CE_AVERAGE);
}

static void read_maximum(ce_operator *o)
{
    read_pool(o, CE_MAXIMUM);
}

/* An axis of the file among the sample's. */
static int axis_of(const ce_operator *o, int64_t axis)
{
    const int rank = o->x->shape.rank + 1;
    const int64_t found = axis < 0 ? axis + rank : axis;
    if (found < 1 || found >= rank) {
        ce_refuse("axis %lld of a tensor of %d axes, the first of which is the batch", (long long)axis, rank);
    }
    return (int)found - 1;
}

static void read_reduction(ce_operator *o, ce_kind kind)
{
    ce_node *node = o->node;
    node->kind = kind;
    const ce_vector list = ce_constant(o->file, o->inputs[1], CE_INT32, NULL, NULL);
    if (list.count / 4 > CE_OPERANDS) {
        ce_refuse("a reduction over a list of %lu axes", (unsigned long)(list.count / 4));
    }
    for (uint32_t i = 0; i < list.count / 4; i++) {
        node->axes |= 1u << axis_of(o, ce_i32(list.at + 4 * (size_t)i));
    }
    node->keep = o->has_options && ce_scalar(&o->options, 0, 1, 0) != 0;
    ce_shape shape = {0, {0}, 1};
    for (int a = 0; a < o->x->shape.rank; a++) {
        const bool summed = (node->axes >> a & 1u) != 0;
        if (!summed || node->keep) {
            shape.size[shape.rank] = summed ? 1 : o->x->shape.size[a];
            shape.count *= shape.size[shape.rank++];
        }
    }
    ce_result(o, &shape, NULL);
}

static void read_mean(ce_operator *o)
{
    read_reduction(o, CE_MEAN);
}

static void read_sum(ce_operator *o)
{
    read_reduction(o, CE_SUM);
}

static void read_pad(ce_operator *o)
{
    ce_node *node = o->node;
    node->kind = CE_PAD;
    ce_shape form, shape = o->x->shape;
    const ce_vector pads = ce_constant(o->file, o->inputs[1], CE_INT32, &form, NULL);
    if (form.rank != 2 || form.size[0] != shape.rank + 1 || form.size[1] != 2) {
        ce_refuse("the model is malformed: paddings that do not fit their tensor");
    }
    shape.count = 1;
    for (int a = -1; a < shape.rank; a++) {
        const int64_t before = ce_i32(pads.at + 8 * (a + 1)), after = ce_i32(pads.at + 8 * (a + 1) + 4);
        if (before < 0 || after < 0 || (a < 0 && before + after > 0)) {
            ce_refuse("a padding below zero, or of the batch axis, is not supported");
        }
        if (a >= 0) {
            node->pads[a][0] = before;
            node->pads[a][1] = after;
            shape.size[a] += before + after;
            if (shape.size[a] > CE_ELEMENTS || (shape.count *= shape.size[a]) > CE_ELEMENTS) {
                ce_refuse("more than 2^26 elements after padding");
            }
        }
    }
    ce_expect_like(o->x, ce_result(o, &shape, NULL));
}

static void read_concat(ce_operator *o)
{
    ce_node *node = o->node;
    node->kind = CE_CONCAT;
    ce_fuse(o, 1);
    if (node->activation != CE_NO_ACTIVATION) {
        ce_refuse("a concatenation with a fused activation is not supported");
    }
    node->axis = axis_of(o, ce_option(o, 0, 4, 0));
    ce_shape shape = o->x->shape;
    const int64_t rest = shape.count / shape.size[node->axis];
    shape.size[node->axis] = 0;
    for (int i = 0; i < node->inputs; i++) {
        const ce_tensor *part = &o->file->graph->tensors[node->input[i]];
        ce_shape other = part->shape;
        const int64_t n = other.rank > node->axis ? other.size[node->axis] : 0;
        if (other.rank == shape.rank) {
            other.size[node->axis] = shape.size[node->axis];
        }
        if (!ce_same_shape(&other, &shape) || n == 0) {
            ce_refuse("the model is malformed: a concatenation of shapes that do not fit");
        }
        shape.size[node->axis] += n;
    }
    shape.count = rest * shape.size[node->axis];
    const ce_tensor *out = ce_result(o, &shape, NULL);
    for (int i = 0; i < node->inputs; i++) {
        ce_expect_like(&o->file->graph->tensors[node->input[i]], out);
    }
}

/* The shape asked for counts, with -1 for what is left over; where there is none, the output tensor's. */
static void read_reshape(ce_operator *o)
{
    o->node->kind = CE_RESHAPE;
    int64_t stored[CE_OPERANDS], wanted[CE_OPERANDS];
    const bool has = o->has_options && ce_has(&o->options, 0);
    const int stored_count = has ? ce_indices(&o->options, 0, stored) : 0;
    ce_shape shape = ce_stored_shape(o->file, o->outputs[0]);
    int count = has ? stored_count : -1;
    for (int i = 0; i < stored_count; i++) {
        wanted[i] = stored[i];
    }
    if (o->input_count == 2) {
        const ce_vector list = ce_constant(o->file, o->inputs[1], CE_INT32, NULL, NULL);
        if (list.count / 4 > CE_OPERANDS) {
            ce_refuse("a shape of %lu axes", (unsigned long)(list.count / 4));
        }
        count = (int)(list.count / 4);
        for (int i = 0; i < count; i++) {
            wanted[i] = ce_i32(list.at + 4 * (size_t)i);
        }
    }
    if (count > CE_RANK) {
        ce_refuse("a shape of %d axes, at most %d are supported", count, CE_RANK);
    }
    if (count >= 0) {
        int64_t known = 1;
        int left = 0;
        for (int i = 0; i < count; i++) {
            left += wanted[i] == -1;
            if (wanted[i] < -1 || wanted[i] == 0 || (wanted[i] > 0 && (known *= wanted[i]) > CE_ELEMENTS)) {
                ce_refuse("the model is malformed: a shape that does not fit its tensor");
            }
        }
        if (left > 1) {
            ce_refuse("the model is malformed: a shape that does not fit its tensor");
        }
        shape.rank = count;
        shape.count = 1;
        for (int i = 0; i < count; i++) {
            shape.size[i] = wanted[i] == -1 ? o->x->shape.count / known : wanted[i];
            shape.count *= shape.size[i];
        }
        if (shape.count != o->x->shape.count) {
            ce_refuse("the model is malformed: a shape that does not fit its tensor");
        }
    }
    for (int i = 0; has && i < ce_most(stored_count, shape.rank); i++) {
        if (stored_count != shape.rank || (stored[i] != -1 && stored[i] != shape.size[i])) {
            ce_refuse("the model is malformed: a reshape whose options ask for another shape");
        }
    }
    o->node->output = ce_define(o->file, o->outputs[0], &shape);
    const ce_tensor *out = &o->file->graph->tensors[o->node->output];
    if (out->shape.count != o->x->shape.count) {
        ce_refuse("the model is malformed: a reshape to another number of elements");
    }
    ce_expect_like(o->x, out);
}

static void elementwise(ce_operator *o, ce_kind kind)
{
    o->node->kind = kind;
    ce_result(o, &o->x->shape, NULL);
}

static void read_relu(ce_operator *o)
{
    elementwise(o, CE_RELU);
}

static void read_relu6(ce_operator *o)
{
    elementwise(o, CE_RELU6);
}

static void read_quantize(ce_operator *o)
{
    elementwise(o, o->x->real ? CE_QUANTIZE : CE_REQUANTIZE);
}

static void read_dequantize(ce_operator *o)
{
    elementwise(o, CE_DEQUANTIZE);
}

static void read_softmax(ce_operator *o)
{
    o->node->kind = CE_SOFTMAX;
    o->node->beta = o->has_options ? (uint32_t)ce_scalar(&o->options, 0, 4, 0) : 0;
    const ce_tensor *out = ce_result(o, &o->x->shape, NULL);
    if (o->x->shape.rank == 0 || !ce_positive(o->node->beta) || out->scale != 0x3b800000u || out->zero != -128) {
        ce_refuse("the model is malformed: a softmax whose output is not in 1/256 from -128, or whose beta is not above zero");
    }
}

static const kind_t KINDS[] = {
    {3, "CONV_2D", 2, 3, 1, 7, false, false, ce_read_conv},
    {4, "DEPTHWISE_CONV_2D", 2, 3, 2, 7, false, false, ce_read_depthwise},
    {9, "FULLY_CONNECTED", 2, 3, 8, 6, false, true, ce_read_dense},
    {0, "ADD", 2, 2, 11, 2, false, true, read_add},
    {1, "AVERAGE_POOL_2D", 1, 1, 5, 6, false, false, read_average},
    {17, "MAX_POOL_2D", 1, 1, 5, 6, false, false, read_maximum},
    {40, "MEAN", 2, 2, 27, 1, false, false, read_mean},
    {74, "SUM", 2, 2, 27, 1, false, false, read_sum},
    {34, "PAD", 2, 2, 0, 0, false, false, read_pad},
    {2, "CONCATENATION", 1, CE_OPERANDS, 10, 2, false, false, read_concat},
    {22, "RESHAPE", 1, 2, 17, 1, true, true, read_reshape},
    {19, "RELU", 1, 1, 0, 0, false, true, read_relu},
    {21, "RELU6", 1, 1, 0, 0, false, true, read_relu6},
    {114, "QUANTIZE", 1, 1, 0, 0, false, true, read_quantize},
    {6, "DEQUANTIZE", 1, 1, 0, 0, false, true, read_dequantize},
    {25, "SOFTMAX", 1, 1, 9, 1, false, false, read_softmax},
};

/* Refuses operators that compute on floats, or carry what they are not known for; finds the kind. */
static const kind_t *kind_of(const ce_operator *o, const ce_table *table, int index)
{
    const ce_table code =
        ce_element(&o->file->model, o->file->codes, (int64_t)ce_scalar(table, OPCODE, 4, 0), CODE_FIELDS, "operator code");
    const int64_t builtin = ce_most(ce_signed(&code, CODE, 4, 0), ce_signed(&code, OLD_CODE, 1, 0));
    const kind_t *kind = NULL;
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        kind = KINDS[i].code == builtin ? &KINDS[i] : kind;
    }
    if (kind == NULL || ce_signed(&code, VERSION, 4, 1) < 1) {
        ce_refuse("operator %d of builtin code %lld is not supported", index, (long long)builtin);
    }
    const ce_vector mutating = ce_list(table, MUTATING, 1);
    int64_t unused[CE_OPERANDS];
    bool state = ce_has(table, CUSTOM_OPTIONS) || ce_has(table, OPTIONS_2) || ce_indices(table, INTERMEDIATES, unused) > 0;
    for (uint32_t i = 0; i < mutating.count; i++) {
        state = state || mutating.at[i] != 0;
    }
    if (state) {
        ce_refuse("operator %d %s has custom options, state or intermediate tensors", index, kind->name);
    }
    return kind;
}

static void check_types(const ce_operator *o, const kind_t *kind, int index)
{
    for (int i = 0; i < o->input_count + o->output_count; i++) {
        const bool reads = i < o->input_count;
        const int64_t tensor = reads ? o->inputs[i] : o->outputs[i - o->input_count];
        if (reads && tensor == -1) {
            continue;
        }
        const ce_type type = ce_type_of(o->file, tensor);
        const bool real = type == CE_FLOAT32 || type == CE_FLOAT16 || type == CE_FLOAT64 || type == CE_BFLOAT16;
        if (real && kind->code != (reads ? QUANTIZE_CODE : DEQUANTIZE_CODE)) {
            ce_refuse("operator %d %s computes on floats", index, kind->name);
        }
    }
}

void ce_read_operator(ce_file *file, int index)
{
    ce_graph *graph = file->graph;
    ce_operator o = {file, &graph->nodes[graph->node_count], {{NULL, 0}, "", 0, 0, 0, 0}, false, {0}, {0}, 0, 0, NULL, false};
    const ce_table table = ce_element(&file->subgraph, file->operators, index, OPERATOR_FIELDS, "operator");
    const kind_t *kind = kind_of(&o, &table, index);
    o.input_count = ce_indices(&table, INPUTS, o.inputs);
    o.output_count = ce_indices(&table, OUTPUTS, o.outputs);
    check_types(&o, kind, index);
    const unsigned stated = kind->option_fields ? (unsigned)ce_scalar(&table, OPTIONS_TYPE, 1, 0) : 0;
    if (kind->option_fields && !(kind->optional && stated == 0)) {
        if (stated != kind->option_type) {
            ce_refuse("the model is malformed: operator %d %s has options of type %u", index, kind->name, stated);
        }
        o.has_options = ce_child(&table, OPTIONS, kind->option_fields, kind->name, &o.options);
    }
    if (o.input_count < kind->least || o.input_count > kind->most || o.output_count != 1) {
        ce_refuse("the model is malformed: operator %d %s has %d inputs and %d outputs", index, kind->name, o.input_count,
                  o.output_count);
    }
    ce_node *node = o.node;
    node->inputs = kind->read == read_add || kind->read == read_concat ? o.input_count : 1;
    node->input = ce_memory((size_t)node->inputs, sizeof *node->input);
    for (int i = 0; i < node->inputs; i++) {
        node->input[i] = ce_use(file, o.inputs[i]);
        if (graph->tensors[node->input[i]].whole && !kind->whole) {
            ce_refuse("operator %d %s reads a tensor whose first axis is no batch of 1", index, kind->name);
        }
        if (graph->tensors[node->input[i]].real && kind->code != QUANTIZE_CODE) {
            ce_refuse("operator %d %s computes on floats", index, kind->name);
        }
    }
    o.x = &graph->tensors[node->input[0]];
    kind->read(&o);
    const ce_tensor *out = &graph->tensors[node->output];
    if (out->whole && !kind->whole) {
        ce_refuse("operator %d %s writes a tensor whose first axis is no batch of 1", index, kind->name);
    }
    if (out->real != (node->kind == CE_DEQUANTIZE)) {
        ce_refuse("the model is malformed: operator %d %s writes another type than it computes", index, kind->name);
    }
    graph->node_count++;
}
