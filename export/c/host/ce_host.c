/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a model on the build machine, to compare it with the interpreter:
 *   program ARGUMENT run    inputs from stdin, one after the other; outputs to stdout
 *   program ARGUMENT taps   before each output, the outputs of all operations in order
 *   program ARGUMENT certify    questions from stdin: an input, its radii (uint8, as long as the input), the least and the
 *                           most code, and the label (int32); for each its status, certified and margin (int32) to stdout
 * Exit code 0, 1 for a refused blob, 2 for bad usage or a broken stream. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ce_host.h"

static void write_tensor(void *stream, int32_t index, const int8_t *tensor, int32_t bytes)
{
    (void)index;
    fwrite(tensor, 1, (size_t)bytes, (FILE *)stream);
}

/* Answers every question. Returns the exit code. */
static int certify(const ce_model *model, int8_t *in, size_t in_bytes)
{
    const ce_certifier *const certifier = ce_host_certifier(model);
    uint8_t *const radius = malloc(in_bytes);
    int8_t ends[2];
    int32_t label;
    int code = certifier && radius ? 0 : 2;
    while (code == 0 && fread(in, 1, in_bytes, stdin) == in_bytes) {
        if (fread(radius, 1, in_bytes, stdin) != in_bytes || fread(ends, 1, 2, stdin) != 2 ||
            fread(&label, sizeof label, 1, stdin) != 1) {
            code = 2;
            break;
        }
        const ce_region region = {radius, 1, ends[0], ends[1]};
        ce_verdict verdict = {0, 0};
        const int32_t status = ce_certify(certifier, in, &region, label, &verdict);
        const int32_t answer[3] = {status, verdict.certified, verdict.margin};
        code = fwrite(answer, sizeof answer, 1, stdout) == 1 ? 0 : 2;
    }
    free(radius);
    return code;
}

/* Runs every input. Returns the exit code. */
static int run(const ce_model *model, int8_t *in, size_t in_bytes, ce_observer observer)
{
    const size_t out_bytes = (size_t)ce_model_header(model)->out_bytes;
    int8_t *const out = malloc(out_bytes);
    int code = out ? 0 : 2;
    while (code == 0 && fread(in, 1, in_bytes, stdin) == in_bytes) {
        const int status = ce_model_run(model, in, out, observer, stdout);
        if (status != CE_OK) {
            fprintf(stderr, "ce_model_run: %d\n", status);
            code = 1;
        } else if (fwrite(out, 1, out_bytes, stdout) != out_bytes) {
            code = 2;
        }
    }
    free(out);
    return code;
}

int main(int argc, char **argv)
{
    const char *const mode = argc == 3 ? argv[2] : "";
    const int taps = strcmp(mode, "taps") == 0, certifies = strcmp(mode, "certify") == 0;
    if (!taps && !certifies && strcmp(mode, "run") != 0) {
        fprintf(stderr, "usage: %s ARGUMENT run|taps|certify\n", argv[0]);
        return 2;
    }
    const ce_model *const model = ce_host_model(argv[1]);
    if (!model) {
        return 2;
    }
    const size_t in_bytes = (size_t)ce_model_header(model)->in_bytes;
    int8_t *const in = malloc(in_bytes);
    int code = 2;
    if (in) {
        code = certifies ? certify(model, in, in_bytes) : run(model, in, in_bytes, taps ? write_tensor : NULL);
    }
    if (fflush(stdout) != 0 || ferror(stdin) || ferror(stdout)) {
        code = code ? code : 2;
    }
    free(in);
    return code;
}
