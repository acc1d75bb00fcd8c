/* SPDX-License-Identifier: Apache-2.0 */
#include "proof.h"

#include <stdio.h>
#include <string.h>

#include "say.h"

enum { DIGEST = 32, DEEPEST = 200, MOST_S = 60 };
enum { OPEN, ROBUST, REFUTED };
enum { SPLIT = 1, LEAF = 2 };
#define MOST_MU ((int64_t)1 << 24)

/* What is left of a proof. */
typedef struct {
    const uint8_t *at, *end;
} reader_t;

static const uint8_t *take(reader_t *r, uint64_t count)
{
    const uint8_t *found = r->at;
    if (count > (uint64_t)(r->end - r->at)) {
        ce_reject("the proof ends inside of something");
    }
    r->at += count;
    return found;
}

static uint32_t take_u8(reader_t *r)
{
    return *take(r, 1);
}

static uint32_t take_u16(reader_t *r)
{
    return ce_u16(take(r, 2));
}

ce_proof ce_next_proof(ce_bytes file, size_t *at)
{
    ce_proof proof;
    reader_t r = {file.data + *at, file.data + file.size};
    if (memcmp(take(&r, 8), "CEPROOF\x01", 8) != 0) {
        ce_reject("no proof of version 1 at byte %lu", (unsigned long)*at);
    }
    const uint64_t length = ce_u64(take(&r, 8));
    if (length > file.size - *at) {
        ce_reject("a proof that is longer than its file");
    }
    proof.bytes.data = file.data + *at;
    proof.bytes.size = (size_t)length;
    if (length < 16) {
        ce_reject("a proof of %lu bytes", (unsigned long)length);
    }
    r.end = proof.bytes.data + length;
    proof.digest = take(&r, DIGEST);
    const uint32_t n = take_u8(&r);
    memset(proof.name, 0, sizeof proof.name);
    memcpy(proof.name, take(&r, n), n);
    for (uint32_t i = 0; i < n; i++) {
        if (proof.name[i] < 32 || proof.name[i] > 126) {
            ce_reject("a profile whose name is not printable");
        }
    }
    proof.body = (size_t)(r.at - proof.bytes.data);
    *at += (size_t)length;
    return proof;
}

/* A split on the way to a leaf: v[element] < threshold (`above`: at least it), element among all values'. */
typedef struct {
    int64_t value, element, threshold;
    bool above;
} split_t;

typedef struct {
    const ce_program *program;
    ce_goal *goal;
    ce_row row;
    ce_bounds root, leaf;
    /* The record under way. */
    int64_t label;
    const uint8_t *sheets;
    uint32_t sheet_count;
    split_t path[DEEPEST];
    int depth;
    uint64_t *seen, leaves; /* [classes]: the leaf whose rows named the class last */
    bool show;
} checker_t;

static const uint8_t *sheet_of(const checker_t *c, uint32_t sheet)
{
    return c->sheets + 2 * (size_t)c->row.sheet * sheet;
}

/* A tightening as it stands in a proof: u16 value, u16 sheet. */
typedef struct {
    const uint8_t *at;
    uint32_t count;
} tightenings_t;

static tightenings_t take_tightenings(checker_t *c, reader_t *r)
{
    tightenings_t found;
    found.count = take_u8(r);
    found.at = take(r, 4 * (uint64_t)found.count);
    for (uint32_t i = 0; i < found.count; i++) {
        const uint32_t value = ce_u16(found.at + 4 * i);
        if (!ce_accumulates(c->program, value) || ce_u16(found.at + 4 * i + 2) >= c->sheet_count ||
            (i > 0 && value <= ce_u16(found.at + 4 * i - 4))) {
            ce_reject("tightenings out of order, or one of nothing");
        }
    }
    return found;
}

