/* SPDX-License-Identifier: Apache-2.0 */
/* The model blob: one array of little-endian 32-bit words that holds the whole network.
 *
 * Written by cactus_edge/formats/c/blob.py, whose table is the law; this header says the same in C. Its SHA-256 is what the
 * certificate names, so nothing that decides an output may live outside it.
 *
 *   words 0..15   ce_blob_header
 *   words 16..    one record per operation, in execution order; the first two words of each are kind and length
 *   then          constants: int32 arrays, and int8 arrays padded with zero bytes to a whole word
 *
 * `in`, `in2`, `out`, `scratch` are byte offsets into the arena; `weight`, `bias`, `multiplier`, `shift`, `table` are
 * word offsets into the blob, except where a comment calls them values.
 * Every record holds int32_t words only, so the structs below have no padding and describe the words exactly.
 *
 * Requantisation (TFLite's double rounding): with m = multiplier in [0, 2^31) and s = shift in [-31, 30],
 *   D(acc; m, s) = RDP(SRDHM(acc * 2^max(s,0), m), max(-s,0))   (ce_arith.h)
 * and an output is min(hi, max(lo, D(acc) + zero_out)). The writer proves that no step leaves int32.
 */
#ifndef CE_BLOB_H
#define CE_BLOB_H

#include <stdint.h>

#define CE_BLOB_MAGIC UINT32_C(0x31424543) /* "CEB1" in memory */
#define CE_BLOB_VERSION 1
#define CE_BLOB_HEADER_WORDS 16
#define CE_ARITHMETIC_TFLM 1 /* requantisation by double rounding in every operation */

/* Numbers are never reused. */
enum {
    CE_CONV2D = 1,
    CE_DEPTHWISE_CONV2D = 2,
    CE_DENSE = 3,
    CE_ADD = 4,
    CE_AVG_POOL = 5,
    CE_MAX_POOL = 6,
    CE_MEAN = 7,
    CE_PAD = 8,
    CE_CONCAT = 9,
    CE_REQUANTIZE = 10,
    CE_SOFTMAX = 11,
    CE_CONV2D_S4 = 12,
    CE_DEPTHWISE_CONV2D_S4 = 13,
    CE_DENSE_S4 = 14,
    CE_KINDS = 15
};

typedef struct {
    int32_t magic;
    int32_t version;
    int32_t words;      /* of the whole blob */
    int32_t ops;        /* number of records */
    int32_t arithmetic; /* CE_ARITHMETIC_TFLM */
    int32_t arena;      /* bytes */
    int32_t in;
    int32_t in_bytes;
    int32_t out;
    int32_t out_bytes;
    int32_t in_scale; /* bits of a float32; real = scale * (q - zero) */
    int32_t in_zero;
    int32_t out_scale;
    int32_t out_zero;
    int32_t constants; /* word where the constants begin */
    int32_t reserved;  /* 0 */
} ce_blob_header;

/* Weights of the kinds that end in _S4 are int4, two to a byte, in rows that each begin at a byte: the taps of one output
 * (CE_CONV2D_S4), its inputs (CE_DENSE_S4), or the outputs of one tap (CE_DEPTHWISE_CONV2D_S4). Weight 2k of a row is the
 * low half of its byte k, weight 2k + 1 the high half, two's complement; the last half of an odd row is 0. All else is as
 * in the kind without _S4, whose record they have. */

/* What every record begins with. */
typedef struct {
    int32_t kind;
    int32_t words; /* of this record */
    int32_t out;
    int32_t out_bytes;
    int32_t in;
} ce_record;

/* CE_CONV2D and CE_DEPTHWISE_CONV2D.
 *   x int8 [in_h][in_w][in_c], y int8 [out_h][out_w][out_c]
 *   weight int8 [out_c][kernel_h][kernel_w][group_in] (CE_CONV2D), [kernel_h][kernel_w][out_c] (CE_DEPTHWISE_CONV2D)
 *   bias int32 [out_c] with the zero point folded in: b - zero_in * sum(weight of that output)
 *   multiplier int32 [out_c], shift int8 [out_c]
 *   scratch int8 in the arena: the taps of two pixels of one group (CE_CONV2D) or of one pixel (CE_DEPTHWISE_CONV2D);
 *     none where a kernel of one tap, or no padding, leaves nothing to gather
 * Output channel o reads the group_in input channels of group o / group_out. Taps outside the image read zero_in. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h, dilation_w;
    int32_t pad_top, pad_left;
    int32_t group_in, group_out; /* channels per group; 1 and the depth multiplier for CE_DEPTHWISE_CONV2D */
    int32_t zero_in, zero_out, lo, hi;
    int32_t weight, bias, multiplier, shift;
    int32_t scratch;
} ce_conv2d_record;

/* y[o] from acc = bias[o] + sum_i weight[o][i] * x[i]. bias is folded as above.
 * multiplier and shift have one entry per output (per_channel = 1) or one in all (per_channel = 0). */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t in_n, out_n;
    int32_t per_channel;
    int32_t zero_out, lo, hi;
    int32_t weight, bias, multiplier, shift;
} ce_dense_record;

/* y = clamp(D(D((x1 - zero1) * 2^left; m1, s1) + D((x2 - zero2) * 2^left; m2, s2); mo, so) + zero_out).
 * Multipliers and shifts are values. y may be x1 or x2. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t in2;
    int32_t left;
    int32_t zero1, multiplier1, shift1;
    int32_t zero2, multiplier2, shift2;
    int32_t multiplier, shift;
    int32_t zero_out, lo, hi;
} ce_add_record;

/* CE_AVG_POOL and CE_MAX_POOL: x int8 [in_h][in_w][channels], y int8 [out_h][out_w][channels]; only taps inside the
 * image count. y may begin where x begins if pad_top = pad_left = 0. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t in_h, in_w, channels;
    int32_t out_h, out_w;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;
    int32_t lo, hi;
} ce_pool_record;

/* x int8 [kept0][summed0][kept1][summed1][kept2], y int8 [kept0][kept1][kept2]:
 * y = sat8(D(sum x - zero_in * summed0 * summed1; m, s) + zero_out). m holds the division.
 * multiplier and shift are values. y may begin where x begins. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t kept0, summed0, kept1, summed1, kept2;
    int32_t zero_in, multiplier, shift, zero_out;
} ce_mean_record;

/* x int8 [in_0][in_1][in_2]; y has `before_k` elements of `value` before and `after_k` after along axis k. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t in_0, in_1, in_2;
    int32_t before_0, after_0, before_1, after_1, before_2, after_2;
    int32_t value;
} ce_pad_record;

/* y int8 [outer][sum of chunks]; input k is int8 [outer][chunk k]. The pairs follow the record: parts[k] = {in, chunk}.
 * `in` repeats the first pair's. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t outer;
    int32_t inputs;
} ce_concat_record;

typedef struct {
    int32_t in;
    int32_t chunk;
} ce_concat_part;

/* y = clamp(D(x - zero_in; m, s) + zero_out), out_bytes elements. multiplier and shift are values. y may be x. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t zero_in, multiplier, shift, zero_out, lo, hi;
} ce_requantize_record;

/* Rows of `depth` elements, depth < 512; y has scale 1/256 and zero point -128. y may be x.
 * table int32 [entries], entries in [1, 256]: table[k] = exp of a difference of -k to the row's maximum, as Q0.31;
 * larger differences contribute nothing. */
typedef struct {
    int32_t kind, words, out, out_bytes, in;
    int32_t rows, depth;
    int32_t entries;
    int32_t table;
} ce_softmax_record;

#endif
