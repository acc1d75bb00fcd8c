/* Counts executed Thumb instructions: the emulator calls ce_count_block before every block that it executes.
 * Compiled for this machine by emulator_counter.py, whose Python twin gives the same numbers, some forty times slower. */
#include <stdint.h>

typedef struct {
    uint64_t instructions;
    uint64_t block;      /* where the last block begins */
    uint64_t origin;     /* address of code[0] */
    uint64_t code_bytes;
    const uint8_t *code; /* the flash, which nothing writes to */
} counter;

void ce_count_block(void *engine, uint64_t address, uint32_t size, void *user)
{
    counter *const c = user;
    (void)engine;
    c->block = address;
    uint64_t at = address - c->origin; /* below the origin it wraps and fails the test */
    if (at >= c->code_bytes || size > c->code_bytes - at) {
        return;
    }
    const uint64_t end = at + size;
    uint64_t count = 0;
    while (at < end) {
        /* 0b11101, 0b11110 and 0b11111 begin a 32-bit instruction (Arm DDI 0403 A5.1). */
        at += at + 1 < c->code_bytes && (c->code[at + 1] >> 3) >= 0x1D ? 4u : 2u;
        ++count;
    }
    c->instructions += count;
}
