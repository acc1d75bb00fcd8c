"""Interval bound propagation: loss and warm-up regulariser.

Sources: Gowal et al. 2018, arXiv 1810.12715 (loss); Shi et al. 2021, arXiv 2103.17268 (initialisation, in
`models.build`, and the regulariser).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
        centre = pre.centre
        active, inactive = (pre.lower > 0).float(), (pre.upper < 0).float()
        spread = (centre - centre.mean()) ** 2
        total = total + _balance((centre * active).mean(), -(centre * inactive).mean())
        total = total + _balance((spread * active).mean(), (spread * inactive).mean())
    return total / max(len(bounds.rectified), 1)


def _balance(a: Tensor, b: Tensor) -> Tensor:
    return _short(torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-9))


def _short(ratio: Tensor) -> Tensor:
    return F.relu(TOLERANCE - ratio) / TOLERANCE
