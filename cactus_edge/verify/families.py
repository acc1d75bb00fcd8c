"""The kinds of `regions.Family`: a patch anywhere in an image; ranges of brightness and contrast. And the reader of all regions.

A new kind is a class here and a case in `read_region`; nothing else in `verify` knows the kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cactus_edge.errors import CertificateError, InputError
from cactus_edge.verify.regions import Bools, Exact, Family, Float64, Index, Region, double_above, exact

Pivot = Fraction | Literal["mean"]

MOST_CELLS = 4096
"""Cells of one range: beyond that, neighbouring cells differ by less than a code of any sensor of 12 bits."""

MOST_CONTRAST = 1024
"""Largest factor: far inside what float32 holds, for data of any size that `exact` admits."""


@dataclass(frozen=True)
class Patch:
    """w = x, but for one window of height x width pixels, all channels, which takes any value of the domain; one box a position.

    The window lies wholly inside the image, a sample's first two axes.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InputError(f"a patch of {self.height} x {self.width} pixels, expected at least 1 x 1")

    @property
    def kind(self) -> str:
        return "patch"

    def record(self) -> dict[str, Any]:
        """As `Family.record`."""
        return {"patch": [self.height, self.width]}

    def count(self, shape: tuple[int, ...]) -> int:
        """As `Family.count`: the positions, row by row."""
        rows, columns = self._positions(shape)
        return rows * columns

    def moved(self, x: Float64, owner: Index, position: Index) -> tuple[Float64, Float64, Bools | None]:
        """As `Family.moved`."""
        centre, shape = x[owner], x.shape[1:]
        inside = np.ones((len(owner), *(1,) * len(shape)), np.bool_)
        starts = np.divmod(position, self._positions(shape)[1])
        for axis, (size, start) in enumerate(zip((self.height, self.width), starts, strict=True)):
            offset = np.arange(shape[axis]) - start[:, None]
            along = (len(owner), *(shape[a] if a == axis else 1 for a in range(len(shape))))
            inside = inside & ((offset >= 0) & (offset < size)).reshape(along)
        return centre, centre, np.broadcast_to(inside, centre.shape)

    def member(self, x: Float64, at: Sequence[Fraction]) -> tuple[list[Fraction], Bools | None]:
        """As `Family.member`; at: the window's first row and first column."""
        rows, columns = self._positions(x.shape)
        if len(at) != 2 or not all(v.denominator == 1 and 0 <= v < n for v, n in zip(at, (rows, columns), strict=True)):
            raise InputError(f"a patch at {_listed(at)}, expected a row below {rows} and a column below {columns}")
        number = int(at[0]) * columns + int(at[1])
        _, _, free = self.moved(x[None], np.zeros(1, np.intp), np.full(1, number))
        return _fractions(x), None if free is None else free[0]

    def _positions(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if len(shape) not in (2, 3):
            raise InputError(
                f"a patch on an input of shape {shape}, expected an image: rows, columns and perhaps channels",
                hint="a patch needs a model whose input is an image, not a flat list of features",
            )
        if self.height > shape[0] or self.width > shape[1]:
            raise InputError(f"a patch of {self.height} x {self.width} pixels on an image of {shape[0]} x {shape[1]}")
        return shape[0] - self.height + 1, shape[1] - self.width + 1


@dataclass(frozen=True)
class Tone:
    """w = c (x - p) + p + b for any one b of `brightness` and one c of `contrast`, the same for all features of a sample.

    p: the pivot, a number or "mean", the sample's own mean over all its features. Each range that is no point is cut into
    `cells` equal cells, closed at both ends; a box holds the members of one cell of each (0 cells: still to be chosen). The
    ranges hold b = 0 and c = 1, so that the sample is a member.
    """

    brightness: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))
    contrast: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    pivot: Pivot = Fraction(0)
    cells: int = 0

    def __post_init__(self) -> None:
        for (low, high), neutral, name in ((self.brightness, 0, "brightness"), (self.contrast, 1, "contrast")):
            if not low <= neutral <= high:
                raise InputError(
                    f"{name} from {low} to {high}, expected a range that holds {neutral}: the sample itself"
                )
        if self.contrast[0] < 0 or self.contrast[1] > MOST_CONTRAST:
            raise InputError(f"contrast from {self.contrast[0]} to {self.contrast[1]}, expected 0 to {MOST_CONTRAST}")
        if not 0 <= self.cells <= MOST_CELLS:
            raise InputError(f"{self.cells} cells, expected 1 to {MOST_CELLS} for each range")

    @property
    def kind(self) -> str:
        return "tone"

    def record(self) -> dict[str, Any]:
        """As `Family.record`."""
        ranges = {"brightness": [str(b) for b in self.brightness], "contrast": [str(c) for c in self.contrast]}
        return {**ranges, "pivot": str(self.pivot), "cells": self.cells}

    def count(self, shape: tuple[int, ...]) -> int:
        """As `Family.count`: all pairs of a cell of brightness and a cell of contrast, contrast counting faster."""
        if not self.cells:
            raise InputError("the cells of the ranges are not chosen")
        return (len(self._edges[0]) - 1) * (len(self._edges[1]) - 1)

    def moved(self, x: Float64, owner: Index, position: Index) -> tuple[Float64, Float64, Bools | None]:
        """As `Family.moved`. Each operation is rounded to nearest, then moved to the next double: never inward."""
        (shift_low, shift_high), (factor_low, factor_high) = ((_doubles(e, -1), _doubles(e, 1)) for e in self._edges)
        cell, factor_cell = np.divmod(position, len(factor_low) - 1)
        one_a_sample = (-1, *(1,) * (x.ndim - 1))
        pivot_low, pivot_high = (p.reshape(one_a_sample) for p in self._pivots(x))
        from_low, from_high = _down(x - pivot_high)[owner], _up(x - pivot_low)[owner]
        least, most = factor_low[factor_cell].reshape(one_a_sample), factor_high[factor_cell + 1].reshape(one_a_sample)
        under = _down(pivot_low[owner] + shift_low[cell].reshape(one_a_sample))
        over = _up(pivot_high[owner] + shift_high[cell + 1].reshape(one_a_sample))
        low = _down(_down(np.minimum(least * from_low, most * from_low)) + under)
        high = _up(_up(np.maximum(least * from_high, most * from_high)) + over)
        return low, high, None

    def member(self, x: Float64, at: Sequence[Fraction]) -> tuple[list[Fraction], Bools | None]:
        """As `Family.member`; at: b and c."""
        ranges = (self.brightness, self.contrast)
        if len(at) != 2 or not all(low <= v <= high for v, (low, high) in zip(at, ranges, strict=True)):
            raise InputError(f"brightness and contrast {_listed(at)}, expected them inside their ranges")
        brightness, contrast = at
        values = _fractions(x)
        pivot = sum(values, Fraction(0)) / len(values) if self.pivot == "mean" else self.pivot
        shift = pivot + brightness - contrast * pivot
        return [contrast * v + shift for v in values], None

    @cached_property
    def _edges(self) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
        """The ends of the cells of either range, ascending."""
        brightness, contrast = (
            (low, high) if low == high else tuple(low + (high - low) * i / self.cells for i in range(self.cells + 1))
            for low, high in (self.brightness, self.contrast)
        )
        return brightness, contrast

    def _pivots(self, x: Float64) -> tuple[Float64, Float64]:
        """Doubles below and above the pivot of each sample [N]."""
        if self.pivot != "mean":
            return np.full(len(x), -double_above(-self.pivot)), np.full(len(x), double_above(self.pivot))
        size = math.prod(x.shape[1:])
        total = np.array([math.fsum(sample) for sample in x.reshape(len(x), -1).tolist()])
        return _down(_down(total) / size), _up(_up(total) / size)


