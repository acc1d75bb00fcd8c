"""Exact integer intervals: the smallest and largest value each step can take over a box, atom by atom.

`propagate` is the definition, on int64. `Engine` computes the same numbers through floating-point matrix products and
one multiply, add and floor per requantisation; each of these shortcuts is proved when the engine is built, per layer:

* A product is exact in any order of summation where the reach of its partial sums is below the carrier's 2^24 or 2^53.
* A rule R (requantise, divide, clamp) is a non-decreasing integer function, and so is g(a) = clip(floor(a * A + B)),
  since IEEE multiplication and addition of a constant, A >= 0, are non-decreasing. R takes few values (256 for int8), so it is
  its *thresholds* t_k = min {a : R(a) >= k}. If g = R at every t_k, at every t_k - 1 and at both ends of the reachable
  range, then g = R on all of it. A and B are only guessed; that finite comparison is the proof. Where it fails, R itself is used.

Centre and radius are kept doubled, c = l + u and r = u - l, so that they stay integers: 2 acc = W c + 2 b -+ |W| r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import Protocol, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.atoms import (
    Affine,
    AnyOf,
    Atom,
    Between,
    FloatAverage,
    Gather,
    Isotone,
    Max,
    Monotone,
    Program,
    Softmax,
    Table,
    example,
)
from cactus_edge.ir.linear import (
    Array,
    AxisSum,
    Conv,
    Dense,
    Interpolation,
    Linear,
    Transposed,
    WindowSum,
    pad_image,
)
from cactus_edge.ir.ops import Codes, Int64, Padding2d
from cactus_edge.ir.rules import Elementwise as Rule
from cactus_edge.ir.rules import FloatRequantise, Requantise

Bounds = tuple[Array, Array]
Float64 = npt.NDArray[np.float64]

NEVER = 2.0**40
"""An intercept that puts a floor out of reach of every level."""

LEVELS = 256
"""Codes of int8: for more levels finding all thresholds costs more than it saves."""


def propagate(program: Program, lower: Codes, upper: Codes) -> list[tuple[Int64, Int64]]:
    """(lo, hi) int64 [N, *shape] for each value of the program over the boxes of codes lower <= x <= upper [N, *input shape]."""
    bounds: dict[int, Bounds] = {program.input: (lower.astype(np.int64), upper.astype(np.int64))}
    bounds |= {value: (codes, codes) for value, codes in program.repeated_constants(len(lower)).items()}
    for step in program.steps:
        bounds[step.out] = step_bounds(step.atom, [bounds[a] for a in step.args])
    return [bounds[i] for i in range(len(program.values))]


def step_bounds(atom: Atom, args: list[Bounds]) -> Bounds:
    """The bounds of one step from its arguments' bounds, int64 [N, *shape].

    Sound for all atoms; attained, element by element, where the arguments vary independently (and not for Softmax).
    """
    lo, hi = args[0]
    match atom:
        case Affine(linear, offset, bias):
            centre = linear.apply(lo + hi + 2 * offset) + 2 * bias
            radius = linear.absolute().apply(hi - lo)
            return (centre - radius) >> 1, (centre + radius) >> 1
        case Monotone(rule):
            return rule.apply(lo), rule.apply(hi)
        case Between(lowest, _, highest):
            return lowest.apply(lo), highest.apply(hi)
        case Isotone(rule, signs):
            return corners(rule.apply, rule.apply, signs, args)
        case Table():
            codes = tuple(b.astype(np.intp) - INT8_MIN for b in (lo, hi))
            least, most = atom.extremes
            return least[codes].astype(lo.dtype), most[codes].astype(hi.dtype)
        case Max() | Gather():
            return atom.apply(*(a[0] for a in args)), atom.apply(*(a[1] for a in args))
        case FloatAverage():
            return atom.apply(lo).astype(lo.dtype), atom.apply(hi).astype(hi.dtype)
        case Softmax():
            return np.full_like(lo, INT8_MIN), np.full_like(hi, INT8_MAX)
        case AnyOf(atoms):
            lows, highs = zip(*(step_bounds(a, args) for a in atoms), strict=True)
            return reduce(np.minimum, lows), reduce(np.maximum, highs)
        case _:
            assert_never(atom)


def corners(
    lowest: Callable[..., Array], highest: Callable[..., Array], signs: tuple[int, ...], args: list[Bounds]
) -> Bounds:
    """(least of `lowest`, largest of `highest`) over boxes, elementwise: at corners, chosen by `signs` as in `Isotone`, all where 0.

    Proof for a sign of 0: with the other argument fixed the rule is monotone, so that moving this one to one of its ends
    never raises the value, and to the other never lowers it; argument by argument this ends at a corner.
    """
    low = product(*(a if not sign else a[:1] if sign > 0 else a[1:] for a, sign in zip(args, signs, strict=True)))
    high = product(*(a if not sign else a[1:] if sign > 0 else a[:1] for a, sign in zip(args, signs, strict=True)))
    return reduce(np.minimum, (lowest(*c) for c in low)), reduce(np.maximum, (highest(*c) for c in high))


def full_range(program: Program, shape: tuple[int, ...]) -> tuple[Int64, Int64]:
    """(least, most) code of the program's integer type for one sample, int64 [1, *shape]."""
    least, most = program.codes
    return np.full((1, *shape), least, np.int64), np.full((1, *shape), most, np.int64)


