"""The networks that QDQ ONNX can hold exactly, and the shape they take in it.

ONNX Runtime computes with integers only between float inputs and outputs: a graph whose own input or output is int8 leaves
the first and the last layer in float. So every graph here starts with QUANTIZE and ends with DEQUANTIZE.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.spec import check
from cactus_edge.verify.onnx_layout import check_activation, check_scales


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
