"""The networks that QDQ ONNX can hold exactly, and the shape they take in it.

ONNX Runtime computes with integers only between float inputs and outputs: a graph whose own input or output is int8 leaves
the first and the last layer in float. So every graph here starts with QUANTIZE and ends with DEQUANTIZE. Images are stored
channel first; a flattened image therefore has another order of elements, which the columns of the next dense layer's weight
absorb (`stored_columns`), so that no transpose is ever needed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.arith import round_half_away
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.spec import check

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-60, 2.0**60
"""Scales in this range keep f32(S * code) / S exact to a quarter of a code, and every product of two of them a normal float32."""

LARGEST_FLOAT_BIAS = 1 << 21
"""A bias b up to here is the nearest integer to f32(b * S) / S for S rounded to float32 by anyone: the three roundings move it by less
than 3 * 2^-24 * 2^21 < 1/2."""

Image = tuple[int, int, int]
"""(height, width, channels) of an image that was flattened: its elements are stored as (channel, height, width)."""


def as_image(shape: tuple[int, ...]) -> Image | None:
    """The shape, if it is an image's."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else None


def keeps_order(image: Image | None) -> bool:
    """Whether a flattened tensor's elements are stored in our order: always, if it was no image of several channels and pixels."""
    return image is None or image[2] == 1 or image[0] * image[1] == 1


def stored_columns(weight: ops.Int8, image: Image | None) -> ops.Int8:
    """The columns of a dense weight [O, I] in the order in which the flattened `image` is stored."""
    if image is None:
        return weight
    h, w, c = image
    return weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(weight.shape)


def our_columns(weight: ops.Int8, image: Image | None) -> ops.Int8:
    """The inverse of `stored_columns`."""
    if image is None:
        return weight
    h, w, c = image
    return weight.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(weight.shape)


def stored_image(graph: Graph, tensor: int) -> Image | None:
    """The image whose flattened elements `tensor` holds, or which it is; None where their order is ours anyway."""
    writer = {n.output: n for n in graph.nodes}
    while tensor in writer and isinstance(writer[tensor].op, ops.Reshape):
        tensor = writer[tensor].inputs[0]
    return as_image(graph.tensors[tensor].shape)


def clip_bounds(activation: ops.Activation) -> tuple[float, float] | None:
    """The real range that an activation other than NONE and RELU clips to; None for those."""
    match activation:
        case ops.Activation.RELU6:
            return 0.0, 6.0
        case ops.Activation.RELU_N1_TO_1:
            return -1.0, 1.0
        case ops.Activation.NONE | ops.Activation.RELU:
            return None


def check_activation(activation: ops.Activation, out: Tensor, where: str) -> None:
    """Raises UnsupportedError where a clipped bound lies half-way between two codes: ONNX Runtime rounds it to even, .tflite away."""
    for bound in clip_bounds(activation) or ():
        ratio = float(np.float32(bound) / np.float32(out.scale))
        if round_half_away(ratio) != round(ratio):
            raise UnsupportedError(
                f"{where}: {activation.value} with output scale {out.scale}: {bound} lies half-way between two codes, which "
                "ONNX Runtime rounds to the even one and the int8 network away from zero"
            )


def check_scales(scales: npt.ArrayLike, where: str) -> None:
    """Raises UnsupportedError for scales whose products leave the range in which ONNX Runtime's float32 steps are exact."""
    low, high = float(np.min(scales)), float(np.max(scales))
    if not (low >= SMALLEST_SCALE and high <= LARGEST_SCALE):
        raise UnsupportedError(f"{where}: scales from {low} to {high}, expected them in [2^-60, 2^60] for ONNX Runtime")


def onnx_form(graph: Graph) -> Graph:
    """`graph` as QDQ ONNX says it: the same function, up to QUANTIZE and DEQUANTIZE at its ends.

    Each dense layer reads a flat tensor; a convolution with one channel per group is depthwise, one of a single channel is
    not; tensors are numbered in execution order. Idempotent. Raises ModelError for an illegal graph, UnsupportedError,
    naming the op, for one whose ONNX form was not shown equal to ONNX Runtime.
    """
    check(graph)
    b = _Form(graph)
    source = graph.input
    if source.dtype == "int8":
        check_scales(source.scale, f"input {source.name!r}")
        real = b.add(Tensor(f"{source.name}_real", source.shape, "float32"))
        b.at[graph.inputs[0]] = b.node(ops.Quantize(), (real,), source)
    else:
        b.at[graph.inputs[0]] = b.add(source)
    for index, node in enumerate(graph.nodes):
        b.append(index, node)
    last = b.at[graph.outputs[0]]
    if graph.output.dtype == "int8":
        last = b.node(ops.Dequantize(), (last,), Tensor(f"{graph.output.name}_real", graph.output.shape, "float32"))
    formed = Graph(tuple(b.tensors), tuple(b.nodes), (0,), (last,))
    check(formed)
    return formed


class _Form:
    """The graph under construction; `at` maps the old tensors to the new."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self.at: dict[int, int] = {}

    def add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def node(self, op: ops.Op, inputs: tuple[int, ...], output: Tensor) -> int:
        index = self.add(output)
        self.nodes.append(Node(op, inputs, index))
        return index

    def append(self, index: int, node: Node) -> None:
        where = self.graph.label(index)
        x, out = self.graph.tensors[node.inputs[0]], self.graph.tensors[node.output]
        source, op = self.at[node.inputs[0]], node.op
        if out.dtype == "int8":
            check_scales(out.scale, where)
        if isinstance(op, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense):
            check_scales(op.weight_scale, f"{where}: weight")
        match op:
            case ops.Conv2d(weight=weight) if weight.shape[3] == 1 and x.shape[2] > 1:
                op = ops.DepthwiseConv2d(
                    ops.freeze(weight[..., 0].transpose(1, 2, 0), np.int8),
                    *(op.bias, op.weight_scale, op.stride, op.padding, op.dilation, op.activation),
                )
            case ops.DepthwiseConv2d(weight=weight) if x.shape[2] == 1:
                op = ops.Conv2d(
                    ops.freeze(weight.transpose(2, 0, 1)[..., None], np.int8),
                    *(op.bias, op.weight_scale, op.stride, op.padding, op.dilation, op.activation),
                )
            case ops.Dense() if len(x.shape) != 1:
                flat = replace(x, name=f"{x.name}_flat", shape=(x.size,))
                source = self.node(ops.Reshape(), (source,), flat)
            case ops.Reshape() if len(out.shape) != 1:
                raise UnsupportedError(f"{where}: reshapes to {out.shape}; channel-first ONNX can only flatten")
            case ops.Conv2d() | ops.DepthwiseConv2d() | ops.Dense() | ops.MaxPool() | ops.Reshape():
                pass
            case ops.Quantize() | ops.Dequantize():
                pass
            case _:
                raise UnsupportedError(
                    f"{where} cannot be kept exact in ONNX: no form of it was shown equal to ONNX Runtime bit for bit",
                    hint="a .tflite file can hold it",
                )
        if isinstance(op, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense | ops.MaxPool):
            check_activation(op.activation, out, where)
        self.at[node.output] = self.node(op, (source,), out)