def thresholds(rule: Callable[[Int64], Int64], low: Int64, high: Int64) -> tuple[Int64, Int64]:
    """(levels k [L], t [L, *shape]): t_k = min {a in [low, high] : rule(a) >= k}, high + 1 where there is none.

    rule: elementwise on [M, *shape], non-decreasing. Levels run from the least rule(low) + 1 to the largest rule(high).
    """
    levels = np.arange(int(rule(low[None]).min()) + 1, int(rule(high[None]).max()) + 1)
    wanted = levels.reshape(-1, *(1,) * low.ndim)
    shape = (len(levels), *low.shape)
    under, reached = np.broadcast_to(low - 1, shape), np.broadcast_to(high + 1, shape)
    while (reached - under > 1).any():
        middle = (under + reached) >> 1
        enough = rule(np.clip(middle, low, high)) >= wanted
        # A gap of 1 has middle = under, whose state is known: it must not move.
        open_gap = reached - under > 1
        under, reached = np.where(open_gap & ~enough, middle, under), np.where(open_gap & enough, middle, reached)
    return levels, np.ascontiguousarray(reached)


@dataclass(frozen=True, eq=False)
class Staircase:
    """a -> clip(floor(t2 * slope + above), lo, hi) with t2 = 2 a; below `knee` the intercept is `under` where that is given.

    The constants' dtype, float32 or float64, is the one it computes in.
    """

    slope: Array
    above: Array
    under: Array | None
    knee: int
    lo: int
    hi: int

    def __call__(self, t2: Array) -> npt.NDArray[np.float32]:
        """float32 levels for the doubled accumulators t2 [..., *shape]: float32 where the constants are, else of any dtype."""
        scaled = t2 * self.slope
        level = scaled + self.above if self.under is not None else np.add(scaled, self.above, out=scaled)
        np.floor(level, out=level)
        if self.under is not None:
            lower = np.floor(np.add(scaled, self.under, out=scaled), out=scaled)
            level = np.maximum(level, self.knee) + np.minimum(lower, self.knee) - self.knee
        # Beyond 2^24 float32 rounds, and still never across lo or hi.
        result: npt.NDArray[np.float32] = level.astype(np.float32, copy=False)
        return np.minimum(np.maximum(result, self.lo, out=result), self.hi, out=result)

    def spread(self, shape: tuple[int, ...]) -> Staircase:
        """The same with one constant per element of `shape`: numpy then runs over whole samples, not over channels."""

        def wide(constant: Array) -> Array:
            return np.broadcast_to(constant, shape).copy()

        under = None if self.under is None else wide(self.under)
        return replace(self, slope=wide(self.slope), above=wide(self.above), under=under)

    def single(self) -> Staircase:
        """The same with constants rounded to float32: another guess, twice as quick."""
        under = None if self.under is None else self.under.astype(np.float32)
        return replace(self, slope=self.slope.astype(np.float32), above=self.above.astype(np.float32), under=under)


