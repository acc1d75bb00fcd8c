"""Channels ranked by torch-pruning's importance criteria, on our own dense certified network.

Its dependency graph finds what goes together with a channel, its criterion says how much the whole matters; what is removed is
removed by our own surgery, so that the file is made as for every other method. Magnitudes are those of the deployed weights
(`posthoc.deployed`); bn-scale looks at batch normalisation before it is folded. Criteria, with the library's defaults: magnitude
(group l2 norm; Fang et al. 2023, arXiv 2301.12900), bn-scale (Liu et al. 2017, arXiv 1708.06519), lamp (Lee et al. 2021,
arXiv 2010.07611) and taylor (Molchanov et al. 2019, arXiv 1906.10771), the last with gradients of the certified loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cactus_edge.errors import InputError, InstallError
from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.posthoc import Score, deployed, posthoc
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.plain import Plain
from cactus_edge.train.stages import only_full

SAMPLES = 1024
"""Training samples behind the gradients of `taylor`."""


def _tool() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise InstallError(
            "this method's criterion is torch-pruning's, which is not installed",
            hint="pip install 'cactus-edge[baselines]'",
        ) from error
    return torch_pruning


def scores(layers: Layers, importance: Callable[[Any], Any], gradients: Layers | None = None) -> tuple[Tensor, ...]:
    """What `importance` (of the library's module `pruner.importance`) says of each hidden channel, float [O] each.

    gradients: the loss's gradients as layers, for criteria that use them. Raises InstallError without the library, InputError
    where the criterion finds nothing to judge by.
    """
    tool, plain = _tool(), Plain(layers)
    if gradients is not None:
        for own, other in zip(plain.parameters(), Plain(gradients).parameters(), strict=True):
            own.grad = other.detach().clone()
    first = layers[0]
    example = first.weight.new_zeros(2, first.weight.shape[1], *first.in_size)
    graph = tool.DependencyGraph().build_dependency(plain, example_inputs=example)
    criterion, found = importance(tool.pruner.importance), []
    for i, (layer, module) in enumerate(zip(layers[:-1], plain.linears, strict=False)):
        prune = tool.prune_linear_out_channels if layer.dense else tool.prune_conv_out_channels
        values = criterion(graph.get_pruning_group(module, prune, idxs=list(range(layer.weight.shape[0]))))
        if values is None:
            raise InputError(
                f"torch-pruning's criterion finds nothing to judge the channels of hidden layer {i} by",
                hint="batch_norm = true under [model], or another method",
            )
        found.append(values.detach().float())
    return tuple(found)


def certified_gradients(layers: Layers, recipe: Recipe, sample: Batch) -> Layers:
    """Gradients of the recipe's certified loss at the whole radius, each in the place of its tensor."""
    network = Network(layers)
    objective = only_full(recipe)
    step = Step(1.0, float(recipe.train.eps), recipe.train.robust_weight)
    objective(network, sample.part(SAMPLES), step).loss.backward()  # type: ignore[no-untyped-call]

    def slope(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad

    return tuple(
        replace(
            layer,
            weight=slope(layer.weight),
            bias=slope(layer.bias),
            norm=None
            if layer.norm is None
            else replace(layer.norm, gamma=slope(layer.norm.gamma), beta=slope(layer.norm.beta)),
        )
        for layer in network.layers()
    )


def _by(name: str, form: Callable[[Layers], Layers]) -> Callable[[Recipe, Batch], Score]:
    return lambda recipe, sample: lambda layers: scores(form(layers), lambda criteria: getattr(criteria, name)())


def _taylor(recipe: Recipe, sample: Batch) -> Score:
    def score(layers: Layers) -> tuple[Tensor, ...]:
        layers = deployed(layers)
        slopes = certified_gradients(layers, recipe, sample)
        return scores(layers, lambda criteria: criteria.GroupTaylorImportance(), slopes)

    return score


MAGNITUDE = posthoc(_by("GroupMagnitudeImportance", deployed))
BN_SCALE = posthoc(_by("BNScaleImportance", lambda layers: layers))
LAMP = posthoc(_by("LAMPImportance", deployed))
TAYLOR = posthoc(_taylor)
