/* Text on the serial line, character by character: the answers are never held in memory. */
#ifndef CE_OUTPUT_H
#define CE_OUTPUT_H

#include <stdint.h>

#include "ce_blob.h"

void ce_put(const char *s);

/* s, then CR LF. */
void ce_put_line(const char *s);

/* Decimal, without leading zeros. */
void ce_put_u64(uint64_t v);

/* The lowest `digits` hexadecimal digits of v, leading zeros too; digits in 0..8. */
void ce_put_hex(uint32_t v, int digits);

/* Two hexadecimal digits for each of p[0..n). */
void ce_put_bytes(const int8_t *p, uint32_t n);

/* name, then v in decimal. */
void ce_put_field(const char *name, uint64_t v);

/* The same as a line. */
void ce_put_field_line(const char *name, uint64_t v);

/* The real number that q stands for at the model's output, to three decimals, ties away from zero. */
void ce_put_real(int32_t q, const ce_blob_header *header);

#endif
