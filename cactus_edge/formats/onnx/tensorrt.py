"""TensorRT's rules for explicitly quantised ONNX files, checked on a file's bytes, node by node.

A rule is a row of `RULES`: what it demands, and whether TensorRT's ONNX parser refuses every file that breaks it. Of the rest it
takes many without a word, and reads them otherwise than ONNX defines them or leaves layers in float; so a parser that
accepts a file proves less than these rules do. The parser of TensorRT for RTX 1.7 was asked about one file per rule (tests/formats).

Obeying the rules says that TensorRT takes the file for the quantised network that it is, not which layers it then runs in
int8 (`device.tensorrt` reads that from the engine), nor that its results are those of the integer network.
Sources: NVIDIA TensorRT documentation, "Working with Quantized Types" and "Explicit Quantization"; onnx-tensorrt 10.1
onnxOpImporters.cpp QuantDequantLinearHelper; onnx.ai, QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx.read.model import OnnxModel, read_onnx
from cactus_edge.formats.onnx.read.proto import FLOAT, INT8, decode, parse

WEIGHTED = {"Conv": 0, "Gemm": 0, "MatMul": 1}
"""Operators with weights, and the axis of their outputs in the stored weight (Gemm: with transB)."""

PER_CHANNEL_OPSET = 13
"""The operator set that gave QuantizeLinear and DequantizeLinear an axis."""


@dataclass(frozen=True)
class Violation:
    """One place that breaks one rule; `refused`: the parser refuses whatever breaks it."""

    rule: str
    refused: bool
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Rule:
    """A demand on the file. `check` yields a message per place that breaks it."""

    name: str
    demand: str
    refused: bool
    check: Callable[[_File], Iterator[str]]


class _File:
    """The nodes, the constants by name, and who writes and reads each value."""

    def __init__(self, data: bytes) -> None:
        model = parse(data)
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.nodes = list(model.graph.node)
        self.constants: dict[str, Any] = {t.name: t for t in model.graph.initializer}
        self.writer: dict[str, Any] = {}
        self.readers: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            if node.op_type == "Constant":
                values = [a.t for a in node.attribute if a.name == "value"]
                self.constants.update(zip(node.output, values, strict=False))
            for name in node.output:
                self.writer[name] = node
            for place, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, place))

    def label(self, node: Any) -> str:
        index = next(i for i, n in enumerate(self.nodes) if n is node)
        return f"node {index} {node.op_type} {node.name or (node.output[0] if node.output else '')!r}"

    def quantisers(self) -> Iterator[Any]:
        """QuantizeLinear and DequantizeLinear nodes with a scale; others are no ONNX and refused by the readers."""
        for node in self.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) >= 2:
                yield node

    def weighted(self) -> Iterator[Any]:
        """Convolutions and matrix products."""
        return (n for n in self.nodes if n.op_type in WEIGHTED and len(n.input) >= 2)

    def constant(self, node: Any, place: int) -> Any:
        """The TensorProto at an input of the node; None where it is absent or no constant."""
        return self.constants.get(node.input[place]) if len(node.input) > place else None

    def weight(self, node: Any) -> Any:
        """The constant that a DequantizeLinear reads, directly or through a QuantizeLinear; None for an activation."""
        before = self.writer.get(node.input[0])
        if before is not None and before.op_type == "QuantizeLinear" and len(before.input):
            return self.constant(before, 0)
        return self.constant(node, 0)

    def dequantiser(self, node: Any, place: int) -> Any:
        """The DequantizeLinear that writes an input of the node, or None."""
        before = self.writer.get(node.input[place]) if len(node.input) > place else None
        return before if before is not None and before.op_type == "DequantizeLinear" and len(before.input) > 1 else None


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _size(tensor: Any) -> int:
    return int(np.prod(list(tensor.dims), dtype=np.int64))


def _symmetric(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        if len(node.input) < 3 or not node.input[2]:
            continue
        zero = file.constant(node, 2)
        if zero is not None and _nonzero(zero):
            yield f"{file.label(node)}: a zero point other than 0"


def _form(file: _File) -> Iterator[str]:
    for node in file.nodes:
        if node.op_type.startswith("QLinear") or node.domain not in ("", "ai.onnx"):
            yield f"{file.label(node)}: an operator on codes, expected float ones between DequantizeLinear and QuantizeLinear"


def _constant_zero_point(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        if len(node.input) > 2 and node.input[2] and file.constant(node, 2) is None:
            yield f"{file.label(node)}: its zero point is computed, expected the constant 0"


def _nonzero(tensor: Any) -> bool:
    """Whether any value of a tensor of any integer type is not 0."""
    lists = (tensor.int32_data, tensor.int64_data, tensor.uint64_data, tensor.float_data, tensor.double_data)
    return any(tensor.raw_data) or any(any(values) for values in lists)


def _dequantised_type(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        data = file.constant(node, 0)
        if node.op_type == "DequantizeLinear" and data is not None and data.data_type != INT8:
            yield f"{file.label(node)} takes data type {data.data_type}, expected int8 (a bias: float32 without it)"


def _code_type(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        if node.op_type != "QuantizeLinear":
            continue
        zero = file.constant(node, 2)
        if zero is not None and zero.data_type != INT8:
            yield f"{file.label(node)}: a zero point of data type {zero.data_type}, expected int8, which TensorRT takes it for"
        elif len(node.input) < 3 and _attribute(node, "output_dtype", 0) != INT8:
            yield f"{file.label(node)}: no zero point, which is uint8 in ONNX and int8 in TensorRT"


def _scales(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        scale = file.constant(node, 1)
        if scale is not None and scale.data_type == FLOAT:
            values = decode(scale, file.label(node))
            if not values.size or not (values > 0).all():
                yield f"{file.label(node)}: a scale that is not above 0"
            zero = file.constant(node, 2)
            if zero is not None and _size(zero) != values.size:
                yield f"{file.label(node)}: {values.size} scales and {_size(zero)} zero points"


def _scale_constant(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        scale = file.constant(node, 1)
        if scale is None:
            yield f"{file.label(node)}: its scale is computed, expected a constant"
        elif scale.data_type != FLOAT:
            yield f"{file.label(node)}: a scale of data type {scale.data_type}, expected float32"
        elif not np.isfinite(decode(scale, file.label(node))).all():
            yield f"{file.label(node)}: a scale that is not finite"


def _per_tensor(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        scale, data = file.constant(node, 1), file.constant(node, 0)
        activation = data is None and (node.op_type == "QuantizeLinear" or file.weight(node) is None)
        if scale is not None and activation and _size(scale) != 1:
            yield f"{file.label(node)}: {_size(scale)} scales for an activation, expected one"


def _per_channel(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        scale, weight = file.constant(node, 1), file.constant(node, 0)
        if scale is None or weight is None or _size(scale) == 1:
            continue
        if file.opset < PER_CHANNEL_OPSET:
            yield f"{file.label(node)}: scales per channel in operator set {file.opset}, expected {PER_CHANNEL_OPSET} or newer"
        axis = _attribute(node, "axis", 1)
        axis += len(weight.dims) if axis < 0 else 0
        for reader, place in file.readers.get(node.output[0], []):
            outputs = WEIGHTED.get(reader.op_type, axis)
            if reader.op_type == "Gemm" and not _attribute(reader, "transB", 0):
                outputs = 1
            if place == 1 and axis != outputs:
                yield f"{file.label(node)}: scales along axis {axis}, expected the outputs' axis {outputs} of {reader.op_type}"


def _quantised_inputs(file: _File) -> Iterator[str]:
    for node in file.weighted():
        data, weight = file.dequantiser(node, 0), file.dequantiser(node, 1)
        if data is None:
            yield f"{file.label(node)}: its input is no result of a DequantizeLinear"
        if weight is None or file.weight(weight) is None:
            yield f"{file.label(node)}: its weight is no constant behind a DequantizeLinear"


def _float_bias(file: _File) -> Iterator[str]:
    for node in file.weighted():
        bias = file.constant(node, 2)
        if len(node.input) > 2 and node.input[2] and (bias is None or bias.data_type != FLOAT):
            yield f"{file.label(node)}: its bias is no float32 constant"


def _weight_range(file: _File) -> Iterator[str]:
    for node in file.quantisers():
        data = file.constant(node, 0)
        if data is not None and data.data_type == INT8 and (decode(data, file.label(node)) < -127).any():
            yield f"{file.label(node)}: a weight of -128, expected -127 to 127"


RULES: tuple[Rule, ...] = (
    Rule("QDQ form", "operators are ONNX's own, on dequantised values", True, _form),
    Rule("symmetric", "no zero point is other than 0", True, _symmetric),
    Rule("dequantised type", "DequantizeLinear takes int8, never int32 or uint8", True, _dequantised_type),
    Rule("scale", "scales are above 0, and as many as zero points", True, _scales),
    Rule("constant scale", "scales are finite float32 constants", False, _scale_constant),
    Rule("constant zero point", "zero points are constants", False, _constant_zero_point),
    Rule("int8 codes", "QuantizeLinear has a zero point of int8, which names its type", False, _code_type),
    Rule("per tensor", "an activation has one scale", False, _per_tensor),
    Rule("per channel", "a weight has one scale, or one per output", False, _per_channel),
    Rule("quantised inputs", "input and weight come from a DequantizeLinear", False, _quantised_inputs),
    Rule("float bias", "a bias is a float32 constant", False, _float_bias),
    Rule("weight range", "weights are -127 to 127", False, _weight_range),
)
"""Every rule, the parser's own first."""


def violations(data: bytes) -> tuple[Violation, ...]:
    """What in the ONNX file `data` breaks TensorRT's rules, rule by rule; empty where nothing does.

    Raises ModelError where the bytes are no ONNX file that `proto.parse` admits.
    """
    file = _File(data)
    return tuple(Violation(r.name, r.refused, message) for r in RULES for message in r.check(file))


def require_tensorrt(data: bytes) -> None:
    """Raises UnsupportedError, naming what breaks TensorRT's rules."""
    found = violations(data)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UnsupportedError(
            f"the file breaks TensorRT's rules: {'; '.join(map(str, found[:3]))}{more}",
            hint="quantise activations symmetrically and write biases as float32",
        )


def read_tensorrt(data: bytes) -> OnnxModel:
    """`read_onnx` of a file that obeys TensorRT's rules. Raises what the two raise."""
    require_tensorrt(data)
    model = read_onnx(data)
    if model.rounded:
        raise UnsupportedError(
            "a float32 bias is no multiple of input scale times weight scale: TensorRT does not round it"
        )
    return model
