"""Channel removal: which channels matter, and the physically smaller network without the others.

The same `take` serves training (a member of the network set, gradients flow into the kept channels) and compression for
good. Removing an output channel also removes the matching input channel of its readers, in convolutions and in dense
layers alike, and its batch normalisation; nothing is masked and nothing of it remains in the file. Channels that a sum adds,
and those that a depthwise layer reads and makes, are tied: they go together or stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.errors import InternalError
from cactus_edge.train.models import INPUT, NORM_EPSILON, Layer, Layers, Network, Norm, per_channel, sources

Kept = tuple[Tensor, ...]
"""Sorted indices int64 of the channels that stay, one tensor per hidden layer."""


def ties(layers: Layers) -> tuple[int, ...]:
    """For each hidden layer the least index of the layers whose channels are tied to its own; INPUT where the input's are."""
    group = {INPUT: INPUT}
    for i, (layer, (reads, adds)) in enumerate(zip(layers[:-1], sources(layers), strict=False)):
        group[i] = i
        for other in (reads if layer.depthwise else None, adds):
            if other is not None:
                low, high = sorted((group[i], group[other]))
                group = {j: low if g == high else g for j, g in group.items()}
    return tuple(group[i] for i in range(len(layers) - 1))


def importance(layers: Layers) -> tuple[Tensor, ...]:
    """How much each hidden channel can move its readers: |gamma| * ||W_out[o]||_1, summed over the readers and over tied channels.

    With batch normalisation a channel's output has standard deviation |gamma| before the ReLU, whatever its own weights
    are; without it the L1 norm of its own weights, the factor by which it widens an input box, takes that place. The
    readers' weights are scaled by their own normalisation in the same way; a sum hands on what it adds to its own readers.
    float32 [O] each.
    """
    found = sources(layers)
    reach = [layer.weight.detach().new_zeros(layer.weight.shape[0]) for layer in layers[:-1]]
    for i in reversed(range(len(layers))):
        reads, adds = found[i]
        if reads != INPUT:
            effective = _effective(layers[i]).abs()
            reach[reads] = reach[reads] + effective.sum((1, 2, 3) if layers[i].depthwise else (0, 2, 3))
        if adds is not None and adds != INPUT:
            reach[adds] = reach[adds] + reach[i]
    own = [
        layer.norm.gamma.detach().abs() if layer.norm is not None else layer.weight.detach().abs().sum((1, 2, 3))
        for layer in layers[:-1]
    ]
    return together(layers, tuple(a * b for a, b in zip(own, reach, strict=True)))


def together(layers: Layers, scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Scores [O] of each hidden layer's channels, each the sum over the channels that are tied to it."""
    group = ties(layers)
    total: dict[int, Tensor] = {}
    for g, score in zip(group, scores, strict=True):
        total[g] = total[g] + score if g in total else score
    return tuple(total[g] for g in group)


def _effective(layer: Layer) -> Tensor:
    weight = layer.weight.detach()
    if layer.norm is None:
        return weight
    return weight * (layer.norm.gamma.detach() * torch.rsqrt(layer.norm.var + NORM_EPSILON))[:, None, None, None]


def weighed(layers: Layers, factors: Sequence[Tensor]) -> Layers:
    """The layers with each hidden channel times its factor, factors float [O] of each hidden layer, equal for tied channels.

    A channel is weighed where it is read; what only hands it on, a sum or a depthwise layer, is weighed by its own readers. (Its
    own weights cannot be what is weighed: behind a ReLU at 0 no gradient would ever reach the factor of a channel that is off.)
    """
    return tuple(
        layer
        if reads == INPUT or layer.depthwise
        else replace(layer, weight=layer.weight * per_channel(factors[reads]))
        for layer, (reads, _) in zip(layers, sources(layers), strict=True)
    )


def choose(layers: Layers, widths: tuple[int, ...], scores: tuple[Tensor, ...] | None = None) -> Kept:
    """The `widths[i]` most important channels of hidden layer i (ties: the lower index), in their old order.

    scores: float [O] of each hidden layer instead of `importance`, equal for tied channels (`together`).
    """
    if len(widths) != len(layers) - 1:
        raise InternalError(f"{len(widths)} widths for {len(layers) - 1} hidden layers")
    for i, group in enumerate(ties(layers)):
        least = layers[i].weight.shape[0] if group == INPUT else widths[group]
        if widths[i] != least:
            raise InternalError(
                f"hidden layer {i} keeps {widths[i]} channels, and those that are tied to them are {least}"
            )
    return tuple(
        torch.sort(torch.argsort(score, descending=True, stable=True)[:width]).values
        for score, width in zip(importance(layers) if scores is None else scores, widths, strict=True)
    )


def take(layers: Layers, kept: Kept) -> Layers:
    """The layers with only the kept channels: smaller tensors, the same function where the dropped channels output 0.

    weight [O, I, KH, KW] -> [O', I', KH, KW], depthwise [O', 1, KH, KW]. Differentiable.
    """
    result: list[Layer] = []
    for i, (layer, (reads, _)) in enumerate(zip(layers, sources(layers), strict=True)):
        weight, bias, norm = layer.weight, layer.bias, layer.norm
        if reads != INPUT and not layer.depthwise:
            weight = weight.index_select(1, kept[reads])
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
