"""Input sets, in the user's units, and the boxes of codes they become.

A region is {clamp(w_f + n_f, lo, hi) for every feature f : |n_f| <= eps_f, w in the sample's family}, all real; the family is
the sample alone, which makes a ball or a box of it, or one of `families`. [lo, hi] is the sensor's domain, in which the
sample lies. A sensor value becomes a float32 before it is quantised, so the ends are computed exactly and moved outward to
float32 neighbours; the quantisation of a profile is non-decreasing, so it maps ends to ends. Nothing is ever rounded inward.

A region is covered by `count` boxes of codes a sample. Boxes are numbered sample by sample; any part of them can be computed
without the others, since there may be more than memory holds.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InputError, InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import quantised
from cactus_edge.ir.ops import Codes, Float32, Int64

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]
EVERY = slice(None)
Exact = Fraction | int | float | str
"""A number given exactly: "1/16", "0.1", an int, a Fraction; a float means its binary value (0.1 is not 1/10)."""

LARGEST = 2**100
"""Magnitude that no unit may exceed: far inside float32, so that no sum below overflows."""


def exact(value: Exact, name: str) -> Fraction:
    """`value` as a rational. Raises InputError, naming `name`, where it is not a finite number of sensible size."""
    if isinstance(value, str) and not re.fullmatch(r"[^eE]{1,400}([eE][+-]?\d\d?)?", value):
        raise InputError(f"{name} is {value[:40]!r}, expected a number", hint='write "1/16" or "0.1"')
    try:
        number = Fraction(value)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        raise InputError(f"{name} is {value!r}, expected a finite number", hint='write "1/16" or "0.1"') from None
    if abs(number) > LARGEST:
        raise InputError(f"{name} is {value!r}, expected a magnitude of at most 2^100")
    return number


class Family(Protocol):
    """What changes a sample as a whole, beyond each feature's own eps. Every kind is in `families`."""

    @property
    def kind(self) -> str: ...

    def record(self) -> dict[str, Any]:
        """Its exact parameters, for a certificate."""

    def count(self, shape: tuple[int, ...]) -> int:
        """Boxes that cover the family of one sample of this shape. Raises InputError where it has no meaning for it."""

    def moved(self, x: Float64, owner: Index, position: Index) -> tuple[Float64, Float64, Bools | None]:
        """Bounds on w in box `position` [M] of sample `owner` [M] of x [N, *shape], and which features take any value of the domain.

        Two arrays [M, *shape], rounded outward, and a third of bools; None for no feature.
        """

    def member(self, x: Float64, at: Sequence[Fraction]) -> tuple[list[Fraction], Bools | None]:
        """w exactly, at the parameters `at`, for one sample x [*shape], by feature; and which take any value of the domain.

        Raises InputError where `at` is outside the family.
        """


