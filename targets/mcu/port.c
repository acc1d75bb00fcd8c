/* The emulated board: Arm's MPS2+ with the AN386 image (Cortex-M4), as QEMU's mps2-an386 and our own emulator model it.
 * Registers: Arm Cortex-M System Design Kit Technical Reference Manual (DDI 0479), APB UART and APB timer. */
#include "port.h"

typedef struct {
    volatile uint32_t data;
    volatile uint32_t state;  /* bit 0 transmitter full, bit 1 receiver full */
    volatile uint32_t ctrl;   /* bit 0 transmitter, 1 receiver, 3 receive interrupt */
    volatile uint32_t intr;   /* read: pending; write 1 to clear; bit 1 receive */
    volatile uint32_t bauddiv;
} cmsdk_uart;

typedef struct {
    volatile uint32_t ctrl; /* bit 0 enable */
    volatile uint32_t value;
    volatile uint32_t reload;
    volatile uint32_t intr;
} cmsdk_timer;

#define UART0 ((cmsdk_uart *)0x40004000u)
#define TIMER0 ((cmsdk_timer *)0x40000000u)
#define NVIC_ISER0 (*(volatile uint32_t *)0xE000E100u)
#define NVIC_ICPR0 (*(volatile uint32_t *)0xE000E280u)

#define CORE_HZ 25000000u
#define BAUD 115200u
#define TX_FULL 1u
#define RX_FULL 2u
#define UART0_RX_IRQ 1u /* bit of interrupt 0 */

/* An emulated instruction lasts 2^7 ns (QEMU: -icount shift=7), 3.2 ticks: coarse enough to count exactly in ticks. */
const port_info port = {"mcu", "instructions", 7812500u, CORE_HZ, CORE_HZ};

void port_init(void)
{
    UART0->bauddiv = (CORE_HZ + BAUD / 2u) / BAUD;
    UART0->ctrl = 1u | 2u | 8u;
    NVIC_ISER0 = UART0_RX_IRQ;
    TIMER0->ctrl = 0;
    TIMER0->reload = 0xFFFFFFFFu;
    TIMER0->value = 0xFFFFFFFFu;
    TIMER0->ctrl = 1u;
}

char port_getc(void)
{
    /* The interrupt is enabled and masked (PRIMASK): it never runs, and still ends the wait, so that an idle board
     * costs its host no time. A byte that comes between the test and the wait has it pending already. */
    while ((UART0->state & RX_FULL) == 0) {
        __asm__ volatile("wfi" ::: "memory");
    }
    UART0->intr = RX_FULL;
    NVIC_ICPR0 = UART0_RX_IRQ;
    return (char)UART0->data;
}

void port_putc(char c)
{
    while ((UART0->state & TX_FULL) != 0) {
    }
    UART0->data = (uint8_t)c;
}

__attribute__((noinline)) uint32_t port_ticks(void)
{
    return ~TIMER0->value; /* it counts down from 2^32 - 1 */
}
