"""NNCF's pruning of single weights, on our own dense certified network; what is left is fine-tuned as for every rival.

Its tool puts a mask on each weight of the network as ordinary torch modules (`plain.Plain`), before batch normalisation is folded.
`nncf-magnitude`: what is smallest goes, |w| within each layer, or |w| / ||w||_2 of its layer over all of them. `nncf-regularised`: a
mask m a weight is trained with the certified loss plus NNCF's RBLoss, ((kept - target) / p)^2 of the shares that stay; a weight
counts where sigmoid(m) > 1/2, with logistic noise on m while it trains and gradients straight through (Louizos et al. 2018, arXiv
1712.01312). The weights stand still meanwhile, as HYDRA's do; in NNCF's own example they move at a thousandth of the masks' rate.
Where NNCF leaves more than the recipe's share, the smallest of it go too. Source: NNCF 3.4.0, https://github.com/openvinotoolkit/nncf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.nncf_tool import quiet, require
from cactus_edge.train.methods.posthoc import DENSE, after_choosing, choosing, refining
from cactus_edge.train.models import Layer, Layers, Network
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.plain import Plain
from cactus_edge.train.projections import positive_gamma, unconstrained
from cactus_edge.train.sparsity import apply, single_weights
from cactus_edge.train.stages import Objective, Schedule, Stage, Terms, clip, never, only_full, only_scores, plain

MASK_RATE, FASTER, WIDTH = 1e-2, 10, 0.1
"""Least learning rate of the masks and p of RBLoss: those of NNCF's own example (ResNet-18, 30 epochs). Masks learn so many times
faster than weights do: they begin 4.6 away from where they let a weight go, and have a few epochs."""


def smallest(layers: Layers, share: float, *, by_layer: bool) -> tuple[Tensor, ...]:
    """NNCF's magnitude masks, bool [O, I, KH, KW] a layer. Weights that only scale channels stay. Raises InstallError without it."""
    with quiet() as nncf:
        from nncf.torch.function_hook.pruning.magnitude.algo import get_pruned_modules

        modes = nncf.PruneMode
        mode = modes.UNSTRUCTURED_MAGNITUDE_LOCAL if by_layer else modes.UNSTRUCTURED_MAGNITUDE_GLOBAL
        found = get_pruned_modules(nncf.prune(Plain(layers), mode=mode, ratio=share, examples_inputs=_example(layers)))
    hooks = _in_order(layers, found)
    return tuple(
        torch.ones_like(layer.weight, dtype=torch.bool) if hook is None else hook.binary_mask.view_as(layer.weight)
        for layer, hook in zip(layers, hooks, strict=True)
    )


class Regularised(Network):
    """A network that stands still but for NNCF's mask of each weight.

    target: the share of the weights that RBLoss asks to be gone. Noise is on the masks only while `noisy` is set.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers)
        self.requires_grad_(False)
        with quiet() as nncf:
            from nncf.torch.function_hook.pruning.rb.algo import get_pruned_modules
            from nncf.torch.function_hook.pruning.rb.losses import RBLoss

            mode = nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED
            hooked = nncf.prune(Plain(layers), mode=mode, examples_inputs=_example(layers))
            hooks = _in_order(layers, get_pruned_modules(hooked))
        self._hooks = nn.ModuleList(hook for hook in hooks if hook is not None)
        self._masked = tuple(hook is not None for hook in hooks)
        self._loss = (
            RBLoss(hooked, target_ratio=0.0, p=WIDTH),
        )  # in a tuple: its network's weights are no parameters here
        self.noisy(False)

    def noisy(self, on: bool) -> None:
        """Whether masks are drawn, as in training."""
        self._hooks.train(on)

    def penalty(self, target: float) -> Tensor:
        """NNCF's RBLoss for the share `target` of the weights gone; its own masks are ours."""
        self._loss[0].target_ratio = target
        found: Tensor = self._loss[0]()
        return found

    def layers(self) -> Layers:
        """The layers with zeros for the weights whose masks are off: gradients flow into the masks."""
        hooks = iter(self._hooks)
        return tuple(
            replace(layer, weight=_hooked(next(hooks), layer)) if has else layer
            for layer, has in zip(super().layers(), self._masked, strict=True)
        )


def _hooked(hook: Any, layer: Layer) -> Tensor:
    found: Tensor = hook(layer.weight.flatten(1) if layer.dense else layer.weight)
    return found.view_as(layer.weight)


def _example(layers: Layers) -> Tensor:
    first = layers[0]
    channels = first.weight.shape[0 if first.depthwise else 1]
    return first.weight.new_zeros(1, channels, *first.in_size)


def _in_order(layers: Layers, found: Mapping[str, Any]) -> tuple[Any, ...]:
    """The hook of each layer's weight by NNCF's name for it; None for a layer that only scales channels."""
    return tuple(None if layer.scales else found[f"linears.{i}.weight"] for i, layer in enumerate(layers))


def _without_smallest(network: Network, recipe: Recipe, _: Batch) -> Network:
    sparsity, layers = single_weights(recipe, "nncf-magnitude"), network.layers()
    return Network(apply(layers, smallest(layers, sparsity.share, by_layer=sparsity.by_layer)))


def _regularised(network: Network, _: Recipe, __: Batch) -> Network:
    return Regularised(network.layers())


def _masking(recipe: Recipe) -> Objective:
    """The recipe's certified loss under drawn masks + RBLoss, whose target grows to the recipe's share over the first half."""
    inner, share = only_scores(recipe), single_weights(recipe, "nncf-regularised").share

    def objective(network: Network, batch: Batch, step: Step) -> Terms:
        assert isinstance(network, Regularised)
        network.noisy(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch.seed)  # NNCF draws from the global generator
            terms = inner(network, batch, step)
        network.noisy(False)
        return replace(terms, loss=terms.loss + network.penalty(share * min(1.0, 2 * step.part)))

    return objective


def masking(recipe: Recipe) -> Schedule:
    """Half of the fine-tuning's epochs, at the masks' rate; the radius grows over the first half of them."""
    part = choosing(recipe, 2)
    return replace(part, learning_rate=max(MASK_RATE, FASTER * part.learning_rate), decay_from=1)


def rest(recipe: Recipe) -> Schedule:
    """What `masking` leaves of the fine-tuning's epochs."""
    return after_choosing(recipe, 2)


def magnitude(recipe: Recipe) -> tuple[Stage, ...]:
    """The smallest weights, all at once. Raises InputError without a share of weights to go, InstallError without NNCF."""
    single_weights(recipe, "nncf-magnitude")
    require()
    return (
        DENSE,
        Stage("compress", _without_smallest, True, refining, only_full, clip, positive_gamma, never),
    )


def regularised(recipe: Recipe) -> tuple[Stage, ...]:
    """By trained masks. Raises InputError without a share of weights to go, InstallError without NNCF."""
    single_weights(recipe, "nncf-regularised")
    require()
    return (
        DENSE,
        Stage("mask", _regularised, False, masking, _masking, clip, unconstrained, never),
        Stage("compress", plain, True, rest, only_full, clip, positive_gamma, never),
    )
