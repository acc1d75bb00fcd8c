"""Training objectives, one paper a file."""

from __future__ import annotations

from collections.abc import Callable

from cactus_edge.recipe_sections import TrainRecipe
from cactus_edge.semantics import transforms
from cactus_edge.train.attacks import Attack
from cactus_edge.train.objectives.adversarial import STANDARD, adversarial
from cactus_edge.train.objectives.crown_ibp import falling
from cactus_edge.train.objectives.expressive import cc_ibp, exp_ibp, mtl_ibp
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Loss
from cactus_edge.train.objectives.qa_ibp import hinge_and_width
from cactus_edge.train.objectives.sabr import small_boxes
from cactus_edge.train.objectives.semantic import semantic

OBJECTIVES: dict[str, Callable[[TrainRecipe], Loss]] = {
    "ibp": lambda t: IBP if t.box_ratio == 1 else small_boxes(t.box_ratio, attack(t)),
    "sabr": lambda t: small_boxes(t.box_ratio, attack(t)),
    "crown-ibp": lambda t: falling(t.crown_start, t.crown_end),
    "mtl-ibp": lambda t: mtl_ibp(t.mix, attack(t)),
    "cc-ibp": lambda t: cc_ibp(t.mix, attack(t)),
    "exp-ibp": lambda t: exp_ibp(t.mix, attack(t)),
    "standard": lambda t: STANDARD,
    "pgd": lambda t: adversarial(attack(t)),
    "semantic": lambda t: semantic(transforms(t.mutations)),
    "qa-ibp": lambda t: hinge_and_width(t.hinge_weight, t.hinge_margin, t.width_weight),
}
"""Every objective by its name in recipes."""


def attack(train: TrainRecipe) -> Attack:
    """How the recipe looks for adversarial points."""
    t = train
    return Attack(t.attack_steps, t.attack_restarts, t.attack_step, t.attack_decay, t.attack_random_start)
