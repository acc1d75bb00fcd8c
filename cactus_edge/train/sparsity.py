"""Zeros among the weights: which ones go, the network without them, and how they stay away.

A mask is bool, shaped as its weight, true where the weight stays. The smallest weights in magnitude go: a share of all of
them (Han et al. 2015, arXiv 1506.02626), or n of m in a row (Mishra et al. 2021, arXiv 2104.08378). A row is what TensorRT's
sparse kernels read together: consecutive input channels of one output channel and tap, weights [K, C, R, S] (TensorRT
developer guide, "Structured Sparsity"). A dense layer's [O, I, H, W] is flattened first, which is the order of its columns in
an ONNX file. A layer whose rows are no multiples of m stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_sections import CompressRecipe
from cactus_edge.recipe_values import n_of_m
from cactus_edge.train.models import Layer, Layers, Network
from cactus_edge.train.projections import Projection

Masks = tuple[Tensor, ...]
"""One mask a layer, bool [O, I, KH, KW]."""


@dataclass(frozen=True)
class Sparsity:
    """n_of_m: at most n of m weights in a row stay; else the share in (0, 1) of weights that go.

    by_layer: the share holds in each layer by itself. straight_through: gradients also reach the weights that go.
    """

    n_of_m: tuple[int, int] | None
    share: float = 0.0
    by_layer: bool = False
    straight_through: bool = False

    @staticmethod
    def of(compress: CompressRecipe) -> Sparsity | None:
        """What the recipe asks for; None for nothing."""
        if compress.sparsity == "none":
            return None
        groups = n_of_m(compress.sparsity)
        share = 0.0 if groups else float(compress.sparsity)
        return Sparsity(groups, share, compress.sparsity_scope == "layer", compress.mask_gradient == "all")


def single_weights(recipe: Recipe, method: str) -> Sparsity:
    """The share of the weights that a method without anything else to remove lets go. Raises InputError for any other wish."""
    found = Sparsity.of(recipe.compress)
    if found is None or found.n_of_m is not None:
        raise InputError(
            f"{method} lets a share of the weights go, and [compress] sparsity is {recipe.compress.sparsity!r}",
            hint='sparsity = 0.9, or method = "hydra" for channels',
        )
    if recipe.compress.keep or any(layer.kept for layer in recipe.model.layer):
        raise InputError(
            f"{method} removes no channels, and the recipe keeps a part of them",
            hint="leave keep of [compress] and kept of the layers out",
        )
    return found


def masks(layers: Layers, sparsity: Sparsity) -> Masks:
    """Which weights stay, by their magnitude now. Equal ones: the first in memory stays. No gradient flows through it.

    Weights that only scale channels connect nothing: they stay, and no share is taken of them.
    """
    if sparsity.n_of_m is not None:
        return tuple(_in_rows(layer, *sparsity.n_of_m) for layer in layers)
    sizes = [layer.weight.detach().abs() for layer in layers if not layer.scales]
    if sparsity.by_layer:
        chosen = [_largest(size.flatten(), sparsity.share) for size in sizes]
    else:
        whole = _largest(torch.cat([size.flatten() for size in sizes]), sparsity.share)
        chosen = list(torch.split(whole, [size.numel() for size in sizes]))
    found = iter(chosen)
    return tuple(
        torch.ones_like(layer.weight, dtype=torch.bool) if layer.scales else next(found).view_as(layer.weight)
        for layer in layers
    )


def _largest(magnitude: Tensor, share: float) -> Tensor:
    """bool [N], false for the round(share * N) smallest of float [N]."""
    count = len(magnitude) - round(share * len(magnitude))
    if count == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    level = magnitude.kthvalue(len(magnitude) - count + 1).values
    above, equal = magnitude > level, magnitude == level
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


def _in_rows(layer: Layer, n: int, m: int) -> Tensor:
    weight = layer.weight.detach()
    if not fits(layer, m):
        return torch.ones_like(weight, dtype=torch.bool)
    rows = weight.flatten(1) if layer.dense else weight.permute(0, 2, 3, 1)
    group = rows.abs().reshape(-1, m)
    one, other = group[:, :, None], group[:, None, :]
    earlier = torch.ones(m, m, dtype=torch.bool, device=weight.device).tril(-1)
    rank = ((other > one) | ((other == one) & earlier)).sum(2)
    kept = (rank < n).view(rows.shape)
    return kept.view_as(weight) if layer.dense else kept.permute(0, 3, 1, 2)


def fits(layer: Layer, m: int) -> bool:
    """Whether the layer's rows are multiples of m weights."""
    _, channels, height, width = layer.weight.shape
    return bool((channels * height * width if layer.dense else channels) % m == 0)


def apply(layers: Layers, kept: Masks, *, straight_through: bool = False) -> Layers:
    """The layers with zeros for what the masks drop. Gradients reach kept weights only, or all of them straight through."""
    return tuple(
        replace(layer, weight=_masked(layer.weight, mask, straight_through))
        for layer, mask in zip(layers, kept, strict=True)
    )


def _masked(weight: Tensor, mask: Tensor, straight_through: bool) -> Tensor:
    zeroed = weight * mask
    return weight + (zeroed - weight).detach() if straight_through else zeroed


def sparse(layers: Layers, sparsity: Sparsity) -> Layers:
    """The layers with the masks of their weights now: a member of the network set."""
    return apply(layers, masks(layers, sparsity), straight_through=sparsity.straight_through)


def present(layers: Layers) -> Masks:
    """The masks of a network that is sparse already: true where a weight is not 0."""
    return tuple(layer.weight.detach() != 0 for layer in layers)


def still(layers: Layers) -> Layers:
    """The layers of a network that is sparse already, without gradients to its zeros: for fine-tuning what is left."""
    return apply(layers, present(layers))


def sparsified(network: Network, sparsity: Sparsity | None) -> Network:
    """A new network whose weights have the zeros for good; the same network where there are to be none."""
    if sparsity is None:
        return network
    return Network(apply(network.layers(), masks(network.layers(), sparsity)))


def held(network: Network) -> Projection:
    """The projection that restores exactly the zeros that the network's weights have now, whatever an optimiser does to them."""
    kept = present(network.layers())

    def project(changed: Network) -> None:
        with torch.no_grad():
            for layer, mask in zip(changed.layers(), kept, strict=True):
                layer.weight.mul_(mask)

    return project
