#include "port.h"
#include "protocol.h"

int main(void)
{
    port_init();
    ce_protocol_begin();
    for (;;) {
        ce_protocol_feed(port_getc());
    }
}
