#include <stdio.h>

#include "ce_quantize.h"
#include "live.h"
#include "model.h"
#include "sample.h"

int main(void)
{
    int8_t out[CE_OUTPUT_BYTES];
    int32_t best = 0;
    int differing = 0;
    /* Everything that differs from the input by at most one code each. Without the question: ce_run(SAMPLE_INPUT, out). */
    const uint8_t radius = 1;
    const ce_region region = {&radius, 0, -128, 127};
    ce_verdict verdict = {0, 0};
    const int status = ce_run_certified(SAMPLE_INPUT, &region, out, &best, &verdict);
    if (status != CE_OK && status != CE_NO_RULE) {
        return 2;
    }
    for (int i = 0; i < CE_OUTPUT_BYTES; i++) {
        differing += out[i] != SAMPLE_OUTPUT[i];
        printf("%-12s %4d  %g\n", LABELS[i], out[i], (double)ce_dequantize(out[i], CE_OUTPUT_SCALE, CE_OUTPUT_ZERO));
    }
    printf("%s, %s within one code; %d of %d outputs differ from the interpreter's\n", LABELS[best],
           verdict.certified ? "certified" : "not certified", differing, CE_OUTPUT_BYTES);
    return differing != 0;
}
