"""AdverFine: a network, trained either way, is compressed and then fine-tuned for a few epochs, adversarially or not.

Source: Thorsteinsson et al. 2024, arXiv 2403.09441, section 3. The dense network trains by the objective of [train] ("standard",
or "pgd" for a robust one), what compression leaves by that of [compress]; with finetune_epochs = 0 not at all. `adverfine` removes
the filters of least l1 norm and with them the kernels that read them; `adverfine-whole` keeps every channel, for networks that
are quantised alone: afterwards with members = ["full"], while they are fine-tuned with members = ["quantised"].
`adverfine-scratch` is the control that the claim needs: the same epochs, objective and optimiser of [compress] on the compressed
shape, from weights that no training has seen.
"""

from __future__ import annotations

from dataclasses import replace

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.posthoc import DENSE, l1, removal
from cactus_edge.train.projections import unconstrained
from cactus_edge.train.stages import (
    Enter,
    Schedule,
    Stage,
    clip,
    never,
    only_full,
    same,
    shipping,
    training,
)


def _nothing(recipe: Recipe) -> Schedule:
    return replace(training(recipe), epochs=0)


def _tuned(enter: Enter, *, compressed: bool) -> Stage:
    return shipping(enter, compressed=compressed, projection=unconstrained)


ADVERFINE = (DENSE, _tuned(removal(lambda recipe, sample: l1), compressed=True))
WHOLE = (DENSE, _tuned(same, compressed=False))
SCRATCH = (
    Stage("begin", same, True, _nothing, only_full, clip, unconstrained, never),
    _tuned(same, compressed=True),
)
