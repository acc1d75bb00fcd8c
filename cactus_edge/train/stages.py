"""Methods as data: a method is a tuple of stages, a stage is three plain callables, a schedule and a way in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.allocation import ranked, scores
from cactus_edge.train.bounds import Box, holds, propagate
from cactus_edge.train.folded import Folded
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives import OBJECTIVES, cactus
from cactus_edge.train.objectives.consistency import consistent
from cactus_edge.train.objectives.ibp import warmup_regulariser
from cactus_edge.train.objectives.loss import Batch, Loss, Step
from cactus_edge.train.projections import Projection, positive_gamma
from cactus_edge.train.prune import shrink
from cactus_edge.train.sparsity import Sparsity, still
from cactus_edge.train.updates import Update, clipped


@dataclass(frozen=True)
class Schedule:
    """Positions are epochs since the stage began, as real numbers.

    The stage hands on the mean of the weights after each of its last average_epochs (0: the last weights).
    """

    epochs: int
    learning_rate: float
    decay_from: float
    warmup: float
    ramp: float
    eps: float
    robust_weight: float
    average_epochs: int = 0
    decay: str = "linear"

    def progress(self, epoch: float) -> float:
        """0 during the warm-up, 1 after the ramp, linear between: the factor of eps and of the robust weight."""
        if epoch < self.warmup:
            return 0.0
        return min(1.0, (epoch - self.warmup) / self.ramp) if self.ramp > 0 else 1.0

    def rate(self, epoch: float) -> float:
        """Learning rate: a rise over the first twentieth of the stage, constant, then a linear fall to one hundredth; or, by `decay`,
        constant and then a tenth ("step"), or that rise and half a cosine ("cosine")."""
        part = epoch / self.epochs
        if self.decay == "step":
            return self.learning_rate * (1.0 if part < self.decay_from else 0.1)
        rise = min(1.0, 0.05 + 20 * part)
        if self.decay == "cosine":
            return self.learning_rate * min(rise, (1 + math.cos(math.pi * part)) / 2)
        fall = 1.0 if part <= self.decay_from else (1 - part) / (1 - self.decay_from)
        return self.learning_rate * min(rise, max(fall, 0.01))


@dataclass(frozen=True)
class Terms:
    """loss: scalar to differentiate. correct, certified: samples of the batch, at the step's eps, by the first member.

    certified is 0 with an objective that bounds nothing.
    """

    loss: Tensor
    correct: int
    certified: int


Objective = Callable[[Network, Batch, Step], Terms]

LayersObjective = Callable[[Layers, tuple[int, ...], Batch, Step], Terms]
"""An objective of layers and the channels that stay of each hidden one, for methods that train more than the network itself."""

Enter = Callable[[Network, Recipe, Batch], Network]
"""The network to train from the one that the previous stage left. The batch is a sample of the training data, its region whole.

