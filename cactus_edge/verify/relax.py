"""Linear bounds on a program's values over boxes: a sum of values is pushed back to the input, atom by atom, in integers.

A lower bound on <A, v> + c, v any value of the program, is rewritten in terms of what v is computed from:

* Affine: exactly. Gather: exactly. Max: as the tap that is largest at the least, or, from above, as its bound.
* A rule of one argument, or of two: as a line below it where its coefficient is positive, above it elsewhere (`lines`).
* Any other atom: as the bounds of its result.
* In addition an accumulator's coefficient may be changed by any mu at the price max(mu l, mu u) over its bounds [l, u]: that
  is how a split of the region enters (the Lagrange multiplier of beta-CROWN, Wang et al., NeurIPS 2021, eq. 8).

The slopes of the lines and the multipliers are hints: whatever they are, the bound holds. Coefficients are integers a 2^-e with
one e per row, the constant is an integer of grains of 2^-24. Before each step coefficients are rounded to BITS bits and what that
may cost is paid; every product then is an exact integer, and each term of the constant is rounded down to a grain. A row
that leaves the ranges below has no bound. So the same numbers come out everywhere, one box at a time or many, here or in C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError, UnsupportedError
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.atoms import (
    Affine,
    Gather,
    Join,
    Max,
    PadWith,
    Program,
    Rearrangement,
    ReshapeTo,
    Step,
    Take,
)
from cactus_edge.ir.evaluate import widest
from cactus_edge.ir.linear import Linear, output_size, pad_image, windows
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.interval import Bounds, full_range, step_bounds
from cactus_edge.verify.lines import INTERCEPT, ONE, Lines, Slope, lines

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

GRAIN = 24
"""Constants are integers of 2^-24 steps of the sum that is bounded."""

BITS = 24
"""Of the coefficients before a step: every product below stays within int64."""

TERM, TOTAL = 2**44, 2**61
"""Grains that one element may add, and that the constant may have."""

WIDEST = 2**17
"""Elements of a value: as many terms of at most TERM stay within TOTAL."""

COLUMN = 2**28
"""Sum of the |weights| of one input: with coefficients of BITS bits every partial sum is below 2^53."""

FAR = 28
"""Exponents further apart are not brought together."""

MULTIPLIER = 2**36
"""Magnitude of an intercept, in its own unit, beyond which a row has no bound."""

ELEMENTS = 1 << 22
"""Coefficients of one value at a time, about: bounds the memory, changes no result."""

NONE = int(np.iinfo(np.int64).min // 2)
"""The bound of a row without one."""

Hints = Mapping[int, tuple[Int64, Int64]]
"""Rule's value -> (k below, k above), the slopes of its lines as in `lines`, int64 [N, R or 1, *shape]."""

