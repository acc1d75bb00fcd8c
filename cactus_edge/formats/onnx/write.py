"""Graph -> bytes of a QDQ ONNX file.

The network is first brought into `onnx_form`. Activations are float32 between a DequantizeLinear and a QuantizeLinear, as the
format has it; weights are int8, biases int32 of scale S_in * S_w, which is what makes ONNX Runtime replace the three by
one integer kernel. A fused activation stands between convolution and QuantizeLinear only where ONNX Runtime removes it there (a
ReLU whose zero point is -128); otherwise it follows on the codes, DequantizeLinear -> Relu -> QuantizeLinear with one scale,
which changes no code that it does not clamp. The bytes are a function of graph and metadata alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.formats.onnx.form import onnx_form
from cactus_edge.formats.onnx.package import onnx_module
from cactus_edge.formats.onnx.read.layout import clip_bounds, keeps_order, stored_columns, stored_image
from cactus_edge.formats.onnx.read.proto import FLOAT, INT8, INT32, UINT8
from cactus_edge.ir import ops
from cactus_edge.ir.arith import INT8_MIN, LARGEST_FLOAT_BIAS
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.version import __version__

OPSET, IR_VERSION = 17, 8
"""Pinned: an old set that every runtime since 2022 reads, with all that QDQ per channel needs."""

BATCH = "N"
"""The symbolic first axis of the file's input and output."""


Bias = Literal["int32", "float32"]
"""How biases are stored: int32 behind a DequantizeLinear, or float32, the only way TensorRT takes.

A float32 bias is f32(b * f32(S_in * S_w)), from which ONNX Runtime and `read_onnx` recover the integer b, |b| <= 2^21.
"""


Relu = Literal["codes", "sum"]
"""Where a fused ReLU stands if the zero point is not -128: on the codes, as ONNX Runtime keeps it exact, or on the sum before it is
quantised, as TensorRT fuses it with the convolution. The same function: rounding is non-decreasing and leaves 0 alone."""


def write_onnx(
    graph: Graph, *, metadata: Mapping[str, bytes] | None = None, bias: Bias = "int32", relu: Relu = "codes"
) -> bytes:
    """The ONNX file that means `graph`, carrying `metadata` (name -> UTF-8 text); `read_onnx` gives both back.

    read_onnx(write_onnx(g)).graph.digest() == onnx_form(g).digest(). Images enter and leave channel first, float32
    [N, C, H, W]. Deterministic. Raises ModelError for an illegal graph, UnsupportedError for what ONNX Runtime was not
    shown to compute exactly, InstallError without the onnx package.
    """
    return _Writer(onnx_form(graph), bias, relu).file(dict(metadata or {}))