Shapes follow from the recipe and from the layers' `kept` alone, whatever the weights and the sample are: a resumed run finds its
network's form by them.
"""


FINETUNING = "compress"
"""What methods call the stage that fine-tunes the network in its final shape; those of a single stage have none."""


@dataclass(frozen=True)
class Stage:
    """How one stage goes on from the last; what its other callables give follows from the recipe.

    compressed: whether the stage trains the network without the channels that compression removes; the first stage's network is
    built so.
    clamped: whether every member that the stage trains has clamped activations.
    shared: a first stage that does not depend on [compress]; other methods that begin with the stage of this name find what it
    left.
    training: whether it trains by [train] after another stage too; else every stage but the first trains by [compress].
    """

    name: str
    enter: Enter
    compressed: bool
    schedule: Callable[[Recipe], Schedule]
    objective: Callable[[Recipe], Objective]
    update: Callable[[Recipe], Update]
    projection: Projection
    clamped: Callable[[Recipe], bool]
    shared: bool = False
    training: bool = False


def over_layers(
    members: Callable[[Recipe], tuple[str, ...]], around: Callable[[Loss], Loss] = lambda loss: loss
) -> Callable[[Recipe], LayersObjective]:
    """Mean over the members of the recipe's objective + the warm-up regulariser of its bounds while eps grows + L1 of the folded
    weights.

    around: what a method makes of the recipe's objective first.
    """

    def of(recipe: Recipe) -> LayersObjective:
        names, train = members(recipe), recipe.train
        clip, levels = recipe.quantise.train_clip, recipe.quantise.levels
        certified_loss, sparsity = around(OBJECTIVES[train.objective](train)), Sparsity.of(recipe.compress)
        if train.consistency > 0:
            certified_loss = consistent(certified_loss, train.consistency)
        rank = partial(scores, criterion=recipe.compress.importance)

        def objective(layers: Layers, widths: tuple[int, ...], batch: Batch, step: Step) -> Terms:
            ships = cactus.Ships(widths, rank, sparsity, clip, levels, recipe.quantise.weight_bits)
            found, clean, aimed = cactus.members(layers, batch, names, certified_loss, step, ships)
            loss = torch.stack([m.loss for m in found.values()]).mean()
            first = next(iter(found.values()))
            if first.bounds is not None and step.progress < 1 and train.warmup_regulariser > 0:
                loss = loss + train.warmup_regulariser * (1 - step.progress) * warmup_regulariser(
                    first.bounds, aimed.region
                )
            if train.weight_l1 > 0:
                loss = loss + train.weight_l1 * torch.stack([a.weight.abs().sum() for a in clean.net]).sum()
            correct = int((clean.logits.detach().argmax(1) == batch.y).sum())
            if first.bounds is None:
                return Terms(loss, correct, 0)
            margin = first.bounds.margin if aimed.region is batch.region else _margin(clean.net, batch.region, batch.y)
            return Terms(loss, correct, int(holds(margin.detach(), batch.y).sum()))

        return objective

    return of


def over_members(
    members: Callable[[Recipe], tuple[str, ...]],
    around: Callable[[Loss], Loss] = lambda loss: loss,
    *,
    choosing: bool = False,
) -> Callable[[Recipe], Objective]:
    """`over_layers` of the network's own.

    choosing: zeros are still being chosen, by scores that need the gradient of every weight; else weights that are 0 have none.
    """

    def of(recipe: Recipe) -> Objective:
        inner, sparsity = over_layers(members, around)(recipe), Sparsity.of(recipe.compress)

        def objective(network: Network, batch: Batch, step: Step) -> Terms:
            layers = network.layers() if sparsity is None or choosing else still(network.layers())
            return inner(layers, network.kept_widths(), batch, step)

        return objective

    return of


def _margin(net: Folded, whole: Box, y: Tensor) -> Tensor:
    with torch.no_grad():
        return propagate(net, whole, y).margin


def same(network: Network, _: Recipe, __: Batch) -> Network:
    """The network that the previous stage left."""
    return network


def plain(network: Network, _: Recipe, __: Batch) -> Network:
    """Its layers alone, with their zeros: without what a method kept beside them, or chose them by, while it trained."""
    return Network(network.layers())


only_full = over_members(lambda _: ("full",))
"""The network itself, without its compressed versions."""

only_scores = over_members(lambda _: ("full",), choosing=True)
"""The network that its scores choose."""


full_layers = over_layers(lambda _: ("full",))
"""`only_full` of layers."""


def never(_: Recipe) -> bool:
    """Of `clamped`: the network itself is trained."""
    return False


def without_channels(network: Network, recipe: Recipe, sample: Batch) -> Network:
    """The most important channels of the network that the previous stage left."""
    return shrink(network, network.kept_widths(), ranked(network.layers(), recipe, sample))[0]


def training(recipe: Recipe) -> Schedule:
    """The schedule of [train]."""
    t = recipe.train
    return Schedule(
        t.epochs,
        t.learning_rate,
        t.decay_from,
        t.warmup_epochs,
        t.ramp_epochs,
        float(t.eps),
        t.robust_weight,
        decay=t.decay,
    )


def finetuning(recipe: Recipe) -> Schedule:
    """The schedule of [compress], at the whole radius."""
    c, t = recipe.compress, recipe.train
    return Schedule(
        c.finetune_epochs, c.learning_rate, c.decay_from, 0, 0, float(t.eps), t.robust_weight, c.average_epochs, t.decay
    )


def joint(recipe: Recipe) -> Schedule:
    """All epochs as one stage; the learning rate falls over the last two fifths. As many epochs are averaged as in fine-tuning."""
    t, epochs = recipe.train, recipe.train.epochs + recipe.compress.finetune_epochs
    return Schedule(
        epochs,
        t.learning_rate,
        0.6,
        t.warmup_epochs,
        t.ramp_epochs,
        float(t.eps),
        t.robust_weight,
        recipe.compress.average_epochs,
        t.decay,
    )


def clip(recipe: Recipe) -> Update:
    """A step of the optimiser after limiting the gradients as the recipe says."""
    return clipped(recipe.train.clip_norm)


def only_quantised(members: tuple[str, ...]) -> bool:
    """Whether nothing but the int8 network is trained."""
    return set(members) == {"quantised"}


def tuned_quantised(recipe: Recipe) -> bool:
    """Of `clamped`: fine-tuning trains nothing but the int8 network, for an epoch at least."""
    return recipe.compress.finetune_epochs > 0 and only_quantised(recipe.compress.members)


def shipping(enter: Enter, *, compressed: bool = True, projection: Projection = positive_gamma) -> Stage:
    """The last stage: what `enter` leaves is fine-tuned over the members of [compress]; for 0 epochs not at all."""
    members = over_members(lambda r: r.compress.members)
    return Stage(FINETUNING, enter, compressed, finetuning, members, clip, projection, tuned_quantised)


def hearing(tell: Callable[[Network, Step], None], of: Callable[[Recipe], Objective]) -> Callable[[Recipe], Objective]:
    """The objective of a network that is told of each step before it."""

    def heard(recipe: Recipe) -> Objective:
        inner = of(recipe)

        def objective(network: Network, batch: Batch, step: Step) -> Terms:
            tell(network, step)
            return inner(network, batch, step)

        return objective

    return heard
