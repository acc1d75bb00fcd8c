"""GMP: weights go while the network trains, most of them early.

After the part t of the training the share s_f (1 - (1 - t)^3) of the weights is gone, the smallest first. Source: Zhu and Gupta
2017, arXiv 1710.01878 (equation 1, from a share of 0); "GMP" of Diffenderfer et al. 2021, arXiv 2106.09129. Weights go at
`moving.UPDATES` points of [train], and those that went stay away; what is missing of s_f then goes before the fine-tuning.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.lottery import thinner
from cactus_edge.train.methods.moving import Moving, moving
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.sparsity import Sparsity, masks, single_weights
from cactus_edge.train.stages import Stage, only_full, shipping, training


class Thinning(Moving):
    """A network that loses weights by their magnitude, up to the share of a `Sparsity`."""

    def __init__(self, layers: Layers, last: Sparsity) -> None:
        """last: what is gone at the end."""
        super().__init__(layers, tuple(torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers))
        self._last = last

    def choose(self) -> None:
        """What went is 0, so it is among the smallest again."""
        now = replace(self._last, share=gradual(self._last.share, self.passed))
        for mask, kept in zip(self.masks(), masks(self.layers(), now), strict=True):
            mask.copy_(kept)


def gmp(recipe: Recipe) -> tuple[Stage, ...]:
    """Thinning over the whole of [train], then the fine-tuning of what is left."""
    last = single_weights(recipe, "gmp")

    def enter(network: Network, _: Recipe, __: Batch) -> Network:
        return Thinning(network.layers(), last)

    return moving("thin", enter, training, only_full), shipping(thinner(last))


def gradual(share: float, part: float) -> float:
    """The share of weights that is gone after `part` in [0, 1] of the training."""
    return share * (1 - (1 - part) ** 3)
