#include "protocol.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ce_crc32.h"
#include "ce_runtime.h"
#include "ce_sha256.h"
#include "memory.h"
#include "model.h"
#include "port.h"

#define COMMAND_SIZE 80 /* with the final zero; the protocol's own limit */
#define DEFAULT_WARMUP 10

static char command[COMMAND_SIZE];
static uint32_t command_length;
static bool command_overlong;

static int8_t input[CE_INPUT_BYTES];
static int8_t output[CE_OUTPUT_BYTES];
static uint32_t expected; /* bytes that "db load" announced */
static uint32_t received;
static bool has_output;

static uint64_t clock_ticks; /* port_ticks() without the wrap, as long as advance() runs once per wrap */
static uint32_t clock_last;
static uint64_t infer_ticks; /* of the last "infer", over all its iterations */
static uint32_t infer_count;

/* ---- output ---- */

/* Not inlined: the answers are text, and text costs flash only once this way. */
#define COLD __attribute__((noinline)) static

COLD void put(const char *s)
{
    while (*s != '\0') {
        port_putc(*s++);
    }
}

COLD void put_line(const char *s)
{
    put(s);
    put("\r\n");
}

COLD void put_u64(uint64_t v)
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

COLD void put_hex(uint32_t v, int digits)
{
    while (digits > 0) {
        port_putc("0123456789abcdef"[(v >> (4 * --digits)) & 15u]);
    }
}

COLD void put_bytes(const int8_t *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; ++i) {
        put_hex((uint8_t)p[i], 2);
    }
}

COLD void put_field(const char *name, uint64_t v)
{
    put(name);
    put_u64(v);
}

COLD void put_number_line(const char *prefix, uint64_t v)
{
    put_field(prefix, v);
    put_line("");
}

/* The real number that q stands for, to three decimals, ties away from zero; exact, without floating point.
 * scale = mantissa * 2^(exponent - 150), so 1000 * |q - zero| * mantissa < 2^42. */
static void put_real(int32_t q, const ce_blob_header *header)
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
    put_u64(thousandths / 1000u);
    port_putc('.');
    const uint32_t decimals = (uint32_t)(thousandths % 1000u);
    port_putc((char)('0' + decimals / 100u));
    port_putc((char)('0' + decimals / 10u % 10u));
    port_putc((char)('0' + decimals % 10u));
}

/* ---- input ---- */

/* Cuts the next word off; null at the end. The only place that looks at the raw text, and it never sees a null. */
static char *next_word(char **rest)
{
    char *s = *rest;
    while (*s == ' ') {
        ++s;
    }
    if (*s == '\0') {
        *rest = s;
        return NULL;
    }
    char *word = s;
    while (*s != '\0' && *s != ' ') {
        ++s;
    }
    if (*s == ' ') {
        *s++ = '\0';
    }
    *rest = s;
    return word;
}

static bool same(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        ++a;
        ++b;
    }
    return *a == *b;
}

/* A decimal in (-10^9, 10^9); `missing` where there is no word; 0 for anything else, as the protocol's reference does. */
static int32_t number(const char *word, int32_t missing)
{
    if (word == NULL) {
        return missing;
    }
    const bool negative = *word == '-';
    int32_t value = 0;
    int digits = 0;
    for (word += negative ? 1 : 0; *word != '\0'; ++word) {
        if (*word < '0' || *word > '9' || ++digits > 9) {
            return 0;
        }
        value = value * 10 + (*word - '0');
    }
    return negative ? -value : value;
}

