/* SPDX-License-Identifier: Apache-2.0 */
/* CRC-32 (IEEE 802.3, polynomial 0xEDB88320 reflected, as in zlib). */
#ifndef CE_CRC32_H
#define CE_CRC32_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The CRC of what gave `crc` followed by data uint8 [n]. Begin with crc = 0. */
uint32_t ce_crc32(uint32_t crc, const uint8_t *data, size_t n);

#ifdef __cplusplus
}
#endif

#endif
