/* SPDX-License-Identifier: Apache-2.0 */
#include "flatbuffer.h"

#include "say.h"

static const uint8_t *claim(ce_bytes file, uint64_t at, uint64_t count, const char *what)
{
    if (at > file.size || count > file.size - at) {
        ce_refuse("the model is malformed: %s lies beyond the end of the file", what);
    }
    return file.data + at;
}

static uint64_t target(ce_bytes file, uint64_t at, const char *what)
{
    const uint32_t distance = ce_u32(claim(file, at, 4, what));
    if (distance < 4) {
        ce_refuse("the model is malformed: %s: a reference of %lu", what, (unsigned long)distance);
    }
    return at + distance;
}

static ce_table opened(ce_bytes file, uint64_t at, unsigned known, const char *what)
{
    ce_table table = {file, what, at, 0, 0, 0};
    const int64_t vtable = (int64_t)at - ce_i32(claim(file, at, 4, what));
    if (vtable < 0) {
        ce_refuse("the model is malformed: %s: a vtable before the file", what);
    }
    table.vtable = (uint64_t)vtable;
    const uint32_t length = ce_u16(claim(file, table.vtable, 4, what));
    table.size = ce_u16(file.data + table.vtable + 2);
    if (length < 4 || length % 2 || table.size < 4) {
        ce_refuse("the model is malformed: %s: a vtable of %lu bytes for a table of %lu", what, (unsigned long)length,
                  (unsigned long)table.size);
    }
    claim(file, table.vtable, length, what);
    claim(file, at, table.size, what);
    table.slots = (length - 4) / 2;
    for (unsigned slot = known; slot < table.slots; slot++) {
        if (ce_has(&table, slot)) {
            ce_refuse("%s: field %u is of a newer schema than this program knows", what, slot);
        }
    }
    return table;
}

ce_table ce_follow(ce_bytes file, uint64_t at, unsigned known, const char *what)
{
    return opened(file, target(file, at, what), known, what);
}

static uint32_t distance_of(const ce_table *table, unsigned field)
{
    return field < table->slots ? ce_u16(table->file.data + table->vtable + 4 + 2 * (uint64_t)field) : 0;
}

bool ce_has(const ce_table *table, unsigned field)
{
    return distance_of(table, field) != 0;
}

/* Where the field's `width` bytes lie; 0 where it is absent. */
static uint64_t place_of(const ce_table *table, unsigned field, unsigned width)
{
    const uint32_t distance = distance_of(table, field);
    if (distance == 0) {
        return 0;
    }
    if (distance < 4 || distance + width > table->size) {
        ce_refuse("the model is malformed: %s: field %u lies outside its table", table->what, field);
    }
    return table->at + distance;
}

uint64_t ce_scalar(const ce_table *table, unsigned field, unsigned width, uint64_t otherwise)
{
    const uint64_t at = place_of(table, field, width);
    if (at == 0) {
        return otherwise;
    }
    const uint8_t *bytes = table->file.data + at;
    return width == 1 ? bytes[0] : width == 4 ? ce_u32(bytes) : ce_u64(bytes);
}

int64_t ce_signed(const ce_table *table, unsigned field, unsigned width, int64_t otherwise)
{
    const uint64_t at = place_of(table, field, width);
    if (at == 0) {
        return otherwise;
    }
    return width == 1 ? ce_i8(table->file.data + at) : ce_i32(table->file.data + at);
}

ce_vector ce_list(const ce_table *table, unsigned field, unsigned width)
{
    ce_vector list = {NULL, 0, 0};
    const uint64_t at = place_of(table, field, 4);
    if (at == 0) {
        return list;
    }
    const uint64_t start = target(table->file, at, table->what);
    list.count = ce_u32(claim(table->file, start, 4, table->what));
    list.place = start + 4;
    list.at = claim(table->file, list.place, (uint64_t)list.count * width, table->what);
    return list;
}

bool ce_child(const ce_table *table, unsigned field, unsigned known, const char *what, ce_table *found)
{
    const uint64_t at = place_of(table, field, 4);
    if (at == 0) {
        return false;
    }
    *found = ce_follow(table->file, at, known, what);
    return true;
}

ce_table ce_element(const ce_table *table, ce_vector list, int64_t index, unsigned known, const char *what)
{
    if (index < 0 || index >= (int64_t)list.count) {
        ce_refuse("the model is malformed: %s %lld of %lu", what, (long long)index, (unsigned long)list.count);
    }
    return ce_follow(table->file, list.place + 4 * (uint64_t)index, known, what);
}
