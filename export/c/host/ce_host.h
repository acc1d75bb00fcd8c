/* SPDX-License-Identifier: Apache-2.0 */
/* The model that the host program runs; `argument` is its first command-line argument. Null, with a line on stderr,
 * where there is none. */
#ifndef CE_HOST_H
#define CE_HOST_H

#include "ce_certify.h"

const ce_model *ce_host_model(const char *argument);

/* What bounds that model's decisions; null, with a line on stderr, where there is no memory for it. */
const ce_certifier *ce_host_certifier(const ce_model *model);

#endif
