/* SPDX-License-Identifier: Apache-2.0 */
/* Proof files: one or more proofs, one after the other, little endian without padding.
 *
 * A proof: "CEPROOF\x01"; u64 its length; SHA-256 of the model [32]; u8 and ASCII, the profile's name; u32 samples, u32 input
 * elements, u16 classes; u16 rules, each u16 value, u8 Q, u8 0, u32 count, i32 p [count], ascending by value; then records,
 * ascending by sample: u32 sample, u16 label, u8 verdict, i8 lower [E], i8 upper [E], and
 * 0, open: nothing. 2, refuted: i8 codes [E] in the box that the label does not win.
 * 1, robust: u16 sheets, each u8 k below and u8 k above for all elements of the rules' values; tightenings; a tree.
 * Tightenings: u8 count, each u16 value, u16 sheet, ascending: this accumulator is bounded by lines as well.
 * Tree: u8 1, u16 value, u32 element, i32 t, the tree for v < t, the tree for v >= t. Or u8 2, tightenings, u8 rows, each u16
 * class, u16 p, u16 q, u16 sheet (65535: none), u16 multipliers, each u16 value, u32 element, i32 mu, u8 s, ascending.
 *
 * A leaf is bounded by the pass over its box, cut with the root's bounds and the splits on its path. It holds where no point keeps
 * all of these, and where every class is separated. */
#ifndef CE_VERIFY_PROOF_H
#define CE_VERIFY_PROOF_H

#include "decide.h"

typedef struct {
    uint32_t samples;
    uint64_t records, robust, refuted, open; /* records by verdict */
    uint64_t all_robust;                     /* samples that have records, all of them robust */
} ce_counts;

/* A proof in a file of them, with its header's first part. */
typedef struct {
    ce_bytes bytes;
    const uint8_t *digest; /* [32] */
    char name[256];
    size_t body; /* where the rest begins */
} ce_proof;

/* The proof at `*at`, which moves behind it. Rejects what is none. */
ce_proof ce_next_proof(ce_bytes file, size_t *at);

/* Checks every record; rejects the proof at the first that does not hold. show: prints the margins of each leaf that a point can be
 * in, class by class, those below 1 and the label's own as 0. */
ce_counts ce_check_proof(const ce_proof *proof, const ce_program *program, ce_goal *goal, bool show);

#endif
