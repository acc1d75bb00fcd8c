/* SPDX-License-Identifier: Apache-2.0 */
#include "real.h"

#include "say.h"

enum { BITS = 53 };

/* (high * 2^64 + low) * 2^e, plus less than one unit where `rest`, rounded to `bits` bits. */
static ce_real rounded(uint64_t high, uint64_t low, bool rest, int e, int bits)
{
    ce_real found = {0, 0};
    uint64_t kept = high;
    int below = 64; /* bits of the pair below `kept` */
    if (high == 0 && low == 0) {
        return found;
    }
    /* Moves the leading one to bit 63 of `kept`. */
    if (high == 0) {
        kept = low;
        low = 0;
        below = 0;
    }
    while (!(kept >> 63)) {
        kept = kept << 1 | low >> 63;
        low <<= 1;
        below--;
    }
    const int cut = 64 - bits;
    const uint64_t half = (uint64_t)1 << (cut - 1), tail = kept & (2 * half - 1);
    uint64_t m = kept >> cut;
    if (tail > half || (tail == half && (low != 0 || rest || (m & 1)))) {
        m++;
    }
    found.m = m << (BITS - bits);
    found.e = e + below + cut - (BITS - bits);
    if (found.m >> BITS) {
        found.m >>= 1;
        found.e++;
    }
    return found;
}

bool ce_positive(uint32_t bits)
{
    return bits != 0 && bits < 0x7f800000u;
}

ce_real ce_of_float(uint32_t bits)
{
    const int exponent = (int)(bits >> 23);
    const uint64_t fraction = bits & 0x7fffffu;
    return exponent ? rounded(0, fraction | 0x800000u, false, exponent - 150, BITS)
                    : rounded(0, fraction, false, -149, BITS);
}

ce_real ce_times(ce_real a, ce_real b)
{
    const uint64_t low_mask = 0xffffffffu;
    const uint64_t a1 = a.m >> 32, a0 = a.m & low_mask, b1 = b.m >> 32, b0 = b.m & low_mask;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32); /* a1, b1 < 2^21: nothing wraps */
    const uint64_t second = a0 * b1 + (middle & low_mask);
    const uint64_t high = a1 * b1 + (middle >> 32) + (second >> 32);
    const uint64_t low = second << 32 | (a0 * b0 & low_mask);
    return rounded(high, low, false, a.e + b.e, BITS);
}

ce_real ce_over(ce_real a, ce_real b)
{
    if (b.m == 0) {
        ce_refuse("a division by zero among the scales");
    }
    uint64_t quotient = a.m / b.m, rest = a.m % b.m;
    for (int i = 0; i < 60; i++) {
        rest <<= 1;
        quotient = quotient << 1 | (rest >= b.m);
        rest -= rest >= b.m ? b.m : 0;
    }
    return rounded(0, quotient, rest != 0, a.e - b.e - 60, BITS);
}

int ce_compare(ce_real a, ce_real b)
{
    if (a.m == 0 || b.m == 0) {
        return (a.m != 0) - (b.m != 0);
    }
    if (a.e != b.e) {
        return a.e > b.e ? 1 : -1;
    }
    return (a.m > b.m) - (a.m < b.m);
}

ce_real ce_apart(ce_real a, ce_real b)
{
    const bool swapped = ce_compare(a, b) < 0;
    const ce_real x = swapped ? b : a, y = swapped ? a : b;
    if (y.m == 0) {
        return x;
    }
    const int gap = x.e - y.e;
    if (gap <= 11) {
        return rounded(0, (x.m << gap) - y.m, false, y.e, BITS);
    }
    /* Beyond that the result keeps at least 62 bits: what is shifted out only says on which side of a tie it lies. */
    const uint64_t part = gap < 64 ? (y.m << 11 >> gap) : 0;
    const bool rest = gap >= 64 || ((y.m << 11) & (((uint64_t)1 << gap) - 1)) != 0;
    return rounded(0, (x.m << 11) - part - (rest ? 1 : 0), rest, x.e - 11, BITS);
}

ce_real ce_scaled(ce_real a, int n)
{
    if (a.m != 0) {
        a.e += n;
    }
    return a;
}

bool ce_single(ce_real a, ce_real *single)
{
    /* The least bit of a float32 is 2^-149: numbers below 2^-126 keep fewer than 24. */
    const int leading = a.e + BITS - 1;
    const int bits = leading >= -126 ? 24 : leading + 150;
    if (a.m == 0) {
        *single = a;
    } else if (bits >= 1) {
        *single = rounded(0, a.m, false, a.e, bits);
    } else {
        /* Up to 2^-150, which is a tie, to zero; between that and 2^-149 to the latter. */
        const ce_real least = ce_of_float(1), half = ce_scaled(least, -1), none = {0, 0};
        *single = ce_compare(a, half) > 0 ? least : none;
    }
    return single->m == 0 || single->e + BITS - 1 < 128;
}

int64_t ce_nearest(ce_real a)
{
    if (a.m == 0 || a.e < -BITS) {
        return 0;
    }
    if (a.e > -BITS + 32) {
        ce_refuse("a quotient of scales is too large");
    }
    const int right = -a.e; /* 21..53 */
    return (int64_t)((a.m + ((uint64_t)1 << (right - 1))) >> right);
}

ce_multiplier ce_quantised(ce_real a)
{
    ce_multiplier found = {0, 0};
    if (a.m == 0) {
        return found;
    }
    uint64_t m = (a.m + ((uint64_t)1 << 21)) >> 22;
    int s = a.e + BITS;
    if (m >> 31) {
        m >>= 1;
        s++;
    }
    if (s >= -31) {
        found.m = (int32_t)m;
        found.s = s;
    }
    return found;
}
