/* Arduino Nano 33 BLE: nRF52840, Cortex-M4, UART0 on the header's TX (P1.03) and RX (P1.10) pins.
 * Compiled and linked in the tests; not run on hardware.
 *
 * Registers: Nordic nRF52840 Product Specification v1.11 (CLOCK, GPIO, UART), cycle counter: Arm DDI 0403 (DWT). The board's
 * own USB socket is the bootloader's: the console needs a 3.3 V USB-to-serial adapter on the two pins. The image starts
 * at 0x10000, above the bootloader. */
#include "port.h"

#define REG(address) (*(volatile uint32_t *)(address))

#define CLOCK_TASKS_HFCLKSTART REG(0x40000000u)
#define CLOCK_EVENTS_HFCLKSTARTED REG(0x40000100u)

#define GPIO_P1 0x50000300u
#define P1_OUTSET REG(GPIO_P1 + 0x508u)
#define P1_PIN_CNF(n) REG(GPIO_P1 + 0x700u + 4u * (n))
#define PIN_OUTPUT 3u        /* direction out, input buffer disconnected */
#define PIN_INPUT_PULLUP 0xCu /* direction in, buffer connected, pull-up: an open line idles high */
#define TX_PIN 3u
#define RX_PIN 10u
#define PORT_1 (1u << 5)

#define UART0 0x40002000u
#define UART_TASKS_STARTRX REG(UART0 + 0x000u)
#define UART_TASKS_STARTTX REG(UART0 + 0x008u)
#define UART_EVENTS_RXDRDY REG(UART0 + 0x108u)
#define UART_EVENTS_TXDRDY REG(UART0 + 0x11Cu)
#define UART_INTENCLR REG(UART0 + 0x308u)
#define UART_ENABLE REG(UART0 + 0x500u)
#define UART_PSELRTS REG(UART0 + 0x508u)
#define UART_PSELTXD REG(UART0 + 0x50Cu)
#define UART_PSELCTS REG(UART0 + 0x510u)
#define UART_PSELRXD REG(UART0 + 0x514u)
#define UART_RXD REG(UART0 + 0x518u)
#define UART_TXD REG(UART0 + 0x51Cu)
#define UART_BAUDRATE REG(UART0 + 0x524u)
#define UART_CONFIG REG(UART0 + 0x56Cu)
#define DISCONNECTED 0xFFFFFFFFu
#define BAUD_115200 0x01D7E000u
#define ENABLED 4u

#define DEMCR REG(0xE000EDFCu)
#define TRCENA (1u << 24)
#define DWT_CTRL REG(0xE0001000u)
#define DWT_CYCCNT REG(0xE0001004u)

#define CORE_HZ 64000000u

const port_info port = {"arduino-nano-33-ble", "us", 1000000u, CORE_HZ, CORE_HZ};

void port_init(void)
{
    /* The crystal instead of the internal oscillator: the time base of every figure. */
    CLOCK_EVENTS_HFCLKSTARTED = 0;
    CLOCK_TASKS_HFCLKSTART = 1;
    while (CLOCK_EVENTS_HFCLKSTARTED == 0) {
    }

    UART_ENABLE = 0; /* a bootloader may have left it, or its DMA twin at the same address, on */
    UART_INTENCLR = 0xFFFFFFFFu;
    P1_OUTSET = 1u << TX_PIN;
    P1_PIN_CNF(TX_PIN) = PIN_OUTPUT;
    P1_PIN_CNF(RX_PIN) = PIN_INPUT_PULLUP;
    UART_PSELRTS = DISCONNECTED;
    UART_PSELCTS = DISCONNECTED;
    UART_PSELTXD = PORT_1 | TX_PIN;
    UART_PSELRXD = PORT_1 | RX_PIN;
    UART_BAUDRATE = BAUD_115200;
    UART_CONFIG = 0; /* 8N1, no flow control */
    UART_EVENTS_RXDRDY = 0;
    UART_EVENTS_TXDRDY = 0;
    UART_ENABLE = ENABLED;
    UART_TASKS_STARTRX = 1;
    UART_TASKS_STARTTX = 1;

    DEMCR |= TRCENA;
    DWT_CYCCNT = 0;
    DWT_CTRL |= 1u;
}

char port_getc(void)
{
    while (UART_EVENTS_RXDRDY == 0) {
    }
    UART_EVENTS_RXDRDY = 0; /* before the read: the next byte's event must not be lost */
    return (char)(UART_RXD & 0xFFu);
}

void port_putc(char c)
{
    UART_EVENTS_TXDRDY = 0;
    UART_TXD = (uint8_t)c;
    while (UART_EVENTS_TXDRDY == 0) {
    }
}

__attribute__((noinline)) uint32_t port_ticks(void)
{
    return DWT_CYCCNT;
}
