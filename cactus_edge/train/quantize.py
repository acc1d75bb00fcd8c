"""From the trained network to integers: the graph that is exported, in the ranges that `calibrate` chose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cactus_edge.errors import ModelError
from cactus_edge.ir.arith import LARGEST_FLOAT_BIAS
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Activation, Add, AvgPool, Conv2d, Dense, DepthwiseConv2d, Float32, Int8, Int32, freeze
from cactus_edge.train.fakequant import Ceilings, fake_quantise, weight_max, weight_scales
from cactus_edge.train.folded import SIGNED_LEVELS, Affine, Folded, plan
from cactus_edge.train.grids import Calibration, adjusted
from cactus_edge.train.models import walk


def export(net: Folded, calibration: Calibration, shape: tuple[int, int, int], name: str = "input") -> Graph:
    """The integer graph: weight = rint(w / s_w), bias = rint(b / (s_in s_w)), activations in steps of ceiling / levels from their zero
    point on.

    s_w per channel in convolutions, per tensor in dense layers. What may be negative, the terms of sums above all, has steps of
    ceiling / 127 on both sides of a zero point of 0. A sum is a convolution without ReLU and an ADD with it. A symmetric
    network's biases are small enough for float32, as TensorRT takes them. Raises ModelError where a bias leaves int32.
    """
    net, builder = adjusted(net, calibration), GraphBuilder()
    least = 0 if calibration.symmetric else -128
    most = LARGEST_FLOAT_BIAS if calibration.symmetric else LARGEST_BIAS
    ceilings = iter(calibration.ceilings)

    def grid(name: str, shape: tuple[int, ...], *, signed: bool) -> Tensor:
        steps, zero_point = (SIGNED_LEVELS, 0) if signed else (calibration.levels, least)
        return Tensor(name, shape, "int8", float(np.float32(next(ceilings) / steps)), zero_point)

    def layer(i: int, at: int, other: int | None) -> int:
        affine, last = net[i], i == len(net) - 1
        made, relu = affine.layer, Activation.RELU if affine.layer.relu else Activation.NONE
        label = "logits" if last else f"{'dense' if made.dense else 'depthwise' if made.depthwise else 'conv'}{i}"
        channels = int(affine.weight.shape[0])
        out_shape = (channels,) if made.dense else (*made.out_size, channels)
        if made.pool is not None:
            read = builder.tensor(at)
            means = replace(read, name=f"pool{i}", shape=(*made.map_size, read.shape[2]))
            at = builder.node(AvgPool(made.pool, made.pool), [at], means)
        s_in = builder.tensor(at).scale
        if other is not None:
            term = builder.node(
                _op(affine, s_in, label, most, Activation.NONE), [at], grid(label, out_shape, signed=True)
            )
            return builder.node(Add(relu), [other, term], grid(f"sum{i}", out_shape, signed=not made.relu))
        if last:
            out = Tensor(label, out_shape, "int8", calibration.out_scale, calibration.out_zero_point)
        else:
            out = grid(label, out_shape, signed=not made.relu)
        return builder.node(_op(affine, s_in, label, most, relu), [at], out)

    at = builder.input(Tensor(name, shape, "int8", calibration.in_scale, calibration.in_zero_point))
    return builder.finish(walk(plan(net), at, layer))


LARGEST_BIAS = 1 << 30
"""Half of int32, so that sums have as much room again."""

_LARGEST = (1 << 31) - 1


def _op(affine: Affine, s_in: float, label: str, most: int, activation: Activation) -> Conv2d | DepthwiseConv2d | Dense:
    layer = affine.layer
    weight, bias, scales = integers(affine, s_in, label, most)
    bits = affine.weight_bits
    if layer.dense:
        return Dense(weight.reshape(weight.shape[0], -1), bias, scales, activation, bits)
    if layer.depthwise:
        flat = freeze(weight[..., 0].transpose(1, 2, 0), np.int8)
        return DepthwiseConv2d(flat, bias, scales, layer.stride, layer.padding, activation=activation, weight_bits=bits)
    return Conv2d(weight, bias, scales, layer.stride, layer.padding, activation=activation, weight_bits=bits)


def integers(affine: Affine, s_in: float, label: str, most: int = LARGEST_BIAS) -> tuple[Int8, Int32, Float32]:
    """(weight int8 [O, KH, KW, I], bias int32 [O], weight scale float32 [O] or [1]) of one layer, all read-only.

    most: largest bias of the format that the network is for, a power of two. A channel of tiny weights, which is little more than
    its bias, gets coarser steps where it would leave that. One scale for a dense layer's whole tensor gets no coarser for int32's
    sake: ModelError where its bias leaves int32.
    """
    bits = affine.weight_bits
    scales = weight_scales(affine.weight, per_channel=not affine.layer.dense, bits=bits).numpy().astype(np.float32)
    offset = affine.bias.detach().numpy().astype(np.float64)
    least = np.abs(offset) / (s_in * (most - 1))
    if not affine.layer.dense:
        scales = np.maximum(scales, least.astype(np.float32))
    elif most < LARGEST_BIAS:
        scales = np.maximum(scales, least.max(keepdims=True).astype(np.float32))
    spread = scales.astype(np.float64)
    real = affine.weight.detach().numpy().astype(np.float64).transpose(0, 2, 3, 1)
    weight = np.clip(np.rint(real / spread[:, None, None, None]), -weight_max(bits), weight_max(bits))
    bias = np.rint(offset / (s_in * spread))
    if np.abs(bias).max(initial=0) > _LARGEST:
        raise ModelError(f"{label}: a bias of {np.abs(bias).max():.3g} accumulator steps does not fit int32")
    return freeze(weight, np.int8), freeze(bias, np.int32), freeze(scales, np.float32)


def quantised(net: Folded, calibration: Calibration) -> Folded:
    """The float twin of `export`: fake-quantised weights and activations, real biases and real logits."""
    ceilings: Ceilings = tuple(torch.tensor(c, dtype=torch.float32) for c in calibration.ceilings)
    return fake_quantise(adjusted(net, calibration), ceilings, calibration.levels)
