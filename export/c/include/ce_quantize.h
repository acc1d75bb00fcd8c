/* SPDX-License-Identifier: Apache-2.0 */
/* From the sensor's units to int8 codes and back. The only header with floating point: include it where you need it. */
#ifndef CE_QUANTIZE_H
#define CE_QUANTIZE_H

#include <stdint.h>

/* clamp(round(x / scale) + zero, -128, 127), x / scale in float32, ties away from zero, exactly as the certificate maps
 * its inputs: tensorflow/lite/kernels/internal/reference/quantize.h. scale > 0, zero in [-128, 127]. NaN gives -128. */
static inline int8_t ce_quantize(float x, float scale, int32_t zero)
{
    float v = x / scale;
    v = v > -512.0f ? v : -512.0f;
    v = v < 512.0f ? v : 512.0f;
    /* v + 0.5f would round 0.49999997f up; the fraction of a number below 512 is exact. */
    int32_t q = (int32_t)v;
    const float fraction = v - (float)q;
    q += (fraction >= 0.5f ? 1 : 0) - (fraction <= -0.5f ? 1 : 0) + zero;
    q = q < -128 ? -128 : q;
    return (int8_t)(q > 127 ? 127 : q);
}

/* scale * (q - zero). */
static inline float ce_dequantize(int8_t q, float scale, int32_t zero)
{
    return scale * (float)(q - zero);
}

#endif
