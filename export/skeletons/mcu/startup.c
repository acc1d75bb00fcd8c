/* From reset to main() on Cortex-M3, M4 and M7 without a vendor's header.
 * Interrupts stay masked for good: the firmware polls, so that nothing disturbs a measurement. */
#include <stdint.h>

#include "memory.h"
#include "protocol.h"

int main(void);

#define SCB_ICSR (*(volatile uint32_t *)0xE000ED04u)
#define SCB_VTOR (*(volatile uint32_t *)0xE000ED08u)
#define SCB_CFSR (*(volatile uint32_t *)0xE000ED28u)
#define SYSTICK_CTRL (*(volatile uint32_t *)0xE000E010u)
#define NVIC_ICER ((volatile uint32_t *)0xE000E180u)

void ce_reset(void);

static void fault(void)
{
    ce_protocol_fault(SCB_ICSR & 0x1FFu, SCB_CFSR);
    for (;;) {
    }
}

typedef void (*vector)(void);

/* Initial stack pointer, reset, then NMI to SysTick. Peripheral interrupts have no entries because none is ever taken. */
__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    (vector)(uintptr_t)ce_stack_top, ce_reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault,
};

void ce_reset(void)
{
    __asm__ volatile("cpsid i" ::: "memory");
    /* A bootloader may have left its own vector table, timer and interrupts behind. */
    SCB_VTOR = (uint32_t)(uintptr_t)vectors;
    SYSTICK_CTRL = 0;
    for (int i = 0; i < 8; ++i) {
        NVIC_ICER[i] = 0xFFFFFFFFu;
    }
    const uint32_t *from = ce_data_load;
    for (uint32_t *to = ce_data_start; to < ce_data_end; ++to) {
        *to = *from++;
    }
    for (uint32_t *to = ce_bss_start; to < ce_bss_end; ++to) {
        *to = 0;
    }
    uint32_t here; /* only what lies below this frame is free to be painted */
    for (volatile uint32_t *to = ce_stack_limit; (uintptr_t)to < (uintptr_t)&here - 64u; ++to) {
        *to = CE_STACK_PAINT;
    }
    (void)main();
    for (;;) {
    }
}
