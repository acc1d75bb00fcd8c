#include <stdio.h>

#include "ce_quantize.h"
#include "model.h"
#include "sample.h"

int main(void)
{
    int8_t out[CE_OUTPUT_BYTES];
    int best = 0, differing = 0;
    if (ce_run(SAMPLE_INPUT, out) != CE_OK) {
        return 2;
    }
    for (int i = 0; i < CE_OUTPUT_BYTES; i++) {
        best = out[i] > out[best] ? i : best;
        differing += out[i] != SAMPLE_OUTPUT[i];
        printf("%-12s %4d  %g\n", LABELS[i], out[i], (double)ce_dequantize(out[i], CE_OUTPUT_SCALE, CE_OUTPUT_ZERO));
    }
    printf("%s; %d of %d outputs differ from the interpreter's\n", LABELS[best], differing, CE_OUTPUT_BYTES);
    return differing != 0;
}
