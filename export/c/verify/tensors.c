/* SPDX-License-Identifier: Apache-2.0 */
#include "tensors.h"

#include "real.h"
#include "say.h"

enum { TENSOR_FIELDS = 11, QUANTISATION_FIELDS = 7, BUFFER_FIELDS = 3, TYPES = 23 };
enum { SHAPE, TYPE, BUFFER, NAME, QUANTISATION, IS_VARIABLE, SPARSITY, SIGNATURE, HAS_RANK, VARIANTS, EXTERNAL };
enum { SCALE = 2, ZERO_POINT, DETAILS_TYPE, DETAILS, DIMENSION };
enum { DATA, OFFSET, SIZE };

bool ce_same_shape(const ce_shape *a, const ce_shape *b)
{
    bool same = a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++) {
        same = a->size[i] == b->size[i];
    }
    return same;
}

int64_t ce_channels(const ce_shape *shape)
{
    return shape->rank ? shape->size[shape->rank - 1] : 1;
}

int ce_indices(const ce_table *table, unsigned field, int64_t *found)
{
    const ce_vector list = ce_list(table, field, 4);
    if (list.count > CE_OPERANDS) {
        ce_refuse("%s: a list of %lu entries, at most %d are supported", table->what, (unsigned long)list.count,
                  CE_OPERANDS);
    }
    for (uint32_t i = 0; i < list.count; i++) {
        found[i] = ce_i32(list.at + 4 * (size_t)i);
    }
    return (int)list.count;
}

static ce_table tensor_table(const ce_file *file, int64_t tensor)
{
    return ce_element(&file->subgraph, file->tensors, tensor, TENSOR_FIELDS, "tensor");
}

ce_vector ce_buffer(const ce_file *file, uint64_t index)
{
    const ce_table table = ce_element(&file->model, file->buffers, (int64_t)index, BUFFER_FIELDS, "buffer");
    const ce_vector data = ce_list(&table, DATA, 1);
    if (ce_scalar(&table, OFFSET, 8, 0) > 1 || ce_scalar(&table, SIZE, 8, 0) > 1) {
        ce_refuse("a buffer lies behind the FlatBuffer, where TFLM does not look for it");
    }
    return data;
}

static ce_vector data_of(const ce_file *file, const ce_table *table)
{
    return ce_buffer(file, ce_scalar(table, BUFFER, 4, 0));
}

static ce_type type_of(const ce_table *table)
{
    const int64_t code = ce_signed(table, TYPE, 1, 0);
    if (code < 0 || code >= TYPES) {
        ce_refuse("a tensor has type code %lld", (long long)code);
    }
    return (ce_type)code;
}

ce_type ce_type_of(const ce_file *file, int64_t tensor)
{
    const ce_table table = tensor_table(file, tensor);
    return type_of(&table);
}

static ce_shape shape_of(const ce_table *table)
{
    ce_shape shape = {0, {0}, 1};
    int64_t sizes[CE_OPERANDS];
    if (ce_scalar(table, IS_VARIABLE, 1, 0) || ce_scalar(table, EXTERNAL, 4, 0) || ce_has(table, SPARSITY) ||
        ce_has(table, VARIANTS)) {
        ce_refuse("a tensor that is variable, sparse, external or of variants is not supported");
    }
    shape.rank = ce_indices(table, SHAPE, sizes);
    if (shape.rank > CE_RANK) {
        ce_refuse("a tensor of %d axes, at most %d are supported", shape.rank, CE_RANK);
    }
    for (int i = 0; i < shape.rank; i++) {
        shape.size[i] = sizes[i];
        if (sizes[i] <= 0 || (shape.count *= sizes[i]) >= (int64_t)1 << 31) {
            ce_refuse("the model is malformed: a tensor's sizes are not positive, or it has 2^31 elements or more");
        }
    }
    return shape;
}

ce_shape ce_stored_shape(const ce_file *file, int64_t tensor)
{
    const ce_table table = tensor_table(file, tensor);
    return shape_of(&table);
}

