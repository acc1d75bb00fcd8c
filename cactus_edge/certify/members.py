"""Looks for members of a family with ranges that a label does not win: on a grid of the parameters, and by random ones.

Untrusted search: the grid is run on codes computed in doubles; what loses there counts only once `verify.counterexamples` has replayed
the member of those exact parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.counterexamples import Parameters, refuted, strict_wins
from cactus_edge.verify.families import Tone
from cactus_edge.verify.regions import Region, real

GRID = 257
"""Points in the grid of one range; of two ranges each has the square root of it."""

RANDOM = 64
"""Random points beside the grid."""

TRIES = 4
"""Members of one sample that are replayed exactly, of those that lose by the grid, before it counts as not found."""


def losing_members(
    program: Program, region: Region, x: npt.NDArray[Any], labels: Int64, samples: Iterable[int], *, seed: int = 0
) -> dict[int, Parameters]:
    """Parameters of a member that its label does not win strictly, for those of `samples` for which one is found.

    x [N, *input shape]; the region's family is a `Tone`. Deterministic by seed. Raises InputError for a program that is several.
    """
    family = region.family
    assert isinstance(family, Tone)
    places = _places(family, np.random.default_rng(seed))
    found = {}
    for i in samples:
        codes = _near(program, region, family, x[i], places)
        lost = np.flatnonzero(~strict_wins(program, codes, np.full(len(codes), labels[i])))
        for k in lost[:: -(-len(lost) // TRIES) or 1]:
            try:
                refuted(program, region, x, labels, {i: places[k]})
            except CertificateError:
                continue  # a tie, which the exact member rounds the other way
            found[i] = places[k]
            break
    return found


def _places(family: Tone, rng: np.random.Generator) -> list[Parameters]:
    """Parameters to try: a grid over the ranges with their ends, then random ones."""
    ranges = (family.brightness, family.contrast)
    points = GRID if any(low == high for low, high in ranges) else round(GRID**0.5)
    axes = [
        [low] if low == high else [low + (high - low) * k / (points - 1) for k in range(points)] for low, high in ranges
    ]
    drawn = rng.integers(0, 2**20, (RANDOM, 2), endpoint=True).tolist()
    random = [
        tuple(low + (high - low) * Fraction(k, 2**20) for k, (low, high) in zip(pair, ranges, strict=True))
        for pair in drawn
    ]
    return [*product(*axes), *random]


def _near(program: Program, region: Region, family: Tone, x: npt.NDArray[Any], places: list[Parameters]) -> Codes:
    """The codes of the members of one sample at each of the places, but for rounding."""
    at = np.array(places, np.float64).reshape(-1, 2, *(1,) * x.ndim)
    value = real(program, x).astype(np.float64)
    pivot = value.mean() if family.pivot == "mean" else float(family.pivot)
    low, high = (float(end) for end in region.domain)
    moved = np.clip(at[:, 1] * (value - pivot) + pivot + at[:, 0], low, high)
    return program.quantize.apply(moved.astype(np.float32))
