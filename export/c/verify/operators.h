/* SPDX-License-Identifier: Apache-2.0 */
/* One operator of a .tflite file as a node of the graph. Operators that the portable C runtime has no kernel for are refused. */
#ifndef CE_VERIFY_OPERATORS_H
#define CE_VERIFY_OPERATORS_H

#include "tensors.h"

/* Appends operator `index` of the file. */
void ce_read_operator(ce_file *file, int index);

#endif
