/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4): how firmware says which blob it runs. */
#ifndef CE_SHA256_H
#define CE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    uint32_t state[8];
    uint64_t bytes; /* taken in so far; fewer than 2^61 */
    uint8_t block[64];
} ce_sha256;

void ce_sha256_init(ce_sha256 *h);

/* Takes in data uint8 [n]. */
void ce_sha256_update(ce_sha256 *h, const uint8_t *data, size_t n);

/* digest uint8 [32]. `h` must be initialised again before it is used again. */
void ce_sha256_final(ce_sha256 *h, uint8_t *digest);

/* Lower-case hex of data's digest, and a final zero: hex char [65]. */
void ce_sha256_hex(const uint8_t *data, size_t n, char *hex);

#ifdef __cplusplus
}
#endif

#endif
