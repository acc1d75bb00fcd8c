/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_crc32.h"

/* Bit by bit: a table would cost 1 KiB of flash to save time that the serial line takes anyway. */
uint32_t ce_crc32(uint32_t crc, const uint8_t *data, size_t n)
{
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (UINT32_C(0xEDB88320) & (UINT32_C(0) - (crc & 1u)));
        }
    }
    return ~crc;
}
