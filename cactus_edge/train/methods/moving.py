"""Networks whose mask of weights changes while they train, at points that lie evenly over a stage; the optimiser goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Step
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.stages import Enter, Objective, Schedule, Stage, clip, hearing, never

UPDATES = 20
"""Updates of the mask, evenly over the stage."""


class Moving(Network, ABC):
    """A network whose weights are 0 where its masks are; gradients reach all of them."""

    def __init__(self, layers: Layers, masks: tuple[Tensor, ...]) -> None:
        """masks: bool [O, I, KH, KW] of each layer."""
        super().__init__(layers)
        for i, mask in enumerate(masks):
            self.register_buffer(f"mask{i}", mask)
        self.register_buffer("part", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.hold()

    def masks(self) -> tuple[Tensor, ...]:
        """Which weights are on, bool [O, I, KH, KW] of each layer."""
        return tuple(getattr(self, f"mask{i}") for i in range(len(self._plan)))

    def note(self, part: float) -> None:
        """How much of the stage is over, in [0, 1]; `due` follows from it."""
        self.get_buffer("part").fill_(part)

    @property
    def passed(self) -> float:
        """What `note` was told last."""
        return float(self.get_buffer("part"))

    @property
    def due(self) -> bool:
        """Whether the stage has passed a point of update since the mask's last one; of several that it passed the last one counts."""
        return int(self.get_buffer("updates")) < int(self.passed * UPDATES)

    def update(self) -> None:
        """Chooses the masks anew; what is off is 0 after it."""
        self.hold()  # the optimiser moves what is off too
        self.choose()
        self.get_buffer("updates").fill_(int(self.passed * UPDATES))
        self.hold()

    @abstractmethod
    def choose(self) -> None:
        """Writes the masks from weights that are 0 where they are off, and from the gradients of the last step."""

    def hold(self) -> None:
        """Sets what is off to 0."""
        with torch.no_grad():
            for layer, mask in zip(self.layers(), self.masks(), strict=True):
                layer.weight.mul_(mask)


def moving(name: str, enter: Enter, schedule: Callable[[Recipe], Schedule], of: Callable[[Recipe], Objective]) -> Stage:
    """The stage in which the `Moving` network that `enter` makes is trained by that objective."""
    return Stage(name, enter, False, schedule, hearing(_note, of), clip, _updated, never)


def _note(network: Network, step: Step) -> None:
    if isinstance(network, Moving):
        network.note(step.part)


def _updated(network: Network) -> None:
    if isinstance(network, Moving):
        if network.due:
            network.update()
        network.hold()
    positive_gamma(network)