def staircase(rule: Rule, low: Int64, high: Int64, dtype: npt.DTypeLike) -> Staircase | None:
    """`rule` on low <= a <= high [*shape] as a Staircase, proved equal to it there for t2 of `dtype`; None where no guess is.

    Not tried for rules of more than LEVELS levels. low and high are reduced to the axes along which the rule's constants vary:
    more accumulators than needed, never fewer.
    """
    constants = rule.slope()
    if constants.ndim > low.ndim or rule.hi - rule.lo >= LEVELS:
        return None
    shape = (1,) * (low.ndim - constants.ndim) + constants.shape
    shared = tuple(a for a, n in enumerate(shape) if n == 1)
    low, high = low.min(shared, keepdims=True), high.max(shared, keepdims=True)
    levels, t = thresholds(rule.apply, low, high)
    first, last = rule.apply(low), rule.apply(high)
    inside = (t > low) & (t <= high)
    at = [(low, first), (high, last), (t, rule.apply(t)), (t - 1, rule.apply(t - 1))]
    knee = rule.zero_point if isinstance(rule, Requantise | FloatRequantise) else 0
    wanted = levels.reshape(-1, *(1,) * low.ndim)
    slope = np.where(inside.any(0), np.broadcast_to(constants, first.shape), 0.0)
    for split in (False, True):
        upper = inside & (wanted > knee) if split else inside
        above = _intercept(wanted, t, slope, upper, np.where(first == last, last + 0.5, -NEVER))
        under = _intercept(wanted, t, slope, inside & (wanted <= knee), np.full(first.shape, NEVER)) if split else None
        double = Staircase(slope / 2, above, under, knee, int(first.min()), int(last.max()))
        for guess in (double.single(), double) if np.dtype(dtype) == np.float32 else (double,):
            if all(((guess((2 * a).astype(dtype)) == r) | (a < low) | (a > high)).all() for a, r in at):
                return guess
    return None


def _intercept(level: Int64, t: Int64, slope: Float64, used: npt.NDArray[np.bool_], otherwise: Float64) -> Float64:
    """The middle of {B : (t - 1) * slope + B < level <= t * slope + B wherever used}; `otherwise` where nothing is used."""
    least = np.where(used, level - t * slope, -np.inf).max(0, initial=-np.inf)
    most = np.where(used, level - (t - 1) * slope, np.inf).min(0, initial=np.inf)
    return np.where(used.any(0), (np.where(used.any(0), least, 0) + np.where(used.any(0), most, 0)) / 2, otherwise)


class Ends(Protocol):
    """An Affine atom on boxes of codes."""

    @property
    def dtype(self) -> type[np.float32] | type[np.float64] | type[np.int64]:
        """What the ends are computed in."""

    def ends(self, lo: Array, hi: Array) -> Bounds:
        """(2 acc_lo, 2 acc_hi) for lo, hi [N, *in_shape] holding int8 codes."""


@dataclass(frozen=True, eq=False)
class Accumulate:
    """An Affine atom on boxes of codes: ends of 2 acc, exact in `dtype`.

    The zero point is folded into the bias and padding reads it, which leaves |c| and r at most twice the largest |code|.
    """

    centre: Linear
    radius: Linear
    padding: Padding2d
    fill: int
    bias2: Array
    dtype: type[np.float32] | type[np.float64] | type[np.int64]

    def ends(self, lo: Array, hi: Array) -> Bounds:
        """(2 acc_lo, 2 acc_hi) for lo, hi [N, *in_shape] holding int8 codes."""
        if self.padding != Padding2d():
            lo, hi = pad_image(lo, self.padding, self.fill), pad_image(hi, self.padding, self.fill)
        centre = self.centre.apply((lo + hi).astype(self.dtype, copy=False))
        radius = self.radius.apply((hi - lo).astype(self.dtype, copy=False))
        centre += self.bias2
        low = centre - radius
        return low, np.add(centre, radius, out=centre)


