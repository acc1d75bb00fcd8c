"""Which cards an input is for, in integers: Fourier magnitudes of its windows, against two mean spectra.

The paper's gate compares the two-dimensional Fourier transform of a batch with those of augmented training images, and takes the
scheme that is nearer. Its code is not public, and what follows is a reconstruction that a device can run for one input:

* The transform is a convolution with the sines and cosines of a window of `tile` x `tile` pixels, half a window apart: Welch's
  estimate of a spectrum (1967). It has (tile / side)^2 of the weights of the whole image's transform, which is `tile` = side, and
  averages over places, which a single input needs more than it needs fine frequencies. There is no filter of frequency 0, and where
  `tile` is a power of two the weights of each filter sum to 0 exactly: brightness is not looked at.
* A magnitude is |real| + |imaginary|, each as relu(z) + relu(-z); it saturates at the percentile `CLIP` of its ring.
* Rings are the frequencies of equal length; a feature is the mean magnitude in a ring, over all windows.
* Distances are Mahalanobis' with one covariance for both schemes, so their difference is linear in the features, and one dense
  layer says which is smaller. Its weights grow to the full int8 and its output saturates: a code of 127 or -128.

Everything is fitted on the codes that the integer convolution gives, so the file's gate is the fitted one but for the rounding of
one layer's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError
from cactus_edge.ir.arith import LARGEST_FLOAT_BIAS
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import quantised, run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Activation, Conv2d, Dense, Float32, Int8, Int64, freeze

Float64 = npt.NDArray[np.float64]
Samples = npt.NDArray[Any]
"""Inputs [N, H, W, C]: float32 in sensor units, or int8 codes."""

CLIP = 99.0
"""Percentile of a ring's magnitudes at which it saturates."""

RIDGE = 1e-3
"""Part of the mean variance that is added to each feature's: rings of a few frequencies go together."""

WEIGHT_MAX = 127


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The filters of a window. frequencies [F, 2]: one of each pair +-k, without 0; ring int [O] of each output channel.

    real [O, tile, tile]: cos, sin of 2 pi (u y + v x) / tile, then their negatives; filters that vanish are left out.
    """

    tile: int
    real: Float64
    ring: Int64

    @property
    def rings(self) -> int:
        """Features of an input."""
        return int(self.ring.max()) + 1


def spectrum(tile: int) -> Spectrum:
    """The filters of a window of tile x tile pixels."""
    whole = range(tile)
    pairs = {min((u, v), (-u % tile, -v % tile)) for u in whole for v in whole} - {(0, 0)}
    frequencies = sorted(pairs)
    lengths = [min(u, tile - u) ** 2 + min(v, tile - v) ** 2 for u, v in frequencies]
    y, x = np.meshgrid(whole, whole, indexing="ij")
    filters, rings = [], []
    for (u, v), length in zip(frequencies, lengths, strict=True):
        turn = 2 * np.pi * ((u * y + v * x) % tile) / tile
        for part in (np.cos(turn), np.sin(turn)):
            if np.abs(part).max() > 1e-9:  # sines of half the sampling rate are 0 everywhere
                filters.append(part)
                rings.append(length)
    order = {length: i for i, length in enumerate(sorted(set(lengths)))}
    real = np.array(filters)
    ring = np.array([order[length] for length in rings], np.int64)
    return Spectrum(tile, np.concatenate([real, -real]), np.concatenate([ring, ring]))


@dataclass(frozen=True, eq=False)
class Gate:
    """The integers of a gate for inputs on the grid of `source`, and the two schemes that it chooses between.

    filters: input -> magnitudes on the grid of `magnitudes`, half of them positive parts, half negative ones. weight int8 [n], bias
    of the dense layer behind: a positive sum means the second scheme.
    """

    schemes: tuple[str, str]
    source: Tensor
    filters: Conv2d
    magnitudes: Tensor
    weight: Int8
    bias: int

    def append(self, builder: GraphBuilder, at: int, grid: Tensor) -> int:
        """Adds the gate behind the input `at`; the index of its one code, on the grid of `grid`.

        Where the sum is 255 or more from 0 the code is the type's largest for the second scheme and its smallest for the first.
        """
        magnitudes = builder.node(self.filters, [at], self.magnitudes)
        scale = freeze([grid.scale / self.magnitudes.scale], np.float32)  # so that one step of the sum is one code
        dense = Dense(freeze(self.weight[None], np.int8), freeze([self.bias], np.int32), scale)
        return builder.node(dense, [magnitudes], replace(grid, name="gate/code", shape=(1,)))

    def sums(self, x: Samples) -> Int64:
        """The dense layer's accumulator int64 [N] for x [N, H, W, C]: positive where the second scheme's mean is nearer."""
        codes = _codes(self.source, self.filters, self.magnitudes, x)
        found: Int64 = (codes - self.magnitudes.zero_point).reshape(len(x), -1) @ self.weight.astype(
            np.int64
        ) + self.bias
        return found

    def codes(self, x: Samples, grid: Tensor) -> Int8:
        """The gate's own code int8 [N] for x, on the grid of `grid`, as the file has it."""
        builder = GraphBuilder()
        program = lower(builder.finish(self.append(builder, builder.input(self.source), grid)), profile("tflm"))
        found: Int8 = run(program, quantised(program, x))[:, 0].astype(np.int8)
        return found

    def chosen(self, x: Samples) -> Int64:
        """The scheme of each input alone: 0 or 1, int64 [N]."""
        return (self.sums(x) > 0).astype(np.int64)

    def chosen_together(self, x: Samples) -> int:
        """The scheme of the whole batch, as the paper's gate takes it: by the mean of its spectra."""
        return int(self.sums(x).sum() > 0)