class _Writer:
    """Nodes and initializers in file order. Every int8 tensor is a value of its name; its float twin has `_dq` appended."""

    def __init__(self, graph: Graph, bias: Bias, relu: Relu) -> None:
        self.onnx = onnx_module()
        self.graph, self.bias, self.relu = graph, bias, relu
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        readers = Counter(i for node in graph.nodes for i in node.inputs)
        # ONNX Runtime on x86-64 turns int8 codes to uint8 by itself, but leaves in float what reads a tensor with two readers;
        # averages and softmax were shown equal on uint8 codes alone.
        unsigned_only = any(isinstance(node.op, ops.AvgPool | ops.Softmax) for node in graph.nodes)
        self.unsigned = bias == "int32" and (unsigned_only or max(readers.values()) > 1)
        self.taken: set[str] = set()
        # First, so that suffixed names make way for the graph's own.
        self.names = [self._unique(t.name or "tensor") for t in graph.tensors]
        self.real: dict[int, str] = {}

    def file(self, metadata: dict[str, bytes]) -> bytes:
        h = self.onnx.helper
        source, last = self.graph.inputs[0], self.graph.outputs[0]
        self.real[source] = self.names[source]
        for node in self.graph.nodes:
            self._node(node)
        graph = h.make_graph(
            self.nodes, "main", [self._port(source)], [self._port(last)], initializer=self.initializers
        )
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name, model.producer_version = "cactus-edge", __version__
        for name in sorted(metadata):
            try:
                model.metadata_props.add(key=name, value=metadata[name].decode())
            except UnicodeDecodeError as error:
                raise InputError(f"metadata {name!r} is not UTF-8 text, which is all that ONNX stores") from error
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _unique(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def _port(self, index: int) -> Any:
        t = self.graph.tensors[index]
        h, w_c = t.shape[:1], t.shape[1:]
        shape = (w_c[1], *h, w_c[0]) if len(t.shape) == 3 else t.shape
        return self.onnx.helper.make_tensor_value_info(self.names[index], FLOAT, [BATCH, *shape])

    def _emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Appends one node, named after what it writes."""
        node = self.onnx.helper.make_node(kind, inputs, [output], f"{output}/{kind}", **attributes)
        self.nodes.append(node)
        return output

    def _constant(self, wanted: str, values: npt.NDArray[Any], data_type: int) -> str:
        name = self._unique(wanted)
        dtype = {FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4"}[data_type]
        raw = np.ascontiguousarray(values, dtype).tobytes()
        self.initializers.append(self.onnx.TensorProto(name=name, data_type=data_type, dims=values.shape, raw_data=raw))
        return name

    def _quantise(self, source: str, tensor: Tensor, code: str) -> str:
        """QuantizeLinear and DequantizeLinear around the codes of `tensor`, as value `code`; the dequantised value's name."""
        scale = self._constant(f"{code}_scale", np.array(tensor.scale), FLOAT)
        stored = tensor.zero_point - (INT8_MIN if self.unsigned else 0)
        zero_point = self._constant(f"{code}_zero_point", np.array(stored), UINT8 if self.unsigned else INT8)
        self._emit("QuantizeLinear", [source, scale, zero_point], code)
        return self._emit("DequantizeLinear", [code, scale, zero_point], self._unique(f"{code}_dq"))

    def _dequantised(
        self,
        name: str,
        values: npt.NDArray[Any],
        data_type: int,
        scale: npt.NDArray[np.float32],
        shape: tuple[int, ...],
    ) -> str:
        """A constant and its DequantizeLinear, per channel along axis 0 or, with shape (), per tensor."""
        code = self._constant(name, values, data_type)
        scales = self._constant(f"{name}_scale", scale.reshape(shape), FLOAT)
        zero_point = self._constant(f"{name}_zero_point", np.zeros(shape), data_type)
        axis = {"axis": 0} if shape else {}
        return self._emit("DequantizeLinear", [code, scales, zero_point], self._unique(f"{name}_dq"), **axis)

    def _node(self, node: Node) -> None:
        x, out = node.inputs[0], node.output
        source, tensor, name = self.real[x], self.graph.tensors[out], self.names[out]
        activation = ops.Activation.NONE
        match node.op:
            case ops.Quantize():
                value = source
            case ops.Dequantize():
                self._end(node)
                return
            case ops.Reshape():
                value = self._emit("Flatten", [source], self._unique(f"{name}_flat"), axis=1)
            case ops.MaxPool(kernel, stride, padding, activation):
                value = self._emit(
                    "MaxPool",
                    [source],
                    self._unique(f"{name}_max"),
                    kernel_shape=kernel,
                    strides=stride,
                    pads=_pads(padding),
                )
            case ops.AvgPool(kernel, stride, padding):
                value = self._emit(
                    "AveragePool",
                    [source],
                    self._unique(f"{name}_average"),
                    kernel_shape=kernel,
                    strides=stride,
                    pads=_pads(padding),
                    count_include_pad=0,
                )
            case ops.Softmax():
                value = self._emit("Softmax", [source], self._unique(f"{name}_softmax"), axis=-1)
            case ops.Requantize():
                # Concat rescales what it joins; the form admits no other.
                self.real[out] = source
                return
            case ops.Relu():
                value = self._emit("Relu", [source], self._unique(f"{name}_relu"))
            case ops.Mean():
                value = self._emit("GlobalAveragePool", [source], self._unique(f"{name}_mean"))
            case ops.Add(activation):
                value = self._emit("Add", [self.real[i] for i in node.inputs], self._unique(f"{name}_sum"))
            case ops.Concat(axis):
                stored = {0: 2, 1: 3, 2: 1}[axis] if len(tensor.shape) == 3 else 1
                sources = [self.real[i] for i in node.inputs]
                value = self._emit("Concat", sources, self._unique(f"{name}_joined"), axis=stored)
            case ops.Conv2d() | ops.DepthwiseConv2d() | ops.Dense() as op:
                activation = op.activation
                value = self._affine(op, x, source, tensor, name)
            case _:
                raise AssertionError(f"onnx_form admits no {type(node.op).__name__}")
        self._close(value, tensor, name, activation, out)

    def _close(self, value: str, tensor: Tensor, name: str, activation: ops.Activation, out: int) -> None:
        """Quantises a node's float value, with its activation on the side where ONNX Runtime keeps it exact."""
        bounds = clip_bounds(activation)
        if activation is ops.Activation.RELU and (tensor.zero_point == INT8_MIN or self.relu == "sum"):
            value = self._emit("Relu", [value], self._unique(f"{name}_relu"))
        elif activation is not ops.Activation.NONE:
            value = self._quantise(value, tensor, self._unique(f"{name}_before_{activation.value}"))
            if bounds is None:
                value = self._emit("Relu", [value], self._unique(f"{name}_relu"))
            else:
                low, high = (
                    self._constant(f"{name}_{end}", np.array(bound), FLOAT)
                    for end, bound in zip(("min", "max"), bounds, strict=True)
                )
                value = self._emit("Clip", [value, low, high], self._unique(f"{name}_clip"))
        self.real[out] = self._quantise(value, tensor, name)

    def _affine(
        self, op: ops.Conv2d | ops.DepthwiseConv2d | ops.Dense, x: int, source: str, tensor: Tensor, name: str
    ) -> str:
        channels = self.graph.tensors[x].shape[-1]
        attributes: dict[str, Any] = {}
        match op:
            case ops.Conv2d():
                weight, kind = op.weight.transpose(0, 3, 1, 2), "Conv"
                groups = channels // op.weight.shape[3]
            case ops.DepthwiseConv2d():
                weight, kind = op.weight.transpose(2, 0, 1)[:, np.newaxis], "Conv"
                groups = channels
            case ops.Dense():
                weight, kind, groups = stored_columns(op.weight, stored_image(self.graph, x)), "Gemm", 1
                attributes = {"transB": 1}
            case _:
                assert_never(op)
        if not isinstance(op, ops.Dense):
            attributes = {
                "kernel_shape": weight.shape[2:],
                "strides": op.stride,
                "dilations": op.dilation,
                "pads": _pads(op.padding),
                "group": groups,
            }
        shape = () if op.weight_scale.size == 1 and isinstance(op, ops.Dense) else op.weight_scale.shape
        weights = self._dequantised(f"{name}_weight", weight, INT8, op.weight_scale, shape)
        bias_scale = np.float32(self.graph.tensors[x].scale) * op.weight_scale
        if self.bias == "float32":
            if np.abs(op.bias.astype(np.int64)).max(initial=0) > LARGEST_FLOAT_BIAS:
                raise UnsupportedError(f"{name}: a bias beyond 2^21 does not survive as float32; write biases as int32")
            bias = self._constant(f"{name}_bias", op.bias * bias_scale.astype(np.float64), FLOAT)
        else:
            bias = self._dequantised(f"{name}_bias", op.bias, INT32, bias_scale, shape)
        return self._emit(kind, [source, weights, bias], self._unique(f"{name}_sum"), **attributes)

    def _end(self, node: Node) -> None:
        """The graph's output is the dequantised value of its last int8 tensor, under the output's name."""
        x = node.inputs[0]
        if len(self.graph.tensors[x].shape) == 1 and not keeps_order(stored_image(self.graph, x)):
            raise UnsupportedError(
                f"{self.graph.label(len(self.graph.nodes) - 1)}: the output is a flattened image, whose elements "
                "channel-first ONNX orders otherwise"
            )
        last = self.nodes[-1]
        # The last tensor's own DequantizeLinear is the output unless another node reads it too.
        before = self.real[x]
        readers = sum(before in n.input for n in self.nodes)
        if last.output[0] == before and not readers:
            last.output[0] = self.names[node.output]
            last.name = f"{last.output[0]}/DequantizeLinear"
        else:
            twin = next(n for n in self.nodes if n.output[0] == before)
            self._emit("DequantizeLinear", list(twin.input), self.names[node.output])


def _pads(p: ops.Padding2d) -> list[int]:
    """ONNX's order: the beginnings of all axes, then their ends."""
    return [p.top, p.left, p.bottom, p.right]
