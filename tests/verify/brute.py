"""What verdicts are measured against: concrete executions of the definition, every point of a box where there are few."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from strategies import random_graph

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import evaluate
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Monotone, Program
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.rules import Requantise

Array = npt.NDArray[Any]
TFLM = profile("tflm")
FEW = 2_000
"""Points up to which a box is enumerated."""


def programs(seed: int, count: int, *, arithmetic: Profile = TFLM, **options: Any) -> list[Program]:
    """Random networks that the profile runs, each from a seed of its own."""
    found: list[Program] = []
    while len(found) < count:
        seed += 1
        try:
            found.append(lower(random_graph(np.random.default_rng(seed), **options), arithmetic))
        except UnsupportedError:
            continue
    return found


def boxes(rng: np.random.Generator, shape: tuple[int, ...], n: int) -> tuple[Array, Array, Array]:
    """lower <= x <= upper int8 [n, *shape]: points, a few moving features, balls, everything."""
    size = int(np.prod(shape))
    x = rng.integers(-128, 128, (n, size))
    radius = np.zeros((n, size), np.int64)
    for i in range(n):
        some = rng.choice(size, min(size, int(rng.integers(1, 7))), replace=False)
        match i % 5:
            case 0:
                radius[i, some] = 1
            case 1:
                radius[i, some] = rng.integers(0, 12, len(some))
            case 2:
                radius[i] = rng.integers(0, 4)
            case 3:
                radius[i] = rng.integers(0, 40)
            case _:
                radius[i, some] = 255
    lo, hi = np.clip(x - radius, -128, 127), np.clip(x + radius, -128, 127)
    return tuple(a.reshape(n, *shape).astype(np.int8) for a in (lo, x, hi))  # type: ignore[return-value]


def inside(rng: np.random.Generator, lo: Array, hi: Array) -> tuple[Array, bool]:
    """(points of one box int8 [M, *shape], whether they are all of them): else random points and random corners."""
    low, high = lo.astype(int).ravel(), hi.astype(int).ravel()
    moving = np.flatnonzero(low < high)
    if np.log(high - low + 1.0).sum() <= np.log(FEW):
        grid = np.meshgrid(*[np.arange(low[i], high[i] + 1) for i in moving], indexing="ij")
        points = np.repeat(low[None], max(grid[0].size if grid else 1, 1), 0)
        for i, axis in zip(moving, grid, strict=True):
            points[:, i] = axis.ravel()
        return points.reshape(-1, *lo.shape).astype(np.int8), True
    uniform = rng.integers(low, high + 1, (40, low.size))
    corners = np.where(rng.random((40, low.size)) < 0.5, low, high)
    return np.concatenate([uniform, corners]).reshape(-1, *lo.shape).astype(np.int8), False


def margins(program: Program, points: Array, label: int) -> Array:
    """out_label - max of the others at the file's output, int64 [M]."""
    out = evaluate.run(program, points).reshape(len(points), -1).astype(np.int64)
    return out[:, label] - np.delete(out, label, 1).max(1)


def with_rules(program: Program, **changes: Any) -> Program:
    """The program with fields of every requantisation replaced (a number: added to the field)."""

    def changed(rule: Requantise) -> Requantise:
        fields = {k: getattr(rule, k) + v if isinstance(v, int) else v for k, v in changes.items()}
        return replace(rule, **fields)

    steps = tuple(
        replace(s, atom=Monotone(changed(s.atom.rule)))
        if isinstance(s.atom, Monotone) and isinstance(s.atom.rule, Requantise)
        else s
        for s in program.steps
    )
    return replace(program, steps=steps)
