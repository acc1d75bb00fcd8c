"""How finely the ranges of a family are cut: doubled until every sample is decided, or it no longer pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.verify.decide import Decision
from cactus_edge.verify.families import Tone
from cactus_edge.verify.regions import Region

MOST_BOXES = 256
"""Boxes of a sample up to which cells are doubled: with one range 256 cells, with two 16 of each."""

IDLE = 4
"""Doublings in a row that decide nothing more, after which it is given up."""

Data = npt.NDArray[Any]


def with_cells(decide: Callable[[Region, Data, Data], Decision], region: Region, x: Data, labels: Data) -> Region:
    """`region` with its cells chosen, where they are not: the fewest, a power of two, with which decide(region, x, labels) certifies most.

    Cells within cells are never wider, so what intervals certify with some cells they certify with twice as many.
    """
    if not isinstance(region.family, Tone) or region.family.cells:
        return region
    best = at = _cut(region, region.family, 1)
    left, idle, cells = np.arange(len(labels)), 0, 1
    while len(left) and idle <= IDLE and at.count(x.shape[1:]) <= MOST_BOXES:
        decision = decide(at, x[left], labels[left])
        if decision.certified.any():
            best, idle = at, 0
        left = left[decision.correct & ~decision.certified]
        idle += 1
        cells *= 2
        at = _cut(region, region.family, cells)
    return best


def _cut(region: Region, family: Tone, cells: int) -> Region:
    return replace(region, family=replace(family, cells=cells))
