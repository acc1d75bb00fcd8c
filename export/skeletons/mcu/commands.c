#include "commands.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ce_crc32.h"
#include "ce_runtime.h"
#include "ce_sha256.h"
#include "memory.h"
#include "model.h"
#include "output.h"
#include "port.h"

#ifdef CE_LIVE
#include "live.h"
#endif

static int8_t input[CE_INPUT_BYTES];
static int8_t output[CE_OUTPUT_BYTES];
static uint32_t expected; /* bytes that "db load" announced */
static uint32_t received;
static bool has_output;

static uint64_t clock_ticks; /* port_ticks() without the wrap, as long as advance() runs once per wrap */
static uint32_t clock_last;
static uint64_t infer_ticks; /* of the last "infer", over all its iterations */
static uint32_t infer_count;

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
    ce_put_field_line("m-lap-us-", (uint32_t)(seconds * 1000000u + rest * 1000000u / port.ticks_hz));
}

void ce_command_start(void)
{
    clock_last = port_ticks();
}

void ce_command_timestamp(void)
{
    put_lap(advance());
}

/* ---- who is there ---- */

void ce_command_name(void)
{
    ce_put("m-name-dut-[");
    ce_put(port.board);
    ce_put_line("]");
}

void ce_command_profile(void)
{
    const ce_blob_header *header = ce_model_header(&ce_model_object);
    char digest[65];
    ce_sha256_hex((const uint8_t *)ce_model_object.blob, 4u * (size_t)header->words, digest);
    ce_put_line("m-profile-[ULPMark for tinyML Firmware V0.0.1]");
    ce_put("m-model-[");
    ce_put(CE_MODEL_NAME);
    ce_put_line("]");
    ce_put("m-cactus-[proto=1;arith=");
    ce_put(header->arithmetic == CE_ARITHMETIC_TFLM ? "D" : "?");
    ce_put(";model=");
    ce_put(digest);
    ce_put_field(";in=", (uint32_t)header->in_bytes);
    ce_put_field(";out=", (uint32_t)header->out_bytes);
    ce_put_field(";ops=", (uint32_t)header->ops);
    ce_put_field(";arena=", (uint32_t)header->arena);
    ce_put_field(";clk=", port.core_hz);
    ce_put(";crc=ieee;raw=1;timebase=");
    ce_put(port.unit);
    ce_put_line("]");
}

void ce_command_help(void)
{
    ce_put_line("m-cactus-edge firmware: every command ends with a percent sign");
    ce_put_line("name, profile, timestamp, help");
    ce_put_line("db load N: expect N bytes; db HEX: the next bytes; db print: show them");
    ce_put_line("infer N [W=10]: N inferences after W warm-ups; results: the last output");
    ce_put_line("raw: output bytes; crc: of input and output; ticks: of the last infer; tap K: tensor after op K; mem");
#ifdef CE_LIVE
    ce_put_line("certify R [LEAST MOST]: does every input within R codes of the loaded one get its class");
#endif
}

/* ---- input ---- */

void ce_command_db_load(int32_t bytes)
{
    if (bytes <= 0) {
        ce_put_line("e-[Command 'db load' must be >0 bytes]");
        return;
    }
    if ((uint32_t)bytes > sizeof input) {
        ce_put_field("e-[Supplied buffer size ", (uint32_t)bytes);
        ce_put_field(" exceeds maximum of ", sizeof input);
        ce_put_line("]");
        return;
    }
    expected = (uint32_t)bytes;
    received = 0;
    ce_put_field("m-[Expecting ", expected);
    ce_put_line(" bytes]");
}

