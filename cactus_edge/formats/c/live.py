"""What `ce_certify` (export/c) decides about a live input, from the definition of a certificate's verdict."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.linear import Dense
from cactus_edge.ir.ops import Int8
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.interval import Engine

BEHIND = 4
"""CE_BEHIND of ce_certify.h."""


def live_decider(program: Program) -> Decider:
    """The decision of `verify` by intervals, which the C makes bit for bit. Raises as `Decider` does.

    A margin fused with other weights than a dense layer's, or with more than `BEHIND` requantisations behind it, is not
    computed on a device: there the ends alone decide.
    """
    decider = Decider(program)
    if decider.tail is not None:
        atom = next(step.atom for step in program.steps if step.out == decider.tail.value)
        dense = isinstance(atom, Affine) and isinstance(atom.linear, Dense)
        if not dense or len(decider.tail.atoms) > 1 + BEHIND:
            decider.tail, decider.engine = None, Engine(program, [decider.goal.logits])
    return decider


def live_boxes(x: Int8, radius: int | npt.NDArray[np.uint8], ends: tuple[int, int] = (-128, 127)) -> tuple[Int8, Int8]:
    """Lower and upper codes [N, *input] around x: the radius cut at the sensor's ends, which never exclude x itself."""
    codes, around, (least, most) = x.astype(np.int64), np.asarray(radius, np.int64), ends
    low = np.maximum(codes - around, np.minimum(least, codes))
    high = np.minimum(codes + around, np.maximum(most, codes))
    return low.astype(np.int8), high.astype(np.int8)
