/* SPDX-License-Identifier: Apache-2.0 */
/* FlatBuffers (flatbuffers.dev, "FlatBuffer Internals"), read without believing them: no byte is used before its place is checked.
 *
 * A table at p starts with an int32; its vtable lies at p minus that and holds its own length, the table's (uint16 each), then a
 * uint16 a field: its distance from p, 0 where absent. References are uint32, added to their own place. */
#ifndef CE_VERIFY_FLATBUFFER_H
#define CE_VERIFY_FLATBUFFER_H

#include <stdbool.h>

#include "bytes.h"

typedef struct {
    ce_bytes file;
    const char *what; /* for messages */
    uint64_t at, vtable;
    uint32_t slots, size;
} ce_table;

typedef struct {
    const uint8_t *at; /* of the first element */
    uint64_t place;    /* the same, as a position in the file */
    uint32_t count;
} ce_vector;

/* The table that the reference at byte `at` leads to. A field beyond the first `known` refuses the file. */
ce_table ce_follow(ce_bytes file, uint64_t at, unsigned known, const char *what);

/* Whether the field is stored. */
bool ce_has(const ce_table *table, unsigned field);

/* A scalar of 1, 4 or 8 bytes, unsigned, as stored; `otherwise` where it is absent. */
uint64_t ce_scalar(const ce_table *table, unsigned field, unsigned width, uint64_t otherwise);

/* A signed scalar of 1 or 4 bytes; `otherwise` where it is absent. */
int64_t ce_signed(const ce_table *table, unsigned field, unsigned width, int64_t otherwise);

/* A vector of elements of `width` bytes, empty (at NULL) where it is absent. */
ce_vector ce_list(const ce_table *table, unsigned field, unsigned width);

/* A sub-table; false where it is absent. */
bool ce_child(const ce_table *table, unsigned field, unsigned known, const char *what, ce_table *found);

/* Element `index` of a vector of tables. */
ce_table ce_element(const ce_table *table, ce_vector list, int64_t index, unsigned known, const char *what);

#endif