def fitted(
    source: Tensor, schemes: tuple[str, str], samples: tuple[Float32, Float32], tile: int, *, symmetric: bool = False
) -> Gate:
    """The gate between two schemes, from training images as each augments them, float32 [N, H, W, C]. Deterministic.

    source: the network's input tensor. symmetric: zero points of 0, for TensorRT. Raises InputError where a window does not fit.
    """
    fitting = _Fit(source, tile, symmetric)
    if min(len(x) for x in samples) < 2:
        raise InputError(f"{[len(x) for x in samples]} samples of schemes {schemes}: a mean spectrum needs more")
    filters = fitting.filters(np.concatenate([_first(x) for x in samples]))
    features = [fitting.features(_codes(source, filters, fitting.magnitudes, x)) for x in samples]
    return fitting.gate(schemes, filters, features)


def _first(x: Float32) -> Float32:
    return x[:500]


class _Fit:
    """What a gate is made of, for one input grid and window."""

    def __init__(self, source: Tensor, tile: int, symmetric: bool) -> None:
        height, width, channels = source.shape
        if min(height, width) < tile:
            raise InputError(
                f"[deck] tile = {tile}: no such window fits inputs of {height} x {width}",
                hint=f"tile = {1 << (min(height, width).bit_length() - 1)}"
                if min(height, width) > 1
                else 'gate = "none"',
            )
        self.source, self.tile, self.channels = source, tile, channels
        self.spectrum = spectrum(tile)
        self.stride = max(tile // 2, 1)
        rows, columns = ((n - tile) // self.stride + 1 for n in (height, width))
        levels, zero_point = (127, 0) if symmetric else (255, -128)
        shape = (rows, columns, len(self.spectrum.ring))
        self.magnitudes = Tensor("gate/spectrum", shape, "int8", float(np.float32(1 / levels)), zero_point)

    @cached_property
    def weight(self) -> Int8:
        """Weights int8 [O, tile, tile, C] of the filters, each to the full range; the channels' mean is looked at."""
        top = np.abs(self.spectrum.real).max((1, 2), keepdims=True)
        whole = np.rint(WEIGHT_MAX * self.spectrum.real / top)
        return freeze(np.repeat(whole[..., None], self.channels, 3), np.int8)

    def filters(self, x: Float32) -> Conv2d:
        """The convolution whose magnitudes saturate at `CLIP` of what each ring has over the samples x."""
        magnitudes = np.abs(self._real(x))
        ring = self.spectrum.ring[: magnitudes.shape[1]]
        clips = [max(float(np.percentile(magnitudes[:, ring == r], CLIP)), 1e-6) for r in range(self.spectrum.rings)]
        scale = 1 / np.array(clips)[self.spectrum.ring]
        bias = np.zeros(len(scale), np.int32)
        stride = (self.stride, self.stride)
        return Conv2d(
            self.weight, freeze(bias, np.int32), freeze(scale, np.float32), stride, activation=Activation.RELU
        )

    def _real(self, x: Float32) -> Float64:
        """The filters' outputs, positive parts only, in weights times sensor units: float64 [N * windows, O / 2]."""
        windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (self.tile, self.tile), axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride].sum(3).reshape(-1, self.tile**2)
        half = len(self.spectrum.ring) // 2
        found: Float64 = windows @ self.weight[:half, :, :, 0].reshape(half, -1).T.astype(np.float64)
        return found

    def features(self, codes: Int64) -> Float64:
        """Mean magnitude of each ring, in codes above the zero point: float64 [N, rings]."""
        means = (codes - self.magnitudes.zero_point).mean((1, 2))
        ring = self.spectrum.ring
        return np.stack([means[:, ring == r].mean(1) for r in range(self.spectrum.rings)], 1)

    def gate(self, schemes: tuple[str, str], filters: Conv2d, features: Sequence[Float64]) -> Gate:
        """The dense layer that says which mean is nearer.

        d_0^2 - d_1^2 = 2 (m_1 - m_0)' S^-1 (f - (m_0 + m_1) / 2): positive where the second mean is. The threshold lies half way
        between the means' sums as the rounded weights give them.
        """
        means = [f.mean(0) for f in features]
        spread = np.mean([np.cov(f, rowvar=False) for f in features], axis=0)
        if not np.trace(spread) > 0:
            raise InputError(
                f"the samples of schemes {schemes} have one spectrum each: nothing tells them apart by theirs",
                hint='[deck] gate = "none"',
            )
        spread = spread + RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
        direction = np.linalg.solve(spread, means[1] - means[0])
        ring = self.spectrum.ring
        share = direction / np.bincount(ring)
        top = np.abs(share).max()
        rows, columns, _ = self.magnitudes.shape
        for most in range(
            WEIGHT_MAX, 0, -1
        ):  # smaller weights where the threshold is no exact float32, as TensorRT takes it
            rounded = np.rint(most * share / top) if top > 0 else np.zeros_like(share)
            sums = rounded * np.bincount(ring) * rows * columns
            bias = -round(float(sums @ (means[0] + means[1]) / 2))
            if abs(bias) <= LARGEST_FLOAT_BIAS:
                break
        weight = freeze(np.tile(rounded[ring], rows * columns), np.int8)
        return Gate(schemes, self.source, filters, self.magnitudes, weight, bias)


def _codes(source: Tensor, filters: Conv2d, magnitudes: Tensor, x: Samples) -> Int64:
    """What the integer convolution makes of x [N, H, W, C]: int64 [N, *magnitudes.shape]. Its rounding is the interpreter's."""
    builder = GraphBuilder()
    graph = builder.finish(builder.node(filters, [builder.input(source)], magnitudes))
    program = lower(graph, profile("tflm"))
    return run(program, quantised(program, x)).astype(np.int64)
