"""Edge-popup: the weights stay as they were drawn, and training only chooses which of them are there.

A weight w has a score s; the network computes with the weights of largest |s|, over all layers or in each, and the gradient goes
straight through that choice: dL/ds = dL/dw_eff * w * sign(s), also for weights that are not there. Source: Ramanujan et al. 2020,
arXiv 1911.13299 (section 3); |s| and the strict threshold as in Diffenderfer and Kailkhura 2021, arXiv 2103.09377, whose global
choice lets half of the weights go first and the rest along the ramp, 1/2 -> kept as kept + (1/2 - kept) (1 - t)^3, lest a layer lose
all of its own. Normalisation scales nothing and shifts nothing, or learns what to (`learn_norm`, their "+BN"). Scores begin uniform in
[-fan_in^-1/2, fan_in^-1/2].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.projections import unconstrained
from cactus_edge.train.sparsity import Masks, Sparsity, single_weights
from cactus_edge.train.stages import (
    Objective,
    Schedule,
    Stage,
    clip,
    finetuning,
    hearing,
    never,
    over_members,
    plain,
    same,
    training,
    tuned_quantised,
)


class Ticket(Network):
    """A network that stands still but for a score per weight, and what normalisation scales and shifts by with learn_norm.

    share: float64 scalar, the part of the weights that is gone now.
    """

    share: Tensor

    def __init__(self, layers: Layers, sparsity: Sparsity, seed: int, *, learn_norm: bool = False) -> None:
        super().__init__(layers)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(learn_norm and name.startswith(("gamma", "beta")))
        self._sparsity = sparsity
        self.register_buffer("share", torch.tensor(sparsity.share, dtype=torch.float64))
        generator = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(b"scores/%d" % seed).digest()[:7], "little")
        )
        for i, layer in enumerate(layers):
            if not layer.scales:
                drawn = 2 * torch.rand(layer.weight.shape, generator=generator) - 1
                start = (drawn / math.sqrt(math.prod(layer.weight.shape[1:]))).to(layer.weight.device)
                self.register_parameter(f"score{i}", nn.Parameter(start))

    def follow(self, progress: float) -> None:
        """Lets as many weights go as fits the ramp's `progress` in [0, 1]; by layer, and up to a half, all at once."""
        kept = 1 - self._sparsity.share
        if not self._sparsity.by_layer and kept <= 0.5:
            self.share.fill_(1 - (kept + (0.5 - kept) * (1 - progress) ** 3))

    def masks(self) -> Masks:
        """Which weights are there: |s| strictly above that of the int(share * N)-th smallest. bool, as the weights."""
        sizes = [
            None if layer.scales else getattr(self, f"score{i}").detach().abs() for i, layer in enumerate(self._plan)
        ]
        scored = [size for size in sizes if size is not None]
        if self._sparsity.by_layer:
            levels = [self._threshold(size.flatten()) for size in scored]
        else:
            levels = [self._threshold(torch.cat([size.flatten() for size in scored]))] * len(scored)
        level = iter(levels)
        return tuple(
            torch.ones_like(layer.weight, dtype=torch.bool) if size is None else size > next(level)
            for layer, size in zip(self._plan, sizes, strict=True)
        )

    def _threshold(self, sizes: Tensor) -> Tensor:
        gone = int(float(self.share) * len(sizes))
        return sizes.kthvalue(gone).values if gone else sizes.new_tensor(-1.0)

    def layers(self) -> Layers:
        """The layers with the weights that compute: gradients flow into the scores."""
        found = []
        for i, (layer, mask) in enumerate(zip(super().layers(), self.masks(), strict=True)):
            if not layer.scales:
                made = self.computing(layer.weight, mask)
                weight = _Chosen.apply(getattr(self, f"score{i}"), layer.weight, made)  # type: ignore[no-untyped-call]
                layer = replace(layer, weight=weight)
            found.append(layer)
        return tuple(found)

    def computing(self, weight: Tensor, mask: Tensor) -> Tensor:
        """What a layer computes with, from its weights and which of them are there."""
        return weight * mask


class _Chosen(torch.autograd.Function):
    """`made`, of the weights that are chosen; gradients straight through to the scores, as if it were weight * |score|."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, weight: Tensor, made: Tensor) -> Tensor:
        ctx.save_for_backward(score, weight)
        return made.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        score, weight = ctx.saved_tensors
        return gradients[0] * weight * score.sign(), None, None


def searching(members: Callable[[Recipe], tuple[str, ...]]) -> Callable[[Recipe], Objective]:
    """The objective of a ticket's scores, at the share of weights that the step's progress asks for."""

    def tell(network: Network, step: Step) -> None:
        if isinstance(network, Ticket):
            network.follow(step.progress)

    return hearing(tell, over_members(members, choosing=True))


def tickets(kind: type[Ticket], method: str, recipe: Recipe) -> tuple[Stage, ...]:
    """Scores are trained as [train] says, then as [compress] says beside the int8 version; then the ticket is a plain network."""
    sparsity = single_weights(recipe, method)
    if recipe.compress.average_epochs:
        raise InputError(
            f"{method} trains which weights there are, and average_epochs = {recipe.compress.average_epochs} means them",
            hint="leave it out",
        )

    def enter(network: Network, recipe: Recipe, _: Batch) -> Network:
        return kind(network.layers(), sparsity, recipe.train.seed, learn_norm=recipe.compress.learn_norm)

    first, rest = searching(lambda _: ("full",)), searching(lambda r: r.compress.members)
    return (
        Stage("search", enter, False, training, first, clip, unconstrained, never),
        Stage("compress", same, False, finetuning, rest, clip, unconstrained, tuned_quantised),
        Stage("fix", plain, False, _nothing, first, clip, unconstrained, tuned_quantised),
    )


def _nothing(recipe: Recipe) -> Schedule:
    return replace(finetuning(recipe), epochs=0, average_epochs=0)


def edge_popup(recipe: Recipe) -> tuple[Stage, ...]:
    """The weights as they were drawn."""
    return tickets(Ticket, "edge-popup", recipe)
