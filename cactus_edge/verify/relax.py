"""Linear bounds on a program's values over boxes: a sum of values is pushed back to the input, atom by atom.

A lower bound on <A, v> + c, v any value of the program, is rewritten in terms of what v is computed from:

* Affine: exactly. Gather: exactly. Max: as the tap that is largest at the least, or, from above, as its bound.
* A non-decreasing rule R on [l, u] lies between two lines. R is its thresholds t_k = min {a : R(a) >= k}, so that
  s m a + b is above R wherever it is at l and at every t_k in (l, u], and below R wherever it is at u and at every t_k - 1.
  With d_k = m t_k - k these are linear in k but for d_k, whose least and largest are known for each channel: two values of k
  and one constant decide. Rounding, clamps, ties and envelopes need no constants of their own. m is about the multiplier of R
  and s one of 0, 1 and the slope of the chord, whichever line is closest in the middle; any choice is sound.
* Any other atom: as the bounds of its result.

Numbers are float64. Matrix products are exact, since their left side is first rounded to `BITS` bits (what that may cost is
paid), so that no order of summation changes a bit. Every other result is one rounding of one product or sum of magnitude below
`LARGEST`, which costs less than half a `GRAIN`; constants are summed as integers of grains, each rounded down with one to spare.
A row that leaves `LARGEST` has no bound. The same numbers come out on every machine, one sample at a time or many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.atoms import (
    Affine,
    AnyOf,
    Atom,
    Between,
    Gather,
    Join,
    Max,
    Monotone,
    PadWith,
    Program,
    Rearrangement,
    ReshapeTo,
    Step,
    Take,
    example,
)
from cactus_edge.ir.evaluate import widest
from cactus_edge.ir.linear import Linear, output_size, pad_image, windows
from cactus_edge.ir.ops import Int8, Int64
from cactus_edge.verify.interval import Bounds, full_range, step_bounds, thresholds

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

GRAIN = 2.0**-24
"""The unit of constants, in steps of the value that is bounded."""

LARGEST = 2.0**28
"""Magnitude of a product beyond which half a unit in the last place of a double could be more than half a grain."""

SUM = 2.0**36
"""Magnitude of constants and of what is added to them at once: as grains both together are far below 2^63."""

BITS = 24
"""Of the coefficients before a matrix product: every partial sum is below 2^53 units where the weights of one input sum to 2^29 at most."""

CHORD = 2.0**-10
"""The unit of slopes relative to m; m itself has 16 bits, so that s m is exact."""

WIDER = 2.0**-30
"""By which each line is moved outward, for the roundings of its intercept: a few, of numbers below 2^20."""

ELEMENTS = 1 << 22
"""Coefficients of one value at a time, about: bounds the memory, changes no result."""

NARROW = 256
"""Elements up to which the accumulators of a layer are bounded by lines as well, one row each."""


@dataclass(frozen=True, eq=False)
class Lines:
    """What the lines around one rule need, of arrays [*shape], broadcastable to its argument's.

    lowest, highest: the rule's own ends on int64. slope m. least: min over the levels k of m t_k - k, t of `highest`; most: the
    maximum, t of `lowest`.
    """

    lowest: Callable[[Int64], Int64]
    highest: Callable[[Int64], Int64]
    slope: Float64
    least: Float64
    most: Float64

    def above(self, low: Int64, high: Int64) -> tuple[Float64, Float64]:
        """(a, b) with highest(x) <= a x + b for the integers low <= x <= high, elementwise."""
        first, last = (self.highest(x).astype(np.float64) for x in (low, high))

        def intercept(s: Float64) -> Float64:
            steps = np.maximum((first + 1) * (1 - s), last * (1 - s)) - s * self.least
            at_low = first - s * self.slope * low
            return WIDER + np.where(last > first, np.maximum(steps, at_low), at_low)

        return self._best(low, high, first, last, intercept, 1)

    def below(self, low: Int64, high: Int64) -> tuple[Float64, Float64]:
        """(a, b) with lowest(x) >= a x + b for the integers low <= x <= high, elementwise."""
        first, last = (self.lowest(x).astype(np.float64) for x in (low, high))

        def intercept(s: Float64) -> Float64:
            steps = np.minimum(first * (1 - s), (last - 1) * (1 - s)) - s * (1 + self.most - self.slope)
            at_high = last - s * self.slope * high
            return np.where(last > first, np.minimum(steps, at_high), at_high) - WIDER

        return self._best(low, high, first, last, intercept, -1)

    def _best(
        self,
        low: Int64,
        high: Int64,
        first: Float64,
        last: Float64,
        intercept: Callable[[Float64], Float64],
        sign: int,
    ) -> tuple[Float64, Float64]:
        """The line that is least (sign 1) or largest (-1) in the middle of [low, high]."""
        rise = np.maximum(self.slope * (high - low), WIDER)
        chord = np.minimum(np.rint((last - first) / rise / CHORD) * CHORD, 1.0)
        found: list[tuple[Float64, Float64]] = []
        for s in (np.zeros_like(chord), chord, np.ones_like(chord)):
            found.append((s * self.slope, intercept(s)))
        middle = np.stack([sign * (a * ((low + high) / 2) + b) for a, b in found])
        chosen = middle.argmin(0)
        slope, constant = (np.choose(chosen, parts) for parts in zip(*found, strict=True))
        return slope, constant


def lines(atom: Atom, low: Int64, high: Int64) -> Lines | None:
    """The lines of a non-decreasing rule of one argument in [low, high] [*shape]; None for any other atom, or a rule far from linear."""
    ends = _ends(atom)
    usual = example(atom)
    if ends is None or not isinstance(usual, Monotone | Between):
        return None
    lowest, highest = ends
    multiplier = (usual.rule if isinstance(usual, Monotone) else usual.member).slope()
    point = np.full((1,) * low.ndim, low.min())
    shape = np.broadcast_shapes(multiplier.shape, *(end(point).shape for end in ends))
    if len(shape) > low.ndim:
        return None
    mantissa, exponent = np.frexp(np.broadcast_to(multiplier, shape))
    slope = np.ldexp(np.rint(np.ldexp(mantissa, 16)), exponent - 16)
    shared = tuple(a for a, n in enumerate(shape) if n == 1)
    low, high = low.min(shared, keepdims=True), high.max(shared, keepdims=True)
    least, most = (_extreme(rule, slope, low, high, of) for rule, of in ((highest, np.min), (lowest, np.max)))
    if max(np.abs(least).max(), np.abs(most).max()) > 2**18:
        return None
    return Lines(lowest, highest, slope, least, most)


def _extreme(
    rule: Callable[[Int64], Int64], slope: Float64, low: Int64, high: Int64, of: Callable[..., Float64]
) -> Float64:
    """The least or the largest of m t_k - k over the levels that are reached above `low`; 0 where there is none."""
    levels, t = thresholds(rule, low, high)
    if not len(levels):
        return np.zeros(low.shape)
    reached = (t > low) & (t <= high)
    off = slope * t - levels.reshape(-1, *(1,) * low.ndim)
    otherwise = -np.inf if of is np.max else np.inf
    found: Float64 = of(np.where(reached, off, otherwise), axis=0)
    return np.where(reached.any(0), found, 0.0)


def _ends(atom: Atom) -> tuple[Callable[[Int64], Int64], Callable[[Int64], Int64]] | None:
    """The least and the largest result of a rule of one argument."""
    match atom:
        case Monotone(rule):
            return rule.apply, rule.apply
        case Between(lowest, _, highest):
            return lowest.apply, highest.apply
        case AnyOf(atoms):
            ends = [_ends(a) for a in atoms]
            lows, highs = [e[0] for e in ends if e], [e[1] for e in ends if e]
            if len(lows) < len(ends):
                return None
            return (lambda x: reduce(np.minimum, (f(x) for f in lows))), (
                lambda x: reduce(np.maximum, (f(x) for f in highs))
            )
        case _:
            return None


@dataclass(eq=False)
class Rows:
    """R lower bounds per box under way: <coefficients of each value, the value> + constant; N boxes.

    coefficients: value -> float64 [N, R, *shape]. constant int64 [N, R] in grains; valid [N, R]: no number left its range.
    """

    coefficients: dict[int, Float64]
    constant: Int64
    valid: Bools

    def add(self, terms: Float64, spare: int = 1) -> None:
        """Adds a sum of terms [N, R, *shape], each the rounding of one product or sum; `spare` grains are taken off each."""
        flat = terms.reshape(*self.constant.shape, -1)
        inside = np.abs(flat) < LARGEST
        self.valid &= inside.all(2) & (np.abs(flat).sum(2) < SUM)
        grains = np.floor(np.where(inside & self.valid[..., None], flat, 0.0) / GRAIN).astype(np.int64) - spare
        self.constant += grains.sum(2)
        self.valid &= np.abs(self.constant) < SUM / GRAIN
        self.constant[~self.valid] = 0

    def least(self, coefficients: Float64, low: Int64, high: Int64) -> None:
        """Replaces <coefficients, v> by its minimum over low <= v <= high [N, *shape]."""
        self.add(np.minimum(coefficients * low[:, None], coefficients * high[:, None]))

    def rounded(self, coefficients: Float64, low: Int64, high: Int64) -> Float64:
        """The coefficients with BITS bits relative to their row's largest; what that may lower the sum by is taken off."""
        axes = tuple(range(2, coefficients.ndim))
        top = np.abs(coefficients).max(axes, keepdims=True, initial=0.0)
        unit = np.ldexp(1.0, np.frexp(top)[1] - BITS)
        kept: Float64 = np.rint(coefficients / unit) * unit
        self.least(coefficients - kept, low, high)
        return kept

    def give(self, value: int, coefficients: Float64, low: Int64, high: Int64) -> None:
        """Adds <coefficients, value> to the sum, the value in [low, high]."""
        if value in self.coefficients:
            coefficients = coefficients + self.coefficients[value]
            self.add(np.zeros_like(coefficients))
            reach = np.abs(coefficients) * np.maximum(np.abs(low), np.abs(high))[:, None]
            self.valid &= (reach < LARGEST).reshape(*self.valid.shape, -1).all(2)
        self.coefficients[value] = coefficients


