"""What training leaves: the network, how it came about, and its inference form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train.bits import ChosenBits
from cactus_edge.train.fakequant import Ceilings, clamp, narrowed
from cactus_edge.train.folded import Folded, fold
from cactus_edge.train.history import EpochStats
from cactus_edge.train.models import Network


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What training leaves. weights_before, weights_after: weight elements of each layer when training began and now.

    history: one record per epoch, from all stages; a resumed run keeps the old ones. ceilings: where the hidden activations of
    the float network are clamped, None if training never saw them clamped only. chosen: the widths of its weights, None where the
    recipe says them.
    """

    network: Network
    method: str
    seed: int
    weights_before: tuple[int, ...]
    weights_after: tuple[int, ...]
    widths_before: tuple[int, ...]
    widths_after: tuple[int, ...]
    history: tuple[EpochStats, ...]
    ceilings: Ceilings | None = None
    chosen: ChosenBits | None = None

    def folded(self) -> Folded:
        """The float network in inference form: batch normalisation folded, activations clamped at the ceilings, no gradients."""
        with torch.no_grad():
            net = fold(self.network.layers())
            return net if self.ceilings is None else clamp(net, self.ceilings)

    def narrowed(self, recipe: Recipe) -> Folded:
        """`folded`, and to which widths its weights are rounded for the file: those that were chosen, else the recipe's."""
        return narrowed(self.folded(), recipe.quantise.weight_bits if self.chosen is None else self.chosen.weight_bits)

    def digest(self) -> str:
        """SHA-256 (hex) over names, shapes and float32 bytes of parameters and statistics, in order."""
        h = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            h.update(f"{name}{tuple(tensor.shape)}".encode())
            h.update(tensor.numpy().astype("<f4").tobytes())
        return h.hexdigest()
