"""Accuracy of a finished file on corrupted images: the mean over fifteen corruptions at five severities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cactus_edge.corruptions import CORRUPTIONS, SEVERITIES, corrupt, require_images
from cactus_edge.formats.read import read_for
from cactus_edge.ir.arithmetic import profile as profile_by_name
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Float32
from cactus_edge.verify.goal import wins
from cactus_edge.verify.regions import check_data


@dataclass(frozen=True)
class Corrupted:
    """right: for each corruption the number of right answers at each severity, of `samples`; clean: without any."""

    samples: int
    seed: int
    clean: int
    right: Mapping[str, tuple[int, ...]]

    @property
    def mean(self) -> float:
        """Accuracy in [0, 1] over all corruptions and severities, each counting as much."""
        return sum(map(sum, self.right.values())) / (self.samples * SEVERITIES * len(self.right))

    def accuracy(self, name: str) -> float:
        """Accuracy in [0, 1] over the severities of one corruption."""
        return sum(self.right[name]) / (self.samples * SEVERITIES)

    def rows(self) -> list[tuple[str, ...]]:
        """For a table: the corruption, its accuracy in per cent at each severity, and over all of them."""
        each = [
            (name, *(f"{100 * n / self.samples:.1f}" for n in right), f"{100 * self.accuracy(name):.1f}")
            for name, right in self.right.items()
        ]
        return [*each, ("mean", *[""] * SEVERITIES, f"{100 * self.mean:.1f}")]


def corrupted(
    model: bytes,
    x: Float32,
    y: npt.NDArray[Any],
    seed: int = 0,
    *,
    profile: str = "tflm",
    advance: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Corrupted:
    """How often the file `model`, .tflite or .onnx, is right on corrupted versions of the images x [N, H, W, C] in [0, 1].

    By the exact interpreter under `profile`: right is where the label wins strictly, as for every certificate; y integer [N]. It
    runs 76 N inferences. advance: as `Progress.advance`. Raises DataError for what are no images, and as `outputs.outputs` does.
    """
    rules = profile_by_name(profile)
    program = lower(read_for(model, rules), rules)
    require_images(x)
    labels = check_data(program, x, y)

    def right(images: Float32) -> int:
        found = run(program, program.quantize.apply(images)).reshape(len(images), -1)
        return int(wins(found, labels).sum())

    clean, total = right(x), len(CORRUPTIONS) * SEVERITIES
    found: dict[str, tuple[int, ...]] = {}
    for name in CORRUPTIONS:
        counts: list[int] = []
        for severity in range(1, SEVERITIES + 1):
            counts.append(right(corrupt(x, name, severity, seed)))
            advance(len(found) * SEVERITIES + severity, total, name)
        found[name] = tuple(counts)
    return Corrupted(len(x), seed, clean, found)
