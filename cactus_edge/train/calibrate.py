"""Ranges of the activations, and the grid of the logits, calibrated for the certificate.

A range that clips activations costs clean accuracy and buys certified accuracy, because the clamp also cuts the bounds; so
the ranges are chosen for the most certified samples of the validation split and not for the reconstruction error. The
bounds that choose are floating-point intervals over the fake-quantised network: they only rank candidates. What holds for
the file is decided by `verify`, on the file's own integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from torch import Tensor as Real

from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import Box, ball, box, logits
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import ceilings_of, fake_quantise, peaks
from cactus_edge.train.folded import Folded
from cactus_edge.train.loop import to_torch

LEVELS, SYMMETRIC_LEVELS = 255, 127
"""Steps between the smallest and the largest int8, and between 0 and the largest."""

ROUNDING_SLACK = 1.02
"""Output steps by which a fused margin must win: two halves, and a little for the multiplier's own rounding."""

CALIBRATION_SAMPLES = 5000
BATCH = 1000


@dataclass(frozen=True)
class Calibration:
    """ceilings: largest real magnitude of each int8 tensor of the hidden layers, in the order of `fakequant.Ceilings`. clips:
    those over the validation split's clean maximum.

    in_scale: of the input tensor. out_scale, out_zero_point: the logits' int8 grid. certified, correct of samples: what the
    ranking bounds counted. symmetric: every zero point is 0, so that what is never negative has 127 steps; else the
    hidden layers' are -128, and they have 255. signed_input: the domain goes below zero, and so the input's is 0, as
    that of every hidden tensor that may be negative.
    """

    ceilings: tuple[float, ...]
    clips: tuple[float, ...]
    in_scale: float
    out_scale: float
    out_zero_point: int
    certified: int
    correct: int
    samples: int
    symmetric: bool = False
    signed_input: bool = False

    @property
    def levels(self) -> int:
        """Steps of a hidden layer's range."""
        return SYMMETRIC_LEVELS if self.symmetric else LEVELS

    @property
    def in_zero_point(self) -> int:
        """Of the input tensor."""
        return 0 if self.symmetric or self.signed_input else -128


def calibrate(net: Folded, dataset: Dataset, recipe: Recipe) -> Calibration:
    """Coordinate search, layer by layer from the last, twice over the recipe's clip factors; the logits' grid for the best.

    A candidate scores the mean over samples of sigmoid(c / t) + sigmoid(m / t), c the certified and m the clean margin of the
    label: soft counts of certified and of correct samples, which a few hundred samples estimate better than counts. The
    temperature t is an eighth of the median |c| of the widest ranges. A network that brings ceilings of its own, those that it was
    trained in, keeps them: a search over few samples only loses what the network learned.
    """
    x, y = (t[:CALIBRATION_SAMPLES] for t in to_torch(dataset.validation))
    symmetric = recipe.quantise.symmetric
    eps = dataset.radii(recipe.certify.eps)
    steps = symmetric_steps(eps) if symmetric else recipe.quantise.input_steps
    signed = dataset.domain[0] < 0
    zero = 0 if symmetric or signed else -128
    levels = recipe.quantise.levels
    with torch.no_grad():
        learned = ceilings_of(net)
        tops, factors = (peaks(net, x), recipe.quantise.clips) if learned is None else (learned, (1.0,))
        regions = [
            (_rounded(ball(a, eps, dataset.domain), steps, zero), _rounded(box(a, a), steps, zero), b)
            for a, b in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
        ]

        @cache
        def margins(clips: tuple[float, ...]) -> _Margins:
            ceilings = tuple(clip * top for clip, top in zip(clips, tops, strict=True))
            return _margins(fake_quantise(net, ceilings, levels), regions)

        best = (max(factors),) * len(tops)
        temperature = max(float(margins(best).certified.abs().median()) / 8, 1e-6)
        for layer in [*reversed(range(len(tops)))] * 2:
            options = [(*best[:layer], clip, *best[layer + 1 :]) for clip in sorted(factors, reverse=True)]
            best = max([best, *options], key=lambda clips: margins(clips).score(temperature))
    found = margins(best)
    scale, zero_point, certified = _output_grid(found.certified, found.rival, found.own, symmetric)
    ceilings = tuple(clip * float(top) for clip, top in zip(best, tops, strict=True))
    correct = int((found.clean > 0).sum())
    in_scale = float(np.float32(1 / steps))
    return Calibration(ceilings, best, in_scale, scale, zero_point, certified, correct, len(y), symmetric, signed)