void ce_command_db_print(void)
{
    for (uint32_t i = 0; i < received; ++i) {
        if (i % 8u == 0) {
            ce_put(i == 0 ? "m-buffer" : "\r\nm-buffer");
        }
        port_putc('-');
        ce_put_hex((uint8_t)input[i], 2);
    }
    if (received != 0) {
        ce_put_line("");
    }
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

void ce_command_db_data(const char *hex)
{
    if (received == expected) {
        ce_put_line("e-[No bytes are expected: 'db load N' first]");
        return;
    }
    for (; *hex != '\0'; hex += 2) {
        if (hex[1] == '\0') {
            ce_put_line("e-[Insufficent number of hex digits]"); /* spelt as the protocol's reference spells it */
            return;
        }
        const int high = nibble(hex[0]);
        const int low = nibble(hex[1]);
        if (high < 0 || low < 0) {
            ce_put("e-[Invalid hex digit '");
            port_putc(hex[0]);
            port_putc(hex[1]);
            ce_put_line("']");
            return;
        }
        if (received == expected) {
            ce_put_field("e-[More than the expected ", expected);
            ce_put_line(" bytes]");
            return;
        }
        input[received++] = (int8_t)(uint8_t)(high * 16 + low);
    }
    if (received == expected) {
        ce_put_line("m-load-done");
    }
}

/* ---- inference ---- */

static bool input_ready(void)
{
    if (received == expected && received == CE_INPUT_BYTES) {
        return true;
    }
    ce_put_field("e-[Input has ", received);
    ce_put_field(" bytes, the model reads ", CE_INPUT_BYTES);
    ce_put_line("]");
    return false;
}

static bool run_once(ce_observer observer, void *context)
{
    const int status = ce_model_run(&ce_model_object, input, output, observer, context);
    if (status != CE_OK) {
        ce_put_field("e-[Model does not run: status -", (uint32_t)-status);
        ce_put_line("]");
    }
    return status == CE_OK;
}

void ce_command_results(void)
{
    if (!has_output) {
        ce_put_line("e-[No inference yet]");
        return;
    }
    ce_put("m-results-[");
    for (uint32_t i = 0; i < CE_OUTPUT_BYTES; ++i) {
        if (i != 0) {
            port_putc(',');
        }
        ce_put_real(output[i], ce_model_header(&ce_model_object));
    }
    ce_put_line("]");
}

void ce_command_infer(int32_t count, int32_t warmup)
{
    if (count <= 0) {
        ce_put_line("e-[Inference iterations must be >0]");
        return;
    }
    if (warmup < 0) {
        ce_put_line("e-[Inference warmup must be >=0]");
        return;
    }
    if (!input_ready()) {
        return;
    }
    has_output = false;
    ce_put_field_line("m-warmup-start-", (uint32_t)warmup);
    for (int32_t i = 0; i < warmup; ++i) {
        if (!run_once(NULL, NULL)) {
            return;
        }
    }
    ce_put_line("m-warmup-done");
    ce_put_field_line("m-infer-start-", (uint32_t)count);
    uint64_t total = 0;
    const uint64_t begin = advance();
    for (int32_t i = 0; i < count; ++i) {
        const uint32_t before = port_ticks();
        const int status = ce_model_run(&ce_model_object, input, output, NULL, NULL);
        total += (uint32_t)(port_ticks() - before);
        if (status != CE_OK) {
            ce_put_line("e-[Model does not run]");
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
    ce_put_line("m-infer-done");
    ce_command_results();
}

void ce_command_raw(void)
{
    if (!has_output) {
        ce_put_line("e-[No inference yet]");
        return;
    }
    ce_put("m-raw-[");
    ce_put_bytes(output, CE_OUTPUT_BYTES);
    ce_put_line("]");
}

void ce_command_crc(void)
{
    ce_put("m-crc-[in=");
    ce_put_hex(ce_crc32(0, (const uint8_t *)input, received), 8);
    ce_put(";out=");
    ce_put_hex(has_output ? ce_crc32(0, (const uint8_t *)output, CE_OUTPUT_BYTES) : 0, 8);
    ce_put_line("]");
}

void ce_command_ticks(void)
{
    if (infer_count == 0) {
        ce_put_line("e-[No inference yet]");
        return;
    }
    ce_put_field("m-ticks-[ticks=", infer_ticks);
    ce_put_field(";hz=", port.ticks_hz);
    ce_put_field(";n=", infer_count);
    ce_put(";unit=");
    ce_put(port.unit);
    ce_put_field(";unit_hz=", port.unit_hz);
    ce_put_line("]");
}

void ce_command_mem(void)
{
    const uint32_t *word = ce_stack_limit;
    while (word < ce_stack_top && *word == CE_STACK_PAINT) {
        ++word;
    }
    ce_put_field("m-mem-[arena=", (uint32_t)ce_model_header(&ce_model_object)->arena);
    ce_put_field(";static=", (uint32_t)((uintptr_t)ce_bss_end - (uintptr_t)ce_data_start));
    ce_put_field(";stack=", (uint32_t)((uintptr_t)ce_stack_top - (uintptr_t)ce_stack_limit));
    ce_put_field(";stack_used=", (uint32_t)((uintptr_t)ce_stack_top - (uintptr_t)word));
    ce_put_line("]");
}

static void tap(void *context, int32_t index, const int8_t *tensor, int32_t bytes)
{
    if (index == *(const int32_t *)context) {
        ce_put_field("m-tap-[op=", (uint32_t)index);
        ce_put(";hex=");
        ce_put_bytes(tensor, (uint32_t)bytes);
        ce_put_line("]");
    }
}

void ce_command_tap(int32_t op)
{
    if (op < 0 || op >= ce_model_header(&ce_model_object)->ops) {
        ce_put_line("e-[No such op]");
        return;
    }
    if (input_ready()) {
        has_output = run_once(tap, &op);
    }
}

/* ---- live inputs ---- */

#ifdef CE_LIVE
void ce_command_certify(int32_t radius, int32_t least, int32_t most)
{
    if (radius < 0 || radius > UINT8_MAX || least < INT8_MIN || least > most || most > INT8_MAX) {
        ce_put_line("e-[Expected a radius of 0 to 255, then codes -128 <= LEAST <= MOST <= 127]");
        return;
    }
    if (!input_ready()) {
        return;
    }
    has_output = run_once(NULL, NULL);
    if (!has_output) {
        return;
    }
    int32_t label = 0;
    for (int32_t k = 1; k < CE_OUTPUT_BYTES; ++k) {
        label = output[k] > output[label] ? k : label;
    }
    const uint8_t codes = (uint8_t)radius;
    const ce_region region = {&codes, 0, (int8_t)least, (int8_t)most};
    ce_verdict verdict = {0, 0};
    /* The bounds alone: what they cost beside an inference. */
    const uint32_t before = port_ticks();
    const int status = ce_certify(&ce_model_certifier, input, &region, label, &verdict);
    const uint32_t ticks = (uint32_t)(port_ticks() - before);
    if (status != CE_OK) {
        ce_put_field("e-[No decision to certify: status -", (uint32_t)-status);
        ce_put_line("]");
        return;
    }
    ce_put_field("m-certify-[label=", (uint32_t)label);
    ce_put_field(";certified=", (uint32_t)verdict.certified);
    ce_put(verdict.margin < 0 ? ";margin=-" : ";margin=");
    ce_put_u64((uint32_t)(verdict.margin < 0 ? -verdict.margin : verdict.margin));
    ce_put_field(";ticks=", ticks);
    ce_put_line("]");
}
#endif
