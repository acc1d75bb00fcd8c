"""Weights of 4 bits as files store them: two to a byte."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.ops import Int8, Op, constants


def pack_nibbles(codes: Int8) -> npt.NDArray[np.uint8]:
    """codes int8 [..., n] in [-8, 7] -> uint8 [..., ceil(n / 2)]: code 2k in the low half of byte k, 2k + 1 in the high half.

    Two's complement; the last high half of an odd n is 0. Raises OverflowError for a code outside the range.
    """
    if codes.size and not -8 <= int(codes.min()) <= int(codes.max()) <= 7:
        raise OverflowError(f"codes in [{codes.min()}, {codes.max()}], expected [-8, 7]")
    even = np.concatenate([codes, np.zeros((*codes.shape[:-1], codes.shape[-1] % 2), np.int8)], -1)
    halves: npt.NDArray[np.uint8] = even.view(np.uint8) & np.uint8(0x0F)
    packed: npt.NDArray[np.uint8] = np.bitwise_or(
        halves[..., 0::2], np.left_shift(halves[..., 1::2], 4), dtype=np.uint8
    )
    return packed


def weight_bytes(op: Op) -> int:
    """Bytes of the op's weight as files store it; 0 where it has none."""
    weight = constants(op).get("weight")
    return 0 if weight is None else -(-int(weight.size) * getattr(op, "weight_bits", 8) // 8)


def constant_bytes(op: Op) -> int:
    """Weights and bias as the file stores them, two weights of 4 bits to a byte."""
    return weight_bytes(op) + sum(array.nbytes for name, array in constants(op).items() if name == "bias")
