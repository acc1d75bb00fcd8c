"""Which channels matter by several measures, and how many each layer keeps.

Widths are whole multiples of the target's vector: a vector that is used in part costs as much as a whole one. A recipe's `keep`
is one share everywhere. `by_sensitivity` spends the same cost where it buys most certified loss: it measures, on validation
samples, what each layer's channels are worth while all other layers are whole, then cuts greedily. Layers whose channels are
tied (`prune.ties`) count as one; those that are tied to the input stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.build import build
from cactus_edge.train.folded import fold_batch
from cactus_edge.train.models import INPUT, Layer, Layers, Network
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Batch, Member, Step
from cactus_edge.train.prune import choose, importance, shrink, take, ties, together

Scores = tuple[Tensor, ...]
"""Importance of each channel of each hidden layer, float32 [O]."""

Cost = Callable[[Layers], int]
Widths = tuple[int, ...]

STEPS = 8
"""Widths of a layer that are measured, at most."""

CHUNK = 128
"""Samples whose gradients are taken together by `taylor`."""


def norms(layers: Layers, power: int) -> Scores:
    """L1 (power 1) or L2 (power 2) norm of each hidden channel's own weights. Source: Li et al. 2017, arXiv 1608.08710."""
    return tuple(torch.linalg.vector_norm(layer.weight.detach(), power, dim=(1, 2, 3)) for layer in layers[:-1])


def certified_loss(layers: Layers, batch: Batch, step: Step) -> Tensor:
    """(1 - lambda) CE + lambda * CE of the worst case by intervals, with the clean batch's own statistics: a scalar."""
    clean = fold_batch(layers, batch.x)
    return IBP.of(Member(clean.net, clean.logits), batch, step).loss


def taylor(layers: Layers, batch: Batch, step: Step) -> Scores:
    """Sum over chunks of (dL/dg)^2, g = 1 a factor of the channel before its ReLU, L the certified loss.

    dL/dg = gamma dL/dgamma + beta dL/dbeta, of weight and bias without normalisation: the first-order change of the loss when
    the channel goes. Source: Molchanov et al. 2019, arXiv 1906.10771, eq. (8), for the certified loss.
    """
    scores = [torch.zeros_like(layer.bias) for layer in layers[:-1]]
    for part in chunks(batch, CHUNK):
        probe, gates = _gated(layers)
        gradients = torch.autograd.grad(certified_loss(probe, part, step), gates)
        for score, gradient in zip(scores, gradients, strict=True):
            score += gradient.square()
    return tuple(scores)


def _gated(layers: Layers) -> tuple[Layers, list[Tensor]]:
    """The hidden layers with a factor of 1 on each channel, to differentiate by."""
    probe: list[Layer] = []
    gates: list[Tensor] = []
    for layer in layers[:-1]:
        gate = torch.ones_like(layer.bias, requires_grad=True)
        gates.append(gate)
        if layer.norm is None:
            scaled = layer.weight.detach() * gate[:, None, None, None]
            probe.append(replace(layer, weight=scaled, bias=layer.bias.detach() * gate))
        else:
            norm = replace(layer.norm, gamma=layer.norm.gamma.detach() * gate, beta=layer.norm.beta.detach() * gate)
            probe.append(replace(layer, norm=norm))
    return (*probe, layers[-1]), gates


def chunks(batch: Batch, count: int) -> list[Batch]:
    """The batch in parts of `count` samples, the last of what is left."""
    region = zip(torch.split(batch.region.centre, count), torch.split(batch.region.radius, count), strict=True)
    parts = zip(torch.split(batch.x, count), torch.split(batch.y, count), region, strict=True)
    return [Batch(x, y, replace(batch.region, centre=c, radius=r)) for x, y, (c, r) in parts]


def ranked(layers: Layers, recipe: Recipe, batch: Batch) -> Scores:
    """`scores` by the recipe's criterion, at its whole radius and robust weight."""
    return scores(layers, recipe.compress.importance, (batch, whole_step(recipe)))


def whole_step(recipe: Recipe) -> Step:
    """The end of the recipe's ramp: its whole radius and robust weight."""
    return Step(1.0, float(recipe.train.eps), recipe.train.robust_weight)


def scores(layers: Layers, criterion: str, held_out: tuple[Batch, Step] | None = None) -> Scores:
    """By the recipe's word: "reach" (`prune.importance`), "l1", "l2", "taylor" over the samples held_out; summed over tied channels.

    While a set is trained nothing is held out to measure with: "reach" takes the place of "taylor".
    """
    if criterion == "taylor" and held_out is not None:
        return together(layers, taylor(layers, *held_out))
    return together(layers, norms(layers, int(criterion[1]))) if criterion in ("l1", "l2") else importance(layers)


def begun(recipe: Recipe, shape: tuple[int, int, int], classes: int, seed: int, *, compressed: bool = False) -> Network:
    """`build.build`, each layer with the channels that [compress] keeps of it where the recipe says no number for the layer."""
    compress, model = recipe.compress, recipe.model
    specs = tuple(replace(spec, kept=spec.kept or compress.kept_of(spec.channels)) for spec in model.layer)
    network = build(replace(model, layer=specs), shape, classes, seed, compressed=compressed)
    if not (model.module and compress.keep):
        return network
    layers = network.layers()
    widths = (n if g == INPUT else compress.kept_of(n) for n, g in zip(network.widths(), ties(layers), strict=True))
    network = keeping(network, tuple(widths))
    return shrink(network, network.kept_widths())[0] if compressed else network


