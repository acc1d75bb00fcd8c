"""The seam of objectives: what one is given about a network of the set, and what it gives back.

An objective looks at the batch once (`aim`: adversarial points, smaller boxes, found on the full network and shared by the
members), then yields one loss a member (`of`). It knows nothing of sets, stages or schedules; `cactus.members` averages any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cactus_edge.errors import InternalError
from cactus_edge.train.bounds import Bounds, Box, propagate
from cactus_edge.train.folded import Folded, forward


@dataclass(frozen=True)
class Step:
    """The schedule's values at one step. progress in [0, 1]; eps in sensor units; robust_weight is lambda.

    part: how much of the stage's epochs is over, in [0, 1).
    """

    progress: float
    eps: float
    robust_weight: float
    part: float = 0.0


@dataclass(frozen=True)
class Batch:
    """x [N, C, H, W] in sensor units, y int64 [N], and the region around x that has to keep its class.

    points: adversarial points [N, C, H, W] in the region, or mutations of x, where the objective asked for some. seed: of what an
    objective draws, such as random starts. domain: ends of the sensor's range.
    views: other pictures [N, C, H, W] of the same samples, that should be told as x is; empty where the recipe asks for none.
    """

    x: Tensor
    y: Tensor
    region: Box
    points: Tensor | None = None
    seed: int = 0
    views: tuple[Tensor, ...] = ()
    domain: tuple[float, float] = (0.0, 1.0)

    def part(self, count: int) -> Batch:
        """Its first `count` samples, without points and views."""
        region = Box(self.region.centre[:count], self.region.radius[:count])
        return Batch(self.x[:count], self.y[:count], region, seed=self.seed, domain=self.domain)


@dataclass(frozen=True)
class Member:
    """One network of the set. clean: its logits [N, classes] over the batch, where a pass has them already."""

    net: Folded
    clean: Tensor | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Its logits [N, classes] over the clean batch x."""
        return forward(self.net, x) if self.clean is None else self.clean


def attacked_logits(member: Member, batch: Batch) -> Tensor:
    """The member's logits [N, classes] at the batch's adversarial points."""
    if batch.points is None:
        raise InternalError("the batch was not aimed at")
    return forward(member.net, batch.points)


@dataclass(frozen=True)
class MemberLoss:
    """loss: scalar to differentiate; bounds: what its robust part came from, None where nothing was bounded."""

    loss: Tensor
    bounds: Bounds | None


def nothing_to_aim_at(_: Folded, batch: Batch, __: Step) -> Batch:
    """The batch as it is: for objectives that bound the whole region and attack nothing."""
    return batch


@dataclass(frozen=True)
class Loss:
    """An objective. aim: from the full network's clean pass, before any member; of: the loss of one member."""

    of: Callable[[Member, Batch, Step], MemberLoss]
    aim: Callable[[Folded, Batch, Step], Batch] = nothing_to_aim_at


Robust = Callable[[Member, Bounds, Batch, Step], Tensor]
"""The robust loss R of a member from its bounds, a scalar."""

Bound = Callable[[Member, Batch, Step], Bounds]
"""A member's bounds over the batch's region."""


def intervals(member: Member, batch: Batch, _: Step) -> Bounds:
    """Those of interval arithmetic."""
    return propagate(member.net, batch.region, batch.y)


def mixed(robust: Robust, bound: Bound = intervals) -> Callable[[Member, Batch, Step], MemberLoss]:
    """(1 - lambda) * CE(clean logits) + lambda * R: how a robust loss is weighed against the clean one, lambda the step's."""

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        bounds = bound(member, batch, step)
        hardened = robust(member, bounds, batch, step)
        clean = F.cross_entropy(member.logits(batch.x), batch.y)
        return MemberLoss((1 - step.robust_weight) * clean + step.robust_weight * hardened, bounds)

    return of