static int nibble(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* ---- time ---- */

static uint64_t advance(void)
{
    const uint32_t now = port_ticks();
    clock_ticks += (uint32_t)(now - clock_last);
    clock_last = now;
    return clock_ticks;
}

/* The protocol's microseconds are 32 bits wide and wrap after 71.6 minutes. */
static void put_lap(uint64_t ticks)
{
    const uint64_t seconds = ticks / port.ticks_hz;
    const uint64_t rest = ticks % port.ticks_hz;
    put_number_line("m-lap-us-", (uint32_t)(seconds * 1000000u + rest * 1000000u / port.ticks_hz));
}

/* ---- commands ---- */

static void do_name(void)
{
    put("m-name-dut-[");
    put(port.board);
    put_line("]");
}

static void do_profile(void)
{
    const ce_blob_header *header = ce_model_header(&ce_model_object);
    char digest[65];
    ce_sha256_hex((const uint8_t *)ce_model_object.blob, 4u * (size_t)header->words, digest);
    put_line("m-profile-[ULPMark for tinyML Firmware V0.0.1]");
    put("m-model-[");
    put(CE_MODEL_NAME);
    put_line("]");
    put("m-cactus-[proto=1;arith=");
    put(header->arithmetic == CE_ARITHMETIC_TFLM ? "D" : "?");
    put(";model=");
    put(digest);
    put_field(";in=", (uint32_t)header->in_bytes);
    put_field(";out=", (uint32_t)header->out_bytes);
    put_field(";ops=", (uint32_t)header->ops);
    put_field(";arena=", (uint32_t)header->arena);
    put_field(";clk=", port.core_hz);
    put(";crc=ieee;raw=1;timebase=");
    put(port.unit);
    put_line("]");
}

static void do_help(void)
{
    put_line("m-cactus-edge firmware: every command ends with a percent sign");
    put_line("name, profile, timestamp, help");
    put_line("db load N: expect N bytes; db HEX: the next bytes; db print: show them");
    put_line("infer N [W=10]: N inferences after W warm-ups; results: the last output");
    put_line("raw: output bytes; crc: of input and output; ticks: of the last infer; tap K: tensor after op K; mem");
}

static void do_db_load(const char *word)
{
    const int32_t bytes = number(word, 0);
    if (bytes <= 0) {
        put_line("e-[Command 'db load' must be >0 bytes]");
        return;
    }
    if ((uint32_t)bytes > sizeof input) {
        put_field("e-[Supplied buffer size ", (uint32_t)bytes);
        put_field(" exceeds maximum of ", sizeof input);
        put_line("]");
        return;
    }
    expected = (uint32_t)bytes;
    received = 0;
    put_field("m-[Expecting ", expected);
    put_line(" bytes]");
}

static void do_db_print(void)
{
    for (uint32_t i = 0; i < received; ++i) {
        if (i % 8u == 0) {
            put(i == 0 ? "m-buffer" : "\r\nm-buffer");
        }
        port_putc('-');
        put_hex((uint8_t)input[i], 2);
    }
    if (received != 0) {
        put_line("");
    }
}

static void do_db_data(const char *hex)
{
    if (received == expected) {
        put_line("e-[No bytes are expected: 'db load N' first]");
        return;
    }
    for (; *hex != '\0'; hex += 2) {
        if (hex[1] == '\0') {
            put_line("e-[Insufficent number of hex digits]"); /* spelt as the protocol's reference spells it */
            return;
        }
        const int high = nibble(hex[0]);
        const int low = nibble(hex[1]);
        if (high < 0 || low < 0) {
            put("e-[Invalid hex digit '");
            port_putc(hex[0]);
            port_putc(hex[1]);
            put_line("']");
            return;
        }
        if (received == expected) {
            put_field("e-[More than the expected ", expected);
            put_line(" bytes]");
            return;
        }
        input[received++] = (int8_t)(uint8_t)(high * 16 + low);
    }
    if (received == expected) {
        put_line("m-load-done");
    }
}

static bool input_ready(void)
{
    if (received == expected && received == CE_INPUT_BYTES) {
        return true;
    }
    put_field("e-[Input has ", received);
    put_field(" bytes, the model reads ", CE_INPUT_BYTES);
    put_line("]");
    return false;
}

static bool run_once(ce_observer observer, void *context)
{
    const int status = ce_model_run(&ce_model_object, input, output, observer, context);
    if (status != CE_OK) {
        put_field("e-[Model does not run: status -", (uint32_t)-status);
        put_line("]");
    }
    return status == CE_OK;
}

static void do_results(void)
{
    if (!has_output) {
        put_line("e-[No inference yet]");
        return;
    }
    put("m-results-[");
    for (uint32_t i = 0; i < CE_OUTPUT_BYTES; ++i) {
        if (i != 0) {
            port_putc(',');
        }
        put_real(output[i], ce_model_header(&ce_model_object));
    }
    put_line("]");
}

static void do_infer(const char *count_word, const char *warmup_word)
{
    const int32_t count = number(count_word, 1);
    const int32_t warmup = number(warmup_word, DEFAULT_WARMUP);
    if (count <= 0) {
        put_line("e-[Inference iterations must be >0]");
        return;
    }
    if (warmup < 0) {
        put_line("e-[Inference warmup must be >=0]");
        return;
    }
    if (!input_ready()) {
        return;
    }
    has_output = false;
    put_number_line("m-warmup-start-", (uint32_t)warmup);
    for (int32_t i = 0; i < warmup; ++i) {
        if (!run_once(NULL, NULL)) {
            return;
        }
    }
    put_line("m-warmup-done");
    put_number_line("m-infer-start-", (uint32_t)count);
    uint64_t total = 0;
    const uint64_t begin = advance();
    for (int32_t i = 0; i < count; ++i) {
        const uint32_t before = port_ticks();
        const int status = ce_model_run(&ce_model_object, input, output, NULL, NULL);
        total += (uint32_t)(port_ticks() - before);
        if (status != CE_OK) {
            put_line("e-[Model does not run]");
            return;
        }
        (void)advance();
    }
    const uint64_t end = advance();
    /* Both laps are printed only now, so that no serial traffic lies between them. */
    put_lap(begin);
    put_lap(end);
    infer_ticks = total;
    infer_count = (uint32_t)count;
    has_output = true;
    put_line("m-infer-done");
    do_results();
}

static void do_raw(void)
{
    if (!has_output) {
        put_line("e-[No inference yet]");
        return;
    }
    put("m-raw-[");
    put_bytes(output, CE_OUTPUT_BYTES);
    put_line("]");
}

static void do_crc(void)
{
    put("m-crc-[in=");
    put_hex(ce_crc32(0, (const uint8_t *)input, received), 8);
    put(";out=");
    put_hex(has_output ? ce_crc32(0, (const uint8_t *)output, CE_OUTPUT_BYTES) : 0, 8);
    put_line("]");
}

static void do_ticks(void)
{
    if (infer_count == 0) {
        put_line("e-[No inference yet]");
        return;
    }
    put_field("m-ticks-[ticks=", infer_ticks);
    put_field(";hz=", port.ticks_hz);
    put_field(";n=", infer_count);
    put(";unit=");
    put(port.unit);
    put_field(";unit_hz=", port.unit_hz);
    put_line("]");
}

static void do_mem(void)
{
    const uint32_t *word = ce_stack_limit;
    while (word < ce_stack_top && *word == CE_STACK_PAINT) {
        ++word;
    }
    put_field("m-mem-[arena=", (uint32_t)ce_model_header(&ce_model_object)->arena);
    put_field(";static=", (uint32_t)((uintptr_t)ce_bss_end - (uintptr_t)ce_data_start));
    put_field(";stack=", (uint32_t)((uintptr_t)ce_stack_top - (uintptr_t)ce_stack_limit));
    put_field(";stack_used=", (uint32_t)((uintptr_t)ce_stack_top - (uintptr_t)word));
    put_line("]");
}

static void tap(void *context, int32_t index, const int8_t *tensor, int32_t bytes)
{
    if (index == *(const int32_t *)context) {
        put_field("m-tap-[op=", (uint32_t)index);
        put(";hex=");
        put_bytes(tensor, (uint32_t)bytes);
        put_line("]");
    }
}

static void do_tap(const char *word)
{
    int32_t op = number(word, -1);
    if (op < 0 || op >= ce_model_header(&ce_model_object)->ops) {
        put_line("e-[No such op]");
        return;
    }
    if (input_ready()) {
        has_output = run_once(tap, &op);
    }
}

static void execute(char *text)
{
    char *const whole = text;
    const char *const verb = next_word(&text);
    if (verb == NULL) {
        return; /* a bare terminator is no command, and must not reach a string comparison */
    }
    if (same(verb, "db")) {
        const char *const word = next_word(&text);
        if (word == NULL) {
            put_line("e-[Command 'db' needs 'load N', 'print' or hex digits]");
        } else if (same(word, "load")) {
            do_db_load(next_word(&text));
        } else if (same(word, "print")) {
            do_db_print();
        } else {
            do_db_data(word);
        }
    } else if (same(verb, "infer")) {
        const char *const count = next_word(&text);
        do_infer(count, next_word(&text));
    } else if (same(verb, "tap")) {
        do_tap(next_word(&text));
    } else if (same(verb, "name")) {
        do_name();
    } else if (same(verb, "profile")) {
        do_profile();
    } else if (same(verb, "timestamp")) {
        put_lap(advance());
    } else if (same(verb, "help")) {
        do_help();
    } else if (same(verb, "results")) {
        do_results();
    } else if (same(verb, "raw")) {
        do_raw();
    } else if (same(verb, "crc")) {
        do_crc();
    } else if (same(verb, "ticks")) {
        do_ticks();
    } else if (same(verb, "mem")) {
        do_mem();
    } else {
        put("e-[Unknown command: ");
        put(whole); /* up to its first space */
        put_line("]");
    }
}

void ce_protocol_feed(char c)
{
    if (c == '\r' || c == '\n') {
        return; /* a terminal's line end is no part of a command */
    }
    if (c != '%') {
        if (command_length < COMMAND_SIZE - 1u) {
            command[command_length++] = c;
        } else {
            command_overlong = true;
        }
        return;
    }
    command[command_length] = '\0';
    const bool overlong = command_overlong;
    command_length = 0;
    command_overlong = false;
    if (overlong) {
        put_line("e-[Command longer than 79 characters]");
    } else {
        execute(command);
    }
    put_line("m-ready");
}

void ce_protocol_begin(void)
{
    clock_last = port_ticks();
    put_line("m-timestamp-mode-performance");
    put_lap(advance());
    put_line("m-init-done");
    put_line("m-ready");
}

void ce_protocol_fault(unsigned exception, unsigned cause)
{
    put("\r\ne-[fault ");
    put_u64(exception);
    put(" ");
    put_hex(cause, 8);
    put_line("]");
}
