#include "output.h"

#include <stdint.h>

#include "port.h"

/* Not inlined: the answers are text, and text costs flash only once this way. */
#define COLD __attribute__((noinline))

COLD void ce_put(const char *s)
{
    while (*s != '\0') {
        port_putc(*s++);
    }
}

COLD void ce_put_line(const char *s)
{
    ce_put(s);
    ce_put("\r\n");
}

COLD void ce_put_u64(uint64_t v)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = (char)('0' + (int)(v % 10u));
        v /= 10u;
    } while (v != 0);
    while (n > 0) {
        port_putc(digits[--n]);
    }
}

COLD void ce_put_hex(uint32_t v, int digits)
{
    while (digits > 0) {
        port_putc("0123456789abcdef"[(v >> (4 * --digits)) & 15u]);
    }
}

COLD void ce_put_bytes(const int8_t *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; ++i) {
        ce_put_hex((uint8_t)p[i], 2);
    }
}

COLD void ce_put_field(const char *name, uint64_t v)
{
    ce_put(name);
    ce_put_u64(v);
}

COLD void ce_put_field_line(const char *name, uint64_t v)
{
    ce_put_field(name, v);
    ce_put_line("");
}

/* Exact, without floating point:
 * scale = mantissa * 2^(exponent - 150), so 1000 * |q - zero| * mantissa < 2^42. */
void ce_put_real(int32_t q, const ce_blob_header *header)
{
    const uint32_t bits = (uint32_t)header->out_scale;
    const uint32_t field = (bits >> 23) & 255u;
    const uint32_t fraction = bits & 0x7FFFFFu;
    const uint32_t mantissa = field == 0 ? fraction : fraction | 0x800000u;
    const int32_t exponent = field == 0 ? 1 : (int32_t)field;
    const int32_t difference = q - header->out_zero;
    const uint32_t magnitude = (uint32_t)(difference < 0 ? -difference : difference);
    uint64_t thousandths = (uint64_t)magnitude * mantissa * 1000u;
    const int32_t down = 150 - exponent;
    if (down > 62) {
        thousandths = 0;
    } else if (down > 0) {
        thousandths = (thousandths + (UINT64_C(1) << (down - 1))) >> down;
    } else {
        thousandths <<= down < -20 ? 20 : -down; /* a scale of 2^20 and more is no scale: stay inside 64 bits */
    }
    if (difference < 0 && thousandths != 0) {
        port_putc('-');
    }
    ce_put_u64(thousandths / 1000u);
    port_putc('.');
    const uint32_t decimals = (uint32_t)(thousandths % 1000u);
    port_putc((char)('0' + decimals / 100u));
    port_putc((char)('0' + decimals / 10u % 10u));
    port_putc((char)('0' + decimals % 10u));
}
