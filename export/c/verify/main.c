/* SPDX-License-Identifier: Apache-2.0 */
/* ce-verify [--profile NAME] [--ties first-maximum] MODEL.tflite PROOF: checks every record of a proof against the model's bytes, in integers only.
 *
 *     cc -std=c99 -O2 -Iexport/c/include -o ce-verify export/c/verify/[a-z]*.c export/c/src/ce_sha256.c
 *
 * An independent second checker beside cactus_edge/verify. Exit code 0: every record holds; 1: one does not; 2: model, profile or
 * operator is none that this program knows. Without --profile every proof of the file has to be for tflm.
 * --ties first-maximum: of equal outputs the first class wins; else none does.
 * --margins also prints by how much each leaf separates each class.
 * --bounds MODEL BOXES instead writes the ends of every element of every value over each box (i8 lower [E], i8 upper [E]): i32 least
 * [all elements], then i32 most. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ce_sha256.h"
#include "proof.h"
#include "say.h"
#include "tflite.h"

#define PROFILE "tflm"

static ce_bytes read_file(const char *path)
{
    ce_bytes found = {NULL, 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        ce_refuse("%s cannot be read", path);
    }
    const long size = ftell(file);
    if (size < 0 || fseek(file, 0, SEEK_SET) != 0) {
        ce_refuse("%s cannot be read", path);
    }
    uint8_t *data = ce_memory((size_t)size, 1);
    if (fread(data, 1, (size_t)size, file) != (size_t)size) {
        ce_refuse("%s cannot be read", path);
    }
    fclose(file);
    found.data = data;
    found.size = (size_t)size;
    return found;
}

/* Compares with the model's digest; hex char [65] for the report. */
static void check_digest(const ce_proof *proof, ce_bytes model, char *hex)
{
    ce_sha256 h;
    uint8_t digest[32];
    ce_sha256_init(&h);
    ce_sha256_update(&h, model.data, model.size);
    ce_sha256_final(&h, digest);
    ce_sha256_hex(model.data, model.size, hex);
    if (memcmp(digest, proof->digest, sizeof digest) != 0) {
        ce_reject("the proof for profile %s is about another model than %s", proof->name, hex);
    }
}

static void put_all(const int32_t *numbers, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        for (int byte = 0; byte < 32; byte += 8) {
            putchar((int)((uint32_t)numbers[i] >> byte & 255u));
        }
    }
}

static int print_bounds(const ce_program *program, ce_bytes boxes)
{
    const ce_value *input = &program->values[program->input];
    const size_t n = (size_t)input->shape.count;
    const ce_bounds bounds = ce_new_bounds(program->elements);
    for (size_t at = 0; at + 2 * n <= boxes.size; at += 2 * n) {
        for (size_t i = 0; i < n; i++) {
            bounds.low[i] = ce_i8(boxes.data + at + i);
            bounds.high[i] = ce_i8(boxes.data + at + n + i);
        }
        ce_propagate(program, bounds, false);
        put_all(bounds.low, program->elements);
        put_all(bounds.high, program->elements);
    }
    return CE_ACCEPTED;
}

static int check(ce_bytes model, ce_bytes file, bool only_ours, bool show, bool first_maximum)
{
    char hex[65];
    size_t at = 0, ours = 0, others = 0;

    ce_proof found, proof;
    memset(&found, 0, sizeof found);
    while (at < file.size) {
        proof = ce_next_proof(file, &at);
        check_digest(&proof, model, hex);
        if (strcmp(proof.name, PROFILE) != 0) {
            others++;
            printf("not checked: the proof for profile %s\n", proof.name);
        } else if (ours++ > 0) {
            ce_reject("two proofs for profile %s", PROFILE);
        } else {
            found = proof;
        }
    }
    if (ours == 0) {
        ce_refuse("the file has no proof for profile %s, which is the one that this program knows", PROFILE);
    }
    const ce_graph graph = ce_read_tflite(model);
    const ce_program program = ce_lower(&graph);
    ce_goal goal = ce_goal_of(&program, &graph);
    goal.first_maximum = first_maximum;
    const ce_counts counts = ce_check_proof(&found, &program, &goal, show);
    printf("profile: %s\nmodel: sha256 %s\n", PROFILE, hex);
    printf("records: %llu robust, %llu refuted, %llu open\n", (unsigned long long)counts.robust,
           (unsigned long long)counts.refuted, (unsigned long long)counts.open);
    printf("samples: %llu of %lu robust\n", (unsigned long long)counts.all_robust, (unsigned long)counts.samples);
    return others > 0 && !only_ours ? CE_UNUSABLE : CE_ACCEPTED;
}

int main(int argc, char **argv)
{
    bool profile = false, first_maximum = false, bounds = false, margins = false, known = argc >= 3;
    for (int i = 1; known && i < argc - 2; i++) {
        const bool named = strcmp(argv[i], "--profile") == 0, ties = strcmp(argv[i], "--ties") == 0;
        bounds = bounds || strcmp(argv[i], "--bounds") == 0;
        margins = margins || strcmp(argv[i], "--margins") == 0;
        if (named || ties) {
            i++;
            known = i < argc - 2 && (named || strcmp(argv[i], "first-maximum") == 0);
            profile = profile || named;
            first_maximum = first_maximum || ties;
            if (known && named && strcmp(argv[i], PROFILE) != 0) {
                ce_refuse("profile %s is none that this program knows: it knows " PROFILE, argv[i]);
            }
        } else {
            known = strcmp(argv[i], "--bounds") == 0 || strcmp(argv[i], "--margins") == 0;
        }
    }
    if (!known) {
        ce_refuse("usage: %s [--profile " PROFILE "] [--ties first-maximum] [--margins] MODEL.tflite PROOF",
                  argc > 0 ? argv[0] : "ce-verify");
    }
    const ce_bytes model = read_file(argv[argc - 2]), file = read_file(argv[argc - 1]);
    if (bounds) {
        const ce_graph graph = ce_read_tflite(model);
        const ce_program program = ce_lower(&graph);
        return print_bounds(&program, file);
    }
    return check(model, file, profile, margins, first_maximum);
}