/* Bounds an accumulator's elements by lines too; false where an element keeps no number. */
static bool tighten(checker_t *c, int64_t value, uint32_t sheet, ce_bounds bounds)
{
    const ce_value *v = &c->program->values[value];
    for (int64_t i = 0; i < v->shape.count; i++) {
        int32_t *low = &bounds.low[v->at + i], *high = &bounds.high[v->at + i];
        for (int sign = 1; sign >= -1; sign -= 2) {
            int64_t found;
            ce_begin(&c->row, value)[i] = sign;
            if (!ce_lower_bound(&c->row, bounds, sheet_of(c, sheet), NULL, 0, &found)) {
                continue;
            }
            if (sign > 0 ? found > *high : -found < *low) {
                return false;
            }
            /* The value's own ends enter no row of its own. */
            *low = (int32_t)(sign > 0 ? ce_most(*low, found) : *low);
            *high = (int32_t)(sign < 0 ? ce_least(*high, -found) : *high);
        }
    }
    return true;
}

static bool split_here(const checker_t *c, int64_t value, ce_bounds bounds)
{
    for (int n = 0; n < c->depth; n++) {
        const split_t *s = &c->path[n];
        if (s->value == value) {
            int32_t *low = &bounds.low[s->element], *high = &bounds.high[s->element];
            const int64_t new_low = s->above ? ce_most(*low, s->threshold) : *low;
            const int64_t new_high = s->above ? *high : ce_least(*high, s->threshold - 1);
            if (new_low > new_high) {
                return false;
            }
            *low = (int32_t)new_low;
            *high = (int32_t)new_high;
        }
    }
    return true;
}

/* All ends from those of the input, cut with the parent's (NULL: none) and the path; false where no point keeps them all. */
static bool forward(checker_t *c, ce_bounds bounds, const ce_bounds *parent, tightenings_t tightenings)
{
    const ce_program *program = c->program;
    if (!ce_cut(program, program->input, bounds, parent) || !split_here(c, program->input, bounds)) {
        return false;
    }
    for (int i = 0; i < program->step_count; i++) {
        const int out = program->steps[i].out;
        ce_step_ends(program, &program->steps[i], bounds, false);
        if (!ce_cut(program, out, bounds, parent) || !split_here(c, out, bounds)) {
            return false;
        }
        for (uint32_t n = 0; n < tightenings.count; n++) {
            const uint8_t *at = tightenings.at + 4 * n;
            if (ce_u16(at) == (uint32_t)out && !tighten(c, out, ce_u16(at + 2), bounds)) {
                return false;
            }
        }
    }
    return true;
}

static void check_multipliers(const checker_t *c, const uint8_t *m, uint32_t count)
{
    for (uint32_t n = 0; n < count; n++, m += CE_MULTIPLIER_BYTES) {
        const uint32_t value = ce_u16(m), element = ce_u32(m + 2);
        const int64_t mu = ce_i32(m + 6);
        const bool inside = ce_accumulates(c->program, value) && element < c->program->values[value].shape.count;
        const uint8_t *before = m - CE_MULTIPLIER_BYTES;
        if (!inside || mu <= -MOST_MU || mu >= MOST_MU || m[10] > MOST_S ||
            (n > 0 && (value < ce_u16(before) || (value == ce_u16(before) && element <= ce_u32(before + 2))))) {
            ce_reject("multipliers out of order, or one of nothing");
        }
    }
}

/* Reads one row; uses it where the leaf is inhabited. */
static void take_row(checker_t *c, reader_t *r, bool inhabited)
{
    const uint8_t *at = take(r, 10);
    const uint32_t j = ce_u16(at), p = ce_u16(at + 2), q = ce_u16(at + 4), sheet = ce_u16(at + 6), count = ce_u16(at + 8);
    const uint8_t *multipliers = take(r, (uint64_t)count * CE_MULTIPLIER_BYTES);
    if (j >= c->goal->classes || j == c->label || c->seen[j] == c->leaves) {
        ce_reject("a row for class %lu, which is none, the label, or named twice", (unsigned long)j);
    }
    c->seen[j] = c->leaves;
    if (p < 1 || p > CE_MOST_FACTOR || q < 1 || q > CE_MOST_FACTOR || (sheet >= c->sheet_count && sheet != CE_NO_SHEET)) {
        ce_reject("a row of factors %lu and %lu and sheet %lu", (unsigned long)p, (unsigned long)q, (unsigned long)sheet);
    }
    check_multipliers(c, multipliers, count);
    if (inhabited) {
        if (c->goal->tail < 0 && (sheet == CE_NO_SHEET || p != 1 || q != 1)) {
            ce_reject("a row that needs a network that ends in a layer of weights");
        }
        ce_use_row(c->goal, &c->row, c->leaf, c->label, j, p, q, sheet == CE_NO_SHEET ? NULL : sheet_of(c, sheet),
                   multipliers, (int)count);
    }
}

