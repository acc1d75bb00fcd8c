"""Cross-entropy of samples and of their semantic mutations: the data that C-SAM and its rivals are trained on.

A mutation is one of the recipe's transforms, drawn anew for each sample and step, by the definition that CC-Cert judges the file by
(`semantics`). Source of the setting: He and Chen 2026, arXiv 2601.20301 (semantically mutated inputs; their ranges and weights
are not published).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.semantics import Semantic
from cactus_edge.train.folded import Folded, forward
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step


def mutated(x: Tensor, transforms: Sequence[Semantic], domain: tuple[float, float], seed: int) -> Tensor:
    """Each sample of x [N, C, H, W] after one of the transforms, chosen and drawn at random; the same for equal seeds."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(transforms), size=len(x))
    images = np.moveaxis(x.detach().cpu().double().numpy(), 1, -1)
    found = np.empty_like(images)
    for i, transform in enumerate(transforms):
        rows = chosen == i
        found[rows] = transform.changed(images[rows], domain, rng)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(found, -1, 1))).to(x)


def semantic(transforms: Sequence[Semantic]) -> Loss:
    """(1 - lambda) * CE(x) + lambda * CE(x_T), x_T the mutations, the same for every member; lambda is the robust weight."""
    last: list[Batch] = []  # aimed: SAM asks twice for the points of one batch

    def aim(_: Folded, batch: Batch, step: Step) -> Batch:
        if step.robust_weight == 0:
            return replace(batch, points=batch.x)
        if not last or last[0].x is not batch.x or last[0].seed != batch.seed:
            last[:] = [replace(batch, points=mutated(batch.x, transforms, batch.domain, batch.seed))]
        return replace(batch, points=last[0].points)

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        clean = F.cross_entropy(member.logits(batch.x), batch.y)
        if step.robust_weight == 0:
            return MemberLoss(clean, None)
        assert batch.points is not None
        moved = F.cross_entropy(forward(member.net, batch.points), batch.y)
        return MemberLoss((1 - step.robust_weight) * clean + step.robust_weight * moved, None)

    return Loss(of, aim)
