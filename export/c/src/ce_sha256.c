/* SPDX-License-Identifier: Apache-2.0 */
#include "ce_sha256.h"

/* First 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2). */
static const uint32_t CE_SHA256_K[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u,
};

static uint32_t ce_rotate(uint32_t x, int n)
{
    return (x >> n) | (x << (32 - n));
}

/* One compression of h->block, FIPS 180-4, 6.2.2. The schedule is kept as its last 16 words. */
static void ce_sha256_block(ce_sha256 *h)
{
    uint32_t w[16], v[8];
    for (int i = 0; i < 16; i++) {
        const uint8_t *p = h->block + 4 * i;
        w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
    }
    for (int i = 0; i < 8; i++) {
        v[i] = h->state[i];
    }
    for (int t = 0; t < 64; t++) {
        if (t >= 16) {
            const uint32_t w15 = w[(t + 1) & 15], w2 = w[(t + 14) & 15];
            w[t & 15] += (ce_rotate(w15, 7) ^ ce_rotate(w15, 18) ^ (w15 >> 3)) + w[(t + 9) & 15] +
                         (ce_rotate(w2, 17) ^ ce_rotate(w2, 19) ^ (w2 >> 10));
        }
        const uint32_t e = v[4], a = v[0];
        const uint32_t t1 = v[7] + (ce_rotate(e, 6) ^ ce_rotate(e, 11) ^ ce_rotate(e, 25)) +
                            ((e & v[5]) ^ (~e & v[6])) + CE_SHA256_K[t] + w[t & 15];
        const uint32_t t2 = (ce_rotate(a, 2) ^ ce_rotate(a, 13) ^ ce_rotate(a, 22)) +
                            ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        for (int i = 7; i > 0; i--) {
            v[i] = v[i - 1];
        }
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) {
        h->state[i] += v[i];
    }
}

void ce_sha256_init(ce_sha256 *h)
{
    /* The same of the square roots of the first 8 primes (5.3.3). */
    static const uint32_t start[8] = {
        0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u,
    };
    for (int i = 0; i < 8; i++) {
        h->state[i] = start[i];
    }
    h->bytes = 0;
}

void ce_sha256_update(ce_sha256 *h, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        h->block[h->bytes % 64u] = data[i];
        h->bytes++;
        if (h->bytes % 64u == 0u) {
            ce_sha256_block(h);
        }
    }
}

void ce_sha256_final(ce_sha256 *h, uint8_t *digest)
{
    const uint64_t bits = h->bytes * 8u;
    const uint8_t one = 0x80, zero = 0;
    ce_sha256_update(h, &one, 1);
    while (h->bytes % 64u != 56u) {
        ce_sha256_update(h, &zero, 1);
    }
    for (int i = 56; i >= 0; i -= 8) {
        const uint8_t byte = (uint8_t)(bits >> i);
        ce_sha256_update(h, &byte, 1);
    }
    for (int i = 0; i < 32; i++) {
        digest[i] = (uint8_t)(h->state[i / 4] >> (24 - 8 * (i % 4)));
    }
}

void ce_sha256_hex(const uint8_t *data, size_t n, char *hex)
{
    ce_sha256 h;
    uint8_t digest[32];
    ce_sha256_init(&h);
    ce_sha256_update(&h, data, n);
    ce_sha256_final(&h, digest);
    for (int i = 0; i < 64; i++) {
        const int nibble = digest[i / 2] >> (i % 2 ? 0 : 4) & 15;
        hex[i] = "0123456789abcdef"[nibble];
    }
    hex[64] = '\0';
}
