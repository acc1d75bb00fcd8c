"""The float network on numpy samples: predictions, certified and attacked accuracy, as the report compares them with the file's."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cactus_edge.train.attacks import pgd
from cactus_edge.train.bounds import Radius, ball, holds, propagate
from cactus_edge.train.data import Float32, Int64
from cactus_edge.train.deck.cards import TrainedDeck
from cactus_edge.train.folded import Folded, forward
from cactus_edge.train.trained import TrainedModel

Bool = npt.NDArray[np.bool_]
Domain = tuple[Fraction, Fraction]
UNIT: Domain = (Fraction(0), Fraction(1))

BATCH = 500


def float_logits(trained: TrainedModel | TrainedDeck, x: Float32) -> Float32:
    """Logits float32 [N, classes] of x float32 [N, H, W, C] in sensor units; a deck's gate is its integer one."""
    if isinstance(trained, TrainedDeck):
        return trained.together([float_logits(card, x) for card in trained.cards], x)
    net = trained.folded()
    with torch.no_grad():
        return np.concatenate([forward(net, a).numpy() for a, _ in _batches(x, np.zeros(len(x), np.int64))])


def float_predict(trained: TrainedModel | TrainedDeck, x: Float32) -> Int64:
    """Class int64 [N] of x float32 [N, H, W, C]: the first maximum of the logits."""
    return np.asarray(float_logits(trained, x).argmax(1), np.int64)


def float_certified(
    trained: TrainedModel | TrainedDeck, x: Float32, y: Int64, eps: Radius, domain: Domain = UNIT
) -> Bool:
    """Whether class y wins strictly over the l-inf ball of radius eps intersected with the domain, by float32 intervals.

    bool [N]. The last layer is fused with the margin, as in the integer certificate. Floating-point rounding is not
    accounted for: this measures, it does not prove. A deck holds where the mean margin of either scheme's cards does.
    """
    if isinstance(trained, TrainedDeck):
        return _deck_certified(trained, x, y, eps, domain)
    return certified(trained.folded(), x, y, eps, domain)


def certified(net: Folded, x: Float32, y: Int64, eps: Radius, domain: Domain = UNIT) -> Bool:
    """`float_certified` of a folded network."""
    with torch.no_grad():
        found = [holds(propagate(net, ball(a, eps, domain), b).margin, b).numpy() for a, b in _batches(x, y)]
    return np.concatenate(found)


def _deck_certified(deck: TrainedDeck, x: Float32, y: Int64, eps: Radius, domain: Domain) -> Bool:
    nets, found = [card.folded() for card in deck.cards], []
    with torch.no_grad():
        for a, b in _batches(x, y):
            region = ball(a, eps, domain)
            margins = [propagate(net, region, b).margin for net in nets]
            means = [torch.stack([margins[i] for i in group]).mean(0) for group in deck.groups()]
            found.append(torch.stack([holds(mean, b) for mean in means]).all(0).numpy())
    return np.concatenate(found)


def float_attacked(
    trained: TrainedModel, x: Float32, y: Int64, eps: Radius, domain: Domain = UNIT, *, steps: int = 20, seed: int = 0
) -> Bool:
    """Whether the class survives projected gradient descent in the same region: bool [N], certified <= attacked <= clean."""
    net = trained.folded()
    found = []
    for a, b in _batches(x, y):
        z = pgd(net, a, b, eps, domain, steps=steps, seed=seed)
        with torch.no_grad():
            found.append((forward(net, z).argmax(1) == b).numpy())
    return np.concatenate(found)


def _batches(x: Float32, y: Int64) -> Iterator[tuple[Tensor, Tensor]]:
    for i in range(0, len(x), BATCH):
        images = np.ascontiguousarray(x[i : i + BATCH].transpose(0, 3, 1, 2), dtype=np.float32)
        yield torch.from_numpy(images), torch.from_numpy(np.array(y[i : i + BATCH], dtype=np.int64))
