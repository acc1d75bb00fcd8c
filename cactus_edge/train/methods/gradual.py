"""GMP: weights go while the network trains, most of them early.

After the part t of the training the share s_f (1 - (1 - t)^3) of the weights is gone, the smallest first. Source: Zhu and Gupta
2017, arXiv 1710.01878 (equation 1, from a share of 0); "GMP" of Diffenderfer et al. 2021, arXiv 2106.09129. Weights go once an
epoch here, and those that went stay away; the optimiser begins each epoch anew, with the rise of its rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.lottery import SHIPS, thinner
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.sparsity import single_weights
from cactus_edge.train.stages import Schedule, Stage, clip, never, only_full, same, training


def gmp(recipe: Recipe) -> tuple[Stage, ...]:
    """An epoch at each share, at the learning rate before it falls; the fine-tuning's decay follows at the last one."""
    whole, epochs = single_weights(recipe, "gmp"), recipe.train.epochs
    gone = (gradual(whole.share, k / epochs) for k in range(epochs))
    entered = (thinner(replace(whole, share=share)) if share else same for share in gone)
    return (
        *(
            Stage(f"epoch {k}", enter, False, _epoch(k), only_full, clip, positive_gamma, never, training=True)
            for k, enter in enumerate(entered)
        ),
        SHIPS,
    )


def gradual(share: float, part: float) -> float:
    """The share of weights that is gone after `part` in [0, 1] of the training."""
    return share * (1 - (1 - part) ** 3)


def _epoch(number: int) -> Callable[[Recipe], Schedule]:
    """The epoch of that number, with its place in the ramp and before the learning rate falls."""

    def schedule(recipe: Recipe) -> Schedule:
        whole = training(recipe)
        return replace(whole, epochs=1, decay="linear", decay_from=1, warmup=whole.warmup - number)

    return schedule
