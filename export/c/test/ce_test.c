/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors for the primitives, to run on any machine: prints what fails, exits with the number of failures. */
#include <stdio.h>
#include <string.h>

#include "ce_arith.h"
#include "ce_crc32.h"
#include "ce_dot.h"
#include "ce_quantize.h"
#include "ce_sha256.h"

static int failures;

static void expect(const char *what, int64_t got, int64_t wanted)
{
    if (got != wanted) {
        printf("%s: expected %lld, got %lld\n", what, (long long)wanted, (long long)got);
        failures++;
    }
}

static void expect_digest(const char *text, size_t n, const char *wanted)
{
    char hex[65];
    ce_sha256_hex((const uint8_t *)text, n, hex);
    if (strcmp(hex, wanted) != 0) {
        printf("sha256 of %zu bytes: expected %s, got %s\n", n, wanted, hex);
        failures++;
    }
}

static void test_arith(void)
{
    expect("rdp(-3, 1)", ce_rdp(-3, 1), -2);
    expect("rdp(3, 1)", ce_rdp(3, 1), 2);
    expect("rdp(-1, 1)", ce_rdp(-1, 1), -1);
    expect("rdp(-5, 2)", ce_rdp(-5, 2), -1);
    expect("rdp(-6, 2)", ce_rdp(-6, 2), -2);
    expect("rdp(7, 0)", ce_rdp(7, 0), 7);
    expect("rdp(min, 0)", ce_rdp(INT32_MIN, 0), INT32_MIN);
    expect("rdp(min, 31)", ce_rdp(INT32_MIN, 31), -1);
    expect("rdp(max, 31)", ce_rdp(INT32_MAX, 31), 1);
    expect("rdp(2^30 - 1, 31)", ce_rdp((1 << 30) - 1, 31), 0);
    expect("srdhm(min, min)", ce_srdhm(INT32_MIN, INT32_MIN), INT32_MAX);
    expect("srdhm(min, max)", ce_srdhm(INT32_MIN, INT32_MAX), -INT32_MAX);
    expect("srdhm(1, 2^30), a tie", ce_srdhm(1, 1 << 30), 1);
    expect("srdhm(-1, 2^30), a tie", ce_srdhm(-1, 1 << 30), 0);
    expect("a published vector", ce_requantize(-1032852841, 1578349059, 0), -759122106);
    expect("half away, not half up", ce_requantize(-1, 1 << 30, 0) + ce_requantize(-2, 1 << 30, -1), -1);
    expect("identity", ce_requantize(-129, 1 << 30, 1), -129);
    expect("zero multiplier", ce_requantize(INT32_MAX, 0, 0), 0);
    expect("left shift 30", ce_requantize(-1, 1 << 30, 30), -(1 << 29));
    expect("clamp low", ce_clamp(-1000, -128, 127), -128);
    expect("clamp high", ce_clamp(1000, -128, 5), 5);
    expect("output", ce_output(1000, 1 << 30, -2, -7, -128, 127), 118);
}

/* Every length up to 20, unaligned, both ends of int8, against the plain sum. */
static void test_dot(void)
{
    static int8_t w[100], x[100];
    for (int i = 0; i < 100; i++) {
        w[i] = (int8_t)(i % 7 == 0 ? -128 : (i * 37) % 255 - 127);
        x[i] = (int8_t)(i % 5 == 0 ? -128 : (i * 53) % 255 - 127);
    }
    for (int32_t n = 0; n <= 20; n++) {
        for (int32_t at = 0; at < 4; at++) {
            int32_t square[4] = {1, 2, 3, 4}, column[4] = {5, 6, 7, 8}, rows[4] = {5, 6, 7, 8};
            ce_dot_2x2(w + at, w + 21 + at, x + at, x + 22 + at, n, square);
            ce_dot_4x1(w + at, 21, x + at, n, column);
            ce_dot_rows(w + at, 21, 3, x + at, n, rows);
            for (int k = 0; k < 4; k++) {
                int32_t a = 1 + k, b = 5 + k, total = 0;
                for (int32_t i = 0; i < n; i++) {
                    a += w[at + i + (k / 2) * 21] * x[at + i + (k % 2) * 22];
                    b += w[at + i + k * 21] * x[at + i];
                    total += w[at + i];
                }
                expect("dot 2x2", square[k], a);
                expect("dot 4x1", column[k], b);
                expect("dot rows", rows[k], k < 3 ? b : 5 + k);
                expect("sum", ce_sum(w + at, n), total);
            }
        }
    }
}

static void test_quantize(void)
{
    expect("zero", ce_quantize(0.0f, 0.5f, 3), 3);
    expect("tie upwards", ce_quantize(0.25f, 0.5f, 0), 1);
    expect("tie downwards", ce_quantize(-0.25f, 0.5f, 0), -1);
    expect("just below a tie", ce_quantize(0.49999997f, 1.0f, 0), 0);
    expect("just above a tie", ce_quantize(-0.50000006f, 1.0f, 0), -1);
    expect("saturates", ce_quantize(1e30f, 1e-30f, -128), 127);
    expect("saturates below", ce_quantize(-1e30f, 1e-30f, 127), -128);
    expect("far from a far zero", ce_quantize(255.0f, 1.0f, -128), 127);
    expect("back", (int64_t)(ce_dequantize(-128, 0.25f, 127) * 100.0f), -6375);
}

static void test_digests(void)
{
    static char million[1000000];
    memset(million, 'a', sizeof million);
    expect_digest("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect_digest("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect_digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
                  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    expect_digest(million, sizeof million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    const uint8_t *const digits = (const uint8_t *)"123456789";
    expect("crc32", ce_crc32(0, digits, 9), 0xCBF43926);
    expect("crc32 in two parts", ce_crc32(ce_crc32(0, digits, 4), digits + 4, 5), 0xCBF43926);
}

int main(void)
{
    test_arith();
    test_dot();
    test_quantize();
    test_digests();
    return failures > 100 ? 100 : failures;
}
