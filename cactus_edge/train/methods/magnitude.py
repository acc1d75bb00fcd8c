"""FT: a dense network is trained, its smallest weights go at once, and the rest is fine-tuned.

Source: Han et al. 2015, arXiv 1506.02626; "FT" of Diffenderfer et al. 2021, arXiv 2106.09129, the first of its two rivals.
"""

from __future__ import annotations

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.lottery import SHIPS
from cactus_edge.train.methods.posthoc import DENSE
from cactus_edge.train.sparsity import single_weights
from cactus_edge.train.stages import Stage


def ft(recipe: Recipe) -> tuple[Stage, ...]:
    """The dense network that others begin with too, then what is left of it."""
    single_weights(recipe, "ft")
    return (DENSE, SHIPS)