@dataclass(frozen=True)
class Region:
    """Everything within eps (one, or one per feature, row-major) of what the family makes of a sample, clamped to the domain.

    per_sample: eps is one per sample instead, and there is no family.
    """

    eps: tuple[Fraction, ...]
    domain: tuple[Fraction, Fraction]
    family: Family | None = None
    per_sample: bool = False

    def __post_init__(self) -> None:
        lo, hi = self.domain
        if self.per_sample and self.family is not None:
            raise InputError(
                f"one eps per sample in a region of kind {self.family.kind}, expected one without a family"
            )
        if not lo < hi:
            raise InputError(f"the domain is [{lo}, {hi}], expected its lower end below its upper end")
        for e in self.eps:
            if not 0 <= e <= hi - lo:
                raise InputError(
                    f"eps is {e}, expected a number from 0 to {hi - lo}, the range of the domain [{lo}, {hi}]"
                )

    @property
    def kind(self) -> str:
        """Without a family "linf" (one eps), "box" (one per feature) or "radii" (one per sample)."""
        if self.family is not None:
            return self.family.kind
        if self.per_sample:
            return "radii"
        return "linf" if len(self.eps) == 1 else "box"

    def record(self) -> dict[str, Any]:
        """For a certificate, in exact fractions; `families.read_region` reads it."""
        eps: str | list[str] = (
            str(self.eps[0]) if len(self.eps) == 1 and not self.per_sample else [str(e) for e in self.eps]
        )
        family = {} if self.family is None else self.family.record()
        return {"kind": self.kind, "eps": eps, "domain": [str(d) for d in self.domain], **family}

    def of(self, part: slice | Index) -> Region:
        """The region of some of the samples."""
        return replace(self, eps=tuple(np.array(self.eps, object)[part])) if self.per_sample else self

    def count(self, shape: tuple[int, ...]) -> int:
        """Boxes of one sample of this shape."""
        return 1 if self.family is None else self.family.count(shape)

    def boxes(self, program: Program, x: npt.NDArray[Any], part: slice = EVERY) -> tuple[Codes, Codes, Index]:
        """The boxes number `part` of the samples x as codes: lower, upper [M, *shape], and whose each is, ascending [M].

        x [N, *shape]: float32 or float64 in sensor units, or codes, which stand for scale * (q - zero_point). Sample n has the
        boxes n count .. (n + 1) count - 1. Raises as `ends` does.
        """
        lower, upper, owner = self.ends(real(program, x), part)
        return program.quantize.lowest(lower), program.quantize.highest(upper), owner

    def ends(self, x: npt.NDArray[Any], part: slice = EVERY) -> tuple[Float32, Float32, Index]:
        """The smallest float32 boxes that hold every float32 a real member of the region may be rounded to, in any direction.

        x [N, *shape] float32 or float64, finite, inside the domain -> lower, upper float32 [M, *shape], owner [M].
        Of a family with ranges each box is that of one cell of them. Raises DataError where x is not that, InputError where
        the number of eps differs from the number of features or the family has no meaning for the shape.
        """
        shape, eps = x.shape[1:], self.eps
        each = self.count(shape)
        if self.per_sample and len(eps) != len(x):
            raise InputError(f"{len(eps)} values of eps for {len(x)} samples, expected one per sample")
        numbers = range(len(x) * each)[part]
        owner, position = np.divmod(np.arange(numbers.start, numbers.stop), each)
        first = int(owner[0]) if len(owner) else 0
        x = x[first : int(owner[-1]) + 1 if len(owner) else 0].astype(np.float64)
        low, high = (float32_below(d) for d in self.domain)
        self._check(x, first)
        if self.family is None:
            lower, upper, free = x, x, None
        else:
            lower, upper, free = self.family.moved(x, owner - first, position)
        radius: Float64 = np.array(
            [double_above(e) for e in (eps[first : first + len(owner)] if self.per_sample else eps)]
        )
        if self.per_sample:
            radius = radius.reshape(-1, *(1,) * len(shape))
        elif len(eps) != 1:
            radius = radius.reshape(shape)
        over, above = (-float32_below(-d) for d in self.domain)
        under32 = np.clip(below(lower, radius), low, high)
        over32 = np.clip(-below(-upper, radius), over, above)
        if free is not None:
            under32[free], over32[free] = low, above
        return under32, over32, owner

    def around(self, program: Program, x: npt.NDArray[Any], at: Sequence[Fraction]) -> tuple[Codes, Codes]:
        """The codes that one member w of the family of one sample x [*shape], at the parameters `at`, may become: lower, upper.

        Exactly those, each feature by itself: for a family with ranges this is sharper than any box. Raises as `ends` does.
        """
        if self.family is None:
            raise InternalError("a region without a family has no members")
        x = real(program, x).astype(np.float64)
        self._check(x[None], 0)
        exactly, free = self.family.member(x, at)
        eps = self.eps * len(exactly) if len(self.eps) == 1 else self.eps
        lo, hi = self.domain
        lower = np.array([float32_below(min(max(v - e, lo), hi)) for v, e in zip(exactly, eps, strict=True)])
        upper = np.array([-float32_below(-min(max(v + e, lo), hi)) for v, e in zip(exactly, eps, strict=True)])
        if free is not None:
            lower[free.ravel()], upper[free.ravel()] = float32_below(lo), -float32_below(-hi)
        quantize = program.quantize
        return quantize.lowest(lower.reshape(x.shape)), quantize.highest(upper.reshape(x.shape))

    def require_inside(self, program: Program, x: npt.NDArray[Any]) -> None:
        """Raises what `boxes` raises for samples outside the domain, before any work."""
        if x.dtype != program.input_tensor.dtype:
            self._check(x.astype(np.float64), 0)

    def _check(self, x: Float64, first: int) -> None:
        low, high = float32_below(self.domain[0]), -float32_below(-self.domain[1])
        features = math.prod(x.shape[1:])
        if not self.per_sample and len(self.eps) not in (1, features):
            raise InputError(f"{len(self.eps)} values of eps for {features} features, expected one, or one per feature")
        if not ((x >= low) & (x <= high)).all():
            raise _outside(x, first, low, high, self.domain)


