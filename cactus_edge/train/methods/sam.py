"""SAM and magnitude pruning: a dense network in a flat place, from which the smallest weights or channels then go.

Every step takes the gradient at the worst weights within a small ball (`updates.sharp`), in training and in fine-tuning; what is
left of the network follows from the magnitudes of its deployed weights. Source: Foret et al. 2021, arXiv 2010.01412; its radius
for CIFAR-10.
"""

from __future__ import annotations

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.posthoc import l1, refining, removal
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.stages import Stage, never, only_full, same, training
from cactus_edge.train.updates import Update, sharp

RHO = 0.05
"""Radius of the ball around all weights together, l2."""


def flat(recipe: Recipe) -> Update:
    """A step of SAM."""
    return sharp(recipe.train.clip_norm, RHO)


DENSE = Stage("dense-sam", same, False, training, only_full, flat, positive_gamma, never, shared=True)
"""The full network alone, trained by SAM."""

SAM = (
    DENSE,
    Stage("compress", removal(lambda recipe, sample: l1), True, refining, only_full, flat, positive_gamma, never),
)