def accumulate(atom: Affine, codes: tuple[int, int]) -> Accumulate:
    """The atom, compiled for codes in [least, most]. The carrier is the smallest that holds every partial sum of every order."""
    linear, padding = _unpadded(atom.linear)
    row_sums = linear.apply(np.ones((1, *linear.in_shape), np.int64))[0]
    bias = atom.bias + atom.input_offset * row_sums
    # Terms of W c are at most 2 |code| |w|; 2 b and the other half of the interval stay within the same reach.
    reach = 2 * int((max(map(abs, codes)) * linear.reach() + np.abs(bias)).max())
    dtype = np.float32 if reach < 2**24 else np.float64 if reach < 2**53 else np.int64
    absolute = linear.absolute()
    if isinstance(linear, Conv | Dense) and isinstance(absolute, Conv | Dense):
        linear = replace(linear, weight=linear.weight.astype(dtype))
        absolute = replace(absolute, weight=absolute.weight.astype(dtype))
    return Accumulate(linear, absolute, padding, -atom.input_offset, (2 * bias).astype(dtype), dtype)


def _unpadded(linear: Linear) -> tuple[Linear, Padding2d]:
    match linear:
        case Conv() | WindowSum():
            (h, w, c), p = linear.in_shape, linear.padding
            image = (h + p.top + p.bottom, w + p.left + p.right, c)
            return replace(linear, in_shape=image, padding=Padding2d()), p
        case Dense() | AxisSum() | Transposed() | Interpolation():
            return linear, Padding2d()
    raise TypeError(f"no interval rule for {type(linear).__name__}")


Elementwise = Callable[..., Array]


