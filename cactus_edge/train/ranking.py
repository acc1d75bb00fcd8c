"""Floating-point margins of candidates on the validation split: they rank, `verify` decides.

Over the fake-quantised network they count what the exact integer bounds count, to a sample or two; what they do not see is the
grid of the logits, which `output_grids` proposes from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import Box, ball, box, logits
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.folded import Folded, forward
from cactus_edge.train.grids import LEVELS, InputGrid, input_grid
from cactus_edge.train.loop import to_torch
from cactus_edge.train.sampling import shares

ROUNDING_SLACK = 1.02
"""Output steps by which a fused margin must win: two halves, and a little for the multiplier's own rounding."""

BATCH = 1000

OUTSIDE = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Parts of the certified samples whose bounds a proposed grid of the logits may leave outside, at either end."""


@dataclass(frozen=True)
class Margins:
    """Per sample, float [N]. certified, clean: least lower bound of logit_y - logit_j over the region, and at the sample.

    rival: largest upper bound of another logit over the region; own: lower bound of logit_y. clean_rival, clean_own: the same
    at the sample. weight: what the sample counts, 1 on average.
    """

    certified: Tensor
    rival: Tensor
    own: Tensor
    clean_rival: Tensor
    clean_own: Tensor
    weight: Tensor

    @property
    def clean(self) -> Tensor:
        """clean_own - clean_rival."""
        return self.clean_own - self.clean_rival

    @property
    def temperature(self) -> float:
        """An eighth of the median |certified|: what `score` divides by."""
        return max(float(self.certified.abs().median()) / 8, 1e-6)

    def score(self, temperature: float) -> float:
        """Weighted mean over samples of sigmoid(certified / t) + sigmoid(clean / t).

        Soft counts of certified and of correct samples, which a few hundred samples estimate better than counts.
        """
        soft = torch.sigmoid(self.certified / temperature) + torch.sigmoid(self.clean / temperature)
        return float((self.weight * soft).mean())


class Ranking:
    """The regions of some samples, as the integer network's input sees them. x float32 [N, C, H, W]: the samples themselves."""

    def __init__(self, split: Split, dataset: Dataset, recipe: Recipe) -> None:
        eps, grid = dataset.radii(recipe.certify.eps), input_grid(recipe, dataset)
        self.x, self.y = to_torch(split)
        self._weight = shares(self.y, recipe.quantise.class_balance).float()
        parts = zip(torch.split(self.x, BATCH), torch.split(self.y, BATCH), strict=True)
        self._regions = [(_rounded(ball(a, eps, dataset.domain), grid), _rounded(box(a, a), grid), b) for a, b in parts]

    def margins(self, net: Folded) -> Margins:
        """Of the network `net`."""
        columns = [_margins(net, *part) for part in self._regions]
        certified, rival, own, clean_rival, clean_own = (torch.cat(column) for column in zip(*columns, strict=True))
        return Margins(certified, rival, own, clean_rival, clean_own, self._weight)


def _rounded(region: Box, grid: InputGrid) -> Box:
    """The region after input quantisation: ends to the nearest step, ties outward as for real ends."""
    least, most = -128 - grid.zero_point, 127 - grid.zero_point
    lower = (region.lower * grid.steps + (0.5 - _TIE)).floor().clamp(least, most) / grid.steps
    upper = (region.upper * grid.steps + (0.5 + _TIE)).floor().clamp(least, most) / grid.steps
    return box(lower, upper)


_TIE = 1e-3
"""Steps within which a float32 end counts as a tie."""


def _margins(net: Folded, region: Box, point: Box, y: Tensor) -> tuple[Tensor, ...]:
    bounds, outputs = logits(net, region, y)
    clean = forward(net, point.centre)
    label = torch.zeros_like(clean, dtype=torch.bool).scatter(1, y[:, None], True)
    return (
        bounds.margin.masked_fill(label, torch.inf).amin(1),
        outputs.upper.masked_fill(label, -torch.inf).amax(1),
        outputs.lower[label],
        clean.masked_fill(label, -torch.inf).amax(1),
        clean[label],
    )


@dataclass(frozen=True)
class OutputGrid:
    """The logits' int8 grid."""

    scale: float
    zero_point: int


def output_grid(found: Margins, *, symmetric: bool) -> OutputGrid:
    """The grid that leaves most samples certified and most correct, counted together; of equals the widest.

    The largest bound of another logit must stay below 127, where logits tie, and the label's above -128. What else saturates does
    no harm to what is certified, so the range may be narrow, and the narrower it is, the less the final rounding costs.
    symmetric: a zero point of 0.
    """
    return max(_proposed(found, symmetric), key=lambda grid: _counted(found, grid))


def range_grid(least: float, most: float, *, symmetric: bool) -> OutputGrid:
    """The grid on which int8 spans [min(least, 0), max(most, 0)]."""
    low, high = min(least, 0.0), max(most, 1e-3)
    if symmetric:
        return OutputGrid(float(np.float32(2 * max(high, -low) / (LEVELS - 1))), 0)
    scale = float(np.float32((high - low) / LEVELS))
    return OutputGrid(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def _proposed(found: Margins, symmetric: bool) -> Iterator[OutputGrid]:
    sure = found.certified > 0
    if not bool(sure.any()):
        most = max(float(found.rival.abs().max()), float(found.own.abs().max()))
        yield range_grid(-most, most, symmetric=symmetric)
        return
    highs = torch.quantile(found.rival[sure], 1 - torch.tensor(OUTSIDE)) * 1.01
    lows = torch.quantile(found.own[sure], torch.tensor(OUTSIDE)) * 1.01
    for top, bottom in [(h, low) for h in highs.tolist() for low in lows.tolist()]:
        high, low = max(top, 1e-3), min(bottom, 0.0)
        scale = float(np.float32((2 * max(high, -low) if symmetric else high - low) / (LEVELS - 2)))
        yield OutputGrid(
            scale, 0 if symmetric else int(np.clip(np.ceil(-127 - low / scale), -128, 127)) if low < 0 else -128
        )


def _counted(found: Margins, grid: OutputGrid) -> tuple[float, float]:
    """(weights of the samples certified and of those correct, scale) on this grid, as far as floating point can tell."""
    scale, zero_point = grid.scale, grid.zero_point
    holds = (
        (found.certified > ROUNDING_SLACK * scale)
        & (found.rival < (126.5 - zero_point) * scale)
        & (found.own > (-127.5 - zero_point) * scale)
    )
    own, rival = ((v / scale).round().add(zero_point).clamp(-128, 127) for v in (found.clean_own, found.clean_rival))
    return float(found.weight[holds].sum() + found.weight[own > rival].sum()), scale
