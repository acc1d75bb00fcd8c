"""Linear bounds as `verify.relax` computes them, bit for bit: intervals through floats, and fewer passes at the layer that reads the input.

There the coefficients of every input are formed only to be summed: over bounds and zero point, term by term rounded down to a
grain. Scaled by a power of two beforehand they are doubles whose products are exact, and a floor rounds them; terms of the
zero point, where it is a multiple of their unit, need no rounding: their sum is one of the layer's outputs. Where a number may
be too large for that, all is left to `Relaxation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from cactus_edge.ir.atoms import Affine, Program, Step
from cactus_edge.ir.linear import Conv, Dense
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.interval import Bounds, accumulate
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.relax import GRAIN, TERM, Hints, Relaxation, Rows


@dataclass(frozen=True, eq=False)
class First:
    """The only layer that reads the input, step `out`. sums int64 [*out_shape]: W 1; largest: |weight|; offset is a multiple of 2^twos."""

    out: int
    linear: Conv | Dense
    offset: int
    bias: Int64
    sums: Int64
    largest: int
    twos: int


def first_layer(program: Program) -> First | None:
    """It, where the input is read by one step and that is a convolution or dense layer."""
    readers = [s for s in program.steps if program.input in s.args]
    match readers:
        case [Step(atom=Affine(linear=Conv() | Dense() as linear, input_offset=offset, bias=bias), out=out)]:
            sums = linear.apply(np.ones((1, *linear.in_shape), np.int64))[0]
            largest = int(np.abs(linear.weight.astype(np.int64)).max())
            twos = (offset & -offset).bit_length() - 1 if offset else 63
            return First(out, linear, offset, bias, sums, largest, twos)
    return None


class QuickRelaxation(Relaxation):
    """`Relaxation`, sooner."""

    def __init__(self, program: Program, slopes: Mapping[int, Slope]) -> None:
        super().__init__(program, slopes)
        self._first = first_layer(program)
        self._affine = {s.out: accumulate(s.atom, program.codes) for s in program.steps if isinstance(s.atom, Affine)}

    def _step(self, step: Step, args: list[Bounds]) -> Bounds:
        if step.out not in self._affine:
            return super()._step(step, args)
        low, high = (b.astype(np.int64) >> 1 for b in self._affine[step.out].ends(*args[0]))
        return low, high

    def _back(
        self,
        step: Step,
        a: Int64,
        e: Int64,
        state: Rows,
        known: Mapping[int, Bounds] | Sequence[Bounds],
        hints: Hints,
    ) -> None:
        first = self._first
        if first is not None and step.out == first.out and step.out in self.exact:
            a, e = state.rounded(a, e, known[step.out])
            if _onto_input(first, a, e, state, known[step.args[0]]):
                return
        super()._back(step, a, e, state, known, hints)


def _onto_input(first: First, a: Int64, e: Int64, state: Rows, bounds: Bounds) -> bool:
    """Replaces <a, W (x + offset) + bias> 2^-e, a [N, R, *out_shape], by its minimum over low <= x <= high; False where it does not.

    No coefficient b of an input is beyond sum |a| max |w|; so b x 2^(GRAIN - e) is exact, and none of them leaves TERM.
    """
    low, high = (b.astype(np.float64)[:, None] for b in bounds)
    down, size = e - GRAIN, prod(first.linear.in_shape)
    most = np.abs(a).reshape(*e.shape, -1).sum(2).astype(np.float64) * first.largest
    most *= max(float(np.abs(low).max()), float(np.abs(high).max()), abs(first.offset))
    grains = np.ldexp(most, -down)
    if (most >= 2.0**52).any() or (grains * size >= 2.0**52).any() or (grains >= TERM / 2).any():
        return False
    fit = np.ones_like(state.valid)
    scaled = np.ldexp(a.astype(np.float64), -down.reshape(*e.shape, *(1,) * (a.ndim - 2)))
    b = first.linear.adjoint(scaled.reshape(-1, *first.linear.out_shape)).reshape(*e.shape, *first.linear.in_shape)
    state.add(a * first.bias, e)
    if (down <= first.twos).all():
        moved = (a * first.sums).reshape(*e.shape, -1).sum(2) * first.offset
        state._add((moved >> np.maximum(down, 0)) << np.maximum(-down, 0), fit)
    else:
        state._add(np.floor(b * first.offset).reshape(*e.shape, -1).sum(2).astype(np.int64), fit)
    terms = b * low
    b *= high
    np.minimum(terms, b, out=terms)
    np.floor(terms, out=terms)
    state._add(terms.reshape(*e.shape, -1).sum(2).astype(np.int64), fit)
    return True
