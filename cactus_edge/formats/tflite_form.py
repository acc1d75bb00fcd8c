"""What .tflite has for each op: the builtin operator and its version, and the padding that it can say.

Versions are the oldest that mean what is written. Source: tensorflow/lite/tools/versioning/op_version.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node, Tensor


@dataclass(frozen=True)
class Builtin:
    """An operator code: name, version, the first runtime that has this version, its options class (None: no options)."""

    name: str
    version: int
    runtime: tuple[int, int, int]
    options: str | None


INT16_VERSIONS: Mapping[str, tuple[int, tuple[int, int, int]]] = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION", "SOFTMAX", "LOGISTIC", "TANH"), (3, (2, 3, 0))),
    **dict.fromkeys(("ADD", "MEAN", "PAD"), (3, (2, 4, 0))),
    "CONV_2D": (4, (2, 3, 0)),
    "DEPTHWISE_CONV_2D": (5, (2, 3, 0)),
    "FULLY_CONNECTED": (7, (2, 3, 0)),
    "SUB": (5, (2, 4, 0)),
    "MUL": (4, (2, 3, 0)),
    "DEQUANTIZE": (3, (1, 15, 0)),
}
"""The oldest versions for int16 codes, and the runtimes that have them, of operators for which int8 needs older ones."""


INT4_VERSIONS: Mapping[str, tuple[int, tuple[int, int, int]]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), (7, (2, 11, 0))),
    "FULLY_CONNECTED": (10, (2, 11, 0)),
}
"""The same for weights of 4 bits."""


def operator_for(graph: Graph, node: Node) -> Builtin:
    """The operator that means `node`, in the version that its integers need."""
    found = _int8_builtin(graph, node)
    if getattr(node.op, "weight_bits", 8) == 4:
        version, runtime = INT4_VERSIONS[found.name]
        found = replace(found, version=max(version, found.version), runtime=max(runtime, found.runtime))
    version, runtime = INT16_VERSIONS.get(found.name, (1, (1, 5, 0)))
    if all(t.dtype != "int16" for t in graph.tensors):
        return found
    return replace(found, version=max(version, found.version), runtime=max(runtime, found.runtime))


def _int8_builtin(graph: Graph, node: Node) -> Builtin:
    match node.op:
        case ops.Conv2d(weight):
            grouped = weight.shape[3] != graph.tensors[node.inputs[0]].shape[2]
            version, runtime = (6, (2, 9, 0)) if grouped else (3, (1, 14, 0))
            return Builtin("CONV_2D", version, runtime, "Conv2DOptions")
        case ops.DepthwiseConv2d():
            return Builtin("DEPTHWISE_CONV_2D", 3, (1, 14, 0), "DepthwiseConv2DOptions")
        case ops.TransposeConv2d(activation=activation):
            version, runtime = (4, (2, 14, 0)) if activation is not ops.Activation.NONE else (3, (2, 3, 0))
            return Builtin("TRANSPOSE_CONV", version, runtime, "TransposeConvOptions")
        case ops.Dense(weight_scale=scale):
            # Runtimes before version 12 take the first scale for all channels without a word.
            version, runtime = (12, (2, 17, 0)) if scale.size > 1 else (4, (1, 14, 0))
            return Builtin("FULLY_CONNECTED", version, runtime, "FullyConnectedOptions")
        case ops.Add():
            return Builtin("ADD", 2, (1, 14, 0), "AddOptions")
        case ops.Sub():
            x, y = (graph.tensors[i] for i in node.inputs)
            version, runtime = (3, (2, 3, 0)) if x.shape != y.shape and len(x.shape) > 3 else (2, (1, 14, 0))
            return Builtin("SUB", version, runtime, "SubOptions")
        case ops.Mul():
            x, y, out = (graph.tensors[i] for i in (*node.inputs, node.output))
            version, runtime = (3, (1, 15, 0)) if x.scale * y.scale >= out.scale else (2, (1, 14, 0))
            return Builtin("MUL", version, runtime, "MulOptions")
        case ops.Maximum() | ops.Minimum():
            shapes = {graph.tensors[i].shape for i in node.inputs}
            broadcast = len(shapes) > 1 and max(map(len, shapes)) > 3
            version, runtime = (3, (2, 3, 0)) if broadcast else (2, (1, 14, 0))
            return Builtin(type(node.op).__name__.upper(), version, runtime, "MaximumMinimumOptions")
        case ops.AvgPool():
            return Builtin("AVERAGE_POOL_2D", 2, (1, 14, 0), "Pool2DOptions")
        case ops.MaxPool():
            return Builtin("MAX_POOL_2D", 2, (1, 14, 0), "Pool2DOptions")
        case ops.Mean():
            return Builtin("MEAN", 2, (1, 14, 0), "ReducerOptions")
        case ops.Sum():
            return Builtin("SUM", 2, (1, 15, 0), "ReducerOptions")
        case ops.Pad():
            return Builtin("PAD", 2, (1, 14, 0), "PadOptions")
        case ops.Concat():
            return Builtin("CONCATENATION", 2, (1, 14, 0), "ConcatenationOptions")
        case ops.Reshape():
            return Builtin("RESHAPE", 1, (1, 5, 0), "ReshapeOptions")
        case ops.Transpose(perm):
            version, runtime = {4: (4, (2, 3, 0)), 5: (6, (2, 12, 0))}.get(len(perm), (2, (1, 14, 0)))
            return Builtin("TRANSPOSE", version, runtime, "TransposeOptions")
        case ops.Slice(begin):
            version, runtime = (4, (2, 2, 0)) if len(begin) > 3 else (2, (1, 14, 0))
            return Builtin("STRIDED_SLICE", version, runtime, "StridedSliceOptions")
        case ops.ResizeNearest(aligned, centred):
            version, runtime = (3, (2, 3, 0)) if aligned or centred else (2, (1, 14, 0))
            return Builtin("RESIZE_NEAREST_NEIGHBOR", version, runtime, "ResizeNearestNeighborOptions")
        case ops.ResizeBilinear(_, centred):
            version, runtime = (3, (2, 2, 0)) if centred else (2, (1, 14, 0))
            return Builtin("RESIZE_BILINEAR", version, runtime, "ResizeBilinearOptions")
        case ops.LeakyRelu():
            return Builtin("LEAKY_RELU", 1, (1, 13, 1), "LeakyReluOptions")
        case ops.HardSwish():
            return Builtin("HARD_SWISH", 1, (1, 15, 0), "HardSwishOptions")
        case ops.Logistic():
            return Builtin("LOGISTIC", 2, (1, 14, 0), None)
        case ops.Tanh():
            return Builtin("TANH", 2, (1, 14, 0), None)
        case ops.Relu():
            return Builtin("RELU", 2, (2, 1, 0), None)
        case ops.Relu6():
            return Builtin("RELU6", 2, (1, 14, 0), None)
        case ops.Requantize():
            return Builtin("QUANTIZE", 2, (1, 15, 0), "QuantizeOptions")
        case ops.Quantize():
            return Builtin("QUANTIZE", 1, (1, 14, 0), "QuantizeOptions")
        case ops.Dequantize():
            return Builtin("DEQUANTIZE", 2, (1, 14, 0), "DequantizeOptions")
        case ops.Softmax():
            return Builtin("SOFTMAX", 2, (1, 14, 0), "SoftmaxOptions")
        case _:
            assert_never(node.op)


def explicit_padding(graph: Graph) -> Graph:
    """An equal graph whose convolutions pad as .tflite can say it (SAME or VALID), with tensors in the order they are written.

    Other padding becomes a PAD op in front. Exact: a skipped tap and a tap that reads the zero point both add 0.
    Raises UnsupportedError for a pool with such padding: its windows would count the inserted elements.
    """
    tensors = [graph.tensors[i] for i in graph.inputs]
    index = {old: new for new, old in enumerate(graph.inputs)}
    nodes: list[Node] = []
    constants: dict[int, ops.Int8] = {}

    def append(op: ops.Op, inputs: tuple[int, ...], output: Tensor) -> int:
        tensors.append(output)
        nodes.append(Node(op, inputs, len(tensors) - 1))
        return len(tensors) - 1

    for number, node in enumerate(graph.nodes):
        for i in node.inputs:
            if i in graph.constants and i not in index:
                index[i] = len(tensors)
                constants[index[i]] = graph.constants[i]
                tensors.append(graph.tensors[i])
        op, inputs = node.op, tuple(index[i] for i in node.inputs)
        x = tensors[inputs[0]]
        if isinstance(op, ops.AvgPool | ops.MaxPool) and padding_name(op, x) is None:
            raise UnsupportedError(
                f"{graph.label(number)}: padding {op.padding} is neither SAME nor VALID, which is all a .tflite pool can say"
            )
        if isinstance(op, ops.AvgPool) and not x.quantised_like(graph.tensors[node.output]):
            raise UnsupportedError(f"{graph.label(number)}: a .tflite average keeps its input's scale and zero point")
        if isinstance(op, ops.Conv2d | ops.DepthwiseConv2d) and padding_name(op, x) is None:
            p = op.padding
            pads = ((p.top, p.bottom), (p.left, p.right), (0, 0))
            shape = (x.shape[0] + p.top + p.bottom, x.shape[1] + p.left + p.right, x.shape[2])
            inputs = (append(ops.Pad(pads), inputs, replace(x, name=f"{x.name}/padded", shape=shape)),)
            op = replace(op, padding=ops.Padding2d())
        index[node.output] = append(op, inputs, graph.tensors[node.output])
    return Graph(
        tuple(tensors),
        tuple(nodes),
        tuple(index[i] for i in graph.inputs),
        tuple(index[i] for i in graph.outputs),
        constants,
    )


def padding_name(op: ops.Conv2d | ops.DepthwiseConv2d | ops.AvgPool | ops.MaxPool, x: Tensor) -> str | None:
    """SAME or VALID where the op's padding is that, else None."""
    if op.padding == ops.Padding2d():
        return "VALID"
    match op:
        case ops.Conv2d():
            kernel, dilation = (op.weight.shape[1], op.weight.shape[2]), op.dilation
        case ops.DepthwiseConv2d():
            kernel, dilation = (op.weight.shape[0], op.weight.shape[1]), op.dilation
        case ops.AvgPool() | ops.MaxPool():
            kernel, dilation = op.kernel, (1, 1)
        case _:
            assert_never(op)
    same = ops.same_padding((x.shape[0], x.shape[1]), kernel, op.stride, dilation)
    return "SAME" if op.padding == same else None


def transposed_padding(op: ops.TransposeConv2d, out: Tensor) -> str:
    """SAME or VALID. Raises UnsupportedError for padding that is neither."""
    if op.padding == ops.NO_PADDING:
        return "VALID"
    if op.padding != ops.same_padding(
        (out.shape[0], out.shape[1]), (op.weight.shape[1], op.weight.shape[2]), op.stride
    ):
        raise UnsupportedError(f"a transposed convolution padded by {op.padding}: .tflite says SAME or VALID")
    return "SAME"
