#include "protocol.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "commands.h"
#include "output.h"

#define COMMAND_SIZE 80 /* with the final zero; the protocol's own limit */
#define DEFAULT_WARMUP 10

static char command[COMMAND_SIZE];
static uint32_t command_length;
static bool command_overlong;

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
            ce_put_line("e-[Command 'db' needs 'load N', 'print' or hex digits]");
        } else if (same(word, "load")) {
            ce_command_db_load(number(next_word(&text), 0));
        } else if (same(word, "print")) {
            ce_command_db_print();
        } else {
            ce_command_db_data(word);
        }
    } else if (same(verb, "infer")) {
        const int32_t count = number(next_word(&text), 1);
        ce_command_infer(count, number(next_word(&text), DEFAULT_WARMUP));
    } else if (same(verb, "tap")) {
        ce_command_tap(number(next_word(&text), -1));
    } else if (same(verb, "name")) {
        ce_command_name();
    } else if (same(verb, "profile")) {
        ce_command_profile();
    } else if (same(verb, "timestamp")) {
        ce_command_timestamp();
    } else if (same(verb, "help")) {
        ce_command_help();
    } else if (same(verb, "results")) {
        ce_command_results();
    } else if (same(verb, "raw")) {
        ce_command_raw();
    } else if (same(verb, "crc")) {
        ce_command_crc();
    } else if (same(verb, "ticks")) {
        ce_command_ticks();
    } else if (same(verb, "mem")) {
        ce_command_mem();
#ifdef CE_LIVE
    } else if (same(verb, "certify")) {
        const int32_t radius = number(next_word(&text), -1);
        const int32_t least = number(next_word(&text), INT8_MIN);
        ce_command_certify(radius, least, number(next_word(&text), INT8_MAX));
#endif
    } else {
        ce_put("e-[Unknown command: ");
        ce_put(whole); /* up to its first space */
        ce_put_line("]");
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
        ce_put_line("e-[Command longer than 79 characters]");
    } else {
        execute(command);
    }
    ce_put_line("m-ready");
}

void ce_protocol_begin(void)
{
    ce_command_start();
    ce_put_line("m-timestamp-mode-performance");
    ce_command_timestamp();
    ce_put_line("m-init-done");
    ce_put_line("m-ready");
}

void ce_protocol_fault(unsigned exception, unsigned cause)
{
    ce_put("\r\ne-[fault ");
    ce_put_u64(exception);
    ce_put(" ");
    ce_put_hex(cause, 8);
    ce_put_line("]");
}
