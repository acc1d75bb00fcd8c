"""ONNX files of one operator between QuantizeLinear and DequantizeLinear, in either form, for the tests of the reader."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Codes = type[np.int8] | type[np.uint8]

Parameters = tuple[float, int]
"""Scale, and zero point as int8 codes have it; a file of uint8 codes holds 128 more."""


class File:
    """Nodes and initializers of a growing file, float32 [N, *shape] in and out."""

    def __init__(self, shape: tuple[int, ...], codes: Codes = np.uint8, batch: str | int = "N") -> None:
        self.shape, self.codes, self.batch = shape, codes, batch
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, values: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}", domain=domain, **attributes))
        return output

    def parameters(self, name: str, p: Parameters, codes: Codes | None = None) -> list[str]:
        codes = codes or self.codes
        stored = codes(p[1] + (128 if codes is np.uint8 else 0))
        return [self.constant(f"{name}_scale", np.float32(p[0])), self.constant(f"{name}_zero", stored)]

    def rounded(self, source: str, p: Parameters, name: str, codes: Codes | None = None, domain: str = "") -> str:
        """`source` as codes and back; `name` is the real value, `name`_codes the codes."""
        q = self.parameters(name, p, codes)
        self.node("QuantizeLinear", [source, *q], f"{name}_codes", domain)
        return self.node("DequantizeLinear", [f"{name}_codes", *q], name, domain)

    def weight(self, name: str, values: Any, scale: Any, zero: int = 0, codes: Codes = np.int8) -> str:
        """A constant behind a DequantizeLinear, per channel along axis 0 where it has several scales."""
        scale = np.asarray(scale, np.float32)
        parts = [self.constant(f"{name}_codes", np.asarray(values, codes)), self.constant(f"{name}_scale", scale)]
        parts.append(self.constant(f"{name}_zero", np.full(scale.shape, zero, codes)))
        return self.node("DequantizeLinear", parts, name, axis=0)

    def bytes(self, output: str, opset: int = 17) -> bytes:
        """The file whose output is the value `output`."""
        ports = [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, [self.batch, *self.shape]),
            helper.make_tensor_value_info(output, TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(self.nodes, "one", ports[:1], ports[1:], self.initializers)
        sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        data: bytes = helper.make_model(graph, opset_imports=sets, ir_version=10).SerializeToString()
        return data


def one(
    kind: str,
    shape: tuple[int, ...],
    before: Parameters,
    after: Parameters | None = None,
    constants: tuple[Any, ...] = (),
    codes: Codes = np.uint8,
    opset: int = 17,
    **attributes: Any,
) -> bytes:
    """input -> codes -> the operator -> codes (of the input's parameters, if not said otherwise) -> output."""
    f = File(shape, codes)
    source = f.rounded("input", before, "x")
    names = [f.constant(f"operand_{i}", v) if v is not None else "" for i, v in enumerate(constants)]
    result = f.node(kind, [source, *names], "result", **attributes)
    return f.bytes(f.rounded(result, after or before, "y"), opset)


def one_on_codes(
    kind: str,
    shape: tuple[int, ...],
    before: Parameters,
    after: Parameters | None = None,
    codes: Codes = np.uint8,
    domain: str = "",
    constants: tuple[Any, ...] = (),
    **attributes: Any,
) -> bytes:
    """The QOperator form: input -> codes -> the operator on codes -> output; without `after` it keeps scale and zero point."""
    f = File(shape, codes)
    f.rounded("input", before, "x")
    q = ["x_scale", "x_zero"] if after is None else f.parameters("y", after)
    operands = [] if after is None else ["x_scale", "x_zero", *q]
    names = [f.constant(f"operand_{i}", v) for i, v in enumerate(constants)]
    f.node(kind, ["x_codes", *operands, *names], "y_codes", domain, **attributes)
    return f.bytes(f.node("DequantizeLinear", ["y_codes", *q], "output"))


def two(
    kind: str,
    scales: tuple[Parameters, Parameters, Parameters],
    shape: tuple[int, ...] = (256, 256),
    codes: Codes = np.uint8,
    second: tuple[int, ...] | None = None,
    **attributes: Any,
) -> bytes:
    """An operator of two arguments, which a convolution of weight 1 cuts out of channels 0 and 1 of the input.

    Each is a code of the input (scale 1, zero point 0) brought to its own zero point. second: the shape to which a global
    average brings the second, None for that of the image.
    """
    f = File((2, *shape), codes)
    source = f.rounded("input", (1.0, 0), "x")
    parts = []
    for i, p in enumerate(scales[:2]):
        weight = np.zeros((1, 2, 1, 1))
        weight[0, i] = 1
        part = f.node("Conv", [source, f.weight(f"w{i}", weight, p[0])], f"c{i}")
        part = f.rounded(part, p, f"p{i}")
        if i and second:
            part = f.rounded(f.node("GlobalAveragePool", [part], "average"), p, "pixel")
        parts.append(part)
    return f.bytes(f.rounded(f.node(kind, parts, "result", **attributes), scales[2], "y"))


def every_operator(codes: Codes = np.uint8) -> bytes:
    """A network of every operator that has a rule, in one chain, with the names that exporters leave in between."""
    rng = np.random.default_rng(7)
    f = File((2, 6, 6), codes)
    p = (1 / 16, 3)

    def step(
        kind: str, source: str, name: str, after: Parameters = p, constants: tuple[Any, ...] = (), **a: Any
    ) -> str:
        names = [f.constant(f"{name}_{i}", v) if v is not None else "" for i, v in enumerate(constants)]
        return f.rounded(f.node(kind, [source, *names], f"{name}_real", **a), after, name)

    def conv(source: str, name: str, shape: tuple[int, ...], after: Parameters = p, **a: Any) -> str:
        weight = f.weight(f"{name}_w", rng.integers(-127, 128, shape), np.linspace(0.01, 0.02, shape[0]))
        return f.rounded(f.node("Conv", [source, weight], f"{name}_real", **a), after, name)

    x = conv(f.rounded("input", p, "x"), "stem", (4, 2, 3, 3), auto_pad="SAME_UPPER")
    x = step("LeakyRelu", x, "leaky", (1 / 20, -5), alpha=0.25)
    x = step("HardSwish", x, "swish", (1 / 24, -60))
    x = step("Pad", x, "pad", (1 / 24, -60), (np.array([0, 0, 1, 0, 0, 0, 0, 1]),))
    x = step("AveragePool", x, "average", (1 / 32, -9), kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 0, 1])
    x = step(
        "Slice", x, "slice", (1 / 32, -9), (np.array([0, 1]), np.array([3, 7]), np.array([2, 3]), np.array([1, 2]))
    )
    x = step("Transpose", x, "turned", (1 / 32, -9), perm=[0, 1, 3, 2])
    factors = np.array([1, 1, 2, 2], np.float32)
    x = step("Resize", x, "grown", (1 / 32, -9), (None, factors), mode="nearest")
    x = step("MaxPool", x, "pool", (1 / 32, -9), kernel_shape=[2, 2], strides=[1, 1])
    if codes is np.uint8:  # branches of int8 codes stay in float
        gate = step("GlobalAveragePool", x, "gate", (1 / 40, -30))
        gate = step("Sigmoid", conv(gate, "weigh", (4, 4, 1, 1)), "sigmoid", (1 / 256, -128))
        x = f.rounded(f.node("Mul", [x, gate], "scaled_real"), (1 / 40, 3), "scaled")
    x = step("Tanh", x, "tanh", (1 / 128, 0))
    x = step("GlobalMaxPool", x, "most", (1 / 128, 0))
    x = step("Squeeze", x, "squeezed", (1 / 128, 0), (np.array([2, 3]),))
    x = step("Unsqueeze", x, "back", (1 / 128, 0), (np.array([3, 2]),))
    x = step("Reshape", f.node("Dropout", [x], "dropped"), "flat", (1 / 128, 0), (np.array([0, -1]),))
    dense = f.weight("dense", rng.integers(-127, 128, (3, 4)), 0.02)
    x = f.node("Identity", [f.node("Gemm", [x, dense], "product", transB=1)], "same")
    return f.bytes(f.rounded(x, (1 / 10, 2), "y"))
