"""Input sets, in the user's units, and the boxes of codes they become.

A region is {v : |v_f - x_f| <= eps_f and lo <= v_f <= hi for every feature f}, v real. A sensor value becomes a float32
before it is quantised, so the ends are computed exactly and moved outward to float32 neighbours; the quantisation of a
profile is non-decreasing, so it maps ends to ends. Nothing is ever rounded inward.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InputError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import quantised
from cactus_edge.ir.ops import Codes, Float32, Int64

Float64 = npt.NDArray[np.float64]
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


@dataclass(frozen=True)
class Region:
    """The l-inf ball (one eps) or box (one eps per feature, row-major) around each sample, within the sensor's domain."""

    eps: tuple[Fraction, ...]
    domain: tuple[Fraction, Fraction]

    def __post_init__(self) -> None:
        lo, hi = self.domain
        if not lo < hi:
            raise InputError(f"the domain is [{lo}, {hi}], expected its lower end below its upper end")
        for e in self.eps:
            if not 0 <= e <= hi - lo:
                raise InputError(
                    f"eps is {e}, expected a number from 0 to {hi - lo}, the range of the domain [{lo}, {hi}]"
                )

    @property
    def kind(self) -> str:
        """Either "linf" (one eps) or "box" (one per feature)."""
        return "linf" if len(self.eps) == 1 else "box"

    def ends(self, x: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """The smallest float32 box that holds every float32 a real v of the region may be rounded to, in any direction.

        x [N, *shape] float32 or float64, finite, inside the domain -> lower, upper float32 [N, *shape].
        Raises DataError where x is not that, InputError where the number of eps differs from the number of features.
        """
        low, high = float32_below(self.domain[0]), -float32_below(-self.domain[1])
        features = int(np.prod(x.shape[1:], dtype=np.int64))
        if len(self.eps) not in (1, features):
            raise InputError(f"{len(self.eps)} values of eps for {features} features, expected one, or one per feature")
        if not ((x >= low) & (x <= high)).all():
            raise _outside(x, low, high, self.domain)
        centre = x.astype(np.float64)
        radius: Float64 = np.array([_double_above(e) for e in self.eps])
        radius = radius if len(self.eps) == 1 else radius.reshape(x.shape[1:])
        return np.maximum(below(centre, radius), low), np.minimum(-below(-centre, radius), high)


def region(program: Program, eps: Exact | Sequence[Exact], domain: tuple[Exact, Exact] | None = None) -> Region:
    """The region of `program`'s inputs with radius `eps`, in the unit of the data (real = scale * (q - zero_point)).

    domain: the sensor's range; None for everything the input tensor can represent. Raises InputError.
    """
    given = [eps] if isinstance(eps, str | Fraction | int | float) else list(eps)
    radii = tuple(exact(e, "eps") for e in given)
    if domain is not None:
        lo, hi = (exact(d, "an end of the domain") for d in domain)
        return Region(radii, (lo, hi))
    scale, zero_point = Fraction(program.quantize.scale), program.quantize.zero_point
    least, most = program.codes
    return Region(radii, (scale * (least - zero_point), scale * (most - zero_point)))


def box(program: Program, region: Region, x: npt.NDArray[Any]) -> tuple[Codes, Codes]:
    """The region around each sample as codes of the program's input: lower, upper [N, *shape].

    x [N, *shape]: float32 or float64 in sensor units, or codes, which stand for scale * (q - zero_point).
    """
    lower, upper = region.ends(_real(program, x))
    return program.quantize.lowest(lower), program.quantize.highest(upper)


class Boxes:
    """`box` for batches of one data set, with a memo: a sensor of 8 bits delivers 256 values, whose boxes are computed once.

    A batch is answered from the memo only where every element equals, as a float, the one its box was computed from.
    """

    SLOTS = 256

    def __init__(self, program: Program, region: Region, x: npt.NDArray[Any]) -> None:
        self.program, self.region = program, region
        self._useful = region.kind == "linf" and x.dtype == np.float32
        if self._useful:
            lo, hi = (float(d) for d in region.domain)
            self._lo, self._scale = np.float32(lo), np.float32((self.SLOTS - 1) / (hi - lo))
            low, high = float32_below(region.domain[0]), -float32_below(-region.domain[1])
            seen = x[: self.SLOTS].ravel()
            seen = seen[(seen >= low) & (seen <= high)]
            self._values = np.full(self.SLOTS, low)
            self._values[self._slot(seen)] = seen
            self._lower, self._upper = box(program, region, self._values)

    def __call__(self, x: npt.NDArray[Any]) -> tuple[Codes, Codes]:
        """The same as box(program, region, x)."""
        if self._useful:
            slot = self._slot(x)
            if (self._values[slot] == x).all():
                return self._lower[slot], self._upper[slot]
        return box(self.program, self.region, x)

    def _slot(self, x: Float32) -> npt.NDArray[np.intp]:
        with np.errstate(over="ignore", invalid="ignore"):
            position = np.rint((x - self._lo) * self._scale)
        # NaN falls into a slot whose value it does not equal.
        slots: npt.NDArray[np.intp] = np.fmin(np.fmax(position, 0), self.SLOTS - 1).astype(np.intp)
        return slots


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


def _double_above(value: Fraction) -> float:
    near = float(value)
    return near if Fraction(near) >= value else float(np.nextafter(near, np.inf))


def _real(program: Program, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if x.dtype != program.input_tensor.dtype:
        return x
    # A float32 scale times a 17-bit integer is a double: no rounding.
    return program.quantize.scale * (x.astype(np.float64) - program.quantize.zero_point)


def _outside(x: npt.NDArray[Any], low: np.float32, high: np.float32, domain: tuple[Fraction, Fraction]) -> DataError:
    sample = int(np.argwhere(~((x >= low) & (x <= high)))[0][0])
    values = x[sample][~((x[sample] >= low) & (x[sample] <= high))]
    return DataError(
        f"sample {sample} holds {values[0]}, expected finite values in the domain [{domain[0]}, {domain[1]}]",
        hint="check the unit of the data and --domain",
    )
