"""Small networks as a tuple of layers: what training, compression and export all transform.

A layer is linear map, optional batch normalisation, optional sum with an earlier value, ReLU (not the last). It reads the
layer before it, or any earlier one; so a tuple of layers is a graph in the order of execution, and `walk` runs it. Inside
torch images are N, C, H, W; a signal of T steps is a map of T x 1. A dense layer keeps its weight as [O, I, H, W] over the
map that it reads, so that channels are removed from convolutions and dense layers by the same indexing, and the flattening
order is decided once, at export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cactus_edge.errors import InputError, InternalError
from cactus_edge.ir.ops import Padding2d

NORM_EPSILON = 1e-5
"""Added to the variance in batch normalisation."""


@dataclass(frozen=True)
class Norm:
    """Batch normalisation per channel: gamma * (z - mean) / sqrt(var + NORM_EPSILON) + beta. All float32 [O]."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor


INPUT = -1
"""The network's input, where a layer names the value that it reads or adds."""


@dataclass(frozen=True)
class Layer:
    """z = weight * pool(x) + bias, then `norm`, then plus an earlier value if `adds` names one, then ReLU if `relu`.

    weight float32 [O, I, KH, KW], [O, 1, KH, KW] in a `depthwise` layer, whose output o reads channel o alone; bias float32 [O].
    in_size is the (H, W) of the map that it reads, before `pool`: the mean over windows of that size side by side, a rest at the
    right or the bottom left out. For a dense layer (KH, KW) is the map after pooling, and the output map is 1 x 1. stride: (down,
    right). reads, adds: index of an earlier layer whose output that is, INPUT for the network's input; reads = None is the layer
    before. kept: channels that stay when the network is compressed (0: all). window: of a layer that reads the network's input, the
    range in which it tells values apart, as the int8 input saturates at its ends; None where that covers the sensor's.
    """

    weight: Tensor
    bias: Tensor
    norm: Norm | None
    in_size: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding2d
    dense: bool
    relu: bool
    depthwise: bool = False
    reads: int | None = None
    adds: int | None = None
    pool: tuple[int, int] | None = None
    kept: int = 0
    window: tuple[float, float] | None = None

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) of the map that the weights see: pooled, if it is."""
        (h, w), (ph, pw) = self.in_size, self.pool or (1, 1)
        return (h // ph, w // pw)

    @property
    def scales(self) -> bool:
        """Whether the weights only scale each channel: a normalisation that stands alone."""
        return self.depthwise and tuple(self.weight.shape[2:]) == (1, 1)

    @property
    def out_size(self) -> tuple[int, int]:
        """(H, W) of the output map."""
        if self.dense:
            return (1, 1)
        (h, w), p, (kh, kw) = self.map_size, self.padding, self.weight.shape[2:]
        return ((h + p.top + p.bottom - kh) // self.stride[0] + 1, (w + p.left + p.right - kw) // self.stride[1] + 1)


Layers = tuple[Layer, ...]

_Value = TypeVar("_Value")


def sources(layers: Sequence[Layer]) -> tuple[tuple[int, int | None], ...]:
    """What each layer reads and what it adds, if anything: indices of layers, INPUT for the input."""
    return tuple((i - 1 if layer.reads is None else layer.reads, layer.adds) for i, layer in enumerate(layers))


def walk(layers: Sequence[Layer], x: _Value, step: Callable[[int, _Value, _Value | None], _Value]) -> _Value:
    """The last layer's value, where value i is step(i, the value that layer i reads, the one that it adds or None).

    Values are let go after their last use, so that a chain holds one at a time.
    """
    found = sources(layers)
    last = {value: i for i, pair in enumerate(found) for value in pair if value is not None}
    values: dict[int, _Value] = {INPUT: x}
    for i, (reads, adds) in enumerate(found):
        values[i] = step(i, values[reads], None if adds is None else values[adds])
        for value in {reads, adds}:
            if value is not None and last[value] == i:
                del values[value]
    return values[len(layers) - 1]


_PRODUCTS: ContextVar[torch.dtype] = ContextVar("_PRODUCTS", default=torch.float32)


@contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside it `linear` takes float32 maps and weights as `dtype`; everything between the linear maps stays float32.

    Mixed precision as `torch.autocast` has it (Micikevicius et al. 2018, arXiv 1710.03740), but for the linear maps alone: a box's
    ends, centre - radius and centre + radius, would lose a radius below 1/512 of the centre to bfloat16's 8 bits.
    """
    token = _PRODUCTS.set(dtype)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def short(t: Tensor) -> Tensor:
    """t in the type that its products are taken in: float32 as `products_in` says, any other as it is."""
    return t.to(_PRODUCTS.get()) if t.dtype == torch.float32 else t


