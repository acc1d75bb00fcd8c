"""Training methods, one a file: each is a tuple of stages, run in order."""

from __future__ import annotations

from collections.abc import Callable

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train.methods import nncf_pruning
from cactus_edge.train.methods.adverfine import ADVERFINE, SCRATCH, WHOLE
from cactus_edge.train.methods.biprop import biprop
from cactus_edge.train.methods.cactus import CACTUS
from cactus_edge.train.methods.cram import CRAM
from cactus_edge.train.methods.csam import CHANNELS as CSAM_CHANNELS
from cactus_edge.train.methods.csam import CSAM
from cactus_edge.train.methods.flying_bird import FLYING_BIRD
from cactus_edge.train.methods.gradual import gmp
from cactus_edge.train.methods.hydra import HYDRA
from cactus_edge.train.methods.hydra import WEIGHTS as HYDRA_WEIGHTS
from cactus_edge.train.methods.lottery import lrr, lth
from cactus_edge.train.methods.magnitude import ft
from cactus_edge.train.methods.nrs import NRS
from cactus_edge.train.methods.popup import edge_popup
from cactus_edge.train.methods.posthoc import GAMMA, L1, RANDOM, UNCOMPRESSED
from cactus_edge.train.methods.sam import SAM
from cactus_edge.train.methods.small import SMALL
from cactus_edge.train.methods.torch_pruning import BN_SCALE, LAMP, MAGNITUDE, TAYLOR
from cactus_edge.train.stages import Stage

Method = tuple[Stage, ...] | Callable[[Recipe], tuple[Stage, ...]]
"""Its stages; as a function where their number follows from the recipe."""

METHODS: dict[str, Method] = {
    "cactus": CACTUS,
    "small": SMALL,
    "uncompressed": UNCOMPRESSED,
    "posthoc-l1": L1,
    "posthoc-gamma": GAMMA,
    "posthoc-random": RANDOM,
    "hydra": HYDRA,
    "hydra-weights": HYDRA_WEIGHTS,
    "nrs": NRS,
    "sam": SAM,
    "cram": CRAM,
    "flying-bird": FLYING_BIRD,
    "csam": CSAM,
    "csam-channels": CSAM_CHANNELS,
    "adverfine": ADVERFINE,
    "adverfine-whole": WHOLE,
    "adverfine-scratch": SCRATCH,
    "torch-pruning-magnitude": MAGNITUDE,
    "torch-pruning-bn-scale": BN_SCALE,
    "torch-pruning-lamp": LAMP,
    "torch-pruning-taylor": TAYLOR,
    "nncf-magnitude": nncf_pruning.magnitude,
    "nncf-regularised": nncf_pruning.regularised,
    "ft": ft,
    "gmp": gmp,
    "lth": lth,
    "lrr": lrr,
    "edge-popup": edge_popup,
    "biprop": biprop,
}
"""Every training method by its name in recipes."""


def stages(method: str, recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the method of that name. Raises InputError for another name, or a recipe that the method has no stages for."""
    if method not in METHODS:
        raise InputError(f"no training method is called {method!r}", hint=f"one of {', '.join(METHODS)}")
    found = METHODS[method]
    return found(recipe) if callable(found) else found
