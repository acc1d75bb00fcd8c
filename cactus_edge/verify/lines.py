"""Lines around a rule, in integers: for any slope, the least intercept above it and the largest below it over a box.

A line has the slope k p 2^-(Q+7): p and Q are constants of the rule, k an integer per element. p, Q and k come from whoever
looks for a proof; whatever they are, the intercept makes the line sound. With U = 2^(Q+7):

* One argument. R is its thresholds t_K = min {a : R(a) >= K}, so that U R(x) - k p x over [l, u] is largest at l or at a t_K,
  and least at u or at a t_K - 1. With D_K = p t_K - K 2^Q these are linear in K but for D_K, whose least and largest are known for
  each channel: two values of K and one constant decide. Rounding, clamps, ties and envelopes need no constants of their own.
* Two arguments, s = p1 x1 + p2 x2. E is the largest R 2^Q - s over all pairs of codes with R above its least, so that R 2^Q is
  at most s + E clamped, a concave function of s beyond its lower knee: the ends of s and its upper knee decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np

from cactus_edge.errors import CertificateError
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.atoms import AnyOf, Atom, Between, Isotone, Monotone
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.interval import Bounds, thresholds

ONE = 7
"""k = 2^7 is the slope p 2^-Q itself."""

INTERCEPT = 12
"""Intercepts are integers of 2^-12 steps of the rule's result."""

MOST_Q, MOST_P = 40, 2**20
"""Q <= 40 and |p| < 2^20 keep every product below within int64: k p x < 2^59, K U < 2^55."""

Rule = Callable[[Int64], Int64]


@dataclass(frozen=True)
class Slope:
    """What a line of k = 2^7 rises by for each argument: p 2^-q, p per channel (or one) of one argument, or one for each of two."""

    q: int
    p: tuple[int, ...]


class Lines(Protocol):
    """The lines around one rule. k and the intercepts int64 [N, R, *shape]; bounds of each argument int64 [N, 1, *shape]."""

    @property
    def q(self) -> int: ...

    @property
    def p(self) -> tuple[Int64, ...]:
        """Per argument, broadcastable to its shape."""

    def above(self, k: Int64, args: list[Bounds]) -> Int64:
        """The least b, rounded up, in units of 2^-INTERCEPT, with R(x) <= k <p, x> 2^-(Q+7) + b over the box."""

    def below(self, k: Int64, args: list[Bounds]) -> Int64:
        """The largest b, rounded down, likewise below."""


@dataclass(frozen=True, eq=False)
class Single:
    """One argument. lowest, highest: the rule's own ends. least: min D_K of `highest`; most: max D_K of `lowest`."""

    q: int
    p: tuple[Int64]
    lowest: Rule
    highest: Rule
    least: Int64
    most: Int64

    def above(self, k: Int64, args: list[Bounds]) -> Int64:
        low, high = args[0]
        first, last = self.highest(low), self.highest(high)
        rise = ((1 << ONE) - k) << self.q
        steps = np.maximum((first + 1) * rise, last * rise) - k * self.least
        at_low = (first << (self.q + ONE)) - k * self.p[0] * low
        return -_coarse(-np.where(last > first, np.maximum(steps, at_low), at_low), self.q)

    def below(self, k: Int64, args: list[Bounds]) -> Int64:
        low, high = args[0]
        first, last = self.lowest(low), self.lowest(high)
        rise = ((1 << ONE) - k) << self.q
        steps = np.minimum(first * rise, (last - 1) * rise) - k * (self.most + (1 << self.q) - self.p[0])
        at_high = (last << (self.q + ONE)) - k * self.p[0] * high
        return _coarse(np.where(last > first, np.minimum(steps, at_high), at_high), self.q)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two arguments of one shape. lo, hi: the rule's least and largest result; over, under: E for the lines above and below."""

    q: int
    p: tuple[Int64, Int64]
    lo: int
    hi: int
    over: int
    under: int

    def above(self, k: Int64, args: list[Bounds]) -> Int64:
        knee = (self.hi << self.q) - self.over
        return -_coarse(-reduce(np.maximum, self._at(k, args, knee, self.over)), self.q)

    def below(self, k: Int64, args: list[Bounds]) -> Int64:
        knee = (self.lo << self.q) - self.under
        return _coarse(reduce(np.minimum, self._at(k, args, knee, self.under)), self.q)

    def _at(self, k: Int64, args: list[Bounds], knee: int, error: int) -> list[Int64]:
        """2^7 h(s) - k s at both ends of s and at the knee, h(s) = s + error clamped to the rule's range."""
        low = sum(np.minimum(p * lo, p * hi) for p, (lo, hi) in zip(self.p, args, strict=True))
        high = sum(np.maximum(p * lo, p * hi) for p, (lo, hi) in zip(self.p, args, strict=True))
        points = (np.asarray(low), np.asarray(high), np.clip(knee, low, high))
        return [(np.clip(s + error, self.lo << self.q, self.hi << self.q) << ONE) - k * s for s in points]