static ce_quantisation quantisation_of(const ce_table *table)
{
    ce_quantisation found = {{NULL, 0, 0}, {NULL, 0, 0}, 0, false};
    ce_table params;
    if (!ce_child(table, QUANTISATION, QUANTISATION_FIELDS, "quantisation", &params)) {
        return found;
    }
    if (ce_scalar(&params, DETAILS_TYPE, 1, 0)) {
        ce_refuse("a custom quantisation is not supported");
    }
    found.scales = ce_list(&params, SCALE, 4);
    if (found.scales.count == 0) {
        return found;
    }
    found.zeros = ce_list(&params, ZERO_POINT, 8);
    bool good = found.zeros.count == found.scales.count;
    for (uint32_t i = 0; good && i < found.scales.count; i++) {
        const uint8_t *zero = found.zeros.at + 8 * (size_t)i;
        const int64_t low = ce_i32(zero), high = ce_i32(zero + 4);
        good = ce_positive(ce_u32(found.scales.at + 4 * (size_t)i)) && low >= -128 && low <= 127 &&
               high == (low < 0 ? -1 : 0);
        found.shifted = found.shifted || low != 0;
    }
    if (!good) {
        ce_refuse("the model is malformed: scales are not above zero, or not as many zero points in int8 stand beside them");
    }
    found.dimension = ce_signed(&params, DIMENSION, 4, 0);
    return found;
}

/* Whether only the batch size may vary of the shape [*full]. */
static bool fixed(const ce_table *table, const ce_shape *full, bool runs)
{
    int64_t sizes[CE_OPERANDS];
    const int count = ce_indices(table, SIGNATURE, sizes);
    bool good = count == 0 || count == full->rank;
    for (int i = 0; good && i < count; i++) {
        good = sizes[i] == full->size[i] || (sizes[i] == -1 && (runs || i == 0));
    }
    return good;
}

ce_tensor ce_activation_of(const ce_file *file, int64_t tensor, const ce_shape *runs)
{
    const ce_table table = tensor_table(file, tensor);
    const ce_shape full = shape_of(&table);
    const ce_type type = type_of(&table);
    ce_tensor found = {{0, {0}, 1}, type == CE_FLOAT32, false, 0, 0};
    if (runs != NULL && !ce_same_shape(runs, &full)) {
        ce_refuse("a tensor has another shape when the file runs than in the file, where TFLM looks for it");
    }
    ce_list(&table, NAME, 1);
    if (!fixed(&table, &full, runs != NULL) || full.rank == 0) {
        ce_refuse("a tensor has a dynamic shape, or none");
    }
    found.whole = full.size[0] != 1;
    for (int i = found.whole ? 0 : 1; i < full.rank; i++) {
        found.shape.size[found.shape.rank++] = full.size[i];
    }
    found.shape.count = full.count;
    if (full.count > CE_ELEMENTS) {
        ce_refuse("a tensor has %lld elements, at most 2^26 are supported", (long long)full.count);
    }
    if (found.real) {
        return found;
    }
    if (type != CE_INT8) {
        ce_refuse("an activation has type code %d, supported is int8", (int)type);
    }
    const ce_quantisation q = quantisation_of(&table);
    if (q.scales.count != 1) {
        ce_refuse("the model is malformed: an activation has %lu scales", (unsigned long)q.scales.count);
    }
    found.scale = ce_u32(q.scales.at);
    found.zero = (int32_t)ce_i32(q.zeros.at);
    return found;
}

int32_t ce_define(ce_file *file, int64_t tensor, const ce_shape *runs)
{
    const ce_table table = tensor_table(file, tensor);
    if (file->known[tensor]) {
        ce_refuse("the model is malformed: tensor %lld is written twice", (long long)tensor);
    }
    if (data_of(file, &table).count) {
        ce_refuse("tensor %lld is written and constant", (long long)tensor);
    }
    ce_graph *graph = file->graph;
    graph->tensors[graph->count] = ce_activation_of(file, tensor, runs);
    file->known[tensor] = graph->count + 1;
    return graph->count++;
}

int32_t ce_use(const ce_file *file, int64_t tensor)
{
    tensor_table(file, tensor);
    if (!file->known[tensor]) {
        ce_refuse("tensor %lld is read, and no activation that was written before", (long long)tensor);
    }
    return file->known[tensor] - 1;
}

ce_vector ce_constant(const ce_file *file, int64_t tensor, ce_type type, ce_shape *shape, ce_quantisation *quantisation)
{
    const ce_table table = tensor_table(file, tensor);
    const ce_shape found = shape_of(&table);
    const int64_t bytes = type == CE_INT32 ? 4 * found.count : type == CE_INT4 ? (found.count + 1) / 2 : found.count;
    if (type_of(&table) != type) {
        ce_refuse("constant %lld has type code %d, expected %d", (long long)tensor, (int)type_of(&table), (int)type);
    }
    const ce_vector data = data_of(file, &table);
    if ((int64_t)data.count != bytes) {
        ce_refuse("constant %lld: expected %lld bytes, got %lu", (long long)tensor, (long long)bytes,
                  (unsigned long)data.count);
    }
    if (shape != NULL) {
        *shape = found;
    }
    if (quantisation != NULL) {
        *quantisation = quantisation_of(&table);
    }
    return data;
}