class Relaxation:
    """Linear bounds for one program of int8; what does not depend on the boxes is computed once."""

    def __init__(self, program: Program) -> None:
        if program.codes[1] > INT8_MAX:
            raise UnsupportedError(
                "linear bounds are for int8: the lines of a rule come from all its levels, of which int16 has too many",
                hint="take --bounds interval",
            )
        self.program = program
        self._lines: dict[int, Lines] = {}
        ranges = {
            s.out: tuple(e[0] for e in step_bounds(s.atom, [full_range(program, s.atom.linear.in_shape)]))
            for s in program.steps
            if isinstance(s.atom, Affine)
        }
        for step in program.steps:
            codes = tuple(e[0] for e in full_range(program, program.values[step.args[0]].shape))
            found = lines(step.atom, *ranges.get(step.args[0], codes))
            if found is not None:
                self._lines[step.out] = found
        self._exact = {
            s.out
            for s in program.steps
            if isinstance(s.atom, Affine)
            and s.atom.linear.absolute().adjoint(np.ones((1, *s.atom.linear.out_shape), np.int64)).max() < 2**29
        }
        self._narrow = {
            s.out
            for s in program.steps
            if isinstance(s.atom, Affine) and s.args[0] != program.input and prod(program.values[s.out].shape) <= NARROW
        }

    def bounds(self, lower: Int8, upper: Int8) -> list[Bounds]:
        """As `interval.propagate`, int64 [N, *shape] by value, with the accumulators of narrow layers bounded by lines as well."""
        program = self.program
        known: dict[int, Bounds] = {program.input: (lower.astype(np.int64), upper.astype(np.int64))}
        known |= {value: (codes, codes) for value, codes in program.repeated_constants(len(lower)).items()}
        for step in program.steps:
            known[step.out] = step_bounds(step.atom, [known[a] for a in step.args])
            if step.out in self._narrow:
                known[step.out] = self._tightened(step.out, known)
        return [known[i] for i in range(len(program.values))]

    def _tightened(self, value: int, known: dict[int, Bounds]) -> Bounds:
        low, high = known[value]
        n, shape = len(low), low.shape[1:]
        unit = np.eye(prod(shape))
        block = max(1, ELEMENTS // (n * widest(self.program)))
        parts = [unit[i : i + block] for i in range(0, len(unit), block)]

        def bound(sign: float) -> Int64:
            found = (
                self.lower({value: np.broadcast_to(sign * p, (n, *p.shape)).reshape(n, -1, *shape)}, known)
                for p in parts
            )
            return np.concatenate(list(found), 1).reshape(low.shape)

        return np.maximum(low, bound(1.0)), np.minimum(high, -bound(-1.0))

    def lower(self, rows: dict[int, Float64], known: dict[int, Bounds] | list[Bounds]) -> Int64:
        """Lower bounds, int64 [N, R], on the integer sums <rows[v], v>: rows float64 [N, R, *shape] holding integers below 2^20.

        known: bounds of every value that the rows' depend on. A row without a bound has the least int64 / 2.
        """
        first = next(iter(rows.values()))
        shape = first.shape[:2]
        state = Rows(dict(rows), np.zeros(shape, np.int64), np.ones(shape, np.bool_))
        for step in reversed(self.program.steps):
            if step.out in state.coefficients:
                self._back(step, state.coefficients.pop(step.out), state, known)
        for value, coefficients in state.coefficients.items():
            state.least(coefficients, *known[value])
        return np.where(state.valid, -(-state.constant // int(1 / GRAIN)), np.iinfo(np.int64).min // 2)

    def _back(self, step: Step, a: Float64, state: Rows, known: dict[int, Bounds] | list[Bounds]) -> None:
        """Rewrites <a, what the step gives> in terms of its arguments."""
        low, high = known[step.args[0]]
        match step.atom:
            case Affine(linear, offset, bias) if step.out in self._exact:
                a = state.rounded(a, *known[step.out])
                below = _adjoint(linear, a)
                state.add(a * bias)
                state.add(below * offset)
                state.give(step.args[0], below, low, high)
            case Gather(rearrangement):
                a = state.rounded(a, *known[step.out])
                if isinstance(rearrangement, PadWith):
                    border = a.copy()
                    border[_inside(rearrangement, a)] = 0
                    state.add(border * rearrangement.value)
                shapes = [self.program.values[v].shape for v in step.args]
                for argument, part in zip(step.args, _gathered(rearrangement, a, shapes), strict=True):
                    state.give(argument, part, *known[argument])
            case Max() as window:
                a = state.rounded(a, *known[step.out])
                at_tap, from_above = _max(window, a, low, high)
                state.add(from_above * known[step.out][1][:, None])
                state.give(step.args[0], at_tap, low, high)
            case _ if step.out in self._lines:
                between = self._lines[step.out]
                under, over = between.below(low, high), between.above(low, high)
                up = a > 0
                slope, constant = (np.where(up, f[:, None], g[:, None]) for f, g in zip(under, over, strict=True))
                state.add(a * constant, 2)
                a = a * slope
                reach = np.abs(a) * np.maximum(np.abs(low), np.abs(high))[:, None]
                state.valid &= (reach < LARGEST).reshape(*state.valid.shape, -1).all(2)
                state.give(step.args[0], a, low, high)
            case _:
                state.least(a, *known[step.out])


def samples_at_once(program: Program) -> int:
    """How many boxes to bound together for one row per output: bounds the memory, changes no result."""
    return max(1, ELEMENTS // (widest(program) * program.output_tensor.size))


def _adjoint(linear: Linear, a: Float64) -> Float64:
    """W^T a for rows a [N, R, *out_shape]."""
    flat: Float64 = linear.adjoint(a.reshape(-1, *linear.out_shape))
    return flat.reshape(*a.shape[:2], *linear.in_shape)


def _inside(pad: PadWith, a: Float64) -> tuple[slice, ...]:
    """Where the argument lies in the padded rows [N, R, *shape]."""
    inner = (slice(before, size - after) for (before, after), size in zip(pad.pads, a.shape[2:], strict=True))
    return (slice(None), slice(None), *inner)


def _gathered(rearrangement: Rearrangement, a: Float64, shapes: Sequence[tuple[int, ...]]) -> list[Float64]:
    """The rows a [N, R, *out shape] in terms of each argument."""
    n, r = a.shape[:2]
    match rearrangement:
        case ReshapeTo():
            return [a.reshape(n, r, *shapes[0])]
        case PadWith():
            return [a[_inside(rearrangement, a)]]
        case Join(axis):
            return np.split(a, np.cumsum([shape[axis] for shape in shapes])[:-1], axis=axis + 2)
        case Take(index):
            size = prod(shapes[0])
            at = np.arange(n * r)[:, None] * size + index.ravel()
            summed: Float64 = np.bincount(at.ravel(), a.ravel(), n * r * size).astype(np.float64)
            return [summed.reshape(n, r, *shapes[0])]
        case _:
            assert_never(rearrangement)


def _max(window: Max, a: Float64, low: Int64, high: Int64) -> tuple[Float64, Float64]:
    """(coefficients of the argument, coefficients of the maximum's own upper bound) for rows a [N, R, OH, OW, C].

    The maximum is at least its tap of the largest lower bound, and equal to it where no other tap can pass that.
    """
    (kh, kw), (sh, sw), p = window.kernel, window.stride, window.padding
    # Below every code, so that no tap outside the image is chosen.
    outside = INT8_MIN - 1
    lows, highs = (
        windows(pad_image(x, p, outside), window.kernel, window.stride).transpose(0, 1, 2, 5, 3, 4) for x in (low, high)
    )
    lows, highs = (x.reshape(*x.shape[:4], kh * kw) for x in (lows, highs))
    chosen = lows.argmax(-1)
    others = np.where(np.arange(kh * kw) == chosen[..., None], outside, highs).max(-1)
    certain = np.take_along_axis(lows, chosen[..., None], -1)[..., 0] >= others
    at_tap = np.where((a > 0) | certain[:, None], a, 0.0)
    n, r = a.shape[:2]
    h, w, c = low.shape[1:]
    oh, ow = output_size((h, w), window.kernel, window.stride, p)
    below = np.zeros((n, r, h + p.top + p.bottom, w + p.left + p.right, c))
    for tap in range(kh * kw):
        i, j = divmod(tap, kw)
        rows, columns = slice(i, i + sh * (oh - 1) + 1, sh), slice(j, j + sw * (ow - 1) + 1, sw)
        below[:, :, rows, columns] += np.where((chosen == tap)[:, None], at_tap, 0.0)
    return below[:, :, p.top : p.top + h, p.left : p.left + w], a - at_tap
