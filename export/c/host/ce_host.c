/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a model on the build machine, to compare it with the interpreter:
 *   program ARGUMENT run    inputs from stdin, one after the other; outputs to stdout
 *   program ARGUMENT taps   before each output, the outputs of all operations in order
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

int main(int argc, char **argv)
{
    if (argc != 3 || (strcmp(argv[2], "run") != 0 && strcmp(argv[2], "taps") != 0)) {
        fprintf(stderr, "usage: %s ARGUMENT run|taps\n", argv[0]);
        return 2;
    }
    const ce_model *const model = ce_host_model(argv[1]);
    if (!model) {
        return 2;
    }
    const ce_observer observer = strcmp(argv[2], "taps") == 0 ? write_tensor : NULL;
    const size_t in_bytes = (size_t)ce_model_header(model)->in_bytes;
    const size_t out_bytes = (size_t)ce_model_header(model)->out_bytes;
    int8_t *const in = malloc(in_bytes), *const out = malloc(out_bytes);
    int code = in && out ? 0 : 2;
    while (code == 0 && fread(in, 1, in_bytes, stdin) == in_bytes) {
        const int status = ce_model_run(model, in, out, observer, stdout);
        if (status != CE_OK) {
            fprintf(stderr, "ce_model_run: %d\n", status);
            code = 1;
        } else if (fwrite(out, 1, out_bytes, stdout) != out_bytes) {
            code = 2;
        }
    }
    if (fflush(stdout) != 0 || ferror(stdin) || ferror(stdout)) {
        code = code ? code : 2;
    }
    free(in);
    free(out);
    return code;
}