Tightening = Callable[[int, Mapping[int, Bounds]], Bounds | None]


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Changes of coefficients of one accumulator: at [n, r, element] by mu 2^-s; int64 [M], no place twice, |mu| < 2^24, 0 <= s <= 60."""

    n: Int64
    r: Int64
    element: Int64
    mu: Int64
    s: Int64


@dataclass(eq=False)
class Rows:
    """R lower bounds per box under way: sum over values of <a, value> 2^-e, plus the constant; N boxes.

    pending: value -> (a int64 [N, R, *shape], e int64 [N, R]). constant int64 [N, R] in grains; valid [N, R].
    """

    constant: Int64
    valid: Bools
    pending: dict[int, tuple[Int64, Int64]] = field(default_factory=dict)

    def add(self, terms: Int64, e: Int64, most: Float64 | float = np.inf) -> None:
        """Adds the sum of terms [N, R, *shape] 2^-e, each rounded down to a grain. Overwrites terms.

        most: a bound on their magnitude, [N, R] or one number, with which they may not have to be looked at for it.
        """
        flat = terms.reshape(*e.shape, -1)
        down, up = np.clip(e - GRAIN, 0, 63), np.clip(GRAIN - e, 0, 63)
        fit = np.ones_like(self.valid)
        if (most >= np.ldexp(TERM / 2, e - GRAIN)).any():
            low, high = flat.min(2, initial=0), flat.max(2, initial=0)
            limit = np.where(up < 63, TERM >> np.minimum(up, 62), 0)
            fit = (-(low >> down) <= limit) & (high >> down <= limit)
        if down.any():
            np.right_shift(flat, down[..., None], out=flat)
        self._add(flat.sum(2) << up, fit)

    def _add(self, grains: Int64, fit: Bools) -> None:
        self.valid &= fit
        self.constant += np.where(self.valid, grains, 0)
        self.valid &= np.abs(self.constant) <= TOTAL
        self.constant[~self.valid] = 0

    def least(self, a: Int64, e: Int64, bounds: Bounds, most: Float64 | float = np.inf) -> None:
        """Replaces <a, v> 2^-e by its minimum over the bounds of v, [N, *shape]. most: as in `add`, of a."""
        low, high = bounds
        terms = np.where(a > 0, low[:, None], high[:, None])
        terms *= a
        self.add(terms, e, most * _magnitude(low, high))

    def rounded(self, a: Int64, e: Int64, bounds: Bounds) -> tuple[Int64, Int64]:
        """(a, e) with at most BITS bits, rounded to nearest, halves up; what that may lower the sum by is taken off."""
        flat = a.reshape(*e.shape, -1)
        top = np.maximum(flat.max(2, initial=0), -flat.min(2, initial=0))
        # Magnitudes below 2^54 and no other power of two nearby: the exponent of the double is the bit length.
        t = np.maximum(np.frexp(top.astype(np.float64))[1].astype(np.int64) - BITS, 0)
        if not t.any():
            return a, e
        shift, half = _over(t, a), (1 << t) >> 1
        kept = a + _over(half, a)
        kept >>= shift
        lost = kept << shift
        self.least(np.subtract(a, lost, out=lost), e, bounds, half.astype(np.float64))
        return kept, e - t

    def give(self, value: int, a: Int64, e: Int64, bounds: Bounds) -> None:
        """Adds <a, value> 2^-e to the sum."""
        if value in self.pending:
            first, second = self.rounded(*self.pending[value], bounds), self.rounded(a, e, bounds)
            a, e = self._together(first, second, bounds)
        self.pending[value] = a, e

    def _together(self, x: tuple[Int64, Int64], y: tuple[Int64, Int64], bounds: Bounds) -> tuple[Int64, Int64]:
        """The sum of two of at most BITS bits; where one's unit is too fine for that, it is paid for at once."""
        parts, units = [], np.maximum(x[1], y[1])
        fine = np.where(np.abs(x[1] - y[1]) > FAR, np.minimum(x[1], y[1]), units)
        for a, e in (x, y):
            lost = e > fine
            if lost.any():
                self.least(np.where(_over(lost, a), a, 0), e, bounds)
                a = np.where(_over(lost, a), 0, a)
            parts.append(a << _over(np.maximum(fine - e, 0), a))
        return parts[0] + parts[1], fine

    def shift(self, value: int, by: Multipliers, bounds: Bounds) -> None:
        """Changes coefficients of `value` by multipliers, at their price. Ignored where the value has no coefficients."""
        if value not in self.pending or not len(by.mu):
            return
        a, e = self.pending[value]
        n, r, i = by.n, by.r, by.element
        finer = e[n, r] - by.s
        self.valid[n[finer > FAR], r[finer > FAR]] = False
        change = np.where(finer >= 0, by.mu << np.clip(finer, 0, FAR), by.mu >> np.clip(-finer, 0, 63))
        a = a.copy()
        flat = a.reshape(*e.shape, -1)
        flat[n, r, i] += change
        low, high = (b.reshape(len(b), -1)[n, i] for b in bounds)
        paid, unit = np.where(finer >= 0, by.mu, change), np.where(finer >= 0, by.s, e[n, r])
        price, fit = _grains(-np.maximum(paid * low, paid * high), unit)
        total, fits = np.zeros_like(self.constant), np.ones_like(self.valid)
        np.add.at(total, (n, r), np.where(fit, price, 0))
        np.logical_and.at(fits, (n, r), fit)
        self._add(total, fits)
        self.pending[value] = a, e