def region(
    program: Program,
    eps: Exact | Sequence[Exact],
    domain: tuple[Exact, Exact] | None = None,
    family: Family | None = None,
    per_sample: bool = False,
) -> Region:
    """The region of `program`'s inputs with radius `eps`, in the unit of the data (real = scale * (q - zero_point)).

    family, per_sample: as in `Region`. domain: the sensor's range; None for everything the input tensor can represent. Raises InputError.
    """
    given = [eps] if isinstance(eps, str | Fraction | int | float) else list(eps)
    radii = tuple(exact(e, "eps") for e in given)
    if domain is not None:
        lo, hi = (exact(d, "an end of the domain") for d in domain)
        return Region(radii, (lo, hi), family, per_sample)
    scale, zero_point = Fraction(program.quantize.scale), program.quantize.zero_point
    least, most = program.codes
    return Region(radii, (scale * (least - zero_point), scale * (most - zero_point)), family, per_sample)


def box(program: Program, region: Region, x: npt.NDArray[Any]) -> tuple[Codes, Codes]:
    """`Region.boxes` of a region that is one box around each sample: lower, upper [N, *shape]."""
    lower, upper, _ = region.boxes(program, x)
    if len(lower) != len(x):
        raise InternalError(f"a region of kind {region.kind} is not one box")
    return lower, upper


class Boxes:
    """`Region.boxes` of one data set x, with a memo: a sensor of 8 bits delivers 256 values, whose boxes are computed once.

    A part is answered from the memo only where every element equals, as a float, the one its box was computed from.
    """

    SLOTS = 256

    def __init__(self, program: Program, region: Region, x: npt.NDArray[Any]) -> None:
        self.program, self.region, self.x = program, region, x
        lo, hi = (float(d) for d in region.domain)
        # A domain that is narrower than doubles tell apart, or than float32 slots can number, is not worth a table.
        self._useful = region.kind == "linf" and x.dtype == np.float32 and hi - lo > self.SLOTS * 2.0**-100
        if self._useful:
            self._lo, self._scale = np.float32(lo), np.float32((self.SLOTS - 1) / (hi - lo))
            low, high = float32_below(region.domain[0]), -float32_below(-region.domain[1])
            seen = x[: self.SLOTS].ravel()
            seen = seen[(seen >= low) & (seen <= high)]
            self._values = np.full(self.SLOTS, low)
            self._values[self._slot(seen)] = seen
            self._lower, self._upper = box(program, region, self._values)

    def __call__(self, part: slice = EVERY) -> tuple[Codes, Codes, Index]:
        """The same as region.boxes(program, x, part)."""
        if self._useful:
            rows = self.x[part]
            slot = self._slot(rows)
            if (self._values[slot] == rows).all():
                return self._lower[slot], self._upper[slot], np.arange(len(self.x))[part]
        return self.region.boxes(self.program, self.x, part)

    def _slot(self, x: Float32) -> Index:
        with np.errstate(over="ignore", invalid="ignore"):
            position = np.rint((x - self._lo) * self._scale)
        # NaN falls into a slot whose value it does not equal.
        slots: Index = np.fmin(np.fmax(position, 0), self.SLOTS - 1).astype(np.intp)
        return slots


