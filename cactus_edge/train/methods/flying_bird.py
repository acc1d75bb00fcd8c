"""Flying Bird: training that is sparse from the first step, and goes on choosing which weights there are.

A random mask of the asked density, by layer as Erdos-Renyi kernels have it, begins. At each of `moving.UPDATES` points of training a share
of each layer's weights dies, the smallest, and as many grow where the loss's gradient is largest; the share falls from
`DEATH` along a cosine. A layer's density never changes. What grows begins at 0; the optimiser's moments of a weight go on while it is
off. Source: Chen et al. 2022, Sparsity Winning Twice, arXiv 2202.09844, and its public code (which updates once in 900 steps,
at most 87 times, and trains by PGD: here objective = "pgd", or any other). Erdos-Renyi kernels: Evci et al. 2020, arXiv
1911.11134.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.moving import Moving, moving
from cactus_edge.train.methods.posthoc import refining
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.sparsity import single_weights
from cactus_edge.train.stages import Stage, clip, never, only_full, only_scores, plain, training

DEATH = 0.5
"""Share of a layer's weights that die at the first update; it falls along half a cosine."""


class Dynamic(Moving):
    """Of each layer as many weights as at the beginning, drawn at random then; gradients say where to grow."""

    def __init__(self, layers: Layers, kept: Sequence[int], generator: torch.Generator) -> None:
        """kept: weights that are on in each layer."""
        super().__init__(
            layers, tuple(_drawn(layer.weight, n, generator) for layer, n in zip(layers, kept, strict=True))
        )

    def choose(self) -> None:
        """Lets the smallest weights die and others grow, by the gradients of the last step."""
        share = DEATH * (1 + math.cos(math.pi * self.passed)) / 2
        for layer, mask in zip(self.layers(), self.masks(), strict=True):
            assert layer.weight.grad is not None
            mask.copy_(exchanged(mask, layer.weight.detach(), layer.weight.grad, share))


def exchanged(mask: Tensor, weight: Tensor, gradient: Tensor, share: float) -> Tensor:
    """The mask bool [...] after floor(share * its number) of the smallest |weight| died and as many grew by |gradient|.

    A weight that has just died may grow again, with its value. As many are on as before. Ties: the lower index lives, or grows.
    """
    count = math.floor(share * int(mask.sum()))
    on, size, slope = mask.flatten().clone(), weight.abs().flatten(), gradient.abs().flatten()
    weakest = torch.argsort(torch.where(on, size, torch.inf).flip(0), stable=True)[:count]
    on[len(on) - 1 - weakest] = False
    steepest = torch.argsort(torch.where(on, -torch.inf, slope), descending=True, stable=True)[:count]
    on[steepest] = True
    return on.view_as(mask)


def erdos_renyi(shapes: Sequence[Sequence[int]], density: float) -> list[int]:
    """Weights that are on in each layer of [O, I, KH, KW] weights: c (O + I + KH + KW), at most all, round(density * all) together."""
    sizes, ranks = [math.prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    total, whole = round(density * sum(sizes)), [False] * len(sizes)
    while True:
        left = total - sum(size for size, full in zip(sizes, whole, strict=True) if full)
        factor = left / max(sum(rank for rank, full in zip(ranks, whole, strict=True) if not full), 1)
        wanted = [size if full else factor * rank for size, rank, full in zip(sizes, ranks, whole, strict=True)]
        over = [full or want > size for want, size, full in zip(wanted, sizes, whole, strict=True)]
        if over == whole:
            break
        whole = over
    found = [math.floor(want) for want in wanted]
    by_rest = sorted(range(len(sizes)), key=lambda i: found[i] - wanted[i])
    for i in by_rest[: total - sum(found)]:
        found[i] += 1
    return found


def _begin(network: Network, recipe: Recipe, sample: Batch) -> Network:
    sparsity, layers = single_weights(recipe, "flying-bird"), network.layers()
    shapes = [layer.weight.shape for layer in layers if not layer.scales]
    if sparsity.by_layer:
        kept = [math.prod(shape) - round(sparsity.share * math.prod(shape)) for shape in shapes]
    else:
        kept = erdos_renyi(shapes, 1 - sparsity.share)
    found = iter(kept)
    counts = [layer.weight.numel() if layer.scales else next(found) for layer in layers]
    return Dynamic(layers, counts, torch.Generator().manual_seed(sample.seed % 2**63))


def _drawn(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """bool like the weight, true at `count` places."""
    on = torch.randperm(weight.numel(), generator=generator)[:count].to(weight.device)
    return torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device).index_fill(0, on, True).view_as(weight)


FLYING_BIRD = (
    moving("sparse", _begin, training, only_scores),
    Stage("compress", plain, True, refining, only_full, clip, positive_gamma, never),
)
