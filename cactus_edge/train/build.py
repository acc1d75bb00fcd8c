"""From a recipe's model to the network that training begins with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.ir.ops import Padding2d, same_padding
from cactus_edge.recipe_model import BadLayerError, LayerRecipe, ModelRecipe, Place, places
from cactus_edge.train.models import Layer, Network, Norm
from cactus_edge.train.own import fingerprint, own_network

Size = tuple[int, int]


def build(
    model: ModelRecipe, shape: tuple[int, int, int], classes: int, seed: int, *, compressed: bool = False
) -> Network:
    """A network for samples of `shape` (height, width, channels), its weights drawn as the model's `init` says.

    compressed: with the channels that are left after compression from the start. Sources of init: "ibp", Shi et al. 2021, arXiv
    2103.17268 (IBP initialisation); "uniform", He et al. 2015, arXiv 1502.01852, with torch's negative slope of sqrt 5. A module
    of the user's own brings its weights, and all its channels. Raises InputError where a kernel does not fit its map, a sum's maps
    differ, or a module is none of ours.
    """
    if model.module:
        return own_network(model, shape, classes, seed)
    generator = torch.Generator().manual_seed(seed)
    try:
        placed = places(model.layer, shape[2])
    except BadLayerError as error:
        raise InputError(f"model layer {error.index}: {error}", hint=error.hint) from error
    maps: dict[int, tuple[int, Size]] = {-1: (shape[2], (shape[0], shape[1]))}
    plan: list[Layer] = []
    for i, (spec, place) in enumerate(zip(model.layer, placed, strict=True)):
        channels, size = maps[place.reads]
        width = place.kept if compressed else place.channels
        layer = _layer(spec, place, size, channels, width, model, generator, f"model layer {i}")
        plan.append(layer)
        maps[i] = (width, layer.out_size)
        if place.adds is not None and maps[place.adds] != maps[i]:
            (h, w), (a, b) = maps[i][1], maps[place.adds][1]
            raise InputError(
                f"model layer {i}: adds {spec.adds!r}, a map of {a} x {b}, to one of {h} x {w}", hint="equal strides"
            )
    channels, size = maps[len(plan) - 1]
    pool = window(model.pool, size, "the classifier") if plan else None
    weight, bias = _drawn((classes, channels, *_pooled(size, pool)), model.init, generator)
    plain = Padding2d()
    plan.append(Layer(weight, bias, None, size, (1, 1), plain, dense=True, relu=False, pool=pool))
    return Network(tuple(plan))


def own_start(model: ModelRecipe, shape: tuple[int, int, int], classes: int, seed: int) -> list[str]:
    """What decides the weights and stands in no recipe: the fingerprint of a module of the user's own, before training."""
    return [fingerprint(own_network(model, shape, classes, seed))] if model.module else []


def window(pool: int | tuple[int, int] | str, size: Size, where: str) -> Size | None:
    """The window of a recipe's `pool` on a map of `size`; None for none. Raises InputError where it does not fit."""
    if isinstance(pool, str):
        return size if size != (1, 1) else None
    found = pool if isinstance(pool, tuple) else (pool, pool)
    if found[0] > size[0] or found[1] > size[1]:
        raise InputError(
            f"{where}: means over {found[0]} x {found[1]} do not fit a map of {size[0]} x {size[1]}",
            hint='pool = "global"',
        )
    return found if found != (1, 1) else None


def _pooled(size: Size, pool: Size | None) -> Size:
    return size if pool is None else (size[0] // pool[0], size[1] // pool[1])


def _layer(
    spec: LayerRecipe,
    place: Place,
    size: Size,
    channels: int,
    width: int,
    model: ModelRecipe,
    generator: torch.Generator,
    where: str,
) -> Layer:
    pool = window(spec.pool, size, where)
    seen, dense, alone = _pooled(size, pool), spec.kind == "dense", spec.kind == "norm"
    whole = (seen if dense else (1, 1), (1, 1), Padding2d())
    kernel, stride, padding = whole if dense or alone else _window(spec, seen, where)
    shape = (width, 1 if spec.by_channel else channels, *kernel)
    weight, bias = (torch.ones(shape), torch.zeros(width)) if alone else _drawn(shape, model.init, generator)
    unit = (f(width) for f in (torch.ones, torch.zeros, torch.zeros, torch.ones))
    norm = Norm(*unit) if model.batch_norm and spec.batch_norm else None
    return Layer(
        weight,
        bias if norm is None else torch.zeros(width),
        norm=norm,
        in_size=size,
        stride=stride,
        padding=padding,
        dense=dense,
        relu=spec.relu,
        depthwise=spec.by_channel,
        reads=place.reads,
        adds=place.adds,
        pool=pool,
        kept=place.kept,
    )


def _window(spec: LayerRecipe, size: Size, where: str) -> tuple[Size, Size, Padding2d]:
    """Kernel, stride and padding of a convolution on a map of `size`.

    Along a side of one, as signals have, a SAME kernel is one too: its other weights would meet nothing but padding.
    """
    kernel, stride = ((v, v) if isinstance(v, int) else v for v in (spec.kernel, spec.stride))
    if spec.padding == "same":
        kernel = (1 if size[0] == 1 else kernel[0], 1 if size[1] == 1 else kernel[1])
        return kernel, stride, same_padding(size, kernel, stride)
    if size[0] < kernel[0] or size[1] < kernel[1]:
        raise InputError(
            f"{where}: a kernel of {kernel[0]} x {kernel[1]} does not fit a map of {size[0]} x {size[1]}",
            hint='padding = "same"',
        )
    return kernel, stride, Padding2d()


def _drawn(shape: tuple[int, ...], init: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight of that shape and bias."""
    fan_in = math.prod(shape[1:])
    if init == "uniform":
        weight, bias = (2 * torch.rand(size, generator=generator) - 1 for size in (shape, shape[:1]))
        return weight / math.sqrt(fan_in), bias / math.sqrt(fan_in)
    scale = math.sqrt(2 / fan_in) if init == "kaiming" else math.sqrt(2 * math.pi) / fan_in
    return torch.randn(shape, generator=generator) * scale, torch.zeros(shape[0])