def allocated(network: Network, recipe: Recipe, sample: Batch, held_out: Batch) -> Network:
    """The network with the number of channels that each layer keeps (`Layer.kept`) as [compress] allocates them.

    Channels are ranked on `sample`, of the training data; what they are worth is measured on `held_out`, of the validation split.
    """
    compress = recipe.compress
    if compress.allocation == "uniform":
        return network
    layers, multiple = network.layers(), compress.channel_multiple or 1
    measured = (held_out, whole_step(recipe))
    ranking = ranked(layers, recipe, sample)
    widths = by_sensitivity(layers, network.kept_widths(), ranking, measured, multiple=multiple, budget=compress.budget)
    return keeping(network, widths)


def keeping(network: Network, widths: Widths) -> Network:
    """The network with these numbers of channels to keep of its hidden layers."""
    layers = network.layers()
    hidden = (replace(layer, kept=kept) for layer, kept in zip(layers, widths, strict=False))
    return Network((*hidden, layers[-1]))


def macs(layers: Layers) -> int:
    """Multiply-accumulates of one inference, taps outside the image included."""
    return sum(layer.weight.numel() * math.prod(layer.out_size) for layer in layers)


def stored_bytes(layers: Layers) -> int:
    """Bytes of weights, int8, and biases, int32."""
    return sum(layer_bytes(layer, 8) for layer in layers)


def layer_bytes(layer: Layer, bits: int) -> int:
    """Bytes of the layer's weights, of so many bits each, and of its int32 biases."""
    return -(-layer.weight.numel() * bits // 8) + 4 * layer.weight.shape[0]


COSTS: Mapping[str, Cost] = {"macs": macs, "bytes": stored_bytes}


@dataclass(frozen=True)
class Sensitivity:
    """whole: certified loss of the network as it is. loss: [group][width], with the layers of that group alone cut to it."""

    whole: float
    loss: tuple[Mapping[int, float], ...]

    def rise(self, widths: Widths) -> float:
        """Sum over the groups of how much the loss rises, as if they did not influence each other."""
        return sum(loss[width] - self.whole for loss, width in zip(self.loss, widths, strict=True))


def widths_to_try(channels: int, multiple: int, also: int) -> tuple[int, ...]:
    """At most STEPS + 1 widths up to all the channels, ascending, whole multiples but for the last; `also` is one."""
    stride = multiple * math.ceil(channels / multiple / STEPS)
    return tuple(sorted({*range(stride, channels, stride), channels, also}))


def allocate(found: Sensitivity, start: Widths, cost: Callable[[Widths], int], budget: int) -> Widths:
    """Widths of found.loss whose cost is at most `budget`: from whole groups on, the cut that costs least loss per cost saved.

    What is left of the budget is then spent again on the widening that lowers the loss most. start: widths within the budget;
    they are the answer where the others promise no less loss. Of equal cuts the first group's. cost grows with every width.
    """
    widths = tuple(max(loss) for loss in found.loss)
    while cost(widths) > budget:
        cuts = _moves(found, widths, lambda new, old: new < old)
        if not cuts:
            return start
        rise, price = found.rise(widths), cost(widths)
        widths = min(cuts, key=lambda cut: (found.rise(cut) - rise) / max(price - cost(cut), 1))
    while better := [
        w
        for w in _moves(found, widths, lambda new, old: new > old)
        if cost(w) <= budget and found.rise(w) < found.rise(widths)
    ]:
        widths = min(better, key=found.rise)
    return widths if found.rise(widths) < found.rise(start) else start


def _moves(found: Sensitivity, widths: Widths, wanted: Callable[[int, int], bool]) -> list[Widths]:
    """`widths` with one group at another of its measured widths."""
    return [
        (*widths[:i], w, *widths[i + 1 :]) for i, loss in enumerate(found.loss) for w in loss if wanted(w, widths[i])
    ]


def by_sensitivity(
    layers: Layers, start: Widths, ranking: Scores, held_out: tuple[Batch, Step], *, multiple: int, budget: str
) -> Widths:
    """`allocate` at the cost, in MACs or bytes, of the widths `start`: of the hidden layers, measured on the samples held_out."""
    ties_of = ties(layers)
    groups = sorted({g for g in ties_of if g != INPUT})
    shapes = tuple(replace(a, weight=a.weight.to("meta"), bias=a.bias.to("meta"), norm=None) for a in layers)

    def of_layers(widths: Widths) -> Widths:
        by_group = dict(zip(groups, widths, strict=True))
        return tuple(by_group.get(g, len(a.weight)) for a, g in zip(layers, ties_of, strict=False))

    @cache
    def cost(widths: Widths) -> int:
        kept = choose(layers, of_layers(widths), ranking)
        return COSTS[budget](take(shapes, tuple(rows.to("meta") for rows in kept)))

    @cache
    def loss(widths: Widths) -> float:
        kept = choose(layers, of_layers(widths), ranking)
        return float(certified_loss(take(layers, kept), *held_out))

    channels, begin = tuple(len(layers[g].weight) for g in groups), tuple(start[g] for g in groups)
    with torch.no_grad():
        measured = tuple(
            {w: loss((*channels[:i], w, *channels[i + 1 :])) for w in widths_to_try(channels[i], multiple, begin[i])}
            for i in range(len(groups))
        )
        found = Sensitivity(loss(channels), measured)
    return of_layers(allocate(found, begin, cost, cost(begin)))