class Engine:
    """`propagate` for the values `targets` only, compiled: the same bounds, as float32 that hold the integers exactly.

    Building it proves each shortcut; running it is a pure function and may be done by several threads at once.
    """

    def __init__(self, program: Program, targets: Iterable[int]) -> None:
        self.program, self.targets = program, tuple(targets)
        needed = set(self.targets)
        for step in reversed(program.steps):
            if step.out in needed:
                needed.update(step.args)
        self._steps = [s for s in program.steps if s.out in needed]
        self._last_use = {a: i for i, s in enumerate(self._steps) for a in s.args}
        self._affine: dict[int, Ends] = {
            s.out: accumulate(s.atom, program.codes) for s in self._steps if isinstance(s.atom, Affine)
        }
        self._rules = {s.out: self._ends(s.atom, s.args) for s in self._steps}
        self._self_check()

    def run(self, lower: Codes, upper: Codes) -> list[Bounds]:
        """(lo, hi) float32 [N, *shape] per target over boxes of codes; an accumulator among them comes as int64."""
        values: dict[int, Bounds] = {self.program.input: (lower.astype(np.float32), upper.astype(np.float32))}
        for value, codes in self.program.repeated_constants(len(lower)).items():
            values[value] = (codes.astype(np.float32),) * 2
        for index, step in enumerate(self._steps):
            args = [values[a] for a in step.args]
            low, high = self._rules[step.out]
            if step.out in self._affine:
                values[step.out] = self._affine[step.out].ends(*args[0])
            elif low is not None and high is not None:
                values[step.out] = self._apply(low, high, _signs(step.atom), args)
            else:
                lo, hi = step_bounds(step.atom, args)
                values[step.out] = lo, hi
            for a in set(step.args):
                if self._last_use[a] == index and a not in self.targets:
                    del values[a]
        halved = {t: self._halved(t, values[t]) for t in self.targets}
        return [halved[t] for t in self.targets]

    def _apply(self, low: Elementwise, high: Elementwise, signs: tuple[int, ...], args: list[Bounds]) -> Bounds:
        return corners(low, high, signs, args)

    def _self_check(self) -> None:
        """The proofs assume IEEE products and sums. A matrix library that takes short cuts (bfloat16, TF32) shows here."""
        shape = self.program.values[self.program.input].shape
        low, high = (b.astype(self.program.input_tensor.dtype) for b in full_range(self.program, shape))
        point = np.random.default_rng(0).integers(low, high, endpoint=True, dtype=low.dtype)
        boxes = np.concatenate([low, point]), np.concatenate([high, point])
        expected = propagate(self.program, *boxes)
        for target, got in zip(self.targets, self.run(*boxes), strict=True):
            if not all(np.array_equal(g, e) for g, e in zip(got, expected[target], strict=True)):
                raise InternalError(f"bounds of {self.program.values[target].name!r} differ from their definition")

    def _halved(self, value: int, bounds: Bounds) -> Bounds:
        if value not in self._affine:
            return bounds
        lo, hi = (b.astype(np.int64) >> 1 for b in bounds)
        return lo, hi

    def _ends(self, atom: Atom, args: tuple[int, ...]) -> tuple[Elementwise | None, Elementwise | None]:
        """The compiled rules of the lower and of the upper end, one and the same where the atom is one function."""
        match atom:
            case Between(lowest, _, highest):
                return self._compile(Monotone(lowest), args), self._compile(Monotone(highest), args)
            case AnyOf(atoms):
                lows, highs = zip(*(self._ends(a, args) for a in atoms), strict=True)
                return _extreme(np.minimum, lows), _extreme(np.maximum, highs)
            case _:
                rule = self._compile(atom, args)
                return rule, rule

    def _compile(self, atom: Atom, args: tuple[int, ...]) -> Elementwise | None:
        match atom:
            case Monotone(rule) if args[0] in self._affine:
                source = next(s for s in self._steps if s.out == args[0])
                assert isinstance(source.atom, Affine)
                low, high = step_bounds(source.atom, [full_range(self.program, source.atom.linear.in_shape)])
                found = staircase(rule, low[0], high[0], self._affine[args[0]].dtype)
                if found is not None:
                    return found.spread(source.atom.linear.out_shape)
                return _halving(rule)
            case Monotone(rule):
                return self._codewise(rule.apply, 1) if rule.slope().size == 1 else _plain(rule.apply)
            case _ if any(a in self._affine for a in args):
                raise TypeError(f"{type(atom).__name__} reads an accumulator, which this engine holds doubled")
            case Isotone(rule, signs):
                return self._codewise(rule.apply, len(signs))
            case _:
                return None

    def _codewise(self, rule: Callable[..., Int64], arity: int) -> Elementwise:
        """A rule on codes: by its table where they are int8."""
        return _table(rule, arity) if self.program.codes == (INT8_MIN, INT8_MAX) else _plain(rule)


def _signs(atom: Atom) -> tuple[int, ...]:
    """In which direction a compiled rule goes, per argument, as in `Isotone`."""
    first = example(atom)
    return first.signs if isinstance(first, Isotone) else (1,)


def _extreme(of: np.ufunc, rules: Iterable[Elementwise | None]) -> Elementwise | None:
    """The least or the largest result of several compiled rules; None where one of them is not compiled."""
    known = [rule for rule in dict.fromkeys(rules) if rule is not None]
    return None if None in rules else lambda *x: reduce(of, (rule(*x) for rule in known))


def _plain(rule: Callable[..., Int64]) -> Elementwise:
    return lambda *x: rule(*(a.astype(np.int64) for a in x)).astype(np.float32)


def _halving(rule: Rule) -> Elementwise:
    return _plain(lambda t2: rule.apply(t2 >> 1))


def _table(rule: Callable[..., Int64], arity: int) -> Elementwise:
    """An elementwise rule on int8 codes as a lookup among its 256^arity results."""
    codes = np.arange(INT8_MIN, INT8_MAX + 1)
    grid = np.meshgrid(*[codes] * arity, indexing="ij")
    table = rule(*grid).astype(np.float32)

    def look_up(*args: Array) -> Array:
        return table[tuple(a.astype(np.intp) - INT8_MIN for a in args)]

    return look_up
