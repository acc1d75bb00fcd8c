"""Live inputs on a board: is the decision about each input certified there as the definition says, and at what cost?

The firmware must have been built with `live`. The expected verdicts are handed in: this module imports no verifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.device.connect import Board
from cactus_edge.device.measure import Spread, send
from cactus_edge.device.protocol import Link, Timeouts
from cactus_edge.errors import DeviceProtocolError, MismatchError


@dataclass(frozen=True)
class Live:
    """What the board says to one input. label: its first largest output. margin: of the label over the closest class, at least.

    ticks: of the bounds alone, in the clock of `Link.ticks`.
    """

    label: int
    certified: bool
    margin: int
    ticks: int


Expected = Callable[[npt.NDArray[np.int64]], tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]]
"""labels [N] -> (certified, margin) [N] around the inputs that were sent, by the definition."""


@dataclass(frozen=True)
class LiveReport:
    """inputs: bounded on the board `radius` codes around each. certified: of them. equal: those whose verdict and margin are the
    expected ones. units: what bounding one costs, besides its inference, in instructions or microseconds."""

    radius: int
    inputs: int
    certified: int
    equal: int
    units: Spread

    def require_agreement(self) -> None:
        """Raises MismatchError unless every verdict is the expected one."""
        if self.equal != self.inputs:
            raise MismatchError(
                f"{self.inputs - self.equal} of {self.inputs} verdicts of the board differ from the definition",
                hint="please report this model",
            )


def certify(link: Link, radius: int, ends: tuple[int, int] = (-128, 127)) -> Live:
    """Bounds the decision around the loaded input, over codes from ends[0] to ends[1]. DeviceProtocolError without the command."""
    text = f"certify {radius} {ends[0]} {ends[1]}"
    pattern = r"m-certify-\[label=(\d+);certified=([01]);margin=(-?\d+);ticks=(\d+)\]"
    lines = link.ask(text, Timeouts().infer_s)
    found = next((match for line in lines if (match := re.fullmatch(pattern, line))), None)
    if found is None:
        raise DeviceProtocolError(f"{text!r} was answered by {lines!r}", hint="build the firmware with live inputs")
    label, certified, margin, ticks = map(int, found.groups())
    return Live(label, bool(certified), margin, ticks)


def bench_live(
    board: Board,
    inputs: npt.NDArray[np.int8],
    radius: int,
    expected: Expected,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    discard: Callable[[float, str, str], None] = lambda seconds, reason, text: None,
) -> LiveReport:
    """Sends int8 inputs [N, *input], one or more, and compares each verdict. Raises the device's errors.

    discard: told of inputs that arrived changed and were sent again.
    """
    found = []
    for index, x in enumerate(inputs):
        send(board, index, x.tobytes(), discard)
        found.append(certify(board.link, radius))
        progress(index + 1, len(inputs))
    board.link.infer(1, 0)
    clock = board.link.ticks()
    certified, margin = expected(np.array([live.label for live in found]))
    equal = [live.certified == c and live.margin == m for live, c, m in zip(found, certified, margin, strict=True)]
    units = np.array([live.ticks for live in found]) * clock.unit_hz / clock.hz
    if clock.unit == "instructions":
        units = np.rint(units)  # whole numbers, which the clock's ticks round by less than half
    low, median, high = np.percentile(units, [25, 50, 75])
    cost = Spread(float(median), float(high - low), len(found))
    return LiveReport(radius, len(found), sum(live.certified for live in found), int(np.sum(equal)), cost)
