"""Channel removal: which channels matter, and the physically smaller network without the others.

The same `take` serves training (a member of the network set, gradients flow into the kept channels) and compression for
good. Removing an output channel also removes the matching input channel of the next layer, in convolutions and in dense
layers alike, and its batch normalisation; nothing is masked and nothing of it remains in the file.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from cactus_edge.errors import InternalError
from cactus_edge.train.models import NORM_EPSILON, Layer, Layers, Network, Norm

Kept = tuple[Tensor, ...]
"""Sorted indices int64 of the channels that stay, one tensor per hidden layer."""


def importance(layers: Layers) -> tuple[Tensor, ...]:
    """How much each hidden channel can move the next layer: |gamma| * ||W_out[o]||_1, summed over the readers. float32 [O] each.

    With batch normalisation a channel's output has standard deviation |gamma| before the ReLU, whatever its own weights
    are; without it the L1 norm of its own weights, the factor by which it widens an input box, takes that place. The
    readers' weights are scaled by their own normalisation in the same way.
    """
    scores = []
    for layer, reader in pairwise(layers):
        own = layer.norm.gamma.detach().abs() if layer.norm is not None else layer.weight.detach().abs().sum((1, 2, 3))
        scores.append(own * _effective(reader).abs().sum((0, 2, 3)))
    return tuple(scores)


def _effective(layer: Layer) -> Tensor:
    weight = layer.weight.detach()
    if layer.norm is None:
        return weight
    return weight * (layer.norm.gamma.detach() * torch.rsqrt(layer.norm.var + NORM_EPSILON))[:, None, None, None]


def choose(layers: Layers, widths: tuple[int, ...], scores: tuple[Tensor, ...] | None = None) -> Kept:
    """The `widths[i]` most important channels of hidden layer i (ties: the lower index), in their old order.

    scores: float [O] of each hidden layer, instead of `importance`.
    """
    if len(widths) != len(layers) - 1:
        raise InternalError(f"{len(widths)} widths for {len(layers) - 1} hidden layers")
    return tuple(
        torch.sort(torch.argsort(score, descending=True, stable=True)[:width]).values
        for score, width in zip(importance(layers) if scores is None else scores, widths, strict=True)
    )


def take(layers: Layers, kept: Kept) -> Layers:
    """The layers with only the kept channels: smaller tensors, the same function where the dropped channels output 0.

    weight [O, I, KH, KW] -> [O', I', KH, KW]. Differentiable.
    """
    result: list[Layer] = []
    for i, layer in enumerate(layers):
        weight, bias, norm = layer.weight, layer.bias, layer.norm
        if i > 0:
            weight = weight.index_select(1, kept[i - 1])
        if i < len(kept):
            rows = kept[i]
            weight, bias = weight.index_select(0, rows), bias.index_select(0, rows)
            if norm is not None:
                norm = Norm(*(t.index_select(0, rows) for t in (norm.gamma, norm.beta, norm.mean, norm.var)))
        result.append(replace(layer, weight=weight, bias=bias, norm=norm))
    return tuple(result)


def shrink(network: Network, widths: tuple[int, ...], scores: tuple[Tensor, ...] | None = None) -> tuple[Network, Kept]:
    """A new, smaller network of the most important channels for good, and which ones they are."""
    kept = choose(network.layers(), widths, scores)
    return Network(take(network.layers(), kept)), kept
