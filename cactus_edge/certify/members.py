"""Looks for members of a family that a label does not win. Untrusted: `verify.counterexamples` replays what is found.

Of ranges (`Tone`), parameters are tried on a grid and at random, on codes computed in doubles; of a patch, the windows where the
gradient of the margin promises most. What eps or a patch leaves free is then searched by `attack`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.attack import attack
from cactus_edge.certify.gradient import margin_gradient
from cactus_edge.certify.universal import universal
from cactus_edge.errors import InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.counterexamples import Member, Parameters, Witnesses, require_definite
from cactus_edge.verify.decide import Decision
from cactus_edge.verify.families import Patch, Tone
from cactus_edge.verify.regions import Float64, Region, points, real

GRID = 257
"""Points in the grid of one range; of two ranges each has the square root of it."""

RANDOM = 64
"""Random points beside the grid."""

TRIES = 8
"""Parameters of one sample around which `attack` searches: those that look worst."""

CHUNK, RESTARTS = 32, 3
"""Samples attacked together, and how often."""


def told(
    program: Program,
    region: Region,
    x: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    decision: Decision,
    *,
    members: bool = False,
    delta: bool = False,
) -> Witnesses:
    """members: those that lose, for samples that are right and not certified; delta: a universal perturbation."""
    require_definite(program)
    y = labels.astype(np.int64)
    left = np.flatnonzero(decision.correct & ~decision.certified).tolist()
    return Witnesses(
        losing_members(program, region, x, y, left) if members else None,
        universal(program, region, x, y) if delta else None,
    )


def losing_members(
    program: Program, region: Region, x: npt.NDArray[Any], labels: Int64, samples: Iterable[int], *, seed: int = 0
) -> dict[int, Member]:
    """A member that its label does not win strictly, for those of `samples`, indices into x [N, *input shape], where one is found.

    The region has a family. Deterministic by seed.
    """
    rng = np.random.default_rng(seed)
    places = _places(region.family, rng) if isinstance(region.family, Tone) else []
    found: dict[int, Member] = {}
    left = list(samples)
    for chunk in (left[k : k + CHUNK] for k in range(0, len(left), CHUNK)):
        tries = [(i, at) for i in chunk for at in _worst(program, region, x[i], int(labels[i]), places)]
        ends = [region.around(program, x[i], at) for i, at in tries]
        lower, upper = (np.stack(side) for side in zip(*ends, strict=True))
        owner = np.array([i for i, _ in tries])
        restarts = 0 if np.array_equal(lower, upper) else RESTARTS
        start = points(program, x[owner])
        tried = attack(program, lower, upper, labels[owner], start=start, restarts=restarts, seed=seed)
        for k in np.flatnonzero(tried.found):
            i, at = tries[k]
            found.setdefault(i, Member(at, None if np.array_equal(tried.witness[k], lower[k]) else tried.witness[k]))
    return found


def _worst(
    program: Program, region: Region, x: npt.NDArray[Any], label: int, places: list[Parameters]
) -> list[Parameters]:
    """At most TRIES parameters of one sample x [*shape] that look worst; of ranges among `places`."""
    match region.family:
        case Tone() as family:
            margins = _margins(program, _near(program, region, family, x, places), label)
            return [places[k] for k in np.argsort(margins, kind="stable")[:TRIES]]
        case Patch() as family:
            return _promising(program, family, x, label)
        case _:
            raise InternalError(f"no members are known of a region of kind {region.kind}")


def _places(family: Tone, rng: np.random.Generator) -> list[Parameters]:
    """Parameters to try: a grid over the ranges with their ends, then random ones."""
    ranges = (family.brightness, family.contrast)
    count = GRID if any(low == high for low, high in ranges) else round(GRID**0.5)
    axes = [
        [low] if low == high else [low + (high - low) * k / (count - 1) for k in range(count)] for low, high in ranges
    ]
    drawn = rng.integers(0, 2**20, (RANDOM, 2), endpoint=True).tolist()
    random = [
        tuple(low + (high - low) * Fraction(k, 2**20) for k, (low, high) in zip(pair, ranges, strict=True))
        for pair in drawn
    ]
    return [*product(*axes), *random]


def _near(program: Program, region: Region, family: Tone, x: npt.NDArray[Any], places: list[Parameters]) -> Codes:
    """The codes of the members of one sample at each of the places, but for rounding and noise."""
    at = np.array(places, np.float64).reshape(-1, 2, *(1,) * x.ndim)
    value = real(program, x).astype(np.float64)
    pivot = value.mean() if family.pivot == "mean" else float(family.pivot)
    low, high = (float(end) for end in region.domain)
    moved = np.clip(at[:, 1] * (value - pivot) + pivot + at[:, 0], low, high)
    return program.quantize.apply(moved.astype(np.float32))


def _margins(program: Program, codes: Codes, label: int) -> Int64:
    """out_label - max of the others, int64 [M]."""
    out = run(program, codes).reshape(len(codes), -1).astype(np.int64)
    margins: Int64 = out[:, label] - np.delete(out, label, 1).max(1)
    return margins


def _promising(program: Program, family: Patch, x: npt.NDArray[Any], label: int) -> list[Parameters]:
    """The windows whose filling lowers the linearised margin most."""
    start = points(program, x[None])
    gradient = margin_gradient(program, start, np.array([label]))[0]
    least, most = program.codes
    gain: Float64 = np.maximum(gradient * (start[0] - float(least)), gradient * (start[0] - float(most)))
    image = gain.reshape(*x.shape[:2], -1).sum(2)
    windows = np.lib.stride_tricks.sliding_window_view(image, (family.height, family.width)).sum((2, 3))
    best = np.argsort(-windows, axis=None, kind="stable")[:TRIES]
    return [(Fraction(row), Fraction(column)) for row, column in (divmod(int(k), windows.shape[1]) for k in best)]
