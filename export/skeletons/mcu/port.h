/* What a board gives the firmware: a serial line and a clock. One port.c per board, in targets/<board>/. */
#ifndef PORT_H
#define PORT_H

#include <stdint.h>

/* The clock that port_ticks() reads, and what is counted in it.
 * On silicon unit = "us" and unit_hz = 1000000. An emulated board has no time of its own: there unit = "instructions"
 * and unit_hz = instructions per emulated second, and nobody may read its figures as latency. */
typedef struct {
    const char *board;
    const char *unit;
    uint32_t unit_hz;
    uint32_t ticks_hz;
    uint32_t core_hz;
} port_info;

extern const port_info port;

/* Called once, interrupts masked, .data and .bss ready. */
void port_init(void);

/* The next byte of the serial line; waits for it. */
char port_getc(void);

/* Sends one byte; waits until the transmitter takes it. */
void port_putc(char c);

/* Free-running counter at port.ticks_hz, upwards, modulo 2^32. One function call and never inlined, so that the
 * difference of two readings contains the same overhead wherever they are taken. */
uint32_t port_ticks(void);

#endif
