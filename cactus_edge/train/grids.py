"""The grids of the integer network: what the export needs besides the trained network, and what it changes in that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import weight_max, weight_scales
from cactus_edge.train.folded import Affine, Folded

LEVELS, SYMMETRIC_LEVELS = 255, 127
"""Steps between the smallest and the largest int8, and between 0 and the largest."""


@dataclass(frozen=True)
class Calibration:
    """ceilings: end of the range of each int8 tensor of the hidden layers, as `Ceilings` orders them.

    clips: those over the largest magnitudes of the validation split. in_scale: of the input tensor. out_scale, out_zero_point:
    the logits' int8 grid. certified, correct of samples: what `verify` counted for the file on that split, each sample as much as
    its class counts in the recipe. symmetric: every zero
    point is 0, so that what is never negative has 127 steps; else the hidden layers' are -128, and they have 255. signed_input:
    the domain goes below zero, and so the input's is 0. chosen: where the ranges come from, in words. weight_clips: part of the
    weights' range that each layer keeps (empty: all). weight_floors: largest integer weight of each layer that becomes 0 (empty:
    none does). bias_shifts: what each layer's biases lose, per channel (empty: nothing).
    """

    ceilings: tuple[float, ...]
    clips: tuple[float, ...]
    in_scale: float
    out_scale: float
    out_zero_point: int
    certified: float
    correct: float
    samples: int
    symmetric: bool = False
    signed_input: bool = False
    chosen: str = ""
    weight_clips: tuple[float, ...] = ()
    weight_floors: tuple[int, ...] = ()
    bias_shifts: tuple[tuple[float, ...], ...] = ()

    @property
    def levels(self) -> int:
        """Steps of a hidden layer's range where it is never negative."""
        return SYMMETRIC_LEVELS if self.symmetric else LEVELS

    @property
    def in_zero_point(self) -> int:
        """Of the input tensor."""
        return 0 if self.symmetric or self.signed_input else -128


def adjusted(net: Folded, calibration: Calibration) -> Folded:
    """The real network whose rounding is exported: weights clipped or dropped and biases shifted as the calibration says."""
    net = drop_weights(clip_weights(net, calibration.weight_clips), calibration.weight_floors)
    return shift_biases(net, tuple(torch.tensor(s, dtype=torch.float32) for s in calibration.bias_shifts))


def clip_weights(net: Folded, parts: tuple[float, ...]) -> Folded:
    """Each layer's weights clipped to [-part * top, part * top], top their largest magnitude, per channel where their steps are."""
    if not parts:
        return net
    return tuple(a if part == 1 else _clipped(a, part) for a, part in zip(net, parts, strict=True))


def _clipped(affine: Affine, part: float) -> Affine:
    scales = weight_scales(affine.weight, per_channel=not affine.layer.dense, bits=affine.weight_bits)
    top = part * weight_max(affine.weight_bits) * scales[:, None, None, None]
    return replace(affine, weight=torch.minimum(torch.maximum(affine.weight, -top), top))


def drop_weights(net: Folded, floors: tuple[int, ...]) -> Folded:
    """Each layer's weights set to 0 where they round to no more than its floor in magnitude.

    What a weight adds to a bound is |w| r, whatever its sign: the many small ones that hardly change an output widen it all the same.
    """
    if not floors:
        return net
    return tuple(a if floor == 0 else _dropped(a, floor) for a, floor in zip(net, floors, strict=True))


def _dropped(affine: Affine, floor: int) -> Affine:
    scales = weight_scales(affine.weight, per_channel=not affine.layer.dense, bits=affine.weight_bits)
    kept = torch.round(affine.weight / scales[:, None, None, None]).abs() > floor
    return replace(affine, weight=affine.weight * kept)


def shift_biases(net: Folded, shifts: tuple[torch.Tensor, ...]) -> Folded:
    """Each layer's biases less its shift [O]."""
    if not shifts:
        return net
    return tuple(replace(a, bias=a.bias - shift) for a, shift in zip(net, shifts, strict=True))


@dataclass(frozen=True)
class InputGrid:
    """The int8 input tensor: real = (code - zero_point) / steps, in the unit of the data. reach: least and largest real value."""

    steps: int
    zero_point: int

    @property
    def scale(self) -> float:
        """1 / steps as the file has it, a float32."""
        return float(np.float32(1 / self.steps))

    @property
    def reach(self) -> tuple[Fraction, Fraction]:
        """The range of what it tells apart: what lies beyond is stored as its end."""
        return Fraction(-128 - self.zero_point, self.steps), Fraction(127 - self.zero_point, self.steps)

    def window(self, domain: tuple[Fraction, Fraction]) -> tuple[float, float] | None:
        """The reach, where that leaves out some of the sensor's range `domain`; None where it covers all but the last step of it."""
        (least, most), step = self.reach, Fraction(1, self.steps)
        covered = least <= domain[0] + step and domain[1] - step <= most
        return None if covered else (float(least), float(most))


def input_grid(recipe: Recipe, dataset: Dataset) -> InputGrid:
    """The recipe's grid for these data: with a zero point of 0 where they go below zero or the network is symmetric, else of -128.

    A symmetric network of data that never do has steps of its own (`symmetric_steps`); its negative codes stay unused.
    """
    signed, quantise = dataset.domain[0] < 0, recipe.quantise
    if quantise.symmetric and not signed:
        return InputGrid(symmetric_steps(dataset.radii(recipe.certify.eps)), 0)
    return InputGrid(quantise.input_steps, 0 if signed else -128)


def symmetric_steps(eps: Sequence[Fraction]) -> int:
    """Steps of a symmetric input from 0 to 1: the most up to 127 with a whole number in each eps, if those are 64 or more, else 127."""
    unit = math.lcm(*(e.denominator for e in eps))
    steps = SYMMETRIC_LEVELS // unit * unit
    return steps if steps >= 64 else SYMMETRIC_LEVELS
