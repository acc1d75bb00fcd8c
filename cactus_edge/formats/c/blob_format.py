"""The format of the canonical blob: everything that decides a device's outputs, as little-endian 32-bit words.

The portable runtime (export/c) executes a blob and nothing else; export/c/include/ce_blob.h says the same as this module,
in C, and a test compares the two.

    words 0..15  header, HEADER below
    words 16..   one record per op in execution order: words `kind` and `words` (the record's length), then the fields
                 of COMMON and of RECORDS[kind]; CONCAT appends one (in, chunk) pair per input
    then         constants in op order: int32 arrays, int8 arrays padded with zero bytes to a whole word

Offsets `in`, `in2`, `out`, `scratch` are bytes into the arena (`plan.py`); `weight`, `bias`, `multiplier`, `shift` of the affine
ops and `table` are words into the blob. Scales are the bits of float32 values. The multipliers and shifts are the
profile's; biases have the input's zero point folded in, b - z_in * sum(w), so that the device's inner loop multiplies
codes and a tap outside the image reads z_in. RESHAPE is no op, only an alias; QUANTIZE and DEQUANTIZE are the boundary
and belong to the caller.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cactus_edge.errors import ModelError

MAGIC = int.from_bytes(b"CEB1", "little")
VERSION = 1
PROFILE = "tflm"
"""The profile whose arithmetic the portable runtime computes: only its certificates speak of blobs and firmware."""

ARITHMETIC_TFLM = 1
"""Double rounding (family D) in every op, TFLM's ADD, AVERAGE_POOL, MEAN and SOFTMAX."""

MAX_BYTES = 1 << 28
"""Of the blob and of the arena: every offset and every product of sizes in the runtime then stays in int32."""

MAX_SOFTMAX_DEPTH = 511
"""Each exponential counts at most 2^19: below 2^28 the last rounding shift stays below 32. Above, TFLM's is undefined in C."""


class Kind(IntEnum):
    """Op kinds. Numbers are never reused."""

    CONV2D = 1
    DEPTHWISE_CONV2D = 2
    DENSE = 3
    ADD = 4
    AVG_POOL = 5
    MAX_POOL = 6
    MEAN = 7
    PAD = 8
    CONCAT = 9
    REQUANTIZE = 10
    SOFTMAX = 11
    CONV2D_S4 = 12
    DEPTHWISE_CONV2D_S4 = 13
    DENSE_S4 = 14


PACKED: Mapping[Kind, Kind] = {
    Kind.CONV2D: Kind.CONV2D_S4,
    Kind.DEPTHWISE_CONV2D: Kind.DEPTHWISE_CONV2D_S4,
    Kind.DENSE: Kind.DENSE_S4,
}
"""Kinds with weights of 4 bits, two to a byte in rows that each begin at a byte (`nibbles.pack_nibbles`): the taps of an output, of a
dense layer its inputs, of a depthwise convolution the outputs of a tap."""


# fmt: off
HEADER = (
    "magic", "version",
    "words",              # of the whole blob
    "ops",                # number of records
    "arithmetic",         # ARITHMETIC_TFLM
    "arena",              # bytes
    "in", "in_bytes", "out", "out_bytes",
    "in_scale", "in_zero", "out_scale", "out_zero",
    "constants",          # word where the constants begin: the records end there
    "reserved",           # 0
)
COMMON = ("kind", "words", "out", "out_bytes", "in")
_CONV = (
    "in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w", "stride_h", "stride_w",
    "dilation_h", "dilation_w", "pad_top", "pad_left",
    "group_in", "group_out",  # output o reads the group_in channels of group o // group_out
    "zero_in", "zero_out", "lo", "hi",
    "weight", "bias", "multiplier", "shift",  # int8 OHWI (depthwise HWO), int32 [out_c], int32 [out_c], int8 [out_c]
    "scratch",                                # bytes into the arena: where the kernel gathers taps
)
_POOL = (
    "in_h", "in_w", "channels", "out_h", "out_w", "kernel_h", "kernel_w", "stride_h", "stride_w",
    "pad_top", "pad_left", "lo", "hi",
)
_BYTES: Mapping[Kind, tuple[str, ...]] = {
    Kind.CONV2D: _CONV,
    Kind.DEPTHWISE_CONV2D: _CONV,
    Kind.DENSE: ("in_n", "out_n", "per_channel", "zero_out", "lo", "hi", "weight", "bias", "multiplier", "shift"),
    Kind.ADD: (
        "in2", "left", "zero1", "multiplier1", "shift1", "zero2", "multiplier2", "shift2",
        "multiplier", "shift", "zero_out", "lo", "hi",
    ),
    Kind.AVG_POOL: _POOL,
    Kind.MAX_POOL: _POOL,
    Kind.MEAN: (
        "kept0", "summed0", "kept1", "summed1", "kept2", "zero_in", "multiplier", "shift", "zero_out",
    ),
    Kind.PAD: ("in_0", "in_1", "in_2", "before_0", "after_0", "before_1", "after_1", "before_2", "after_2", "value"),
    Kind.CONCAT: ("outer", "inputs"),
    Kind.REQUANTIZE: ("zero_in", "multiplier", "shift", "zero_out", "lo", "hi"),
    Kind.SOFTMAX: ("rows", "depth", "entries", "table"),
}
RECORDS: Mapping[Kind, tuple[str, ...]] = {**_BYTES, **{packed: _BYTES[kind] for kind, packed in PACKED.items()}}
# fmt: on
HEADER_WORDS = len(HEADER)