def linear(x: Tensor, weight: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
    """weight * x (+ bias) with the geometry of `layer`. x [N, I, H, W], pooled if it is -> [N, O, H', W'].

    In the type of x, but that float32 is multiplied as `products_in` says.
    """
    return _linear(short(x), short(weight), layer, None if bias is None else short(bias)).to(x.dtype)


def _linear(x: Tensor, weight: Tensor, layer: Layer, bias: Tensor | None) -> Tensor:
    if layer.dense:
        return F.linear(rows(x, x), rows(weight, x), bias)[:, :, None, None]
    x, p, groups = channels_last(x), layer.padding, len(weight) if layer.depthwise else 1
    if p.top == p.bottom and p.left == p.right:
        return F.conv2d(x, weight, bias, layer.stride, (p.top, p.left), groups=groups)
    return F.conv2d(F.pad(x, (p.left, p.right, p.top, p.bottom)), weight, bias, layer.stride, groups=groups)


def rows(t: Tensor, x: Tensor) -> Tensor:
    """t [N, C, H, W] as [N, C H W], its columns in the order in which the map x lies in memory: x itself is not copied for it."""
    return (t if x.is_contiguous() else t.permute(0, 2, 3, 1)).flatten(1)


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with its channels side by side in memory on a CPU, whose convolutions are a third faster on it; else x.

    What follows keeps the layout, so that only the network's input is ever moved.
    """
    if x.device.type != "cpu":
        return x
    if x.shape[1] == 1:  # both layouts at once: told apart by the strides alone
        return x.flatten(0, 1)[..., None].permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def seen(x: Tensor, layer: Layer) -> Tensor:
    """The map that the layer's weights see of x [N, I, H, W]: cut at its window, or its means over what it pools. Non-decreasing."""
    if layer.window is not None:
        return x.clamp(*layer.window)
    return x if layer.pool is None else F.avg_pool2d(x, layer.pool)


def input_window(layers: Layers) -> tuple[float, float] | None:
    """The window of the layers that read the network's input, which have one in common; None if they have none."""
    return next((layer.window for layer in layers if layer.window is not None), None)


def windowed(layers: Layers, window: tuple[float, float] | None) -> Layers:
    """The same layers, of which those that read the network's input tell values in the window apart.

    Raises InputError for a sum with the input itself, which is not cut on its way.
    """
    if window is None:
        return layers
    if any(adds == INPUT for _, adds in sources(layers)):
        raise InputError(
            f"a sum adds the network's input, whose int8 tensor saturates at {window[0]:.4g} and {window[1]:.4g}",
            hint="fewer [quantise] input_steps, which cover the sensor's range",
        )
    found = zip(layers, sources(layers), strict=True)
    return tuple(replace(layer, window=window) if reads == INPUT else layer for layer, (reads, _) in found)


def per_channel(v: Tensor) -> Tensor:
    """[O] -> [1, O, 1, 1], to broadcast over a batch of maps."""
    return v[None, :, None, None]


def check(layers: Layers) -> None:
    """Raises InternalError unless each layer reads and adds earlier values of fitting shapes and the last is plainly dense."""
    first, last = layers[0], layers[-1]
    maps: dict[int, tuple[int, tuple[int, int]]] = {
        INPUT: (first.weight.shape[0 if first.depthwise else 1], first.in_size)
    }
    for i, (layer, (reads, adds)) in enumerate(zip(layers, sources(layers), strict=True)):
        width, fan_in = layer.weight.shape[:2]
        made = maps[i] = (width, layer.out_size)
        read = maps.get(reads) if reads < i else None
        if read != (width if layer.depthwise else fan_in, layer.in_size) or (layer.depthwise and fan_in != 1):
            raise InternalError(f"layer {i} reads {read}: weights {tuple(layer.weight.shape)}, map {layer.in_size}")
        if adds is not None and (adds >= i or maps.get(adds) != made):
            raise InternalError(f"layer {i} of {made} adds {maps.get(adds)}")
        if layer.dense and tuple(layer.weight.shape[2:]) != layer.map_size:
            raise InternalError(f"layer {i}: dense weights {tuple(layer.weight.shape)} on a map of {layer.map_size}")
        if layer.window is not None and reads != INPUT:
            raise InternalError(f"layer {i} has a window and does not read the network's input")
        if layer.pool is not None and reads == INPUT:
            raise InternalError(f"layer {i} pools the network's input, whose steps are not known here")
    if not last.dense or last.relu or last.adds is not None or last.reads not in (None, len(layers) - 2):
        raise InternalError("the last layer is dense on the layer before it, without sum and ReLU")


class Network(nn.Module):
    """Parameters and running statistics of a tuple of layers; `layers()` is the live functional view."""

    def __init__(self, layers: Layers) -> None:
        """Raises InternalError for layers that are no network."""
        super().__init__()
        check(layers)
        self._plan = layers
        for i, layer in enumerate(layers):
            self.register_parameter(f"weight{i}", nn.Parameter(layer.weight.detach().clone()))
            self.register_parameter(
                f"bias{i}", nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.norm is None)
            )
            if layer.norm is not None:
                self.register_parameter(f"gamma{i}", nn.Parameter(layer.norm.gamma.detach().clone()))
                self.register_parameter(f"beta{i}", nn.Parameter(layer.norm.beta.detach().clone()))
                self.register_buffer(f"mean{i}", layer.norm.mean.detach().clone())
                self.register_buffer(f"var{i}", layer.norm.var.detach().clone())

    def layers(self) -> Layers:
        """The layers over this module's own parameters: gradients flow into them."""
        return tuple(
            replace(
                layer,
                weight=getattr(self, f"weight{i}"),
                bias=getattr(self, f"bias{i}"),
                norm=None
                if layer.norm is None
                else Norm(*(getattr(self, f"{part}{i}") for part in ("gamma", "beta", "mean", "var"))),
            )
            for i, layer in enumerate(self._plan)
        )

    def widths(self) -> tuple[int, ...]:
        """Output channels of each hidden layer."""
        return tuple(int(layer.weight.shape[0]) for layer in self._plan[:-1])

    def kept_widths(self) -> tuple[int, ...]:
        """Output channels of each hidden layer after compression."""
        return tuple(
            min(layer.kept or width, width) for layer, width in zip(self._plan[:-1], self.widths(), strict=True)
        )

    def weights(self) -> tuple[int, ...]:
        """Number of weight elements of each layer, biases and normalisation not counted."""
        return tuple(int(layer.weight.numel()) for layer in self._plan)
