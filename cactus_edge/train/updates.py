"""How gradients become a step: the `update` seam of a training stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Closure = Callable[[], Tensor]
"""Clears the gradients, computes the loss, runs backward and returns the loss."""

Update = Callable[[Closure, torch.optim.Optimizer], Tensor]


def clipped(max_norm: float) -> Update:
    """One optimiser step after scaling all gradients together to an l2 norm of at most max_norm (0: no limit)."""

    def update(closure: Closure, optimizer: torch.optim.Optimizer) -> Tensor:
        loss = closure()
        if max_norm > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        return loss

    return update