CONSTANTS = {
    Kind.CONV2D: ("weight", "bias", "multiplier", "shift"),
    Kind.DEPTHWISE_CONV2D: ("weight", "bias", "multiplier", "shift"),
    Kind.DENSE: ("weight", "bias", "multiplier", "shift"),
    Kind.SOFTMAX: ("table",),
    **dict.fromkeys(PACKED.values(), ("weight", "bias", "multiplier", "shift")),
}
"""The fields that are word offsets of constants, in the order in which the constants lie in the blob."""


@dataclass(frozen=True)
class Record:
    """One op of a blob: `fields` by name as in COMMON and RECORDS, `parts` the (in, chunk) pairs of a CONCAT."""

    kind: Kind
    fields: Mapping[str, int]
    parts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Blob:
    """A parsed blob."""

    header: Mapping[str, int]
    records: tuple[Record, ...]
    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def input_scale(self) -> float:
        """The float32 scale of the int8 input."""
        return from_bits(self.header["in_scale"])

    @property
    def output_scale(self) -> float:
        """The float32 scale of the int8 output."""
        return from_bits(self.header["out_scale"])


def from_bits(bits: int) -> float:
    """The float32 value with these bits, read as an int32."""
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


def parse(data: bytes) -> Blob:
    """The header and records of a blob. Raises ModelError where `data` is not exactly one blob of this version."""
    if len(data) < 4 * HEADER_WORDS or len(data) % 4:
        raise ModelError(f"not a model blob: {len(data)} bytes, expected whole words and at least {4 * HEADER_WORDS}")
    words = struct.unpack(f"<{len(data) // 4}i", data)
    header = dict(zip(HEADER, words, strict=False))
    expected = {"magic": MAGIC, "version": VERSION, "words": len(words), "arithmetic": ARITHMETIC_TFLM, "reserved": 0}
    for name, value in expected.items():
        if header[name] != value:
            raise ModelError(f"not a model blob: {name} is {header[name]:#x}, expected {value:#x}")
    if not HEADER_WORDS <= header["constants"] <= len(words):
        raise ModelError(f"model blob: constants begin at word {header['constants']} of {len(words)}")
    for side in ("in", "out"):
        _within("header", side, header[side], header[f"{side}_bytes"], header["arena"])
    records = tuple(_records(words, header))
    return Blob(header, records, data)


def _records(words: Sequence[int], header: Mapping[str, int]) -> Iterator[Record]:
    at, end = HEADER_WORDS, header["constants"]
    for index in range(header["ops"]):
        where = f"op {index}"
        if at + len(COMMON) > end or words[at] not in set(Kind):
            raise ModelError(f"model blob: {where} has no known kind")
        kind = Kind(words[at])
        names = (*COMMON, *RECORDS[kind])
        length = words[at + 1]
        if length < len(names) or at + length > end:
            raise ModelError(f"model blob: {where} {kind.name} has {length} words, expected at least {len(names)}")
        fields = dict(zip(names, words[at : at + len(names)], strict=True))
        rest = words[at + len(names) : at + length]
        if len(rest) != (2 * fields["inputs"] if kind is Kind.CONCAT else 0):
            raise ModelError(f"model blob: {where} {kind.name} has {length} words")
        parts = tuple(zip(rest[0::2], rest[1::2], strict=True))
        _within(where, "out", fields["out"], fields["out_bytes"], header["arena"])
        for place in (fields["in"], fields.get("in2", 0), fields.get("scratch", 0), *(p for p, _ in parts)):
            _within(where, "in", place, 1, header["arena"])
        for name in CONSTANTS.get(kind, ()):
            _within(where, name, fields[name] - end, 1, len(words) - end)
        yield Record(kind, fields, parts)
        at += length
    if at != end:
        raise ModelError(f"model blob: records end at word {at}, constants begin at word {end}")


def _within(where: str, name: str, start: int, size: int, total: int) -> None:
    if start < 0 or size <= 0 or start + size > total:
        raise ModelError(f"model blob: {where}: {name} spans {start}..{start + size} of {total}")
