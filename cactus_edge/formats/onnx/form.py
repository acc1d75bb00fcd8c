"""The networks that QDQ ONNX can hold exactly, and the shape they take in it.

ONNX Runtime computes with integers only between float inputs and outputs: a graph whose own input or output is int8 leaves
the first and the last layer in float. So every graph here starts with QUANTIZE and ends with DEQUANTIZE.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx.read.layout import Image, check_activation, check_scales, keeps_order, stored_image
from cactus_edge.formats.onnx.read.values import FUSING
from cactus_edge.ir import ops
from cactus_edge.ir.arith import INT8_MIN
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.spec import check


def onnx_form(graph: Graph) -> Graph:
    """`graph` as QDQ ONNX says it: the same function, up to QUANTIZE and DEQUANTIZE at its ends.

    Each dense layer reads a flat tensor; a convolution with one channel per group is depthwise, one of a single channel is
    not; tensors are numbered in execution order. Idempotent. Raises ModelError for an illegal graph, UnsupportedError,
    naming the op, for one whose ONNX form was not shown equal to ONNX Runtime.
    """
    check(graph)
    if graph.constants:
        name = graph.tensors[next(iter(graph.constants))].name
        raise UnsupportedError(
            f"the constant operand {name!r} cannot be kept exact in ONNX: no form of it was shown equal"
        )
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
    """The graph under construction; `at` maps the old tensors to the new, `rescaled` the outputs of rescalings that belong to joins."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self.at: dict[int, int] = {}
        self.rescaled: dict[int, Node] = {}

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
        op = node.op
        if isinstance(op, ops.Requantize) and self._only_joined(node):
            self.rescaled[node.output] = node
            return
        sources = tuple(self._source(i) for i in node.inputs)
        if out.dtype == "int8":
            check_scales(out.scale, where)
        if isinstance(op, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense):
            check_scales(op.weight_scale, f"{where}: weight")
            op = replace(op, weight_bits=8)
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
            case ops.Dense(weight=weight) if weight.shape[1] != x.size:
                raise UnsupportedError(
                    f"{where}: a dense layer of each row of {x.shape}; ONNX has one of all elements",
                    hint="a .tflite file can hold it",
                )
            case ops.Dense() if len(x.shape) != 1:
                flat = replace(x, name=f"{x.name}_flat", shape=(x.size,))
                sources = (self.node(ops.Reshape(), sources, flat),)
            case ops.Reshape() if len(out.shape) != 1:
                raise UnsupportedError(f"{where}: reshapes to {out.shape}; channel-first ONNX can only flatten")
            case ops.Mean(axes, keep_dims) if len(x.shape) == 3 and axes == (0, 1):
                if not keep_dims:
                    pooled = replace(out, name=f"{out.name}_pooled", shape=(1, 1, x.shape[2]))
                    sources = (self.node(ops.Mean(axes, True), sources, pooled),)
                    op = ops.Reshape()
            case ops.Add() if x.shape != self.graph.tensors[node.inputs[1]].shape:
                raise UnsupportedError(f"{where}: a sum that repeats an axis was not shown equal to ONNX Runtime")
            case ops.Add() if node.inputs[0] == node.inputs[1]:
                raise UnsupportedError(f"{where}: a sum of a tensor with itself, which ONNX Runtime leaves in float")
            case ops.Add() | ops.Concat() if len(x.shape) in (1, 3):
                orders = {self._order(i) for i in node.inputs}
                if len(orders) > 1 or (isinstance(op, ops.Concat) and orders != {None} and len(x.shape) == 1):
                    raise UnsupportedError(
                        f"{where}: its flattened inputs are stored in channel-first order, each its own"
                    )
            case ops.Relu() if x.quantised_like(out):
                raise UnsupportedError(
                    f"{where}: a ReLU of its own that keeps the scale; a fused one can be kept exact in ONNX"
                )
            case ops.Relu() if out.zero_point == INT8_MIN:
                raise UnsupportedError(
                    f"{where}: ONNX Runtime removes a ReLU to the lowest zero point, and a rounding with it"
                )
            case ops.Softmax(beta) if beta != 1 or len(x.shape) != 1:
                raise UnsupportedError(
                    f"{where}: a softmax of beta {beta} over {x.shape}; ONNX has one of beta 1 over a row"
                )
            case ops.Conv2d() | ops.DepthwiseConv2d() | ops.Dense() | ops.MaxPool() | ops.Reshape() | ops.Relu():
                pass
            case ops.AvgPool(activation=ops.Activation.NONE) | ops.Softmax():
                pass
            case ops.Quantize() | ops.Dequantize():
                pass
            case _:
                raise UnsupportedError(
                    f"{where} cannot be kept exact in ONNX: no form of it was shown equal to ONNX Runtime bit for bit",
                    hint="a .tflite file can hold it",
                )
        if isinstance(op, FUSING):
            check_activation(op.activation, out, where)
        self.at[node.output] = self.node(op, sources, out)

    def _only_joined(self, node: Node) -> bool:
        """Whether a Requantize has no other readers than joins: ONNX Runtime's Concat rescales its inputs itself."""
        readers = [n for n in self.graph.nodes if node.output in n.inputs]
        return node.output not in self.graph.outputs and all(isinstance(n.op, ops.Concat) for n in readers)

    def _source(self, tensor: int) -> int:
        """The new tensor for an old one; a rescaling for a join stands right before it, once per use."""
        node = self.rescaled.get(tensor)
        if node is None:
            return self.at[tensor]
        source, out = self._source(node.inputs[0]), self.graph.tensors[tensor]
        if self.tensors[source].quantised_like(out):
            return source
        return self.node(ops.Requantize(), (source,), out)

    def _order(self, tensor: int) -> Image | None:
        """The image in whose channel-first order the elements of a flat tensor are stored; None for our order, and for images."""
        image = stored_image(self.graph, tensor)
        flat = len(self.graph.tensors[tensor].shape) == 1
        return image if flat and not keeps_order(image) else None
