"""What random networks are made of: decisions, from hypothesis or a numpy generator, and the parameters of one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor

T = TypeVar("T")
Array = npt.NDArray[Any]

MAX_SIZE = 600
"""Elements of one tensor: large enough for every geometry, small enough for thousands of graphs."""


class Choices(Protocol):
    """Where structural decisions come from."""

    def integer(self, low: int, high: int) -> int: ...

    def pick(self, options: Sequence[T]) -> T: ...


@dataclass(frozen=True)
class RngChoices:
    """Decisions from a numpy generator."""

    rng: np.random.Generator

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


@dataclass(frozen=True)
class DrawnChoices:
    """Decisions that hypothesis draws and can shrink (towards the low end and the first option)."""

    draw: Callable[[st.SearchStrategy[Any]], Any]

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


class Parts:
    """A network that grows, and parameters to grow it with."""

    def __init__(self, choose: Choices) -> None:
        self.choose = choose
        self.builder = GraphBuilder()
        self.rng = np.random.default_rng(choose.integer(0, 2**32 - 1))
        self.known: list[int] = []

    def scale(self, low: float = 2.0**-8, high: float = 1.0) -> float:
        """A float32 scale, log-uniform in [low, high]."""
        return float(np.float32(np.exp(self.rng.uniform(np.log(low), np.log(high)))))

    def zero_point(self) -> int:
        drawn = int(self.rng.integers(-100, 100))
        return self.choose.pick([0, drawn, drawn // 4, drawn // 2, -128, 127])

    def fresh(self, shape: tuple[int, ...], scale: float) -> Tensor:
        return Tensor(f"t{len(self.known)}", shape, "int8", float(np.float32(scale)), self.zero_point())

    def like(self, shape: tuple[int, ...], x: Tensor) -> Tensor:
        return Tensor(f"t{len(self.known)}", shape, "int8", x.scale, x.zero_point)

    def activation(self) -> ops.Activation:
        kinds: list[ops.Activation] = [ops.Activation.NONE, ops.Activation.NONE, *ops.Activation]
        return self.choose.pick(kinds)

    def weights(self, shape: tuple[int, ...]) -> Array:
        style = self.choose.pick(["uniform", "small", "ends", "sparse"])
        if style == "ends":
            return self.rng.choice(np.array([-128, -127, 127], np.int8), shape)
        bound = {"uniform": 127, "small": 2, "sparse": 127}[style]
        drawn = self.rng.integers(-bound, bound + 1, shape)
        return (drawn * (self.rng.random(shape) < 0.2) if style == "sparse" else drawn).astype(np.int8)

    def affine(self, weight: Array, taps: tuple[int, ...], x: Tensor, per_channel: bool) -> dict[str, Any]:
        """weight, bias, weight_scale and (under "out_scale") a scale that uses the output's range in most channels."""
        reach = np.abs(weight.astype(np.int64)).sum(taps)
        spread = np.maximum(np.sqrt((weight.astype(np.float64) ** 2).sum(taps)) * 74, 1)
        bias = np.rint(self.rng.normal(0, 1, reach.shape) * spread * self.choose.pick([0, 1, 1, 30])).astype(np.int64)
        out_scale = self.scale(2.0**-6, 4.0)
        # S_in * S_w / S_out: 64 / spread fills the output; powers of two around it saturate it or leave it constant.
        wide = self.choose.pick([0, 1, 2, 4, 12])
        multiplier = 64.0 / spread * 2.0 ** self.rng.uniform(-wide, min(wide, 4), spread.shape)
        if self.choose.integer(0, 9) == 9:
            multiplier[self.rng.integers(multiplier.size)] = 2.0**-34
        # acc * 2^ceil(log2 M) stays in int32, and so does the result before the zero point is added.
        multiplier = np.minimum(multiplier, 2.0**29 / (reach * 255 + np.abs(bias) + 1))
        if not per_channel:
            multiplier = multiplier.min(keepdims=True)
        return {
            "weight": ops.freeze(weight, np.int8),
            "bias": ops.freeze(bias, np.int32),
            "weight_scale": ops.freeze(np.asarray(multiplier * out_scale / x.scale, np.float32), np.float32),
            "out_scale": out_scale,
        }

    def window(self, size: tuple[int, int], dilate: bool, any_padding: bool) -> dict[str, Any] | None:
        """kernel, stride, dilation, padding and the output's size for an image of `size`; None where nothing fits."""
        pick = self.choose.pick
        kernel = (self.choose.integer(1, 4), self.choose.integer(1, 4))
        stride = (self.choose.integer(1, 3), self.choose.integer(1, 3))
        dilation = (self.choose.integer(1, 3), self.choose.integer(1, 3)) if dilate else (1, 1)
        kind = pick(["valid", "same", "uneven"] if any_padding else ["valid", "same"])
        padding = ops.Padding2d()
        if kind == "same":
            padding = ops.same_padding(size, kernel, stride, dilation)
        elif kind == "uneven":
            padding = ops.Padding2d(*(self.choose.integer(0, 3) for _ in range(4)))
        around = (padding.top + padding.bottom, padding.left + padding.right)
        free = [n + p - (k - 1) * d - 1 for n, p, k, d in zip(size, around, kernel, dilation, strict=True)]
        if min(free) < 0:
            return None
        out = tuple(f // s + 1 for f, s in zip(free, stride, strict=True))
        return {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding, "out": out}

    def node(self, op: ops.Op, inputs: Sequence[int], out: Tensor) -> int | None:
        if not 0 < out.size <= MAX_SIZE:
            return None
        index = self.builder.node(op, inputs, out)
        self.known.append(index)
        return index

    def _shaped(self, x: Tensor) -> list[int]:
        """Tensors of x's shape, x among them."""
        return [k for k in self.known if self.builder.tensor(k).shape == x.shape]
