/* ST Nucleo-L4R5ZI (MB1312): STM32L4R5ZIT6, Cortex-M4, LPUART1 on PG7 (TX) and PG8 (RX) to the ST-LINK's virtual port.
 * Compiled and linked in the tests; not run on hardware.
 *
 * Registers: ST RM0432 (RCC, PWR, GPIO, LPUART), board: UM2179, cycle counter: Arm DDI 0403 (DWT). After reset the core runs
 * from MSI at 4 MHz in voltage range 1. HSI16 is chosen instead because the serial line needs its 1 % accuracy, and
 * because up to 20 MHz the flash needs no wait states: cycles counted here are the core's own. */
#include "port.h"

#define REG(address) (*(volatile uint32_t *)(address))

#define RCC 0x40021000u
#define RCC_CR REG(RCC + 0x00u)
#define RCC_CFGR REG(RCC + 0x08u)
#define RCC_AHB2ENR REG(RCC + 0x4Cu)
#define RCC_APB1ENR1 REG(RCC + 0x58u)
#define RCC_APB1ENR2 REG(RCC + 0x5Cu)
#define RCC_CCIPR REG(RCC + 0x88u)
#define HSION (1u << 8)
#define HSIRDY (1u << 10)
#define SW_MASK 3u
#define SW_HSI16 1u
#define SWS_MASK (3u << 2)
#define SWS_HSI16 (1u << 2)
#define GPIOGEN (1u << 6)
#define PWREN (1u << 28)
#define LPUART1EN (1u << 0)
#define LPUART1SEL_MASK (3u << 10)
#define LPUART1SEL_HSI16 (2u << 10)

#define PWR_CR2 REG(0x40007004u)
#define IOSV (1u << 9) /* PG2 to PG15 are supplied by VDDIO2, isolated until this bit says that it is there */

#define GPIOG 0x48001800u
#define GPIOG_MODER REG(GPIOG + 0x00u)
#define GPIOG_AFRL REG(GPIOG + 0x20u)
#define GPIOG_AFRH REG(GPIOG + 0x24u)

#define LPUART1 0x40008000u
#define LPUART1_CR1 REG(LPUART1 + 0x00u)
#define LPUART1_BRR REG(LPUART1 + 0x0Cu)
#define LPUART1_ISR REG(LPUART1 + 0x1Cu)
#define LPUART1_ICR REG(LPUART1 + 0x20u)
#define LPUART1_RDR REG(LPUART1 + 0x24u)
#define LPUART1_TDR REG(LPUART1 + 0x28u)
#define UE (1u << 0)
#define RE (1u << 2)
#define TE (1u << 3)
#define FIFOEN (1u << 29)
#define ORE (1u << 3)
#define RXNE (1u << 5)
#define TXE (1u << 7)

#define DEMCR REG(0xE000EDFCu)
#define TRCENA (1u << 24)
#define DWT_CTRL REG(0xE0001000u)
#define DWT_CYCCNT REG(0xE0001004u)

#define CORE_HZ 16000000u
#define BAUD 115200u

const port_info port = {"nucleo-l4r5zi", "us", 1000000u, CORE_HZ, CORE_HZ};

static void set_field(volatile uint32_t *reg, uint32_t mask, uint32_t value)
{
    *reg = (*reg & ~mask) | value;
}

void port_init(void)
{
    RCC_CR |= HSION;
    while ((RCC_CR & HSIRDY) == 0) {
    }
    set_field(&RCC_CFGR, SW_MASK, SW_HSI16);
    while ((RCC_CFGR & SWS_MASK) != SWS_HSI16) {
    }

    RCC_APB1ENR1 |= PWREN;
    (void)RCC_APB1ENR1; /* a peripheral answers two bus cycles after its clock is on: the read is the wait */
    PWR_CR2 |= IOSV;
    RCC_AHB2ENR |= GPIOGEN;
    (void)RCC_AHB2ENR;
    set_field(&GPIOG_AFRL, 15u << 28, 8u << 28); /* PG7: alternate function 8, LPUART1_TX */
    set_field(&GPIOG_AFRH, 15u << 0, 8u << 0);   /* PG8: alternate function 8, LPUART1_RX */
    set_field(&GPIOG_MODER, (3u << 14) | (3u << 16), (2u << 14) | (2u << 16));

    set_field(&RCC_CCIPR, LPUART1SEL_MASK, LPUART1SEL_HSI16);
    RCC_APB1ENR2 |= LPUART1EN;
    (void)RCC_APB1ENR2;
    LPUART1_CR1 = 0;
    LPUART1_BRR = (uint32_t)((256ull * CORE_HZ + BAUD / 2u) / BAUD);
    LPUART1_CR1 = FIFOEN | UE | RE | TE;

    DEMCR |= TRCENA;
    DWT_CYCCNT = 0;
    DWT_CTRL |= 1u;
}

char port_getc(void)
{
    uint32_t status;
    while (((status = LPUART1_ISR) & RXNE) == 0) {
        if ((status & ORE) != 0) {
            LPUART1_ICR = ORE; /* an overrun blocks the receiver until it is acknowledged */
        }
    }
    return (char)(LPUART1_RDR & 0xFFu);
}

void port_putc(char c)
{
    while ((LPUART1_ISR & TXE) == 0) {
    }
    LPUART1_TDR = (uint8_t)c;
}

__attribute__((noinline)) uint32_t port_ticks(void)
{
    return DWT_CYCCNT;
}
