"""What tests of training share: Ctrl-C at a chosen epoch, and a history without its times."""

from __future__ import annotations

from dataclasses import replace

from cactus_edge.train.loop import EpochStats, TrainedModel


class CtrlC:
    """Interrupts as Ctrl-C does, in the callback after a given epoch."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, _: EpochStats) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def untimed(model: TrainedModel) -> list[EpochStats]:
    """The history but for how long it took."""
    return [replace(s, seconds=0, cpu_seconds=0) for s in model.history]
