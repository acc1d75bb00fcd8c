"""What training records of each epoch: a module of its own, so that records are read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochStats:
    """One finished epoch. Accuracies are in [0, 1].

    train_*: over the epoch's batches, certified at the epoch's last training eps, by the first member of the set.
    val_*: of the float network that the stage would hand on now, on the validation split, certified at the recipe's certify
    eps. back_to: the epoch of the stage that training went back to, as the network had died in this one (`recovery`); val_* are
    then of what it went back to. 0 for none. seconds: wall time. cpu_seconds: processor time of all threads, which other programs
    do not lengthen much (0 in records from before it was kept).
    """

    stage: str
    epoch: int
    epochs: int
    loss: float
    eps: float
    learning_rate: float
    train_clean: float
    train_certified: float
    val_clean: float
    val_certified: float
    seconds: float
    cpu_seconds: float = 0.0
    back_to: int = 0

    @property
    def undone(self) -> str:
        """What became of an epoch that killed its network, in words; nothing of any other."""
        return (
            f"the network died: back to {self.stage} {self.back_to}, at half the learning rate" if self.back_to else ""
        )

    def number(self, plan: Mapping[str, int]) -> int:
        """The epoch counted through all stages; plan: each stage's epochs, in order."""
        return _before(self.stage, plan) + self.epoch


@dataclass(frozen=True)
class Underway:
    """An epoch that has done `steps` of its `of` steps. stage, epoch: as in `EpochStats`."""

    stage: str
    epoch: int
    steps: int
    of: int

    def finished(self, plan: Mapping[str, int]) -> int:
        """Epochs before it through all stages; plan: each stage's epochs, in order."""
        return _before(self.stage, plan) + self.epoch - 1

    @property
    def words(self) -> str:
        """How far it is."""
        return f"{self.stage}, {self.steps} of {self.of} steps of the next epoch"


def _before(stage: str, plan: Mapping[str, int]) -> int:
    names = list(plan)
    return sum(plan[name] for name in names[: names.index(stage)])
