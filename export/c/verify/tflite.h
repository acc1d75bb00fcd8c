/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a .tflite file -> graph: the operators that the portable C runtime has, int8 inside, float32 or int8 at the ends.
 *
 * Whatever the file claims is checked before it is used; a construct that the graph cannot express ends the program
 * (CE_UNUSABLE). Ignored are fields from which no int8 runtime derives a value: names, descriptions, signatures, ranges.
 * Of large lists fewer are taken than the format allows; a byte may be referred to any number of times.
 * Source: tensorflow/lite/schema/schema.fbs, version 3, and the Prepare functions under tensorflow/lite/kernels. */
#ifndef CE_VERIFY_TFLITE_H
#define CE_VERIFY_TFLITE_H

#include "graph.h"

/* The graph points into `bytes`, which must stay. */
ce_graph ce_read_tflite(ce_bytes bytes);

#endif
