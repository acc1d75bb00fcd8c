"""How far each sample can be certified: brackets between the largest radius that was proved and the smallest that was refuted.

Radii are whole steps, by default of the input's quantisation: between two of them no code changes for data on the sensor's
grid, so a bracket of one step is the answer. Bisection only chooses what to try. Nothing rests on a proof at one radius
holding at a smaller one: every radius that is reported as certified was proved itself, and every one reported as refuted has a
counterexample inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.regions import Bools, Index, Region, box

Array = npt.NDArray[Any]

NONE = -1
"""In place of a number of steps: at no radius."""

Proved = Callable[[Index, Int64], Bools]
"""(samples, steps of each) -> whether each was proved at its radius."""

Attacked = Callable[[Codes, Codes, Index], tuple[Bools, Codes]]
"""(lower, upper, samples) -> whether each has a counterexample between its codes, and the counterexamples."""


@dataclass(frozen=True)
class Scale:
    """Radii of `program`'s inputs in steps of `step`, in the unit of the data, up to `most` steps: the whole domain."""

    step: Fraction
    domain: tuple[Fraction, Fraction]

    @property
    def most(self) -> int:
        """The largest number of steps that a radius can have."""
        lo, hi = self.domain
        return int((hi - lo) / self.step)

    def region(self, steps: Int64) -> Region:
        """The region with these radii, one per sample; radius 0 for NONE."""
        return Region(tuple(max(n, 0) * self.step for n in steps.tolist()), self.domain, per_sample=True)


@dataclass(frozen=True, eq=False)
class Brackets:
    """Per sample [N] in steps: the largest radius proved, the smallest with a counterexample, NONE for neither; the counterexamples."""

    scale: Scale
    certified: Int64
    refuted: Int64
    witnesses: dict[int, Codes]

    def radii(self, steps: Int64) -> list[Fraction | None]:
        """In the unit of the data, exactly."""
        return [None if n == NONE else n * self.scale.step for n in steps.tolist()]


def largest(proved: Proved, count: int, most: int) -> Int64:
    """For each of `count` samples the largest number of steps in 0..most that bisection finds proved; NONE for none.

    Doubles the radius while it is proved, then halves the gap.
    """
    low, high = np.full(count, NONE), np.full(count, most + 1)
    while (left := np.flatnonzero(high - low > 1)).size:
        lo, hi = low[left], high[left]
        steps = np.where(hi > most, np.minimum(np.maximum(2 * lo, lo + 1), most), (lo + hi) // 2)
        good = proved(left, steps)
        low[left[good]] = steps[good]
        high[left[~good]] = steps[~good]
    return low


def smallest(
    program: Program, scale: Scale, x: Array, certified: Int64, attacked: Attacked
) -> tuple[Int64, dict[int, Codes]]:
    """(steps, counterexamples): for each sample the smallest number of steps at which bisection finds a counterexample; NONE.

    A counterexample counts at the smallest radius that holds it. certified: below which nobody has to look. Raises
    InternalError for one at a radius that was proved.
    """
    low, high = certified.copy(), np.full(len(x), scale.most + 1)
    gap, found = np.ones(len(x), np.int64), dict[int, Codes]()
    while (left := np.flatnonzero(high - low > 1)).size:
        lo, hi = low[left], high[left]
        steps = np.where(hi > scale.most, np.minimum(lo + gap[left], scale.most), (lo + hi) // 2)
        lower, upper = box(program, scale.region(steps), x[left])
        fell, points = attacked(lower, upper, left)
        low[left[~fell]] = steps[~fell]
        gap[left[~fell]] *= 2
        hit = left[fell]
        high[hit] = held(program, scale, x[hit], points[fell], steps[fell])
        found |= {int(i): point for i, point in zip(hit, points[fell], strict=True)}
        wrong = hit[high[hit] <= certified[hit]]
        if len(wrong):
            raise InternalError(
                f"sample {wrong[0]} is certified within {certified[wrong[0]]} steps and has a counterexample within "
                f"{high[wrong[0]]}",
                hint="please report this model",
            )
    high[high > scale.most] = NONE
    return high, found


def held(program: Program, scale: Scale, x: Array, points: Codes, most: Int64) -> Int64:
    """The smallest radius in steps, at most `most`, whose codes hold each point."""
    low, high = np.full(len(x), NONE), most.copy()
    while (left := np.flatnonzero(high - low > 1)).size:
        steps = (low[left] + high[left]) // 2
        lower, upper = box(program, scale.region(steps), x[left])
        inside = ((points[left] >= lower) & (points[left] <= upper)).reshape(len(left), -1).all(1)
        high[left[inside]] = steps[inside]
        low[left[~inside]] = steps[~inside]
    return high