def _coarse(intercept: Int64, q: int) -> Int64:
    """An intercept in units of 2^-(q+7) as one of 2^-INTERCEPT, rounded down; far beyond any use it need not be exact."""
    shift = q + ONE - INTERCEPT
    return intercept >> shift if shift >= 0 else np.clip(intercept, -(2**57), 2**57) << -shift


def lines(atom: Atom, slope: Slope, shape: tuple[int, ...], full: list[Bounds]) -> Lines:
    """The lines of a rule with result [*shape] whose arguments stay within `full`, int64 [1, *argument shape].

    Raises CertificateError for an atom that has none, and for slopes that do not fit it.
    """
    if not 0 <= slope.q <= MOST_Q or any(abs(p) >= MOST_P for p in slope.p):
        raise CertificateError(f"a slope is out of range: Q = {slope.q}")
    match atom:
        case Isotone(rule, _) if len(slope.p) == 2 and all(low.shape[1:] == shape for low, _ in full):
            return _pair(rule.apply, slope)
        case Monotone() | Between() | AnyOf() if (ends := ends_of(atom)) is not None:
            channels = shape[-1] if shape else 1
            if len(slope.p) not in (1, channels) or min(slope.p) < 0:
                raise CertificateError(
                    f"{len(slope.p)} slopes for {channels} channels, expected one each, or one; none negative"
                )
            return _single(ends, slope, full[0])
        case _:
            raise CertificateError("slopes are given for a step that has no lines")


def ends_of(atom: Atom) -> tuple[Rule, Rule] | None:
    """The least and the largest result of a non-decreasing rule of one argument; None for any other atom."""
    match atom:
        case Monotone(rule):
            return rule.apply, rule.apply
        case Between(lowest, _, highest):
            return lowest.apply, highest.apply
        case AnyOf(atoms):
            return _ends_of_any(atoms)
        case _:
            return None


def _ends_of_any(atoms: Sequence[Atom]) -> tuple[Rule, Rule] | None:
    ends = [known for a in atoms if (known := ends_of(a)) is not None]
    if len(ends) < len(atoms):
        return None
    return (lambda x: reduce(np.minimum, (low(x) for low, _ in ends))), (
        lambda x: reduce(np.maximum, (high(x) for _, high in ends))
    )


def _single(ends: tuple[Rule, Rule], slope: Slope, full: Bounds) -> Single:
    lowest, highest = ends
    low, high = full
    p = np.array(slope.p, np.int64)
    constants = np.broadcast_shapes(p.shape, *(end(np.full((1,) * low.ndim, low.min())).shape for end in ends))
    shared = tuple(a for a, n in enumerate((1,) * (low.ndim - len(constants)) + constants) if n == 1)
    low, high = low.min(shared, keepdims=True), high.max(shared, keepdims=True)
    least, most = (_extreme(rule, slope.q, p, low, high, of) for rule, of in ((highest, np.min), (lowest, np.max)))
    return Single(slope.q, (p,), lowest, highest, least, most)


def _extreme(rule: Rule, q: int, p: Int64, low: Int64, high: Int64, of: Callable[..., Int64]) -> Int64:
    """The least or the largest D_K = p t_K - K 2^q over the levels K that are reached above `low`; 0 where there is none."""
    levels, t = thresholds(rule, low, high)
    if not len(levels):
        return np.zeros(low.shape, np.int64)
    reached = (t > low) & (t <= high)
    off = p * t - (levels.reshape(-1, *(1,) * low.ndim) << q)
    end = np.iinfo(np.int64)
    found = of(np.where(reached, off, end.min if of is np.max else end.max), axis=0)
    return np.where(reached.any(0), found, 0)


def _pair(rule: Callable[[Int64, Int64], Int64], slope: Slope) -> Pair:
    codes = np.arange(INT8_MIN, INT8_MAX + 1)
    result = rule(codes[:, None], codes[None, :])
    lo, hi = int(result.min()), int(result.max())
    p1, p2 = (np.int64(p) for p in slope.p)
    off = (result << slope.q) - (p1 * codes[:, None] + p2 * codes[None, :])
    over, under = (int(off[result > lo].max()), int(off[result < hi].min())) if hi > lo else (0, 0)
    return Pair(slope.q, (np.asarray(p1), np.asarray(p2)), lo, hi, over, under)