static void take_leaf(checker_t *c, reader_t *r)
{
    const tightenings_t tightenings = take_tightenings(c, r);
    const ce_value *input = &c->program->values[c->program->input];
    memcpy(c->leaf.low + input->at, c->root.low + input->at, (size_t)input->shape.count * sizeof(int32_t));
    memcpy(c->leaf.high + input->at, c->root.high + input->at, (size_t)input->shape.count * sizeof(int32_t));
    const bool inhabited = forward(c, c->leaf, &c->root, tightenings);
    const uint32_t rows = take_u8(r);
    c->leaves++;
    if (inhabited) {
        ce_begin_leaf(c->goal, c->leaf, c->label);
    }
    for (uint32_t i = 0; i < rows; i++) {
        take_row(c, r, inhabited);
    }
    for (int64_t j = 0; inhabited && c->show && j < c->goal->classes; j++) {
        printf("%lld%c", (long long)(j == c->label ? 0 : ce_most(c->goal->margins[j], 0)),
               j + 1 < c->goal->classes ? ' ' : '\n');
    }
    if (inhabited && !ce_won(c->goal, c->label)) {
        ce_reject("leaf %llu does not separate every class from label %lld", (unsigned long long)c->leaves,
                  (long long)c->label);
    }
}

/* The tree in preorder: after a leaf the deepest split whose first part it ended turns to its second. */
static void take_tree(checker_t *c, reader_t *r)
{
    c->depth = 0;
    for (;;) {
        const uint32_t tag = take_u8(r);
        if (tag == SPLIT && c->depth < DEEPEST) {
            const uint8_t *at = take(r, 10);
            split_t *s = &c->path[c->depth++];
            const int64_t element = ce_u32(at + 2);
            s->value = ce_u16(at);
            s->threshold = ce_i32(at + 6);
            s->above = false;
            if ((s->value != c->program->input && !ce_accumulates(c->program, s->value)) ||
                element >= c->program->values[s->value].shape.count) {
                ce_reject("a split of element %lld of value %lld", (long long)element, (long long)s->value);
            }
            s->element = c->program->values[s->value].at + element;
            continue;
        }
        if (tag != LEAF) {
            ce_reject("neither a split nor a leaf, or too deep a tree");
        }
        take_leaf(c, r);
        while (c->depth > 0 && c->path[c->depth - 1].above) {
            c->depth--;
        }
        if (c->depth == 0) {
            return;
        }
        c->path[c->depth - 1].above = true;
    }
}

static void take_robust(checker_t *c, reader_t *r)
{
    c->sheet_count = take_u16(r);
    c->sheets = take(r, 2 * (uint64_t)c->row.sheet * c->sheet_count);
    const tightenings_t tightenings = take_tightenings(c, r);
    c->depth = 0;
    if (!forward(c, c->root, NULL, tightenings)) {
        ce_reject("a box without a point");
    }
    c->leaves = 0;
    memset(c->seen, 0, (size_t)c->goal->classes * sizeof *c->seen);
    take_tree(c, r);
}

/* A point of the box where another class is at least as high. */
static void take_refuted(checker_t *c, reader_t *r, const uint8_t *lower, const uint8_t *upper)
{
    const ce_value *input = &c->program->values[c->program->input], *output = &c->program->values[c->program->output];
    const uint8_t *codes = take(r, (uint64_t)input->shape.count);
    bool lost = false;
    for (int64_t i = 0; i < input->shape.count; i++) {
        const int32_t code = ce_i8(codes + i);
        if (code < ce_i8(lower + i) || code > ce_i8(upper + i)) {
            ce_reject("a counterexample outside its box");
        }
        c->leaf.low[input->at + i] = c->leaf.high[input->at + i] = code;
    }
    ce_propagate(c->program, c->leaf, true);
    for (int64_t j = 0; j < c->goal->classes; j++) {
        const int32_t own = c->leaf.low[output->at + c->label], other = c->leaf.low[output->at + j];
        const bool ties = !(c->goal->first_maximum && j > c->label);
        lost = lost || (j != c->label && (other > own || (ties && other == own)));
    }
    if (!lost) {
        ce_reject("a counterexample that label %lld wins", (long long)c->label);
    }
}

