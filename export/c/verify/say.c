/* SPDX-License-Identifier: Apache-2.0 */
#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static struct {
    uint64_t number;
    uint32_t sample;
    int known;
} record;

void ce_now_at(uint64_t number, uint32_t sample)
{
    record.number = number;
    record.sample = sample;
    record.known = 1;
}

void ce_reject(const char *format, ...)
{
    va_list arguments;
    fputs("rejected: ", stderr);
    if (record.known) {
        fprintf(stderr, "record %llu, sample %lu: ", (unsigned long long)record.number, (unsigned long)record.sample);
    }
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(CE_REJECTED);
}

void ce_refuse(const char *format, ...)
{
    va_list arguments;
    fputs("not checked: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(CE_UNUSABLE);
}

/* In front of what is handed out: all of it stays reachable until the end. */
typedef union block {
    union block *next;
    uint64_t number;
    void *address;
} block_t;

static block_t *blocks;

void *ce_memory(size_t count, size_t size)
{
    block_t *block = count > (SIZE_MAX - sizeof *block) / size ? NULL : calloc(1, count * size + sizeof *block);
    if (block == NULL) {
        ce_refuse("%lu elements of %lu bytes do not fit this machine's memory", (unsigned long)count,
                  (unsigned long)size);
    }
    block->next = blocks;
    blocks = block;
    return block + 1;
}