AnyFamily = Patch | Tone
"""Every kind of family."""


def tone(
    brightness: tuple[Exact, Exact] = (0, 0),
    contrast: tuple[Exact, Exact] = (1, 1),
    pivot: Exact | Literal["mean"] = 0,
    cells: int = 0,
) -> Tone:
    """Ranges of brightness (in units of the data) and of contrast (a factor around the pivot), their ends exact."""
    b, c = (
        (exact(low, name), exact(high, name))
        for (low, high), name in ((brightness, "brightness"), (contrast, "contrast"))
    )
    return Tone(b, c, "mean" if pivot == "mean" else exact(pivot, "the pivot"), cells)


def read_region(record: object) -> Region:
    """The region that `Region.record` wrote. Raises CertificateError for another form, InputError where its numbers make none."""
    match record:
        case {"eps": str() | list() as eps, "domain": [str() as lo, str() as hi]}:
            radii = tuple(exact(e, "eps") for e in (eps if isinstance(eps, list) else [eps]))
            domain = exact(lo, "the domain"), exact(hi, "the domain")
        case _:
            raise CertificateError("the certificate names no region")
    match record:
        case {"kind": "linf" | "box"}:
            return Region(radii, domain)
        case {"kind": "radii"}:
            return Region(radii, domain, per_sample=True)
        case _:
            return Region(radii, domain, _read_family(record))


def _read_family(record: object) -> Family:
    match record:
        case {"kind": "patch", "patch": [int() as height, int() as width]} if not {type(height), type(width)} - {int}:
            return Patch(height, width)
        case {
            "kind": "tone",
            "brightness": [str(), str()] as brightness,
            "contrast": [str(), str()] as contrast,
            "pivot": str() as pivot,
            "cells": int() as cells,
        } if type(cells) is int and cells > 0:  # True is an int to Python
            return tone((brightness[0], brightness[1]), (contrast[0], contrast[1]), pivot, cells)
        case {"kind": kind}:
            raise CertificateError(
                f"a region of kind {str(kind)[:40]!r}, which this version does not know, or of another form"
            )
        case _:
            raise CertificateError("the certificate names no kind of region")


def _down(x: Float64) -> Float64:
    return np.nextafter(x, -np.inf)


def _up(x: Float64) -> Float64:
    return np.nextafter(x, np.inf)


def _doubles(values: Sequence[Fraction], side: int) -> Float64:
    """The nearest doubles on that side of each: -1 below, 1 above."""
    return np.array([side * double_above(side * v) for v in values])


def _fractions(x: Float64) -> list[Fraction]:
    return [Fraction(v) for v in x.ravel().tolist()]


def _listed(at: Sequence[Fraction]) -> str:
    return ", ".join(str(v)[:40] for v in at) or "nothing"
