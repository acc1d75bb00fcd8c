"""CrAM: a dense network whose neighbours stay good when they are pruned, so that pruning may come at any time and at once.

A step descends along grad L(theta~) + grad L(theta) with theta~ = C_k(theta + rho * grad L(theta)): a step up the loss, then the
smallest of all weights set to 0, a share that is drawn anew each time. The gradient at theta~ counts for what C_k keeps. Source:
Peste et al. 2023, arXiv 2207.14200 (algorithm 1 with sparse gradients; its variant CrAM+ with the dense one beside it). Pruning
is global and by magnitude; what the recipe asks for goes when training is over, and the rest is fine-tuned as for every method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.posthoc import l1, refining, removal
from cactus_edge.train.models import Layer, Layers, Network
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.sparsity import Sparsity, sparse
from cactus_edge.train.stages import Objective, Stage, Terms, clip, full_layers, never, only_full, same, training

RHO = 0.05
"""The step up, as a multiple of the gradient: it is not normalised."""

SHARES = (0.5, 0.7, 0.9)
"""The shares of weights that a step's C_k sets to 0 one of."""


def drawn(seed: int) -> float:
    """One of `SHARES`, by the seed of a batch."""
    digest = hashlib.sha256(b"cram %d" % seed).digest()
    return SHARES[int.from_bytes(digest[:8], "little") % len(SHARES)]


def compressed(layers: Layers, gradients: Sequence[Tensor], rho: float, share: float) -> Layers:
    """C_k(theta + rho * gradient), its own gradient straight through to the parameters that are kept.

    gradients: of `learned(layers)`, in that order.
    """
    given = iter(gradients)

    def climbed(tensor: Tensor) -> Tensor:
        return tensor + rho * next(given).detach()

    def moved(layer: Layer) -> Layer:
        weight = climbed(layer.weight)
        if layer.norm is None:
            return replace(layer, weight=weight, bias=climbed(layer.bias))
        gamma = climbed(layer.norm.gamma)
        return replace(layer, weight=weight, norm=replace(layer.norm, gamma=gamma, beta=climbed(layer.norm.beta)))

    return sparse(tuple(moved(layer) for layer in layers), Sparsity(None, share))


def learned(layers: Layers) -> list[Tensor]:
    """The tensors that training changes: of each layer its weight, then its normalisation or else its bias."""
    found = []
    for layer in layers:
        found += [layer.weight, *([layer.bias] if layer.norm is None else [layer.norm.gamma, layer.norm.beta])]
    return found


def plus(recipe: Recipe) -> Objective:
    """L(theta) + L(theta~) of the recipe's objective."""
    loss = full_layers(recipe)

    def objective(network: Network, batch: Batch, step: Step) -> Terms:
        layers, widths = network.layers(), network.kept_widths()
        dense = loss(layers, widths, batch, step)
        gradients = torch.autograd.grad(dense.loss, learned(layers), retain_graph=True)
        pruned = compressed(layers, gradients, RHO, drawn(batch.seed))
        return replace(dense, loss=dense.loss + loss(pruned, widths, batch, step).loss)

    return objective


CRAM = (
    Stage("dense-cram", same, False, training, plus, clip, positive_gamma, never, shared=True),
    Stage("compress", removal(lambda recipe, sample: l1), True, refining, only_full, clip, positive_gamma, never),
)
