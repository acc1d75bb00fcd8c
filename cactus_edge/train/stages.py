"""Methods as data: a method is a tuple of stages, a stage is three plain callables, a schedule and a way in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import Bounds, Box, holds, propagate
from cactus_edge.train.folded import Folded, fold_batch
from cactus_edge.train.models import Network
from cactus_edge.train.objectives import cactus
from cactus_edge.train.objectives.ibp import warmup_regulariser
from cactus_edge.train.objectives.sabr import small_box
from cactus_edge.train.projections import Projection, positive_gamma
from cactus_edge.train.prune import shrink
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

    def progress(self, epoch: float) -> float:
        """0 during the warm-up, 1 after the ramp, linear between: the factor of eps and of the robust weight."""
        if epoch < self.warmup:
            return 0.0
        return min(1.0, (epoch - self.warmup) / self.ramp) if self.ramp > 0 else 1.0

    def rate(self, epoch: float) -> float:
        """Learning rate: a rise over the first twentieth of the stage, constant, then a linear fall to one hundredth."""
        part = epoch / self.epochs
        rise = min(1.0, 0.05 + 20 * part)
        fall = 1.0 if part <= self.decay_from else (1 - part) / (1 - self.decay_from)
        return self.learning_rate * min(rise, max(fall, 0.01))


@dataclass(frozen=True)
class Step:
    """The schedule's values at one step. progress in [0, 1]; eps in sensor units; robust_weight is lambda."""

    progress: float
    eps: float
    robust_weight: float


@dataclass(frozen=True)
class Terms:
    """loss: scalar to differentiate. correct, certified: samples of the batch, at the step's eps, by the first member."""

    loss: Tensor
    correct: int
    certified: int


Objective = Callable[[Network, cactus.Batch, Step], Terms]


@dataclass(frozen=True)
class Stage:
    """enter: the network to train from the one that the previous stage left. The other callables follow from the recipe.

    clamped: whether every member that the stage trains has clamped activations.
    """

    name: str
    enter: Callable[[Network, Recipe], Network]
    schedule: Callable[[Recipe], Schedule]
    objective: Callable[[Recipe], Objective]
    update: Callable[[Recipe], Update]
    projection: Projection
    clamped: Callable[[Recipe], bool]


def _objective(members: Callable[[Recipe], tuple[str, ...]]) -> Callable[[Recipe], Objective]:
    """Mean over the members of the mixed loss + the warm-up regulariser while eps grows + L1 of the folded weights."""

    def of(recipe: Recipe) -> Objective:
        names, train = members(recipe), recipe.train
        widths, clip, levels = kept_widths(recipe), recipe.quantise.train_clip, recipe.quantise.levels

        def objective(network: Network, batch: cactus.Batch, step: Step) -> Terms:
            layers, whole = network.layers(), batch.region
            if train.box_ratio < 1:
                small = small_box(fold_batch(layers, batch.x).net, whole, batch.y, train.box_ratio)
                batch = replace(batch, region=small)
            found, clean = cactus.members(
                layers, batch, names, widths=widths, clip=clip, levels=levels, weight=step.robust_weight
            )
            loss = torch.stack([m.mixed(step.robust_weight) for m in found.values()]).mean()
            first = next(iter(found.values()))
            if step.progress < 1 and train.warmup_regulariser > 0:
                loss = loss + train.warmup_regulariser * (1 - step.progress) * warmup_regulariser(
                    first.bounds, batch.region
                )
            if train.weight_l1 > 0:
                loss = loss + train.weight_l1 * torch.stack([a.weight.abs().sum() for a in clean.net]).sum()
            return Terms(
                loss,
                int((clean.logits.detach().argmax(1) == batch.y).sum()),
                int(holds(_margin(clean.net, whole, first.bounds, batch), batch.y).sum()),
            )

        return objective

    return of


def _margin(net: Folded, whole: Box, bounds: Bounds, batch: cactus.Batch) -> Tensor:
    """The margins over the whole region: those that were trained on, or of a smaller box the full network's own."""
    if batch.region is whole:
        return bounds.margin.detach()
    with torch.no_grad():
        return propagate(net, whole, batch.y).margin


def kept_widths(recipe: Recipe) -> tuple[int, ...]:
    """Channels of each hidden layer after compression."""
    return tuple(layer.width for layer in recipe.model.layer)


def _same(network: Network, _: Recipe) -> Network:
    return network


def _compressed(network: Network, recipe: Recipe) -> Network:
    return shrink(network, kept_widths(recipe))[0]


def _training(recipe: Recipe) -> Schedule:
    t = recipe.train
    return Schedule(
        t.epochs, t.learning_rate, t.decay_from, t.warmup_epochs, t.ramp_epochs, float(t.eps), t.robust_weight
    )


def _finetuning(recipe: Recipe) -> Schedule:
    c, t = recipe.compress, recipe.train
    return Schedule(
        c.finetune_epochs, c.learning_rate, c.decay_from, 0, 0, float(t.eps), t.robust_weight, c.average_epochs
    )


def _joint(recipe: Recipe) -> Schedule:
    """All epochs as one stage; the learning rate falls over the last two fifths. As many epochs are averaged as in the other."""
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
    )


def _only_quantised(members: tuple[str, ...]) -> bool:
    return set(members) == {"quantised"}


def _clip(recipe: Recipe) -> Update:
    return clipped(recipe.train.clip_norm)


METHODS: dict[str, tuple[Stage, ...]] = {
    # The network set while training, then the channels go for good and what is left is fine-tuned with its int8 version.
    "cactus": (
        Stage(
            "train",
            _same,
            _training,
            _objective(lambda r: r.train.members),
            _clip,
            positive_gamma,
            lambda r: _only_quantised(r.train.members),
        ),
        Stage(
            "compress",
            _compressed,
            _finetuning,
            _objective(lambda r: r.compress.members),
            _clip,
            positive_gamma,
            lambda r: r.compress.finetune_epochs > 0 and _only_quantised(r.compress.members),
        ),
    ),
    # The baseline: the network that `cactus` ends with, trained from the start, for as many epochs, without compression.
    "small": (Stage("train", _same, _joint, _objective(lambda _: ("full",)), _clip, positive_gamma, lambda _: False),),
}
"""Every training method by name."""


def initial_widths(method: str, recipe: Recipe) -> tuple[int, ...]:
    """Channels of each hidden layer when the first stage begins."""
    return kept_widths(recipe) if method == "small" else tuple(layer.channels for layer in recipe.model.layer)
