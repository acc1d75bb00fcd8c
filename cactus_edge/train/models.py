"""Small networks as a tuple of layers: what training, compression and export all transform.

A layer is linear map, optional batch normalisation, ReLU (all but the last). Inside torch images are N, C, H, W. A dense
layer keeps its weight as [O, I, H, W] over the map that it reads, so that channels are removed from convolutions and dense
layers by the same indexing, and the flattening order is decided once, at export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cactus_edge.errors import InputError
from cactus_edge.ir.ops import Padding2d, same_padding
from cactus_edge.recipe import LayerRecipe, ModelRecipe

NORM_EPSILON = 1e-5
"""Added to the variance in batch normalisation."""


@dataclass(frozen=True)
class Norm:
    """Batch normalisation per channel: gamma * (z - mean) / sqrt(var + NORM_EPSILON) + beta. All float32 [O]."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Layer:
    """z = weight * x + bias, then `norm`, then ReLU if `relu`.

    weight float32 [O, I, KH, KW]; bias float32 [O]; in_size is the (H, W) of the input map. For a dense layer
    (KH, KW) = in_size and the output map is 1 x 1.
    """

    weight: Tensor
    bias: Tensor
    norm: Norm | None
    in_size: tuple[int, int]
    stride: int
    padding: Padding2d
    dense: bool
    relu: bool

    @property
    def out_size(self) -> tuple[int, int]:
        """(H, W) of the output map."""
        if self.dense:
            return (1, 1)
        (h, w), p, (kh, kw) = self.in_size, self.padding, self.weight.shape[2:]
        return ((h + p.top + p.bottom - kh) // self.stride + 1, (w + p.left + p.right - kw) // self.stride + 1)


Layers = tuple[Layer, ...]


def linear(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """weight * x with the geometry of `layer`, without bias. x [N, I, H, W] -> [N, O, H', W']."""
    if layer.dense:
        return (x.flatten(1) @ weight.flatten(1).T)[:, :, None, None]
    p = layer.padding
    if p.top == p.bottom and p.left == p.right:
        return F.conv2d(x, weight, stride=layer.stride, padding=(p.top, p.left))
    return F.conv2d(F.pad(x, (p.left, p.right, p.top, p.bottom)), weight, stride=layer.stride)


def per_channel(v: Tensor) -> Tensor:
    """[O] -> [1, O, 1, 1], to broadcast over a batch of maps."""
    return v[None, :, None, None]


class Network(nn.Module):
    """Parameters and running statistics of a tuple of layers; `layers()` is the live functional view."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
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

    def weights(self) -> tuple[int, ...]:
        """Number of weight elements of each layer, biases and normalisation not counted."""
        return tuple(int(layer.weight.numel()) for layer in self._plan)


def build(
    model: ModelRecipe, shape: tuple[int, int, int], classes: int, seed: int, *, widths: tuple[int, ...] | None = None
) -> Network:
    """A network for samples of `shape` (height, width, channels), initialised for interval bounds.

    widths: output channels per hidden layer instead of the recipe's `channels`. Weights are drawn from N(0, 2 pi / fan_in^2),
    so that interval radii neither grow nor vanish with depth. Source: Shi et al. 2021, arXiv 2103.17268 (IBP initialisation).
    Raises InputError where a kernel does not fit its map.
    """
    generator = torch.Generator().manual_seed(seed)
    size, channels = (shape[0], shape[1]), shape[2]
    hidden = model.layer
    plan: list[Layer] = []
    for i, (spec, width) in enumerate(zip(hidden, widths or tuple(s.channels for s in hidden), strict=True)):
        layer = _layer(spec, size, channels, width, model.batch_norm, generator, f"model layer {i}")
        plan.append(layer)
        size, channels = layer.out_size, width
    plan.append(_dense(size, channels, classes, batch_norm=False, relu=False, generator=generator))
    return Network(tuple(plan))


def _layer(
    spec: LayerRecipe,
    size: tuple[int, int],
    channels: int,
    width: int,
    batch_norm: bool,
    generator: torch.Generator,
    where: str,
) -> Layer:
    if spec.kind == "dense":
        return _dense(size, channels, width, batch_norm=batch_norm, relu=True, generator=generator)
    kernel, stride = (spec.kernel, spec.kernel), (spec.stride, spec.stride)
    if spec.padding == "valid" and min(size) < spec.kernel:
        raise InputError(
            f"{where}: a kernel of {spec.kernel} x {spec.kernel} does not fit a map of {size[0]} x {size[1]}",
            hint='padding = "same"',
        )
    padding = same_padding(size, kernel, stride) if spec.padding == "same" else Padding2d()
    weight = _draw((width, channels, *kernel), generator)
    return Layer(
        weight,
        torch.zeros(width),
        _norm(width) if batch_norm else None,
        size,
        spec.stride,
        padding,
        dense=False,
        relu=True,
    )


def _dense(
    size: tuple[int, int], channels: int, width: int, *, batch_norm: bool, relu: bool, generator: torch.Generator
) -> Layer:
    weight = _draw((width, channels, *size), generator)
    return Layer(
        weight, torch.zeros(width), _norm(width) if batch_norm else None, size, 1, Padding2d(), dense=True, relu=relu
    )


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * (math.sqrt(2 * math.pi) / math.prod(shape[1:]))


def _norm(width: int) -> Norm:
    return Norm(torch.ones(width), torch.zeros(width), torch.zeros(width), torch.ones(width))
