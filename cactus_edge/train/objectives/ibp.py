"""Interval bound propagation: loss and warm-up regulariser.

Sources: Gowal et al. 2018, arXiv 1810.12715 (loss); Shi et al. 2021, arXiv 2103.17268 (initialisation, in
`models.build`, and the regulariser).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cactus_edge.train.bounds import Bounds, Box
from cactus_edge.train.objectives.loss import Batch, Loss, Member, Step, mixed

TOLERANCE = 0.5
"""The regulariser is silent once the ratios it watches exceed this."""


def worst_case(_: Member, bounds: Bounds, batch: Batch, __: Step) -> Tensor:
    """Mean cross-entropy of the worst-case logits v_j = -lower(logit_y - logit_j), v_y = 0."""
    return F.cross_entropy(-bounds.margin, batch.y)


IBP = Loss(mixed(worst_case))
"""(1 - lambda) * CE(clean) + lambda * CE(v)."""


def warmup_regulariser(bounds: Bounds, region: Box) -> Tensor:
    """(L_tight + L_relu) / number of ReLUs: keeps boxes from growing layer by layer and ReLUs from dying.

    L_tight = sum relu(t - r_0 / r_i) / t with mean radii r_0 of the input and r_i before activation i. L_relu compares
    active (lower > 0) with inactive (upper < 0) neurons: their centres' mean magnitude and variance should balance.
    Source: Shi et al. 2021 (bound tightness and ReLU stability terms).
    """
    total = torch.zeros(())
    start = region.radius.mean()
    for pre in bounds.rectified:
        if float(start) > 0:
            total = total + _short(start / pre.radius.mean().clamp(min=1e-12))
        on, off, spread_on, spread_off = _Halves.apply(pre.centre, pre.radius)  # type: ignore[no-untyped-call]
        total = total + _balance(on, off) + _balance(spread_on, spread_off)
    return total / max(len(bounds.rectified), 1)


def _balance(a: Tensor, b: Tensor) -> Tensor:
    return _short(torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-9))


class _Halves(torch.autograd.Function):
    """Means over all neurons of a centre c, -b c, a (c - mean c)^2 and b (c - mean c)^2, where a is 1 for active neurons and b for
    inactive ones, 0 elsewhere; in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Any order of the elements will do, if it is one for all: that of memory, where a channel may come last.
        order = (0, 1, 2, 3) if centre.is_contiguous() else (0, 2, 3, 1)
        c, r = (t.permute(order).reshape(-1) for t in (centre, radius))
        active, inactive = c.clone().gt_(r), c.neg().gt_(r)  # 1 and 0: booleans are slow to multiply
        apart = c - c.mean()
        square = apart * apart
        ctx.save_for_backward(active, inactive, apart)
        ctx.order, ctx.shape = order, [centre.shape[i] for i in order]
        found = (active @ c, -(inactive @ c), active @ square, inactive @ square)
        return tuple(f / len(c) for f in found)  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        active, inactive, apart = ctx.saved_tensors
        on, off, spread_on, spread_off = (g / len(apart) for g in gradients)
        found = (active * (2 * spread_on)).addcmul_(inactive, 2 * spread_off).mul_(apart)
        found.sub_(found.mean()).addcmul_(active, on).addcmul_(inactive, -off)
        back = [ctx.order.index(i) for i in range(4)]
        return found.view(ctx.shape).permute(back), None


def _short(ratio: Tensor) -> Tensor:
    return F.relu(TOLERANCE - ratio) / TOLERANCE
