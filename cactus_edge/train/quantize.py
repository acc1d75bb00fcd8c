"""From the trained network to integers: the graph that is exported, in the ranges that `calibrate` chose."""

from __future__ import annotations

import numpy as np
import torch

from cactus_edge.errors import ModelError
from cactus_edge.ir.arith import LARGEST_FLOAT_BIAS
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Activation, Conv2d, Dense, Float32, Int8, Int32, freeze
from cactus_edge.recipe import Recipe
from cactus_edge.train.calibrate import Calibration, calibrate
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import WEIGHT_MAX, Ceilings, fake_quantise, weight_scales
from cactus_edge.train.folded import Affine, Folded
from cactus_edge.train.loop import TrainedModel


def to_graph(trained: TrainedModel, dataset: Dataset, recipe: Recipe) -> Graph:
    """The integer network: calibrated on the validation split, int8 in and out, one scale for all logits."""
    net = trained.folded()
    return export(net, calibrate(net, dataset, recipe), dataset.shape)


def export(net: Folded, calibration: Calibration, shape: tuple[int, int, int], name: str = "input") -> Graph:
    """The integer graph: weight = rint(w / s_w), bias = rint(b / (s_in s_w)), activations in steps of ceiling / levels from their zero
    point on.

    s_w per channel in convolutions, per tensor in dense layers. A symmetric network's biases are small enough for float32, as
    TensorRT takes them. Raises ModelError where a bias leaves int32.
    """
    builder = GraphBuilder()
    least = 0 if calibration.symmetric else -128
    at = builder.input(Tensor(name, shape, "int8", calibration.in_scale, calibration.in_zero_point))
    for i, affine in enumerate(net):
        last = i == len(net) - 1
        scale = calibration.out_scale if last else float(np.float32(calibration.ceilings[i] / calibration.levels))
        zero_point = calibration.out_zero_point if last else least
        height, width = affine.layer.out_size
        channels = int(affine.weight.shape[0])
        out_shape = (channels,) if affine.layer.dense else (height, width, channels)
        label = "logits" if last else f"{'dense' if affine.layer.dense else 'conv'}{i}"
        out = Tensor(label, out_shape, "int8", scale, zero_point)
        most = LARGEST_FLOAT_BIAS if calibration.symmetric else _LARGEST
        at = builder.node(_op(affine, builder.tensor(at).scale, label, most), [at], out)
    return builder.finish(at)


_LARGEST = 2**31 - 1


def _op(affine: Affine, s_in: float, label: str, most: int) -> Conv2d | Dense:
    dense = affine.layer.dense
    weight, bias, scales = integers(affine, s_in, label, most)
    activation = Activation.RELU if affine.layer.relu else Activation.NONE
    if dense:
        return Dense(weight.reshape(weight.shape[0], -1), bias, scales, activation)
    return Conv2d(weight, bias, scales, (affine.layer.stride,) * 2, affine.layer.padding, activation=activation)


def integers(affine: Affine, s_in: float, label: str, most: int = _LARGEST) -> tuple[Int8, Int32, Float32]:
    """(weight int8 [O, KH, KW, I], bias int32 [O], weight scale float32 [O] or [1]) of one layer, all read-only.

    most: largest bias of the format that the network is for, a power of two where int32 is not the limit. A channel of tiny
    weights, which is little more than its bias, gets coarser steps where it would leave it. ModelError where a bias leaves int32.
    """
    scales = weight_scales(affine.weight, per_channel=not affine.layer.dense).numpy().astype(np.float32)
    offset = affine.bias.detach().numpy().astype(np.float64)
    if most < _LARGEST:
        least = np.abs(offset) / (s_in * (most - 1))
        scales = np.maximum(scales, (least.max(keepdims=True) if affine.layer.dense else least).astype(np.float32))
    spread = scales.astype(np.float64)
    real = affine.weight.detach().numpy().astype(np.float64).transpose(0, 2, 3, 1)
    weight = np.clip(np.rint(real / spread[:, None, None, None]), -WEIGHT_MAX, WEIGHT_MAX)
    bias = np.rint(offset / (s_in * spread))
    if np.abs(bias).max(initial=0) > _LARGEST:
        raise ModelError(f"{label}: a bias of {np.abs(bias).max():.3g} accumulator steps does not fit int32")
    return freeze(weight, np.int8), freeze(bias, np.int32), freeze(scales, np.float32)


def quantised(net: Folded, calibration: Calibration) -> Folded:
    """The float twin of `export`: fake-quantised weights and activations, real biases and real logits."""
    ceilings: Ceilings = tuple(torch.tensor(c, dtype=torch.float32) for c in calibration.ceilings)
    return fake_quantise(net, ceilings, calibration.levels)
