"""When the exponentials of a softmax prove that its int8 outputs differ strictly: one sufficient criterion per runtime's softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.arith import rdp
from cactus_edge.ir.ops import Int64

Bools = npt.NDArray[np.bool_]


def softmax_separates(e: Int64, winner: int) -> Bools:
    """Whether int8 softmax gives the winner's exponential E a larger output than e_j, [N, K] for rows e of upper bounds.

    e_i bounds the exponential of class i from above; the winner's own entry is E = `winner`. With S the sum of rdp(e_i, 12), g
    its fixed-point reciprocal and n the shift: g / 2^n is within 2^-26, relative, of 2^27 / S (for every S: exhaustive test).
    srdhm(g, E) - srdhm(g, e) >= floor(g (E - e) / 2^31), and rdp(., n) never rounds numbers 2^n apart to the same; so
    g (E - e) >= 2^(31 + n) suffices, which (2^26 - 1) (E - e) >= 2^30 S implies, also for a larger e or S than the true ones.
    Saturation cannot tie them: S >= (E + e) / 2^12 - 1 keeps e's output near 256 / 2 - 128 at most.
    """
    total = rdp(e, 12).sum(1, keepdims=True)
    enough: Bools = (2**26 - 1) * (winner - e) >= 2**30 * total
    return enough


def table_softmax_separates(e: Int64) -> Bools:
    """Whether the softmax of a `TableSoftmaxRule` gives the winner, whose entry is 65535, a larger output than e_j, [N, K].

    e_i bounds the entry of class i from above, but for the 1 by which a C library's expf may move it. With S the sum of the true
    entries, (m, s) stand for M = 256 / S within 2^-21, relative: the sum's conversion, two roundings to float32 and QM. As S >=
    65535, s <= -7 and D(e; m, s) is within 1/2 + 2^-8 of e times that number, the same for both classes. So
    256 (65535 - 1 - e_j) (1 - 2^-21) > (1 + 2^-7) S suffices; below, 2^-6 and 2^9 are more than twice those slacks. Both outputs
    at 127 would need e_j M > 254, whose sum with the winner's is beyond 256.
    """
    total = (e + 1).sum(1, keepdims=True)
    enough: Bools = 64 * (256 * (65534 - e) - 2**9) >= 65 * total
    return enough


def float_softmax_separates(e: npt.NDArray[np.floating[Any]]) -> Bools:
    """Whether LiteRT's or ONNX Runtime's float softmax gives the winner, whose exponential is 1, a larger int8 output than e_j, [N, K].

    e_i bounds the exponential of class i from above. With S the sum of the true exponentials, p_i = 256 e_i / S in the reals
    and K + 16 roundings of at most 2^-24 each on the way to it (the sum in any order; 8 of them for a C library's expf), the
    floats p_w - p_j >= 1 suffice: RHA(p + 1) = RHA(p) + 1 for p >= 0. They follow from
    256 ((1 - d) - (1 + d) e_j) >= (1 + d) S with d = (K + 16) 2^-23, twice that slack, also for a larger S and e than the true
    ones. Both outputs at 127 would need p_j >= 254.5, whose sum with p_w is beyond 256 (1 + d). A common factor of all exponentials
    cancels, and its rounding of the winner's is one of the 16. RNE needs p_w - p_j > 1, which half of that slack still gives.
    """
    wide = e.astype(np.float64)
    slack = (e.shape[1] + 16) * 2.0**-23
    enough: Bools = 256 * ((1 - slack) - (1 + slack) * wide) >= (1 + slack) * wide.sum(1, keepdims=True)
    return enough
