"""How gradients become a step: the `update` seam of a training stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cactus_edge.recipe_sections import TrainRecipe

Closure = Callable[[], Tensor]
"""Clears the gradients, computes the loss, runs backward and returns the loss."""

Update = Callable[[Closure, torch.optim.Optimizer], Tensor]


def optimiser(network: nn.Module, train: TrainRecipe) -> torch.optim.Optimizer:
    """The recipe's, over the parameters that learn; whoever steps it sets the learning rate first.

    Sources: Adam, Kingma and Ba 2015, arXiv 1412.6980; otherwise gradient descent with (heavy-ball) momentum. weight_decay is
    added to the gradient in both.
    """
    free = [p for p in network.parameters() if p.requires_grad]
    if train.optimiser == "sgd":
        return torch.optim.SGD(free, momentum=train.momentum, weight_decay=train.weight_decay)
    return torch.optim.Adam(free, weight_decay=train.weight_decay)


def clipped(max_norm: float) -> Update:
    """One optimiser step after scaling all gradients together to an l2 norm of at most max_norm (0: no limit)."""

    def update(closure: Closure, optimizer: torch.optim.Optimizer) -> Tensor:
        loss = closure()
        _step(optimizer, max_norm)
        return loss

    return update


def sharp(max_norm: float, rho: float) -> Update:
    """`clipped` along the gradient at w + rho * g / ||g||, g the gradient at w, the norm over all parameters; the loss is that at w.

    Source: sharpness-aware minimisation, Foret et al. 2021, arXiv 2010.01412, algorithm 1 with p = 2.
    """

    def update(closure: Closure, optimizer: torch.optim.Optimizer) -> Tensor:
        loss = closure()
        moved = [p for p in _parameters(optimizer) if p.grad is not None]
        before = [p.detach().clone() for p in moved]
        with torch.no_grad():
            gradients = [p.grad.clone() for p in moved if p.grad is not None]
            scale = rho / torch.stack([g.square().sum() for g in gradients]).sum().sqrt().clamp(min=1e-12)
            for p, g in zip(moved, gradients, strict=True):
                p.add_(scale * g)
        closure()
        with torch.no_grad():
            for p, old in zip(moved, before, strict=True):
                p.copy_(old)
        _step(optimizer, max_norm)
        return loss

    return update


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _step(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    if max_norm > 0:
        torch.nn.utils.clip_grad_norm_(_parameters(optimizer), max_norm)
    optimizer.step()