static uint32_t take_record(checker_t *c, reader_t *r)
{
    const ce_value *input = &c->program->values[c->program->input];
    const uint8_t *at = take(r, 7);
    const uint8_t *lower = take(r, (uint64_t)input->shape.count), *upper = take(r, (uint64_t)input->shape.count);
    c->label = ce_u16(at + 4);
    if (c->label >= c->goal->classes) {
        ce_reject("label %lld of %lld classes", (long long)c->label, (long long)c->goal->classes);
    }
    for (int64_t i = 0; i < input->shape.count; i++) {
        c->root.low[input->at + i] = ce_i8(lower + i);
        c->root.high[input->at + i] = ce_i8(upper + i);
        if (c->root.low[input->at + i] > c->root.high[input->at + i]) {
            ce_reject("a box whose lower end is above its upper end");
        }
    }
    if (at[6] == ROBUST) {
        take_robust(c, r);
    } else if (at[6] == REFUTED) {
        take_refuted(c, r, lower, upper);
    } else if (at[6] != OPEN) {
        ce_reject("verdict %u", (unsigned)at[6]);
    }
    return at[6];
}

/* The rules and their slopes. */
static void take_rules(checker_t *c, reader_t *r, uint32_t count)
{
    ce_lines *lines = ce_memory(count, sizeof *lines);
    int64_t before = -1;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *at = take(r, 8);
        const int64_t value = ce_u16(at), entries = ce_u32(at + 4);
        if (value <= before || at[3] != 0) {
            ce_reject("the slopes of value %lld are out of order or of another form", (long long)value);
        }
        const uint8_t *p = take(r, 4 * (uint64_t)entries);
        lines[i] = ce_lines_of(c->program, value, at[2], entries, p, c->row.sheet, c->root);
        c->row.lines_of[value] = (int)i;
        c->row.sheet += c->program->values[value].shape.count;
        before = value;
    }
    c->row.lines = lines;
}

ce_counts ce_check_proof(const ce_proof *proof, const ce_program *program, ce_goal *goal, bool show)
{
    ce_counts counts = {0, 0, 0, 0, 0, 0};
    reader_t r = {proof->bytes.data + proof->body, proof->bytes.data + proof->bytes.size};
    checker_t *c = ce_memory(1, sizeof *c);
    const uint8_t *header = take(&r, 12);
    const uint32_t rules = ce_u16(header + 10);
    c->program = program;
    c->goal = goal;
    c->show = show;
    c->row = ce_new_row(program);
    c->root = ce_new_bounds(program->elements);
    c->leaf = ce_new_bounds(program->elements);
    c->seen = ce_memory((size_t)goal->classes, sizeof *c->seen);
    counts.samples = ce_u32(header);
    if (ce_u32(header + 4) != program->values[program->input].shape.count || ce_u16(header + 8) != goal->classes) {
        ce_reject("a proof about %lu inputs and %lu classes", (unsigned long)ce_u32(header + 4),
                  (unsigned long)ce_u16(header + 8));
    }
    for (int v = 0; v < program->value_count; v++) {
        if (program->values[v].shape.count > CE_WIDEST) {
            ce_refuse("a value of more than 2^17 elements, for which there are no lines");
        }
    }
    take_rules(c, &r, rules);
    uint32_t last = 0;
    bool all = false;
    while (r.at < r.end) {
        const uint32_t sample = r.end - r.at < 4 ? last : ce_u32(r.at);
        ce_now_at(counts.records, sample);
        if (sample < last || sample >= counts.samples) {
            ce_reject("sample %lu of %lu, after %lu", (unsigned long)sample, (unsigned long)counts.samples,
                      (unsigned long)last);
        }
        counts.all_robust += counts.records > 0 && sample != last && all;
        all = counts.records > 0 && sample == last ? all : true;
        const uint32_t verdict = take_record(c, &r);
        all = all && verdict == ROBUST;
        counts.robust += verdict == ROBUST;
        counts.refuted += verdict == REFUTED;
        counts.open += verdict == OPEN;
        counts.records++;
        last = sample;
    }
    counts.all_robust += counts.records > 0 && all;
    return counts;
}
