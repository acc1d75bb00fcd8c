"""Intervals as bytes: the quickest engine, for programs that are one chain of convolutions and dense layers.

A value is one uint8 array [N, ..., 2 C]: code + 128 of the lower ends of C channels, then of their upper ends. With W = P - M,
P and M >= 0, the ends of an accumulator are P lo - M hi and P hi - M lo: one int8 product with [[P, -M], [-M, P]] gives both, and
nothing is added, copied or moved between layers. Byte kernels multiply four times as many numbers in the time of float32's.

The same bounds, bit for bit, and proved per layer when the engine is built:

* A sum of bytes times int8 is exact in int32, in any order, where no kernel saturates pairs in 16 bits, as processors without VNNI
  do: `exact` asks the kernels. 2 acc + bias, each below 2^24, is exact in float32.
* A rule is x -> clip(trunc(2 acc * slope + above), lo, hi), non-decreasing like the rule itself, and equal to it at all its
  thresholds, just below each, and at both ends of the reachable range (`verify.interval`): so everywhere between.

Beyond the proof a random tile must come out as numpy computes it, since a library picks its algorithm by shape; every call has
`TILE` samples. What cannot be proved, or is no such chain, is left to the other engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, reduce
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.tiles import TILE, random_boxes, require_equal, tiled
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.atoms import Affine, AnyOf, Atom, Between, Gather, Monotone, Program, ReshapeTo, Step, example
from cactus_edge.ir.linear import Conv, Dense
from cactus_edge.ir.ops import Codes, Int64, Padding2d
from cactus_edge.verify.interval import NEVER, Bounds, Engine, full_range, step_bounds, thresholds

if TYPE_CHECKING:
    from torch import Tensor

Float32 = npt.NDArray[np.float32]
End = Callable[[Int64], Int64]

SHIFT = -INT8_MIN
"""From a code to its byte."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product and the rule behind it. product: bytes [TILE, ..., 2 C] -> 2 acc, float32 [TILE, ..., 2 O].

    slope, above float32 [..., 2 O]; clip: the rule's least and largest byte.
    """

    product: Callable[[Tensor], Tensor]
    slope: Tensor
    above: Tensor
    clip: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        return self.product(x).mul_(self.slope).add_(self.above).clamp_(*self.clip).to(torch.uint8)


class ByteEngine(Engine):
    """`Engine` for one chain of layers, whose ends are those of one value."""

    def __init__(self, program: Program, targets: Iterable[int], layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        super().__init__(program, targets)
        boxes = random_boxes(program, program.values[program.input].shape)
        for target, got, want in zip(self.targets, self.run(*boxes), super().run(*boxes), strict=True):
            require_equal(program, target, got, want)

    def run(self, lower: Codes, upper: Codes) -> list[Bounds]:
        """As `Engine.run`, in tiles of TILE samples."""
        return tiled(self._tile, lower, upper)

    def _tile(self, lower: Codes, upper: Codes) -> list[Bounds]:
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(np.concatenate([lower, upper], -1).view(np.uint8) ^ np.uint8(SHIFT))
            for layer in self._layers:
                x = layer(x)
            both = x.to(torch.float32).sub_(SHIFT).numpy()
        shape = self.program.values[self.targets[0]].shape
        lo, hi = (b.reshape(TILE, *shape) for b in np.split(both, 2, -1))
        return [(lo, hi)]


def byte_layers(program: Program, targets: Iterable[int]) -> tuple[Layer, ...] | None:
    """The program up to its one target as layers on bytes; None where it is no chain of them or a proof does not hold."""
    chain = _chain(program, tuple(targets))
    if chain is None or not exact():
        return None
    layers: list[Layer] = []
    block = program.values[program.input].shape[-1]
    while chain:
        match chain[0].atom:
            case Gather(ReshapeTo()):
                # Bytes stay where they are: the channels of lower and upper ends alternate as before.
                chain = chain[1:]
            case Affine() as affine if len(chain) > 1:
                found = _layer(program, affine, chain[1].atom, block)
                if found is None:
                    return None
                layers.append(found)
                block = affine.linear.out_shape[-1]
                chain = chain[2:]
            case _:
                return None
    return tuple(layers) or None


def _chain(program: Program, targets: tuple[int, ...]) -> list[Step] | None:
    """The steps from the input to the only target, each of one argument; None where there is another way."""
    if len(targets) != 1 or program.codes != (INT8_MIN, INT8_MAX) or not program.values[program.input].shape:
        return None
    writer = {step.out: step for step in program.steps}
    value, found = targets[0], list[Step]()
    while value != program.input:
        step = writer.get(value)
        if step is None or len(step.args) != 1:
            return None
        found.append(step)
        value = step.args[0]
    return found[::-1]


def _layer(program: Program, affine: Affine, rule: Atom, block: int) -> Layer | None:
    import torch

    linear, ends = affine.linear, _ends(rule)
    if ends is None or not isinstance(linear, Conv | Dense):
        return None
    shape, sums = linear.out_shape, linear.weight.astype(np.int64).reshape(len(linear.weight), -1).sum(1)
    # W (code + offset) = W byte + (offset - SHIFT) sum W, padding included.
    bias = np.broadcast_to(affine.bias, shape).reshape(-1, shape[-1])[0] + (affine.input_offset - SHIFT) * sums
    if 2 * int((255 * linear.reach() + np.abs(bias)).max()) >= 2**24:
        return None
    product = _product(linear, np.tile(2 * bias, 2).astype(np.float32), SHIFT - affine.input_offset, block)
    reachable = step_bounds(affine, [full_range(program, linear.in_shape)])
    lines = _lines(ends, _slope(rule), reachable[0][0], reachable[1][0])
    if product is None or lines is None:
        return None
    slopes, aboves, clip = lines
    slope, above = (np.concatenate([np.broadcast_to(a, shape) for a in pair], -1) for pair in (slopes, aboves))
    return Layer(product, torch.from_numpy(slope), torch.from_numpy(above), clip)


def _ends(atom: Atom) -> tuple[End, End] | None:
    """The least and the largest result of a rule of one argument, on int64."""
    match atom:
        case Monotone(rule):
            return rule.apply, rule.apply
        case Between(lowest, _, highest):
            return lowest.apply, highest.apply
        case AnyOf(atoms):
            ends = [found for a in atoms if (found := _ends(a)) is not None]
            if len(ends) == len(atoms):
                return _extreme(np.minimum, [low for low, _ in ends]), _extreme(np.maximum, [high for _, high in ends])
    return None


def _extreme(of: np.ufunc, rules: list[End]) -> End:
    return lambda acc: reduce(of, (rule(acc) for rule in rules))


def _slope(atom: Atom) -> npt.NDArray[np.float64]:
    """About what the rule multiplies by: a guess, along every axis along which a constant of the rule varies."""
    match example(atom):
        case Monotone(rule):
            return rule.slope()
        case Between(lowest, rule, _):
            return np.broadcast_arrays(rule.slope(), lowest.slope())[0]
    raise TypeError(f"{type(atom).__name__} is no rule of one argument")


def _lines(
    ends: tuple[End, End], slope: npt.NDArray[np.float64], low: Int64, high: Int64
) -> tuple[list[Float32], list[Float32], tuple[int, int]] | None:
    """(slopes, aboves, (lo, hi)) of the lower and of the upper end; None where one of them is not proved.

    low, high [*shape]: the reachable accumulators; they are reduced to the axes along which the rule's constants vary.
    """
    if slope.ndim > low.ndim:
        return None
    shape = (1,) * (low.ndim - slope.ndim) + slope.shape
    shared = tuple(a for a, n in enumerate(shape) if n == 1)
    low, high = low.min(shared, keepdims=True), high.max(shared, keepdims=True)
    lo, hi = int(ends[0](low).min()) + SHIFT, int(ends[1](high).max()) + SHIFT
    found = [line(end, slope.reshape(shape), low, high, lo, hi) for end in dict.fromkeys(ends)]
    proved = [pair for pair in found if pair is not None]
    if len(proved) < len(found):
        return None
    slopes, aboves = ([pair[k] for pair in (proved[0], proved[-1])] for k in (0, 1))
    return slopes, aboves, (lo, hi)


def line(
    rule: End, guess: npt.NDArray[np.float64], low: Int64, high: Int64, lo: int, hi: int
) -> tuple[Float32, Float32] | None:
    """(slope, above) float32 [*shape] with rule(a) + SHIFT = clip(trunc(2 a * slope + above), lo, hi) for low <= a <= high [*shape].

    rule: elementwise, non-decreasing, on int64. None where none of some guesses is right everywhere. The slopes tried are the
    float32 nearest to half the guess and their neighbours; above is the middle of what would do in exact arithmetic.
    """
    _, t = thresholds(rule, low, high)
    a = np.concatenate([low[None], high[None], t, t - 1]).clip(low, high)
    wanted = rule(a) + SHIFT
    doubled = (2 * a).astype(np.float32)
    slope, above = np.zeros(low.shape, np.float32), np.zeros(low.shape, np.float32)
    right = np.zeros(low.shape, np.bool_)
    nearest = np.where(rule(low) == rule(high), 0.0, guess / 2).astype(np.float32)
    for step in (0, 1, -1, 2, -2):
        tried = nearest + step * np.spacing(nearest)
        exact = doubled.astype(np.float64) * tried
        least = np.where(wanted > lo, wanted - exact, -NEVER).max(0)
        most = np.where(wanted < hi, wanted + 1 - exact, NEVER).min(0)
        middle = np.where(most == NEVER, least + 0.5, (least + most) / 2)
        offset = np.where(least == -NEVER, most - 0.5, middle).astype(np.float32)
        got = np.clip(doubled * tried + offset, np.float32(lo), np.float32(hi)).astype(np.uint8)
        new = (got == wanted).all(0) & ~right
        slope, above, right = np.where(new, tried, slope), np.where(new, offset, above), right | new
    return (slope, above) if right.all() else None


def _product(linear: Conv | Dense, bias2: Float32, padding: int, block: int) -> Callable[[Tensor], Tensor] | None:
    """bytes [TILE, *in_shape but 2 C] -> 2 acc of both ends, float32 [TILE, *out_shape but 2 O].

    bias2 [2 O]; padding: the byte around an image; block: channels of one end that lie together in memory.
    """
    import torch

    weight = linear.weight.astype(np.int64)
    if weight.min() < INT8_MIN or weight.max() > INT8_MAX:
        return None
    outputs = len(bias2)
    ones, zeros, shift = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32), torch.from_numpy(bias2)
    if isinstance(linear, Dense):
        if linear.out_shape != (len(weight),):
            return None
        matrix = torch.from_numpy(_both(weight.reshape(len(weight), -1, block)).reshape(outputs, -1))
        packed = torch.ops.onednn.qlinear_prepack(matrix, [TILE, matrix.shape[1]])

        def dense(x: Tensor) -> Tensor:
            result: Tensor = torch.ops.onednn.qlinear_pointwise(
                x.reshape(TILE, -1), 2.0, 0, packed, ones, zeros, shift, 1.0, 0, torch.float32, "none", [], ""
            )
            return result

        return dense
    p = linear.padding
    if linear.groups > 1 or block != linear.in_shape[2]:
        return None
    # The kernels pad with zeros and alike on both sides.
    own = padding == 0 and (p.top, p.left) == (p.bottom, p.right)
    pads = [p.top, p.left] if own else [0, 0]
    frame = () if own or p == Padding2d() else (0, 0, p.left, p.right, p.top, p.bottom)
    h, w = (linear.in_shape[0], linear.in_shape[1]) if own else _padded(linear)
    kernel = torch.from_numpy(np.ascontiguousarray(_both(weight).transpose(0, 3, 1, 2)))
    form = ([*linear.stride], pads, [*linear.dilation], 1)
    packed = torch.ops.onednn.qconv_prepack(kernel, ones, 2.0, 0, *form, [TILE, 2 * block, h, w])

    def conv(x: Tensor) -> Tensor:
        image = x.reshape(TILE, *linear.in_shape[:2], 2 * block)
        image = torch.nn.functional.pad(image, frame, value=padding) if frame else image
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            image.permute(0, 3, 1, 2), 2.0, 0, packed, ones, zeros, shift, *form, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.permute(0, 2, 3, 1)

    return conv


def _padded(linear: Conv) -> tuple[int, int]:
    (h, w, _), p = linear.in_shape, linear.padding
    return h + p.top + p.bottom, w + p.left + p.right


def _both(weight: Int64) -> npt.NDArray[np.int8]:
    """[[P, -M], [-M, P]], int8 [2 O, ..., 2 C], of weight = P - M [O, ..., C]."""
    plus, minus = np.maximum(weight, 0), np.minimum(weight, 0)
    rows = (np.concatenate(pair, -1) for pair in ((plus, minus), (minus, plus)))
    return np.concatenate(list(rows)).astype(np.int8)


@cache
def exact() -> bool:
    """Whether torch multiplies bytes here, and does so exactly at the extremes."""
    import torch

    taps, most = 64, 127
    weights = np.full((16, 1, 1, taps), most)
    x = torch.full((TILE, 1, 1, 2 * taps), 255, dtype=torch.uint8)
    try:
        products = (
            _product(linear, np.zeros(32, np.float32), 0, taps)
            for linear in (Dense(weights.reshape(16, taps), (taps,)), Conv(weights, (1, 1, taps)))
        )
        return all(product is not None and bool((product(x) == 2 * 255 * most * taps).all()) for product in products)
    except (AttributeError, RuntimeError):  # a torch without these kernels, or a processor
        return False
