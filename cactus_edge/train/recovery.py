"""What a stage goes back to when its network dies.

A high learning rate under a certified loss now and then ends with nearly every ReLU of a layer off: the network says much the same
whatever it reads, and has no gradient to come back by. The epoch after which it does so is undone: training goes on from the state
after the stage's best epoch, at half the learning rate, for the epochs that are left.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cactus_edge.train.averaging import Average
from cactus_edge.train.folded import Folded, forward
from cactus_edge.train.history import EpochStats
from cactus_edge.train.models import Network

MOST = 4
"""How often a stage goes back: from then on what happens, happens."""

ALIVE, DEAD = 0.25, 0.5
"""A network has learned something whose share of right answers is so far above that of always the same answer. It is dead where less
than this part of that distance is left and its loss is no better than guessing's. Each alone may be the price of robustness."""


def right(net: Folded, x: Tensor, y: Tensor) -> float:
    """The share of the samples x [N, C, H, W] that the network gets right."""
    with torch.no_grad():
        return float((forward(net, x).argmax(1) == y).float().mean())


@dataclass(frozen=True)
class Guess:
    """What is to be had without looking at a sample. right: the share of the commonest class; loss: the entropy of the classes."""

    right: float
    loss: float

    @staticmethod
    def of(y: Tensor) -> Guess:
        """For samples of the classes y int64 [N]."""
        shares = torch.bincount(y).double() / len(y)
        return Guess(float(shares.amax()), float(torch.special.entr(shares).sum()))


@dataclass(frozen=True, eq=False)
class Held:
    """The state after an epoch. right: its network's share of some training samples. clean, certified: of the validation split, of
    what the stage would have handed on then."""

    epoch: int
    right: float
    clean: float
    certified: float
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: Average | None

    def restore(self, network: Network, optimizer: torch.optim.Optimizer) -> Average | None:
        """Puts both back to that state; gives the average."""
        network.load_state_dict(self.network)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        return self.average

    def undoes(self, stats: EpochStats) -> EpochStats:
        """The record of an epoch that was undone: what is handed on is again what it was."""
        return replace(stats, val_clean=self.clean, val_certified=self.certified, back_to=self.epoch)


@dataclass(frozen=True, eq=False)
class Recovery:
    """Of one stage. best: by samples right and certified, counted together; None before there is one. returns: so far."""

    best: Held | None = None
    returns: int = 0

    @property
    def slower(self) -> float:
        """What the schedule's learning rate is multiplied by."""
        return 0.5**self.returns

    def dies(self, found: float, loss: float, guess: Guess) -> bool:
        """Whether a network that gets `found` of the samples right, at this loss in training, is to be gone back from."""
        if self.best is None or self.returns == MOST or self.best.right - guess.right < ALIVE:
            return False
        lost = found - guess.right < DEAD * (self.best.right - guess.right)
        return lost and not loss < guess.loss  # nor where it is NaN

    def returned(self) -> Recovery:
        """After going back once more."""
        return replace(self, returns=self.returns + 1)

    def holding(
        self,
        stats: EpochStats,
        found: float,
        network: Network,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
    ) -> Recovery:
        """With the state after this epoch, whose network gets `found` of the samples right, if it is the best yet."""
        if self.best is not None and stats.val_clean + stats.val_certified <= self.best.clean + self.best.certified:
            return self
        state = {name: t.clone() for name, t in network.state_dict().items()}
        memory = copy.deepcopy(optimizer.state_dict())
        held = Held(stats.epoch, found, stats.val_clean, stats.val_certified, state, memory, average)
        return replace(self, best=held)

    def to_state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        best = self.best and {
            **vars(self.best),
            "average": self.best.average and [self.best.average.count, self.best.average.total],
        }
        return {"best": best, "returns": self.returns}

    @staticmethod
    def of(state: dict[str, Any] | None) -> Recovery:
        """From `to_state`; older checkpoints have none."""
        if state is None or state["best"] is None:
            return Recovery(None, 0 if state is None else state["returns"])
        average = state["best"]["average"]
        return Recovery(Held(**state["best"] | {"average": average and Average(*average)}), state["returns"])
