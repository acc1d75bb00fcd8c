/* SPDX-License-Identifier: Apache-2.0 */
/* Live inputs: is the decision about the input just seen the same for everything that the sensor might have meant?
 *
 * An interval pass in the arithmetic of the kernels, on two arenas of one plan, then the rule of the certificates: the
 * label must win strictly at the model's output for every input of the box. It decides what `cactus-edge certify` decides
 * on the same box by intervals, bit for bit, where that admits the model: by the ends of the logits and, where the last
 * layer is dense and at most CE_BEHIND requantisations follow it, by the margin fused with its weights
 * (cactus_edge/verify/decide.py, tail.py). Behind other last layers the ends alone count, and it certifies less, never more. */
#ifndef CE_CERTIFY_H
#define CE_CERTIFY_H

#include <stdint.h>

#include "ce_interval.h"
#include "ce_runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CE_BEHIND 4 /* requantisations between the last dense layer and the logits */

#define CE_NO_RULE (-3)  /* fewer than two outputs, or a softmax over several rows: no class wins */
#define CE_NO_LABEL (-4) /* the label is no index of an output */

typedef struct {
    const ce_model *model;           /* its arena takes the lower ends */
    const ce_bounds_kernel *kernels; /* [CE_KINDS]; null where the plain kernel, once for each end, is the bound */
    int8_t *high;                    /* [header arena bytes], the upper ends: all the RAM that this costs */
} ce_certifier;

/* The inputs x with |x - in| <= radius, in codes, and least <= x <= most; `in` itself is always one of them.
 * A float input within eps of the one that gave `in` has a code within ceil(eps / scale) + 1 of it. */
typedef struct {
    const uint8_t *radius; /* [in_bytes] with stride 1, [1] with stride 0 */
    int32_t stride;
    int8_t least; /* codes of the sensor's range; -128 and 127 where it has none */
    int8_t most;
} ce_region;

typedef struct {
    int32_t certified; /* 1: the label wins strictly for every input of the region; 0: this is not proved */
    int32_t margin;    /* of the label over the closest class, in steps of the logits: a lower bound over the region */
} ce_verdict;

/* Bounds the decision around `in`, int8 [in_bytes], in which output `label` wins. Overwrites both arenas; `in` may be
 * ce_model_input(model), or the same place of `high`. Not reentrant. Returns CE_OK, or with `verdict` untouched CE_NO_RULE, CE_NO_LABEL, or what
 * ce_model_check does. */
int ce_certify(const ce_certifier *certifier, const int8_t *in, const ce_region *region, int32_t label,
               ce_verdict *verdict);

#ifdef __cplusplus
}
#endif

#endif
