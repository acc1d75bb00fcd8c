"""How gradients become a step: the `update` seam of a training stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cactus_edge.recipe import TrainRecipe

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
        if max_norm > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        return loss

    return update