class Relaxation:
    """Linear bounds for one program of int8, with slopes for some of its rules' values; the others count by their bounds.

    Raises UnsupportedError for programs of int16 or of values above WIDEST elements, CertificateError for slopes that fit no rule.
    """

    def __init__(self, program: Program, slopes: Mapping[int, Slope]) -> None:
        if program.codes[1] > INT8_MAX:
            raise UnsupportedError(
                "linear bounds are for int8: the lines of a rule come from all its levels, of which int16 has too many",
                hint="take --bounds interval",
            )
        largest = max(prod(v.shape) for v in program.values)
        if largest > WIDEST:
            raise UnsupportedError(
                f"linear bounds are for values of up to {WIDEST} elements, one here has {largest}",
                hint="take --bounds interval",
            )
        self.program = program
        ranges = {
            s.out: step_bounds(s.atom, [full_range(program, s.atom.linear.in_shape)])
            for s in program.steps
            if isinstance(s.atom, Affine)
        }
        steps = {step.out: step for step in program.steps}
        self.lines: dict[int, Lines] = {}
        for value, slope in slopes.items():
            if value not in steps:
                raise CertificateError(f"a slope is for value {value}, which no step writes")
            step, shape = steps[value], program.values[value].shape
            full = [ranges.get(a, full_range(program, program.values[a].shape)) for a in step.args]
            self.lines[value] = lines(step.atom, slope, shape, full)
        self.exact = frozenset(
            s.out
            for s in program.steps
            if isinstance(s.atom, Affine)
            and s.atom.linear.absolute().adjoint(np.ones((1, *s.atom.linear.out_shape), np.int64)).max() < COLUMN
        )

    def forward(
        self,
        lower: Codes,
        upper: Codes,
        parent: Sequence[Bounds] | None = None,
        tighten: Tightening = lambda value, known: None,
    ) -> tuple[list[Bounds], Bools]:
        """(bounds int64 [N, *shape] by value, empty [N]) over the boxes lower <= x <= upper, as exact intervals.

        parent: bounds that hold as well, by value. tighten(value, bounds so far): closer ones of the value, as from `tightened`;
        None for no others. empty: no point of the box keeps all of these.
        """
        program = self.program
        known: dict[int, Bounds] = {program.input: (lower.astype(np.int64), upper.astype(np.int64))}
        known |= {value: (codes, codes) for value, codes in program.repeated_constants(len(lower)).items()}
        empty = np.zeros(len(lower), np.bool_)

        def keep(value: int, bounds: Bounds) -> None:
            low, high = bounds
            known[value] = low, high
            np.logical_or(empty, (low > high).reshape(len(low), -1).any(1), out=empty)

        if parent is not None:
            keep(program.input, _cut(known[program.input], parent[program.input]))
        for step in program.steps:
            bounds = self._step(step, [known[a] for a in step.args])
            keep(step.out, bounds if parent is None else _cut(bounds, parent[step.out]))
            if (closer := tighten(step.out, known)) is not None:
                keep(step.out, closer)
        return [known[i] for i in range(len(program.values))], empty

    def _step(self, step: Step, args: list[Bounds]) -> Bounds:
        """The bounds of what it gives, from those of what it reads."""
        return step_bounds(step.atom, args)

    def tightened(self, value: int, known: Mapping[int, Bounds], hints: Hints) -> Bounds:
        """The bounds of an Affine's value, and of each of its elements those by lines with these hints."""
        low, high = known[value]
        n, shape = len(low), low.shape[1:]
        unit = np.eye(prod(shape), dtype=np.int64)
        block = max(1, ELEMENTS // (n * widest(self.program)))
        parts = [unit[i : i + block] for i in range(0, len(unit), block)]

        def bound(sign: int) -> Int64:
            found = (
                self.lower(value, np.broadcast_to(sign * p, (n, *p.shape)).reshape(n, -1, *shape), known, hints)
                for p in parts
            )
            return np.concatenate(list(found), 1).reshape(low.shape)

        return np.maximum(low, bound(1)), np.minimum(high, -bound(-1))

    def lower(
        self,
        value: int,
        rows: Int64,
        known: Mapping[int, Bounds] | Sequence[Bounds],
        hints: Hints,
        multipliers: Mapping[int, Multipliers] | None = None,
    ) -> Int64:
        """Lower bounds, int64 [N, R], on the integer sums <rows, value>: rows int64 [N, R, *shape], below 2^24 in magnitude.

        known: bounds of every value that this one depends on. A row without a bound has NONE.
        """
        shape = rows.shape[:2]
        state = Rows(np.zeros(shape, np.int64), np.ones(shape, np.bool_), {value: (rows, np.zeros(shape, np.int64))})
        for step in reversed(self.program.steps):
            if step.out not in state.pending:
                continue
            if multipliers and step.out in multipliers:
                state.shift(step.out, multipliers[step.out], known[step.out])
            self._back(step, *state.pending.pop(step.out), state, known, hints)
        for rest, (a, e) in state.pending.items():
            state.least(a, e, known[rest])
        return np.where(state.valid, -(-state.constant >> GRAIN), NONE)

    def _back(
        self,
        step: Step,
        a: Int64,
        e: Int64,
        state: Rows,
        known: Mapping[int, Bounds] | Sequence[Bounds],
        hints: Hints,
    ) -> None:
        """Rewrites <a, what the step gives> 2^-e in terms of its arguments."""
        bounds = known[step.out]
        a, e = state.rounded(a, e, bounds)
        match step.atom:
            case Affine(linear, offset, bias) if step.out in self.exact:
                below = _adjoint(linear, a)
                state.add(a * bias, e)
                state.add(below * offset, e)
                state.give(step.args[0], below, e, known[step.args[0]])
            case Gather(rearrangement):
                if isinstance(rearrangement, PadWith):
                    border = a.copy()
                    border[_inside(rearrangement, a)] = 0
                    state.add(border * rearrangement.value, e)
                shapes = [self.program.values[v].shape for v in step.args]
                for argument, part in zip(step.args, _gathered(rearrangement, a, shapes), strict=True):
                    state.give(argument, part, e, known[argument])
            case Max() as window:
                at_tap, from_above = _max(window, a, *known[step.args[0]])
                state.add(from_above * bounds[1][:, None], e)
                state.give(step.args[0], at_tap, e, known[step.args[0]])
            case _ if step.out in self.lines:
                between = self.lines[step.out]
                args = [(known[v][0][:, None], known[v][1][:, None]) for v in step.args]
                k_below, k_above = hints[step.out]
                up, below, above = a > 0, between.below(k_below, args), between.above(k_above, args)
                furthest = _magnitude(below, above)
                terms = np.where(up, below, above)
                if furthest >= MULTIPLIER:
                    near = (np.abs(terms) < MULTIPLIER) | (a == 0)
                    state.valid &= near.reshape(*e.shape, -1).all(2)
                    terms[~near] = 0
                terms *= a
                state.add(terms, e + INTERCEPT, 2.0**BITS * min(furthest, MULTIPLIER))
                for argument, p in zip(step.args, between.p, strict=True):
                    sloped = np.where(up, k_below * p, k_above * p)
                    sloped *= a
                    state.give(argument, sloped, e + between.q + ONE, known[argument])
            case _:
                state.least(a, e, bounds)


def _grains(terms: Int64, e: Int64) -> tuple[Int64, Bools]:
    """(terms 2^-e in grains, rounded down; whether that is a TERM at most), elementwise; any numbers where it is not."""
    down, up = np.clip(e - GRAIN, 0, 63), np.clip(GRAIN - e, 0, 63)
    if not up.any():
        grains = terms >> down
        return grains, np.abs(grains) <= TERM
    small = np.abs(terms) <= np.where(up < 63, TERM >> np.minimum(up, 62), 0)
    grains = np.where(small, terms, 0) << np.where(up < 63, up, 0)
    return np.where(up > 0, grains, terms >> down), np.where(up > 0, small, np.abs(terms >> down) <= TERM)


def _magnitude(*parts: Int64) -> float:
    """The largest magnitude in these."""
    return max(float(max(part.max(initial=0), -part.min(initial=0))) for part in parts)


def samples_at_once(program: Program) -> int:
    """How many boxes to bound together for one row per output: bounds the memory, changes no result."""
    return max(1, ELEMENTS // (widest(program) * program.output_tensor.size))


def _over(per_row: npt.NDArray[Any], a: Int64) -> npt.NDArray[Any]:
    """[N, R] as [N, R, 1, ...], to go with coefficients."""
    return per_row.reshape(*per_row.shape, *(1,) * (a.ndim - 2))


def _cut(bounds: Bounds, other: Bounds) -> Bounds:
    return np.maximum(bounds[0], other[0]), np.minimum(bounds[1], other[1])


def _adjoint(linear: Linear, a: Int64) -> Int64:
    """W^T a for rows a [N, R, *out_shape], through float64: exact, by BITS and COLUMN."""
    flat = linear.adjoint(a.reshape(-1, *linear.out_shape).astype(np.float64))
    return flat.reshape(*a.shape[:2], *linear.in_shape).astype(np.int64)


def _inside(pad: PadWith, a: Int64) -> tuple[slice, ...]:
    """Where the argument lies in the padded rows [N, R, *shape]."""
    inner = (slice(before, size - after) for (before, after), size in zip(pad.pads, a.shape[2:], strict=True))
    return (slice(None), slice(None), *inner)


def _gathered(rearrangement: Rearrangement, a: Int64, shapes: Sequence[tuple[int, ...]]) -> list[Int64]:
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
            summed = np.zeros((prod(shapes[0]), n * r), np.int64)
            np.add.at(summed, index.ravel(), a.reshape(n * r, -1).T)
            return [summed.T.reshape(n, r, *shapes[0])]
        case _:
            assert_never(rearrangement)


def _max(window: Max, a: Int64, low: Int64, high: Int64) -> tuple[Int64, Int64]:
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
    at_tap = np.where((a > 0) | certain[:, None], a, 0)
    n, r = a.shape[:2]
    h, w, c = low.shape[1:]
    oh, ow = output_size((h, w), window.kernel, window.stride, p)
    below = np.zeros((n, r, h + p.top + p.bottom, w + p.left + p.right, c), np.int64)
    for tap in range(kh * kw):
        i, j = divmod(tap, kw)
        rows, columns = slice(i, i + sh * (oh - 1) + 1, sh), slice(j, j + sw * (ow - 1) + 1, sw)
        below[:, :, rows, columns] += np.where((chosen == tap)[:, None], at_tap, 0)
    return below[:, :, p.top : p.top + h, p.left : p.left + w], a - at_tap