def real(program: Program, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """x in sensor units: codes stand for scale * (q - zero_point), exactly; anything else is in them already."""
    if x.dtype != program.input_tensor.dtype:
        return x
    # A float32 scale times a 17-bit integer is a double: no rounding.
    return program.quantize.scale * (x.astype(np.float64) - program.quantize.zero_point)


def points(program: Program, x: npt.NDArray[Any]) -> Codes:
    """The samples themselves as codes of the program's input."""
    return quantised(program, x.astype(np.float32) if x.dtype == np.float64 else x)


def point_boxes(program: Program, x: npt.NDArray[Any]) -> tuple[Codes, Codes]:
    """The least and the largest codes that the samples themselves may become; the same ones where the rule is one function."""
    samples = x.astype(np.float32) if x.dtype == np.float64 else x
    codes = quantised(program, samples)
    if samples.dtype == program.input_tensor.dtype or program.quantize.definite:
        return codes, codes
    return program.quantize.lowest(samples), program.quantize.highest(samples)


def check_data(program: Program, x: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Int64:
    """The labels [N] as int64, once x and they fit the program. Raises DataError saying what is expected."""
    shape = program.values[program.input].shape
    dtype = program.input_tensor.dtype
    if x.dtype not in (np.float32, np.float64, dtype):
        raise DataError(f"the data are {x.dtype}, expected float32 or float64 in sensor units, or {dtype} codes")
    if x.ndim == 0 or x.shape[1:] != shape:
        raise DataError(f"the data have shape {x.shape}, expected [samples, {', '.join(map(str, shape))}]")
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"the labels are {labels.dtype} {labels.shape}, expected one integer for each of {len(x)} samples"
        )
    classes = program.output_tensor.size
    if len(x) == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"expected at least one sample, and labels in 0..{classes - 1}")
    return labels.astype(np.int64)


def data_digest(x: npt.NDArray[Any], labels: npt.NDArray[Any]) -> str:
    """SHA-256 (hex) over the dtype, shape and little-endian bytes of x and of the labels as int64. DataError for other labels."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"the labels are {labels.dtype}, expected integers")
    h = hashlib.sha256()
    for array in (x, labels.astype(np.int64)):
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        h.update(f"{little.dtype.str} {little.shape}\n".encode())
        h.update(little.data)
    return h.hexdigest()


def float32_below(value: Fraction) -> np.float32:
    """The largest float32 <= value."""
    near = np.float32(float(value))
    return near if Fraction(float(near)) <= value else np.nextafter(near, np.float32(-np.inf))


def below(x: Float64, radius: Float64) -> Float32:
    """The largest float32 <= x - radius (exact, not rounded), for finite doubles far from overflow.

    TwoSum: s = fl(x - radius) and an `error` that is a double, s + error = x - radius exactly (Knuth, TAOCP 2, 4.2.2
    theorem B). With f the float32 nearest to s, f - s is exact (Sterbenz), so f > x - radius iff f - s > error; then the
    float32 under f is the answer, because s + error is no further from s than half a unit in the last place of a double.
    """
    s = x - radius
    back = s - x
    error = (x - (s - back)) - (radius + back)
    near = s.astype(np.float32)
    over = (near - s) > error
    near[over] = np.nextafter(near[over], np.float32(-np.inf))
    return near


def double_above(value: Fraction) -> float:
    """The least double >= value."""
    near = float(value)
    return near if Fraction(near) >= value else float(np.nextafter(near, np.inf))


def _outside(x: Float64, first: int, low: np.float32, high: np.float32, domain: tuple[Fraction, Fraction]) -> DataError:
    sample = int(np.argwhere(~((x >= low) & (x <= high)))[0][0])
    values = x[sample][~((x[sample] >= low) & (x[sample] <= high))]
    return DataError(
        f"sample {first + sample} holds {values[0]}, expected finite values in the domain [{domain[0]}, {domain[1]}]",
        hint="check the unit of the data and --domain",
    )