def symmetric_steps(eps: Sequence[Fraction]) -> int:
    """Steps of a symmetric input from 0 to 1: the most up to 127 with a whole number in each eps, if those are 64 or more, else 127."""
    unit = math.lcm(*(e.denominator for e in eps))
    steps = SYMMETRIC_LEVELS // unit * unit
    return steps if steps >= 64 else SYMMETRIC_LEVELS


def _rounded(region: Box, steps: int, zero_point: int) -> Box:
    """The region after input quantisation to steps of 1 / steps: ends to the nearest, ties outward as for real ends."""
    least, most = -128 - zero_point, 127 - zero_point
    lower = (region.lower * steps + (0.5 - _TIE)).floor().clamp(least, most) / steps
    upper = (region.upper * steps + (0.5 + _TIE)).floor().clamp(least, most) / steps
    return box(lower, upper)


_TIE = 1e-3
"""Steps within which a float32 end counts as a tie."""


@dataclass(frozen=True)
class _Margins:
    """Per sample, float [N]. certified, clean: least lower bound of logit_y - logit_j over the region, and at the sample.

    rival: largest upper bound of another logit over the region; own: lower bound of logit_y.
    """

    certified: Real
    clean: Real
    rival: Real
    own: Real

    def score(self, temperature: float) -> float:
        return float((torch.sigmoid(self.certified / temperature) + torch.sigmoid(self.clean / temperature)).mean())


def _margins(net: Folded, regions: list[tuple[Box, Box, Real]]) -> _Margins:
    columns = []
    for region, point, y in regions:
        bounds, outputs = logits(net, region, y)
        label = torch.zeros_like(outputs.centre, dtype=torch.bool).scatter(1, y[:, None], True)
        clean = logits(net, point, y)[0].margin
        columns.append(
            (
                bounds.margin.masked_fill(label, torch.inf).amin(1),
                clean.masked_fill(label, torch.inf).amin(1),
                outputs.upper.masked_fill(label, -torch.inf).amax(1),
                outputs.lower[label],
            )
        )
    return _Margins(*(torch.cat(column) for column in zip(*columns, strict=True)))


def _output_grid(margin: Real, rival: Real, own: Real, symmetric: bool) -> tuple[float, int, int]:
    """(scale, zero point, certified samples) of the logits' int8 grid that certifies most samples; of equals the widest.

    margin: lower bound of logit_y less every other. rival: largest upper bound of another logit: it must stay below 127,
    where logits tie. own: lower bound of logit_y: it must stay above -128. What else saturates does no harm, so the range
    may be narrow; and the narrower it is, the less the final rounding costs. All float [N]. symmetric: a zero point of 0.
    """
    sure = margin > 0
    if not bool(sure.any()):
        high, low = max(float(rival.abs().max()), float(own.abs().max()), 1e-3), 0.0
        return float(np.float32(2 * high / LEVELS)), 0, 0
    best = (0.0, 0, -1)
    for outside in (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02):
        high = max(float(torch.quantile(rival[sure], 1 - outside)), 1e-3) * 1.01
        low = min(float(torch.quantile(own[sure], outside)), 0.0) * 1.01
        width = 2 * max(high, -low) if symmetric else high - low
        scale = float(np.float32(width / (LEVELS - 2)))
        zero_point = 0 if symmetric else int(np.clip(np.ceil(-128 + 1 - low / scale), -128, 127)) if low < 0 else -128
        holds = (
            (margin > ROUNDING_SLACK * scale)
            & (rival < (126.5 - zero_point) * scale)
            & (own > (-127.5 - zero_point) * scale)
        )
        if int(holds.sum()) > best[2]:
            best = (scale, zero_point, int(holds.sum()))
    return best
