/* Addresses that sections.ld defines. Only the addresses mean something. */
#ifndef CE_MEMORY_H
#define CE_MEMORY_H

#include <stdint.h>

extern uint32_t ce_stack_limit[], ce_stack_top[]; /* lowest word, one past the highest */
extern uint32_t ce_data_start[], ce_data_end[];
extern const uint32_t ce_data_load[];
extern uint32_t ce_bss_start[], ce_bss_end[];

/* What untouched stack holds. */
#define CE_STACK_PAINT UINT32_C(0xCEDECADE)

#endif
