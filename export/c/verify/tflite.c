/* SPDX-License-Identifier: Apache-2.0 */
#include "tflite.h"

#include <string.h>

#include "operators.h"
#include "say.h"

enum { MODEL_FIELDS = 10, SUBGRAPH_FIELDS = 6, METADATA_FIELDS = 2, SCHEMA = 3, ENTRIES = 4096 };
enum { VERSION, OPERATOR_CODES, SUBGRAPHS, DESCRIPTION, BUFFERS, METADATA_BUFFER, METADATA, SIGNATURES, GROUPS, EXTERNAL };
enum { TENSORS, INPUTS, OUTPUTS, OPERATORS };

/* The one tensor in a list of the subgraph's ends. */
static int64_t only(const ce_table *subgraph, unsigned field)
{
    int64_t found[CE_OPERANDS];
    if (ce_indices(subgraph, field, found) != 1) {
        ce_refuse("a model of several inputs or outputs is not supported");
    }
    return found[0];
}

/* Runtimes look entries up by name: two of one name would mean two things. */
static void check_metadata(const ce_file *file)
{
    const ce_vector entries = ce_list(&file->model, METADATA, 4);
    if (entries.count > ENTRIES) {
        ce_refuse("a model of %lu metadata entries, at most %d are supported", (unsigned long)entries.count, ENTRIES);
    }
    ce_vector *names = ce_memory(entries.count, sizeof *names);
    for (uint32_t i = 0; i < entries.count; i++) {
        const ce_table entry = ce_element(&file->model, entries, i, METADATA_FIELDS, "metadata entry");
        names[i] = ce_list(&entry, 0, 1);
        for (uint32_t j = 0; j < i; j++) {
            if (names[j].count == names[i].count &&
                (names[i].count == 0 || memcmp(names[j].at, names[i].at, names[i].count) == 0)) {
                ce_refuse("the model is malformed: two metadata entries of one name");
            }
        }
        ce_buffer(file, ce_scalar(&entry, 1, 4, 0));
    }
}

static void check_ends(const ce_graph *graph)
{
    bool written = false;
    if (graph->node_count == 0) {
        ce_refuse("the model has no operator");
    }
    for (int i = 0; i < graph->node_count; i++) {
        const ce_node *node = &graph->nodes[i];
        if (node->kind == CE_QUANTIZE && i != 0) {
            ce_refuse("the model quantises in its middle: a float island");
        }
        if (node->kind == CE_DEQUANTIZE && (i != graph->node_count - 1 || node->output != graph->output)) {
            ce_refuse("the model dequantises something other than its output: a float island");
        }
        written = written || node->output == graph->output;
    }
    if (!written || graph->tensors[graph->input].whole || graph->tensors[graph->output].whole) {
        ce_refuse("the model's output is not written by an operator, or an end has no batch of 1");
    }
}

ce_graph ce_read_tflite(ce_bytes bytes)
{
    ce_graph graph = {NULL, 0, NULL, 0, 0, 0};
    ce_file file;
    if (bytes.size < 8 || memcmp(bytes.data + 4, "TFL3", 4) != 0) {
        ce_refuse("not a .tflite file");
    }
    file.graph = &graph;
    file.model = ce_follow(bytes, 0, MODEL_FIELDS, "the model");
    if (ce_scalar(&file.model, VERSION, 4, 0) != SCHEMA || ce_has(&file.model, GROUPS) || ce_has(&file.model, EXTERNAL)) {
        ce_refuse("a model of another schema than version 3, or with external buffers, is not supported");
    }
    const ce_vector subgraphs = ce_list(&file.model, SUBGRAPHS, 4);
    if (subgraphs.count != 1) {
        ce_refuse("a model of %lu subgraphs is not supported", (unsigned long)subgraphs.count);
    }
    file.subgraph = ce_element(&file.model, subgraphs, 0, SUBGRAPH_FIELDS, "subgraph");
    file.codes = ce_list(&file.model, OPERATOR_CODES, 4);
    file.operators = ce_list(&file.subgraph, OPERATORS, 4);
    file.tensors = ce_list(&file.subgraph, TENSORS, 4);
    file.buffers = ce_list(&file.model, BUFFERS, 4);
    if (file.operators.count > CE_OPERATORS) {
        ce_refuse("a model of %lu operators, at most %d are supported", (unsigned long)file.operators.count, CE_OPERATORS);
    }
    if (file.buffers.count && ce_buffer(&file, 0).count) {
        ce_refuse("the model is malformed: buffer 0, which stands for none, has data");
    }
    file.known = ce_memory(file.tensors.count, sizeof *file.known);
    graph.tensors = ce_memory((size_t)file.operators.count + 1, sizeof *graph.tensors);
    graph.nodes = ce_memory(file.operators.count, sizeof *graph.nodes);
    graph.input = ce_define(&file, only(&file.subgraph, INPUTS), NULL);
    for (uint32_t i = 0; i < file.operators.count; i++) {
        ce_read_operator(&file, (int)i);
    }
    graph.output = ce_use(&file, only(&file.subgraph, OUTPUTS));
    check_metadata(&file);
    check_ends(&graph);
    return graph;
}
