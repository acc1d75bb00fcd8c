"""What a split of one accumulator of a part may gain for a line, from the line alone.

Where a sum has a > 0 of a rule, the line below it counts. At the lower knee t of a clamp that lies as far off as the part's
ends allow, s m (t - l) or (1 - s) m (u - t), whichever is less; the line above it, for a < 0, is off by its height above the
knee. At an upper knee the two are exchanged. A rule with few levels left is a step or two, which no line comes close to: there the
line's distance from the step counts, shared by the levels (in the spirit of BaBSR: Bunel et al., JMLR 2020, section 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FEW = 3
"""Steps of a rule's result within a part up to which a split between any two of them may gain something."""

FLAT = 1.5
"""Steps of a rule's result by which a clamp has to reach into the bounds for a knee."""


@dataclass(frozen=True, eq=False)
class Around:
    """A rule over its bounds low, high: the levels first to last; its slope m, 0 for none; level K is reached at (K + most) / m for
    sure; the slopes of the lines as parts of m, and their intercepts. Tensors that broadcast."""

    low: Tensor
    high: Tensor
    first: Tensor
    last: Tensor
    m: Tensor
    most: Tensor
    s: Tensor
    t: Tensor
    below: Tensor
    above: Tensor

    def knee(self, level: Tensor) -> Tensor:
        """At or a little above the threshold of the level."""
        return ((level + self.most) / self.m.clamp(min=1e-12)).ceil()

    def promise(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(score, level) of a split of each element where it has the coefficient a; a score of 0: no split."""
        levels, m = (self.last - self.first).clamp(min=1), self.m
        scores = []
        for upper, level in ((False, self.first + 1), (True, self.last)):
            knee = self.knee(level)
            inside = (knee > self.low) & (knee <= self.high) & (self.last > self.first) & (m > 0)
            over = self.t * m * knee + self.above - (level - 1)
            under = level - (self.s * m * knee + self.below)
            if upper:
                reach = m * (self.high - knee)
                touching = (self.t * reach).minimum((1 - self.t) * m * (knee - self.low))
                cost = under.where(a > 0, touching)
            else:
                reach = m * (knee - self.low)
                touching = (self.s * reach).minimum((1 - self.s) * m * (self.high - knee))
                cost = over.where(a < 0, touching)
            few = (under.where(a > 0, over) / levels).where(levels <= FEW, 0.0)
            scores.append((a.abs() * cost.maximum(few).where(reach > FLAT, few)).where(inside, 0.0))
        first, last = scores
        return first.maximum(last), (self.first + 1).where(first >= last, self.last)
