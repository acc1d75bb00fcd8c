"""What the torch engines share: calls of one size, and the random tile on which they must equal numpy bit for bit.

A library picks its algorithm by shape, so a shape that was compared is the only one that is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cactus_edge.errors import InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes
from cactus_edge.verify.interval import Bounds

TILE = 64
"""Samples of one call of a kernel: the arrays of a small network's layer stay near the cache."""


def tiled(run: Callable[[Codes, Codes], list[Bounds]], lower: Codes, upper: Codes) -> list[Bounds]:
    """run(lower, upper) in tiles of TILE boxes [TILE, *shape]; the last one is filled up with repetitions."""
    count = len(lower)
    if count == TILE:
        return run(lower, upper)
    if count % TILE:
        full = np.arange(-(-count // TILE) * TILE).clip(max=count - 1)
        lower, upper = lower[full], upper[full]
    tiles = [run(lower[i : i + TILE], upper[i : i + TILE]) for i in range(0, len(lower), TILE)]
    joined = (
        tuple(np.concatenate(side)[:count] for side in zip(*bounds, strict=True)) for bounds in zip(*tiles, strict=True)
    )
    return [(lo, hi) for lo, hi in joined]


def random_boxes(program: Program, shape: tuple[int, ...]) -> tuple[Codes, Codes]:
    """(lower, upper) codes [TILE, *shape]: a quarter points, a quarter everything, the rest random boxes."""
    least, most = program.codes
    a, b = np.random.default_rng(1).integers(least, most, (2, TILE, *shape), program.input_tensor.dtype, endpoint=True)
    lower, upper = np.minimum(a, b), np.maximum(a, b)
    upper[: TILE // 4] = lower[: TILE // 4]
    lower[TILE // 4 : TILE // 2], upper[TILE // 4 : TILE // 2] = least, most
    return lower, upper


def require_equal(program: Program, value: int, got: Bounds, want: Bounds) -> None:
    """Raises InternalError where the bounds of a value are not those that numpy computes."""
    if not all(np.array_equal(g, w) for g, w in zip(got, want, strict=True)):
        raise InternalError(f"torch's bounds of {program.values[value].name!r} differ from numpy's")
