"""HYDRA: what stays is itself trained, with the certified loss, while the weights stand still.

One score s a weight; the network computes with the k weights of largest |s| in each layer, and the gradient goes straight through
that choice: dL/d|s| = dL/dmask. s begins at sqrt(6 / fan_in) * w / max |w|, so that the first choice is the one by magnitude.
Source: Sehwag et al. 2020, arXiv 2002.10509 (section 3 and algorithm 1). `hydra` gives every channel one score instead, with its
||w||_1 in the place of w, so that what goes is gone from the file; `hydra-weights` is the paper's form.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.posthoc import DENSE, after_choosing, choosing, l1
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.projections import positive_gamma, unconstrained
from cactus_edge.train.prune import choose, take, together, weighed
from cactus_edge.train.sparsity import single_weights
from cactus_edge.train.stages import Schedule, Stage, clip, never, only_full, only_scores, plain


class Scored(Network):
    """A network that stands still but for a score per hidden channel; its layers have `widths[i]` channels switched on."""

    def __init__(self, layers: Layers, widths: tuple[int, ...]) -> None:
        super().__init__(layers)
        self.requires_grad_(False)
        self._kept = widths
        for i, (layer, norm) in enumerate(zip(layers, l1(layers), strict=False)):
            fan_in = math.prod(layer.weight.shape[1:])
            start = math.sqrt(6 / fan_in) * norm / norm.amax().clamp(min=1e-12)
            self.register_parameter(f"score{i}", nn.Parameter(start))

    def scores(self) -> tuple[Tensor, ...]:
        """|s| [O] of each hidden layer, summed over channels that are tied."""
        return together(self._plan, tuple(getattr(self, f"score{i}").abs() for i in range(len(self._kept))))

    def layers(self) -> Layers:
        """The layers with the channels that are not among the first switched off: gradients flow into the scores."""
        masks = [_First.apply(s, k) for s, k in zip(self.scores(), self._kept, strict=True)]  # type: ignore[no-untyped-call]
        return weighed(super().layers(), masks)

    def chosen(self) -> Network:
        """The smaller network of the channels that are on, its weights free again."""
        layers = super().layers()
        return Network(take(layers, choose(layers, self._kept, self.scores())))


class ScoredWeights(Network):
    """A network that stands still but for a score per weight; in each layer the given share of the weights is 0."""

    def __init__(self, layers: Layers, share: float) -> None:
        super().__init__(layers)
        self.requires_grad_(False)
        self._kept = tuple(layer.weight.numel() - round(share * layer.weight.numel()) for layer in layers)
        for i, layer in enumerate(layers):
            weight = layer.weight.detach()
            fan_in = math.prod(weight.shape[1:])
            self.register_parameter(
                f"score{i}", nn.Parameter(math.sqrt(6 / fan_in) * weight / weight.abs().amax().clamp(min=1e-12))
            )

    def layers(self) -> Layers:
        """The layers with zeros for the weights that are not among the first: gradients flow into the scores."""
        return tuple(
            replace(layer, weight=layer.weight * self._mask(i, kept))
            for i, (layer, kept) in enumerate(zip(super().layers(), self._kept, strict=True))
        )

    def _mask(self, i: int, kept: int) -> Tensor:
        score: Tensor = getattr(self, f"score{i}").abs()
        mask: Tensor = _First.apply(score.flatten(), kept)  # type: ignore[no-untyped-call]
        return mask.view_as(score)


class _First(torch.autograd.Function):
    """1 for the k largest (ties: the lower index), else 0; gradients straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int) -> Tensor:
        first = torch.argsort(scores, descending=True, stable=True)[:k]
        return torch.zeros_like(scores).index_fill(0, first, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _score(network: Network, _: Recipe, __: Batch) -> Network:
    return Scored(network.layers(), network.kept_widths())


def _chosen(network: Network, _: Recipe, __: Batch) -> Network:
    assert isinstance(network, Scored)
    return network.chosen()


def _weights(network: Network, recipe: Recipe, _: Batch) -> Network:
    return ScoredWeights(network.layers(), single_weights(recipe, "hydra-weights").share)


def scoring(recipe: Recipe) -> Schedule:
    """A third of the fine-tuning's epochs, at its learning rate; the radius grows over the first half of them."""
    return choosing(recipe, 3)


def rest(recipe: Recipe) -> Schedule:
    """What `scoring` leaves of the fine-tuning's epochs."""
    return after_choosing(recipe, 3)


HYDRA = (
    DENSE,
    Stage("score", _score, False, scoring, only_scores, clip, unconstrained, never),
    Stage("compress", _chosen, True, rest, only_full, clip, positive_gamma, never),
)

WEIGHTS = (
    DENSE,
    Stage("score", _weights, False, scoring, only_scores, clip, unconstrained, never),
    Stage("compress", plain, True, rest, only_full, clip, positive_gamma, never),
)
